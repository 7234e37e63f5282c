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

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    #[test]
    fn a_file_without_a_good_authority_verifies_nobody() {
        let settings = ClientSettings { ca: "ca.pem".into(), required: true };
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (pem, message) in
            [("", "ca.pem has no certificate in PEM"), (garbage, "ca.pem cannot verify clients")]
        {
            let refused = settings.parse(pem.as_bytes()).expect_err(message);
            assert!(refused.message.contains(message) && refused.hint.is_some(), "{refused}");
        }
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&KeyPair::generate().expect("key")).expect("certificate").pem();
        for required in [true, false] {
            let settings = ClientSettings { required, ..settings.clone() };
            let verifier = settings.parse(format!("{pem}{pem}").as_bytes()).expect("good");
            assert_eq!(verifier.client_auth_mandatory(), required);
        }
    }
}
