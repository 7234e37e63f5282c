//! Where upstreams are: URLs of `http`, `https`, `h2c` and `unix`, and templates of them.

use std::fmt;
use std::str::FromStr;

use crate::name::{EnvironmentId, ServiceName, printable};

/// How to speak to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// HTTP/1.1 in the clear.
    Http,
    /// HTTP over TLS.
    Https,
    /// HTTP/2 in the clear with prior knowledge.
    H2c,
    /// HTTP/1.1 over a unix socket.
    Unix,
}

/// One address of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Url {
    /// How to speak to it.
    pub scheme: Scheme,
    /// A host name or IP address, in lower case and without brackets; for `unix` the socket's path.
    pub host: Box<str>,
    /// The TCP port; 0 for `unix`.
    pub port: u16,
}

impl Url {
    /// `host:port` as it stands in an `Host` header (IPv6 in brackets).
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Http => write!(f, "http://{}", self.authority()),
            Scheme::Https => write!(f, "https://{}", self.authority()),
            Scheme::H2c => write!(f, "h2c://{}", self.authority()),
            Scheme::Unix => write!(f, "unix:{}", self.host),
        }
    }
}

impl FromStr for Url {
    type Err = String;

    /// Reads `http://host[:port]`, `https://…`, `h2c://…` or `unix:/path`. A path, query, fragment or
    /// user is refused: an upstream is a place, and the request says the rest.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            // sun_path holds 108 bytes with its NUL (unix(7)).
            if !path.starts_with('/') || path.len() > 107 || path.contains('\0') {
                return Err("`unix:` takes an absolute path of at most 107 bytes".to_owned());
            }
            return Ok(Self { scheme: Scheme::Unix, host: path.into(), port: 0 });
        }
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("`{}` has no scheme; write `http://…`", printable(text, 80)))?;
        let (scheme, default_port) = match scheme {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            "h2c" => (Scheme::H2c, 80),
            other => {
                return Err(format!(
                    "the scheme `{}` is not one of http, https, h2c, unix",
                    printable(other, 20)
                ));
            }
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err("an upstream url is scheme, host and port only".to_owned());
        }
        let (host, port) = split_authority(authority)?;
        Ok(Self { scheme, host: host.to_ascii_lowercase().into(), port: port.unwrap_or(default_port) })
    }
}

/// The bytes of a host name.
const HOST: [bool; 256] = {
    let mut host = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        host[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        byte += 1;
    }
    host
};

/// Splits `host`, `host:port`, `[v6]` or `[v6]:port`; the host comes without brackets.
///
/// # Errors
/// A message, when the host or the port is malformed.
pub fn split_authority(authority: &str) -> Result<(&str, Option<u16>), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("`[` without `]`")?;
            host.parse::<std::net::Ipv6Addr>()
                .map_err(|_| format!("`{}` is not an IPv6 address", printable(host, 60)))?;
            (
                host,
                match port {
                    "" => None,
                    _ => Some(port.strip_prefix(':').ok_or("after `]` only `:port` may follow")?),
                },
            )
        }
        None => {
            let (host, port) = match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            };
            if host.is_empty() || host.len() > 253 || !host.bytes().all(|byte| HOST[usize::from(byte)]) {
                return Err(format!("`{}` is not a host name", printable(host, 60)));
            }
            (host, port)
        }
    };
    let port = match port {
        None => None,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            match digits.parse() {
                Ok(port) if port > 0 => Some(port),
                _ => return Err(format!("`{}` is not a port", printable(digits, 20))),
            }
        }
        Some(other) => return Err(format!("`{}` is not a port", printable(other, 20))),
    };
    Ok((host, port))
}

/// A URL with `{service}` and `{overlay}` in its host, port or path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlTemplate(String);

impl UrlTemplate {
    /// The URL of `service` in `environment`.
    ///
    /// # Errors
    /// The whole can become too long for a host name although the parts are fine.
    pub fn fill(&self, service: &ServiceName, environment: &EnvironmentId) -> Result<Url, String> {
        self.0.replace("{service}", service.as_str()).replace("{overlay}", environment.as_str()).parse()
    }
}

impl FromStr for UrlTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.replace("{service}", "s").replace("{overlay}", "o").parse::<Url>()?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for UrlTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_scheme_host_and_port() {
        for (text, shown) in [
            ("http://a", "http://a:80"),
            ("https://A.b:8443/", "https://a.b:8443"),
            ("h2c://l:50051", "h2c://l:50051"),
            ("http://[::1]:80", "http://[::1]:80"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("unix:///run/a", "unix:/run/a"),
        ] {
            assert_eq!(text.parse::<Url>().expect(text).to_string(), shown);
        }
        for text in [
            "a:80",
            "ftp://a",
            "http://",
            "http://a:0",
            "http://a:+1",
            "http://a:65536",
            "http://a/b",
            "http://u@a",
            "unix:a",
            "http://[::1",
            "http://a b",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }
}
