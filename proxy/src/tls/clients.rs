//! The certificates that are asked of clients.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::ClientSettings;
use super::certificates::{chain, read};
use crate::settings::{SettingsError, error};

impl ClientSettings {
    /// The bytes of the file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, SettingsError> {
        read("client authorities' file", &self.ca)
    }

    /// Makes a verifier of what was [read](ClientSettings::read).
    ///
    /// # Errors
    /// Nobody could be verified by it.
    pub fn parse(&self, pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, SettingsError> {
        let unusable = |why: &dyn std::fmt::Display| {
            error(
                format!("{} cannot verify clients: {why}", self.ca.display()),
                "give the certificates of the authorities that issue the clients' certificates",
            )
        };
        let mut roots = RootCertStore::empty();
        for certificate in chain(&self.ca, pem)? {
            roots.add(certificate).map_err(|why| unusable(&why))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), default_provider().into());
        let verifier = if self.required { verifier } else { verifier.allow_unauthenticated() };
        verifier.build().map_err(|why| unusable(&why))
    }
}
