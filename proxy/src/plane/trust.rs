//! Whose overlay headers mean something.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use arrayvec::ArrayString;
use ipnet::IpNet;

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// The address as text.
    pub text: ArrayString<45>,
    /// Whether its overlay headers mean something.
    pub trusted: bool,
}

impl Peer {
    /// The peer at `address`.
    #[must_use]
    pub fn new(address: IpAddr, trust: &Trust) -> Arc<Self> {
        let mut text = ArrayString::new();
        // The longest address has 45 characters.
        let _ = write!(text, "{address}");
        Arc::new(Self { address, text, trusted: trust.covers(address) })
    }
}

/// The peers from whom our headers are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// From everybody.
    Any,
    /// From nobody.
    Nobody,
    /// From these networks.
    Networks(Vec<IpNet>),
}

impl Trust {
    /// Whether the headers of a peer at `address` mean something.
    #[must_use]
    pub fn covers(&self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Nobody => false,
            Self::Networks(networks) => {
                networks.iter().any(|network| network.contains(&address.to_canonical()))
            }
        }
    }
}

impl FromStr for Trust {
    type Err = String;

    /// Reads `any`, `none`, or networks and addresses separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "any" => Ok(Self::Any),
            "none" => Ok(Self::Nobody),
            list => {
                list.split(',').map(|item| network(item.trim())).collect::<Result<_, _>>().map(Self::Networks)
            }
        }
    }
}

fn network(item: &str) -> Result<IpNet, String> {
    item.parse::<IpNet>()
        .or_else(|_| item.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("`{item}` is neither `any`, `none` nor a network such as 10.0.0.0/8"))
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Nobody => f.write_str("none"),
            Self::Networks(networks) => {
                let shown: Vec<_> = networks.iter().map(ToString::to_string).collect();
                f.write_str(&shown.join(","))
            }
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
            assert_eq!(trust.covers(address.parse().expect(address)), covered, "{text} {address}");
        }
        assert!("everyone".parse::<Trust>().is_err());
    }
}
