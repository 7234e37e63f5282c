//! Where an etcd is, and which of its keys are a store.

use std::fmt;
use std::str::FromStr;

/// Where keys are by default.
const PREFIX: &str = "overlane";
/// Where etcd listens by default.
const PORT: u16 = 2379;

/// Where one member of an etcd is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it speaks TLS, where its scheme says so; else as other settings have it.
    pub tls: Option<bool>,
    /// Its host, an IPv6 one in brackets.
    host: String,
    /// Its port.
    pub port: u16,
}

impl Endpoint {
    /// Its host, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether it is on this machine: what is sent to it is seen by nobody else.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = self.host();
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Its host and port.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tls, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some(true), rest),
            Some(("http", rest)) => (Some(false), rest),
            Some((scheme, _)) => return Err(format!("etcd speaks `http` and `https`, not `{scheme}`")),
            None => (None, text),
        };
        if rest.contains('@') {
            return Err(
                "users and passwords are not part of an address: set ETCDCTL_USER and ETCDCTL_PASSWORD"
                    .to_owned(),
            );
        }
        let authority: http::uri::Authority = rest
            .parse()
            .map_err(|_| format!("`{text}` is no address of an etcd, such as `127.0.0.1:{PORT}`"))?;
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => PORT,
            _ => authority.port_u16().ok_or_else(|| format!("`{text}` has no port that there can be"))?,
        };
        Ok(Self { tls, host: authority.host().to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.tls {
            Some(true) => "https://",
            Some(false) => "http://",
            None => "",
        };
        write!(f, "{scheme}{}:{}", self.host, self.port)
    }
}

/// Where a store in etcd is: `ENDPOINTS[/prefix]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdAddress {
    /// Its members, or some of them; not empty.
    pub endpoints: Vec<Endpoint>,
    /// Without slashes around it.
    prefix: String,
}

impl EtcdAddress {
    /// What the keys of this store begin with, such as `/overlane/`.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("/{}/", self.prefix)
    }
}

impl FromStr for EtcdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let after_scheme = text.rfind("://").map_or(0, |at| at + 3);
        let (endpoints, prefix) = match text[after_scheme..].find('/') {
            Some(at) => (&text[..after_scheme + at], text[after_scheme + at..].trim_matches('/')),
            None => (text, PREFIX),
        };
        let endpoints: Vec<Endpoint> = endpoints.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let prefix = if prefix.is_empty() { PREFIX } else { prefix };
        Ok(Self { endpoints, prefix: prefix.to_owned() })
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("etcd:")?;
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{endpoint}")?;
        }
        write!(f, "/{}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_members_and_a_prefix() {
        for (written, shown, prefix) in [
            ("127.0.0.1", "etcd:127.0.0.1:2379/overlane", "/overlane/"),
            ("127.0.0.1:1/", "etcd:127.0.0.1:1/overlane", "/overlane/"),
            (
                "https://a:1,https://b/teams/shop/",
                "etcd:https://a:1,https://b:2379/teams/shop",
                "/teams/shop/",
            ),
            ("http://[::1]:7,b:8/x", "etcd:http://[::1]:7,b:8/x", "/x/"),
            ("[::1]", "etcd:[::1]:2379/overlane", "/overlane/"),
        ] {
            let address: EtcdAddress = written.parse().expect(written);
            assert_eq!((address.to_string().as_str(), address.prefix().as_str()), (shown, prefix));
            let again = address.to_string();
            assert_eq!(again.strip_prefix("etcd:").map(str::parse), Some(Ok(address)), "{written}");
        }
        let address: EtcdAddress = "[::1]:7".parse().expect("address");
        assert_eq!(
            (address.endpoints[0].host(), address.endpoints[0].authority().as_str()),
            ("::1", "[::1]:7")
        );
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_remedy() {
        for (written, why) in [
            ("", "no address"),
            ("a:1,,b:2", "no address"),
            ("ftp://a", "`http` and `https`"),
            ("root:secret@a:1", "ETCDCTL_USER"),
            ("a:99999", "port"),
            ("a:", "port"),
            ("a b", "no address"),
        ] {
            let error = written.parse::<EtcdAddress>().expect_err(written);
            assert!(error.contains(why) && !error.contains("secret"), "{written}: {error}");
        }
    }
}
