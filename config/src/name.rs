//! Names: environment ids, service names, header names. Each is validated once, at birth.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The response header that says who answered: a structured-field list, one item per hop.
pub const ROUTE_HEADER: &str = "x-overlay-route";
/// The request header that demands that services are served by the key's own environment.
pub const REQUIRE_HEADER: &str = "x-overlay-require";
/// The request header with which one sidecar marks, for the next, the environment that it chose.
pub const HOP_HEADER: &str = "x-overlay-hop";
/// The request header that carries an overlay token, which says what its sender may choose.
pub const TOKEN_HEADER: &str = "x-overlay-token";
/// The request header that counts the proxies that a request has passed.
pub const HOPS_HEADER: &str = "x-overlay-hops";

/// The longest DNS label (RFC 1035, section 2.3.4), in bytes.
pub const MAX_LABEL: usize = 63;

/// Whether `bytes` is a DNS-1123 label of at most 63 bytes without `--`.
///
/// `--` is refused because a preview host joins a service and an environment with it
/// (`web--alice.example.com`).
#[must_use]
pub fn is_label(bytes: &[u8]) -> bool {
    // One pass, since every request's key comes by here; `label_fault` tells what is wrong.
    let mut dash = true;
    for byte in bytes {
        let alphanumeric = byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if !(alphanumeric || (*byte == b'-' && !dash)) {
            return false;
        }
        dash = !alphanumeric;
    }
    !dash && bytes.len() <= MAX_LABEL
}

fn label_fault(bytes: &[u8]) -> Option<&'static str> {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match bytes {
        [] => Some("it is empty"),
        _ if bytes.len() > MAX_LABEL => Some("it is longer than 63 bytes"),
        _ if bytes.iter().any(u8::is_ascii_uppercase) => Some("it has upper-case letters"),
        _ if !bytes.iter().all(|b| alphanumeric(b) || *b == b'-') => {
            Some("only lower-case letters, digits and `-` are allowed")
        }
        [first, ..] if !alphanumeric(first) => Some("it must begin with a letter or digit"),
        [.., last] if !alphanumeric(last) => Some("it must end with a letter or digit"),
        _ if bytes.windows(2).any(|pair| pair == b"--") => {
            Some("`--` is kept for preview hosts (`service--overlay`)")
        }
        _ => None,
    }
}

/// Why a text is no label; says the text, escaped and shortened, and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidLabel {
    text: String,
    fault: &'static str,
}

impl InvalidLabel {
    /// The rule that the text breaks, without the text.
    #[must_use]
    pub fn fault(&self) -> &'static str {
        self.fault
    }
}

impl fmt::Display for InvalidLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a valid name: {}", self.text, self.fault)
    }
}

impl std::error::Error for InvalidLabel {}

/// At most `limit` characters of `text`, with control characters escaped, for messages.
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    let mut shown: String = text.chars().take(limit).flat_map(char::escape_debug).collect();
    if text.chars().nth(limit).is_some() {
        shown.push('…');
    }
    shown
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidLabel;

            fn from_str(text: &str) -> Result<Self, InvalidLabel> {
                match label_fault(text.as_bytes()) {
                    None => Ok(Self(text.into())),
                    Some(fault) => Err(InvalidLabel { text: printable(text, 80), fault }),
                }
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

label! {
    /// The id of a baseline or an overlay: a DNS-1123 label without `--`; both share one namespace.
    EnvironmentId
}
label! {
    /// The name of a service: the same kind of label, so that it can stand in a preview host.
    ServiceName
}

/// The name of an HTTP header field, in lower case (a token, RFC 9110, section 5.6.2).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeaderName(Arc<str>);

impl HeaderName {
    /// The header that carries the overlay key when a baseline names no other.
    #[must_use]
    pub fn default_key() -> Self {
        Self("x-overlay-id".into())
    }

    /// The name as text, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Headers whose meaning HTTP or this proxy fixes; an overlay key cannot travel in them.
const RESERVED_HEADERS: &[&str] = &[
    "authorization",
    "baggage",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    HOP_HEADER,
    HOPS_HEADER,
    REQUIRE_HEADER,
    ROUTE_HEADER,
    TOKEN_HEADER,
];

impl FromStr for HeaderName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if text.is_empty() || text.len() > 256 || !text.bytes().all(token) {
            return Err(format!("`{}` is not a header name", printable(text, 80)));
        }
        let lower = text.to_ascii_lowercase();
        if RESERVED_HEADERS.contains(&lower.as_str()) {
            return Err(format!("`{lower}` has a meaning of its own and cannot carry the key"));
        }
        Ok(Self(lower.into()))
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_dns_1123_without_double_dash() {
        let long = "a".repeat(64);
        for (text, valid) in [
            ("alice-payments", true),
            ("3", true),
            ("a", true),
            (&long[..63], true),
            ("", false),
            (&long, false),
            ("-a", false),
            ("a-", false),
            ("a--b", false),
            ("A", false),
            ("a_b", false),
            ("a.b", false),
            ("é", false),
            ("a\n", false),
        ] {
            assert_eq!(text.parse::<EnvironmentId>().is_ok(), valid, "{text:?}");
            assert_eq!(is_label(text.as_bytes()), valid, "{text:?}");
        }
    }

    #[test]
    fn a_header_with_a_meaning_of_its_own_carries_no_key() {
        for (text, valid) in [
            ("X-MSX-Env", true),
            ("x-overlay-id", true),
            ("Host", false),
            ("baggage", false),
            ("x overlay", false),
            ("", false),
            ("x-overlay-route", false),
            ("X-Overlay-Token", false),
        ] {
            assert_eq!(text.parse::<HeaderName>().is_ok(), valid, "{text:?}");
        }
    }
}
