//! End to end, in process, through real sockets: one binary, a module for each side of the proxy.
#![allow(clippy::unwrap_used, missing_docs)]

/// What reading and embedding Pingora taught, each as a rule that holds here.
mod traps;
/// The schemes of upstream urls, each spoken by a real peer.
mod upstreams;
