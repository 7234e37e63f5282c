//! Hosts outside of the lineages to which the key may go.

use std::net::IpAddr;
use std::str::FromStr;

use crate::name::printable;

/// A host, `shop.example.com` or an address, or all hosts below a domain, `*.example.com`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    /// In lower case; begins with a dot where it stands for all hosts below.
    text: Box<str>,
}

/// The hosts that some patterns name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts(Box<[HostPattern]>);

impl HostPattern {
    /// Whether a host, without port, is meant.
    #[must_use]
    pub fn has(&self, host: &str) -> bool {
        if !self.text.starts_with('.') {
            return host.eq_ignore_ascii_case(&self.text);
        }
        let Some(start) = host.len().checked_sub(self.text.len()).filter(|start| *start > 0) else {
            return false;
        };
        host.as_bytes()[start..].eq_ignore_ascii_case(self.text.as_bytes())
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let part = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            !part.is_empty() && part.len() <= 63 && part.bytes().all(plain)
        };
        let is_name = name.len() <= 253 && name.split('.').all(part);
        if !is_name && text.parse::<IpAddr>().is_err() {
            return Err(format!(
                "`{}` is no host: write `shop.example.com`, `*.example.com` or an address, without port",
                printable(text, 80)
            ));
        }
        let text = text.strip_prefix('*').unwrap_or(text).to_ascii_lowercase();
        Ok(Self { text: text.into() })
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", if self.text.starts_with('.') { "*" } else { "" }, self.text)
    }
}

impl Hosts {
    /// Whether a host, without port, is among them.
    #[must_use]
    pub fn has(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        self.0.iter().any(|pattern| pattern.has(host))
    }

    /// The patterns.
    pub fn iter(&self) -> impl Iterator<Item = &HostPattern> {
        self.0.iter()
    }
}

impl FromIterator<HostPattern> for Hosts {
    fn from_iter<I: IntoIterator<Item = HostPattern>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_one_host_or_all_below_a_domain() {
        let hosts: Hosts = ["Shop.Example.com", "*.partner.example", "10.0.0.7", "::1"]
            .into_iter()
            .map(|text| text.parse::<HostPattern>().unwrap())
            .collect();
        for (host, expected) in [
            ("shop.example.com", true),
            ("SHOP.example.com.", true),
            ("a.shop.example.com", false),
            ("a.partner.example", true),
            ("a.b.PARTNER.example", true),
            ("partner.example", false),
            (".partner.example", false),
            ("evilpartner.example", false),
            ("10.0.0.7", true),
            ("10.0.0.70", false),
            ("::1", true),
            ("", false),
        ] {
            assert_eq!(hosts.has(host), expected, "{host}");
        }
        assert_eq!(
            hosts.iter().map(ToString::to_string).collect::<Vec<_>>()[..2],
            ["shop.example.com", "*.partner.example"]
        );
    }

    #[test]
    fn what_is_no_host_is_no_pattern() {
        for text in ["", "*", "*.", "a*.example.com", "shop.example.com:80", "http://shop", "a..b", "é"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }
}
