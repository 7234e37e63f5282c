//! TLS at the listeners: what they show to clients, whom they ask for a certificate, and handshakes.
//!
//! `certificates` and `clients` read files into what rustls needs; `credentials` keeps the last good of each
//! and publishes them as one configuration; `follow` says when to look at the files again. All of that is
//! the control side. `accept` is the data plane: it takes the configuration in force, once per connection.

pub mod accept;
pub mod certificate;
pub mod certificates;
pub mod clients;
pub mod credentials;
pub mod follow;
pub mod upstreams;
pub mod wire;

use std::path::PathBuf;

use certificates::Pair;

/// What is spoken inside TLS, the preferred first (ALPN).
pub const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How listeners speak TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Where the certificates are; the first is for clients that name no host, or one that no certificate has.
    pub certificates: Vec<Pair>,
    /// Whose certificates clients show, if they are asked for any.
    pub clients: Option<ClientSettings>,
    /// Whether TLS 1.2 is refused.
    pub only_13: bool,
    /// The roles of the listeners that speak TLS, as [`crate::plane::Gate::role`] names them.
    pub roles: Vec<&'static str>,
}

/// Which certificates are asked of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSettings {
    /// Where the certificates of their authorities are.
    pub ca: PathBuf,
    /// Whether a client without a certificate is refused.
    pub required: bool,
}
