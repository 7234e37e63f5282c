//! Whose overlay headers mean something.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// The peers from whom our headers are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// From everybody.
    Any,
    /// From nobody.
    Nobody,
    /// From these.
    These(Vec<Trusted>),
}

/// Peers that are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trusted {
    /// Those in a network.
    Network(IpNet),
    /// Those whose verified certificate says this.
    Identity(Box<str>),
    /// Those whose verified certificate says something that begins with this.
    Identities(Box<str>),
}

/// What an entry for an identity begins with.
const IDENTITY: &str = "identity:";

impl Trust {
    /// Whether the headers of a peer at `address`, with a certificate that says `identity`, mean something.
    #[must_use]
    pub fn covers(&self, address: IpAddr, identity: Option<&str>) -> bool {
        match self {
            Self::Any => true,
            Self::Nobody => false,
            Self::These(list) => list.iter().any(|trusted| trusted.covers(address, identity)),
        }
    }

    /// Whether it asks for certificates.
    #[must_use]
    pub fn asks_for_identity(&self) -> bool {
        matches!(self, Self::These(list) if list.iter().any(|one| !matches!(one, Trusted::Network(_))))
    }
}

impl Trusted {
    fn covers(&self, address: IpAddr, identity: Option<&str>) -> bool {
        match self {
            Self::Network(network) => network.contains(&address.to_canonical()),
            Self::Identity(known) => identity == Some(known),
            Self::Identities(prefix) => identity.is_some_and(|identity| identity.starts_with(&**prefix)),
        }
    }
}

impl FromStr for Trust {
    type Err = String;

    /// Reads `any`, `none`, or networks, addresses and identities separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "any" => Ok(Self::Any),
            "none" => Ok(Self::Nobody),
            list => {
                list.split(',').map(|item| item.trim().parse()).collect::<Result<_, _>>().map(Self::These)
            }
        }
    }
}

impl FromStr for Trusted {
    type Err = String;

    fn from_str(item: &str) -> Result<Self, String> {
        if let Some(pattern) = item.strip_prefix(IDENTITY) {
            return match pattern.strip_suffix('*') {
                Some(prefix) if !prefix.contains('*') => Ok(Self::Identities(prefix.into())),
                None if !pattern.is_empty() && !pattern.contains('*') => Ok(Self::Identity(pattern.into())),
                _ => Err(format!(
                    "`{item}`: a `*` stands at the end only, such as identity:spiffe://mesh/ns/web/*"
                )),
            };
        }
        let network = item.parse::<IpNet>().or_else(|_| item.parse::<IpAddr>().map(IpNet::from));
        network.map(Self::Network).map_err(|_| {
            format!("`{item}` is neither `any`, `none`, a network such as 10.0.0.0/8 nor identity:NAME")
        })
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Nobody => f.write_str("none"),
            Self::These(list) => {
                let shown: Vec<_> = list.iter().map(ToString::to_string).collect();
                f.write_str(&shown.join(","))
            }
        }
    }
}

impl fmt::Display for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Identity(identity) => write!(f, "{IDENTITY}{identity}"),
            Self::Identities(prefix) => write!(f, "{IDENTITY}{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_any_none_or_networks() {
        let cases = [
            ("any", "8.8.8.8", true),
            ("none", "127.0.0.1", false),
            ("10.0.0.0/8, ::1", "10.1.2.3", true),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "11.0.0.1", false),
        ];
        for (text, address, covered) in cases {
            let trust: Trust = text.parse().expect(text);
            assert_eq!(trust.covers(address.parse().expect(address), None), covered, "{text} {address}");
        }
        assert!("everyone".parse::<Trust>().is_err());
    }

    #[test]
    fn an_identity_is_trusted_exactly_or_by_its_beginning() {
        for (text, identity, covered) in [
            ("identity:spiffe://mesh/web", Some("spiffe://mesh/web"), true),
            ("identity:spiffe://mesh/web", Some("spiffe://mesh/website"), false),
            ("identity:spiffe://mesh/*", Some("spiffe://mesh/web"), true),
            ("identity:spiffe://mesh/*", Some("spiffe://mesh.evil/web"), false),
            ("identity:*", Some("anybody"), true),
            ("identity:*", None, false),
            ("none", Some("anybody"), false),
            ("10.0.0.0/8,identity:web.example", Some("web.example"), true),
            ("10.0.0.0/8,identity:web.example", Some("api.example"), false),
            ("127.0.0.0/8,identity:web.example", None, true),
        ] {
            let trust: Trust = text.parse().expect(text);
            let address = "127.0.0.1".parse().expect("address");
            assert_eq!(trust.covers(address, identity), covered, "{text} {identity:?}");
            assert_eq!(
                (trust.to_string(), trust.asks_for_identity()),
                (text.to_owned(), text.contains("identity"))
            );
        }
        for text in ["identity:", "identity:*.example", "identity:a*b", "identity:a**"] {
            assert!(text.parse::<Trust>().is_err(), "{text}");
        }
    }
}
