//! From a machine that nothing can reach: connections through one that it made itself, to a hub. Each is a request of
//! HTTP/2 that never ends: bytes one way are its body, the other way that of its response. What they mean is nobody's
//! business here; that one side sends no more, or that it broke, is the other's to know as it is with TCP.
//!
//! Inwards, the hub listens on a port for the tunnelled service, and hands each connection to one of a few requests that
//! wait for one. Outwards, each address of the routing table is a listener on loopback here, whose connections the hub makes
//! from where it is.

mod inward;
mod outward;
mod relay;
#[cfg(test)]
mod tests;

pub(crate) use inward::Inward;
pub(crate) use outward::Outward;
pub(crate) use relay::{Deferred, Handed, pass_on};

use serde::{Deserialize, Serialize};

/// Where a tunnel is asked for: the first line of the answer is an [`Opened`], and the tunnel is there until it ends.
pub(crate) const TUNNELS: &str = "/hub/v1/tunnels";
/// Where a request waits for a connection of the tunnel `?tunnel=ID`. Its answer begins with [`GO`] once it got one.
pub(crate) const CONNECTIONS: &str = "/hub/v1/tunnels/connections";
/// Where a connection to `?to=HOST:PORT` is asked for; it is there when the answer begins.
pub(crate) const DIAL: &str = "/hub/v1/dial";
/// What these bodies are.
pub(crate) const BYTES: &str = "application/octet-stream";
/// The first byte towards who waits for a connection.
pub(crate) const GO: u8 = b'+';

/// A tunnel is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Opened {
    /// By which connections of it are asked for.
    pub(crate) tunnel: String,
    /// The host by which others reach its port.
    pub(crate) host: String,
    /// The port.
    pub(crate) port: u16,
}
