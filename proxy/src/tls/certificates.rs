//! The certificates that listeners show, and which of them a client gets.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, SignatureScheme};

use super::certificate::Said;
use crate::clock;
use crate::settings::{SettingsError, error};

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate in PEM, and after it those of intermediate authorities.
    pub certificate: PathBuf,
    /// Its key in PEM.
    pub key: PathBuf,
}

/// A certificate that can be shown, and its key.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// What it says.
    pub said: Said,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// It, and its key.
    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }
}

impl Pair {
    /// The bytes of both files.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn read(&self) -> Result<[Vec<u8>; 2], SettingsError> {
        Ok([read("certificate", &self.certificate)?, read("key", &self.key)?])
    }

    /// Makes a certificate of what was [read](Pair::read).
    ///
    /// # Errors
    /// Why clients would not take it, or it cannot be shown.
    pub fn parse(&self, [certificate, key]: &[Vec<u8>; 2]) -> Result<Certificate, SettingsError> {
        let (at, key_at) = (self.certificate.display(), self.key.display());
        let chain = chain(&self.certificate, certificate)?;
        let said = Said::read(&chain[0]).map_err(|why| {
            error(format!("the certificate {at} cannot be read: {why}"), "issue it anew, as X.509 version 3")
        })?;
        if let Some(untimely) = said.untimely(clock::now()) {
            return Err(error(format!("the certificate {at} {untimely}"), "renew it, or correct the clock"));
        }
        let key = private_key(&self.key, key)?;
        let key = CertifiedKey::from_der(chain, key, &default_provider()).map_err(|why| match why {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => error(
                format!("the key {key_at} does not belong to the certificate {at}"),
                "give the key of the first certificate in the file; intermediates come after it",
            ),
            why => error(
                format!("the certificate {at} cannot be used with the key {key_at}: {why}"),
                "use an RSA key of at least 2048 bits, or P-256, P-384 or Ed25519",
            ),
        })?;
        Ok(Certificate { said, key: Arc::new(key) })
    }
}

/// Reads a file that a setting names.
///
/// # Errors
/// It cannot be read.
pub(super) fn read(what: &str, path: &Path) -> Result<Vec<u8>, SettingsError> {
    std::fs::read(path).map_err(|why| {
        error(format!("cannot read the {what} {}: {why}", path.display()), "check its path and permissions")
    })
}

/// The certificates in a file, at least one.
///
/// # Errors
/// There is none.
pub(super) fn chain(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| {
        error(
            format!("{} has no certificate in PEM", path.display()),
            "it begins with `-----BEGIN CERTIFICATE-----`; `openssl x509 -inform der` makes PEM of DER",
        )
    })
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, SettingsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        let encrypted = pem.windows(9).any(|word| word == b"ENCRYPTED");
        let (what, hint) = match encrypted {
            true => ("an encrypted key", "`openssl pkey -in FILE -out FILE` decrypts it"),
            false => (
                "no key in PEM",
                "it begins with `-----BEGIN PRIVATE KEY-----`, or `EC` or `RSA` before `PRIVATE`",
            ),
        };
        error(format!("{} has {what}", path.display()), hint)
    })
}

/// Chooses by the host that a client names.
#[derive(Debug)]
pub struct ByHost {
    all: Vec<Arc<CertifiedKey>>,
    /// The certificates for a host, or for the hosts under a domain (`*.example.com`).
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl ByHost {
    /// Chooses among these; the first is for who names no host that one of them has.
    #[must_use]
    pub fn new<'c>(certificates: impl Iterator<Item = &'c Certificate>) -> Self {
        let mut chooser = Self { all: Vec::new(), by_name: HashMap::new() };
        for Certificate { said, key } in certificates {
            chooser.all.push(key.clone());
            for name in said.names() {
                chooser.by_name.entry(name).or_default().push(key.clone());
            }
        }
        chooser
    }

    /// The certificate for a host: its own, else that of its domain, else the first. Where there are
    /// several, the first whose key the client understands.
    fn choose(&self, host: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<CertifiedKey>> {
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        let of = |name: &str| self.by_name.get(name)?.iter().find(fits);
        let host = host.map(|host| host.trim_end_matches('.').to_ascii_lowercase());
        let own = host.as_deref().and_then(of);
        let domain = || host.as_deref()?.split_once('.').and_then(|(_, domain)| of(&format!("*.{domain}")));
        own.or_else(domain).or_else(|| self.all.iter().find(fits))
    }
}

impl ResolvesServerCert for ByHost {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm};
    use std::fs;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("folder"))
        }

        /// Writes a pair of files for the hosts.
        fn pair(&self, name: &str, hosts: &[&str], kind: &'static SignatureAlgorithm) -> Pair {
            let key = KeyPair::generate_for(kind).expect("key");
            let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
            let certificate = CertificateParams::new(hosts).and_then(|params| params.self_signed(&key));
            self.write(name, certificate.expect("certificate").pem(), key.serialize_pem())
        }

        fn write(&self, name: &str, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Pair {
            let path = self.0.path().join(name);
            let pair = Pair { certificate: path.with_extension("crt"), key: path.with_extension("key") };
            fs::write(&pair.certificate, certificate).expect("write");
            fs::write(&pair.key, key).expect("write");
            pair
        }
    }

    fn load(pair: &Pair) -> Result<Certificate, SettingsError> {
        pair.parse(&pair.read()?)
    }

    #[test]
    fn a_host_gets_its_own_certificate_else_its_domains_else_the_first() {
        let folder = Folder::new();
        let names: [&[&str]; 3] =
            [&["first.example"], &["*.shop.example"], &["www.shop.example", "shop.example"]];
        let all: Vec<_> = (0..3)
            .map(|at| load(&folder.pair(&at.to_string(), names[at], &PKCS_ECDSA_P256_SHA256)).expect("good"))
            .collect();
        let chooser = ByHost::new(all.iter());
        for (host, expected) in [
            (Some("www.shop.example"), 2),
            (Some("WWW.Shop.Example"), 2),
            (Some("shop.example"), 2),
            (Some("api.shop.example"), 1),
            (Some("a.b.shop.example"), 0),
            (Some("*.shop.example"), 1),
            (Some("strange.example"), 0),
            (Some("example"), 0),
            (Some(""), 0),
            (None, 0),
        ] {
            let chosen = chooser.choose(host, &[SignatureScheme::ECDSA_NISTP256_SHA256]).expect("one");
            assert!(Arc::ptr_eq(chosen, &all[expected].key), "{host:?}");
        }
    }

    #[test]
    fn of_two_certificates_for_a_host_the_client_gets_one_that_it_understands() {
        let folder = Folder::new();
        let edwards = load(&folder.pair("edwards", &["a.example"], &PKCS_ED25519)).expect("good");
        let nist = load(&folder.pair("nist", &["a.example"], &PKCS_ECDSA_P256_SHA256)).expect("good");
        let chooser = ByHost::new([&edwards, &nist].into_iter());
        for host in [Some("a.example"), None] {
            let chosen = chooser.choose(host, &[SignatureScheme::ECDSA_NISTP256_SHA256]);
            assert!(chosen.is_some_and(|chosen| Arc::ptr_eq(chosen, &nist.key)));
            let chosen = chooser.choose(host, &[SignatureScheme::ED25519]);
            assert!(chosen.is_some_and(|chosen| Arc::ptr_eq(chosen, &edwards.key)));
            assert!(chooser.choose(host, &[SignatureScheme::RSA_PKCS1_SHA256]).is_none());
        }
    }

    #[test]
    fn a_bad_pair_is_an_error_that_names_the_file_and_the_remedy() {
        let folder = Folder::new();
        let good = folder.pair("good", &["a.example"], &PKCS_ED25519);
        let other = folder.pair("other", &["a.example"], &PKCS_ED25519);
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).expect("params");
        params.not_after = rcgen::date_time_ymd(2001, 2, 3);
        let expired = params.self_signed(&key).expect("certificate").pem();
        params.not_before = rcgen::date_time_ymd(2999, 1, 1);
        params.not_after = rcgen::date_time_ymd(2999, 2, 3);
        let early = params.self_signed(&key).expect("certificate").pem();
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let pem = fs::read(&good.certificate).expect("read");
        for (pair, message, hint) in [
            (
                Pair { key: "/nowhere/x.key".into(), ..good.clone() },
                "cannot read the key /nowhere/x.key",
                "path",
            ),
            (
                Pair { key: other.key, ..good.clone() },
                "other.key does not belong to the certificate",
                "first",
            ),
            (
                folder.write("expired", expired, key.serialize_pem()),
                "expired at 2001-02-03T00:00:00Z",
                "renew",
            ),
            (folder.write("early", early, key.serialize_pem()), "is not valid before 2999-01-01", "clock"),
            (folder.write("empty", "", key.serialize_pem()), "empty.crt has no certificate in PEM", "BEGIN"),
            (folder.write("garbage", garbage, key.serialize_pem()), "garbage.crt cannot be read", "anew"),
            (folder.write("no-key", &pem, "x"), "no-key.key has no key in PEM", "BEGIN PRIVATE KEY"),
            (
                folder.write("encrypted", &pem, encrypted),
                "encrypted.key has an encrypted key",
                "openssl pkey",
            ),
        ] {
            let refused = load(&pair).expect_err(message);
            assert!(refused.message.contains(message), "{refused}");
            assert!(refused.hint.as_deref().is_some_and(|told| told.contains(hint)), "{refused:?}");
        }
        assert!(load(&good).is_ok());
    }
}
