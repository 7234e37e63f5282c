//! End to end, in process, through real sockets: one binary, a module for each side of the proxy.
#![allow(clippy::unwrap_used, missing_docs)]

/// What tests ask over a connection of their own.
mod ask;
/// Somebody else is asked who may choose an overlay.
mod authorizer;
/// Overlays whose upstream is dead.
mod dead;
/// Decisions that can be looked at.
mod decisions;
/// Browsers at a gateway.
mod edge;
/// HTTP/2 as attackers speak it.
mod floods;
/// What strangers forge.
mod forged;
/// Frames of HTTP/2.
mod frames;
/// The inputs that fuzzing keeps.
mod fuzzed;
/// Load balancers before a gateway.
mod hops;
/// Upstreams that break off, lie, and talk too much.
mod hostile;
/// HTTP/1.1, script by script, on each engine.
mod http;
/// A store that is served to others.
mod hub;
/// The key of many overlays at once, through applications that drop it.
mod lost;
/// Six services whose applications forward this or that.
mod mesh;
/// Overlays whose upstreams change places under load.
mod moved;
/// What nobody may reach through a proxy.
mod off_limits;
/// More than can be served.
mod overload;
/// Tunnels by CONNECT.
mod passage;
/// What a gateway does against strangers, besides not believing them.
mod protection;
/// Every protocol of clients with every protocol of upstreams.
mod protocols;
/// A load balancer says whose connection it is.
mod proxy_protocol;
/// Reloads under load.
mod reloads;
/// Stores that several machines share.
mod stores;
/// What of a request's time was whose.
mod times;
/// Upstreams that speak TLS.
mod tls;
/// Listeners that speak TLS.
mod tls_listeners;
/// Signed tokens.
mod tokens;
/// The spans of requests.
mod traces;
/// What reading and embedding Pingora taught, each as a rule that holds here.
mod traps;
/// Listeners on unix sockets.
mod unix_listeners;
/// Upstreams in TLS as the settings have it.
mod upstream_tls;
/// The schemes of upstream urls, each spoken by a real peer.
mod upstreams;
