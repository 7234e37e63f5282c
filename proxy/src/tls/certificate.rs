//! What a certificate says: for which names it is, for how long, and who shows it.

use overlane_config::time::UnixMillis;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What is read of a certificate; whether it is true, is for others to verify.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// The first URI of the subject's alternative names: where SPIFFE ids are.
    uri: Option<String>,
    /// The host names.
    hosts: Vec<String>,
    /// The common name.
    common: Option<String>,
    /// From when on it is valid.
    pub from: UnixMillis,
    /// Until when.
    pub until: UnixMillis,
}

impl Said {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// It is no certificate.
    pub fn read(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let mut said = Self {
            from: millis(certificate.validity().not_before.timestamp()),
            until: millis(certificate.validity().not_after.timestamp()),
            ..Self::default()
        };
        let common = certificate.subject().iter_common_name().next();
        said.common = common.and_then(|name| name.as_str().ok()).map(str::to_owned);
        let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) if said.uri.is_none() => said.uri = Some((*uri).to_owned()),
                GeneralName::DNSName(host) => said.hosts.push(host.to_ascii_lowercase()),
                _ => {}
            }
        }
        Ok(said)
    }

    /// The host names that it is for, in lower case. A common name counts where there are no others.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match &self.common {
            Some(common) if self.hosts.is_empty() => vec![common.to_ascii_lowercase()],
            _ => self.hosts.clone(),
        }
    }

    /// Who shows it: the first URI (a SPIFFE id), else the first host name, else the common name.
    #[must_use]
    pub fn identity(self) -> Option<Box<str>> {
        // An authority may let people choose their common names: none may pass for a URI.
        let common = self.common.filter(|name| !name.contains("://"));
        self.uri.or_else(|| self.hosts.into_iter().next()).or(common).map(Into::into)
    }

    /// Why it is of no use `now`, if so.
    #[must_use]
    pub fn untimely(&self, now: UnixMillis) -> Option<String> {
        if now > self.until {
            return Some(format!("expired at {}", self.until));
        }
        (now < self.from).then(|| format!("is not valid before {}", self.from))
    }
}

fn millis(seconds: i64) -> UnixMillis {
    UnixMillis(u64::try_from(seconds).unwrap_or_default().saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn said(common: Option<&str>, names: Vec<SanType>) -> Said {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(common) = common {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        params.subject_alt_names = names;
        let key = KeyPair::generate().expect("key");
        Said::read(params.self_signed(&key).expect("certificate").der()).expect("is one")
    }

    #[test]
    fn the_identity_is_the_first_uri_else_the_first_host_else_the_common_name() {
        let host = |name: &str| SanType::DnsName(name.try_into().expect("name"));
        let uri = |uri: &str| SanType::URI(uri.try_into().expect("uri"));
        for (common, names, identity) in [
            (
                Some("me"),
                vec![host("a.example"), uri("spiffe://mesh/web"), uri("urn:2")],
                Some("spiffe://mesh/web"),
            ),
            (Some("me"), vec![host("A.example"), host("b.example")], Some("a.example")),
            (Some("me"), vec![], Some("me")),
            (Some("spiffe://mesh/web"), vec![], None),
            (None, vec![], None),
        ] {
            assert_eq!(said(common, names).identity().as_deref(), identity);
        }
    }

    #[test]
    fn a_common_name_is_a_host_only_where_there_is_no_other() {
        let host = |name: &str| SanType::DnsName(name.try_into().expect("name"));
        assert_eq!(said(Some("Old.example"), vec![]).names(), ["old.example"]);
        assert_eq!(
            said(Some("x"), vec![host("*.a.example"), host("a.example")]).names(),
            ["*.a.example", "a.example"]
        );
    }

    #[test]
    fn a_certificate_is_of_use_from_its_first_to_its_last_moment() {
        let said = Said { from: UnixMillis(2000), until: UnixMillis(5000), ..Said::default() };
        assert_eq!(
            said.untimely(UnixMillis(1000)).as_deref(),
            Some("is not valid before 1970-01-01T00:00:02Z")
        );
        assert_eq!((said.untimely(UnixMillis(2000)), said.untimely(UnixMillis(5000))), (None, None));
        assert_eq!(said.untimely(UnixMillis(6000)).as_deref(), Some("expired at 1970-01-01T00:00:05Z"));
    }

    #[test]
    fn what_is_no_certificate_is_not_read() {
        assert!(Said::read(b"").is_err() && Said::read(&[0x30; 64]).is_err());
    }
}
