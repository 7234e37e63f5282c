//! Where requests go, and their bytes.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Uri, header};

/// A url that can be measured: `http://HOST[:PORT]/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetUrl {
    uri: Uri,
    host: String,
    port: u16,
}

impl FromStr for TargetUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|why| format!("{why}; write http://HOST:PORT/PATH"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(other) => {
                return Err(format!("`{other}` cannot be measured, only http: put the load behind TLS"));
            }
            None => return Err(format!("write http://{text}")),
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("a user in a url: use `--header 'authorization: …'`".to_owned());
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("there is no host in it")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(80);
        Ok(Self { uri, host, port })
    }
}

impl fmt::Display for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

/// A header of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    name: HeaderName,
    value: HeaderValue,
}

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').ok_or("write `name: value`")?;
        let name: HeaderName = name.trim().parse().map_err(|_| format!("`{name}` is no header name"))?;
        if name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING {
            return Err(format!("`{name}` follows from `--body-size`"));
        }
        let value = value.trim().parse().map_err(|_| format!("`{value}` is no header value"))?;
        Ok(Self { name, value })
    }
}

/// Where requests go, and their bytes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The address behind the url.
    pub address: SocketAddr,
    /// A whole request.
    pub request: Arc<[u8]>,
}

impl Target {
    /// Resolves the url and renders the request: a `GET`, or with a body a `POST`.
    ///
    /// # Errors
    /// A message: nobody knows the host.
    pub fn new(url: &TargetUrl, headers: &[Header], body: Option<usize>) -> Result<Self, String> {
        let unknown = |why: &dyn fmt::Display| format!("cannot find `{}`: {why}", url.host);
        let mut addresses =
            (url.host.as_str(), url.port).to_socket_addrs().map_err(|why| unknown(&why))?.collect::<Vec<_>>();
        // A name such as `localhost` often has an IPv6 address on which nobody listens.
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let address = *addresses.first().ok_or_else(|| unknown(&"it has no address"))?;
        Ok(Self { address, request: render(url, headers, body).into() })
    }
}

fn render(url: &TargetUrl, headers: &[Header], body: Option<usize>) -> Vec<u8> {
    let path = url.uri.path_and_query().map_or("/", |path| path.as_str());
    let method = if body.is_some() { "POST" } else { "GET" };
    let mut request = format!("{method} {path} HTTP/1.1\r\n").into_bytes();
    let mut field = |name: &str, value: &[u8]| {
        request.extend_from_slice(name.as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
    };
    if !headers.iter().any(|header| header.name == header::HOST) {
        field("host", url.uri.authority().map_or("", |authority| authority.as_str()).as_bytes());
    }
    for Header { name, value } in headers {
        field(name.as_str(), value.as_bytes());
    }
    if let Some(size) = body {
        field("content-length", size.to_string().as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.resize(request.len() + body.unwrap_or_default(), b'x');
    request
}
