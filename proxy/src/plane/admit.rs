//! What happens to an accepted connection before requests are read from it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use overlane_config::route::Role;

use super::Gate;
use super::announced::{Announced, announced};
use super::clients::Place;
use super::conn::{Conn, Socket};
use super::listen::Accepted;
use super::passage::original_destination;
use super::serve::{Worker, serve, serve_intercepted};
use super::standing::Standing;
use crate::metrics::{Event, count};
use crate::tls::accept::accept;
use crate::tls::credentials::Credentials;

/// Where the peers of unix sockets are: on this machine, as those of loopback are.
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Closes the count also when the connection's task is dropped or panics.
struct Counted;

impl Counted {
    fn new() -> Self {
        count(Event::ConnectionAccepted);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        count(Event::ConnectionClosed);
    }
}

/// Serves an accepted connection until it ends.
pub fn admit(accepted: Accepted, gate: Arc<Gate>, worker: Arc<Worker>) -> impl Future<Output = ()> + Send {
    let counted = Counted::new();
    async move {
        let _counted = counted;
        let (socket, peer, meant) = match accepted {
            Accepted::Tcp(stream, peer) => {
                let meant = match gate.listener.role {
                    Role::Outbound { .. } if worker.plane.passage.intercept => original_destination(&stream),
                    _ => None,
                };
                let Ok(socket) = Socket::tcp(stream) else { return };
                (socket, peer.ip(), meant)
            }
            Accepted::Unix(stream) => (Socket::Unix(stream), LOCAL, None),
        };
        let mut conn = Conn::new(socket, worker.plane.limits.write_pace());
        let Some(address) = client_of(&mut conn, peer, &gate, &worker).await else {
            return count(Event::ProxyHeaderRefused);
        };
        // A hop's connections are those of many clients.
        let is_client = gate.listener.role == Role::Gateway && !worker.plane.forwarding.believes(address);
        let most = worker.plane.limits.client_connections.filter(|_| is_client);
        let Some(_place) = Place::take(address, most) else {
            return count(Event::ClientFull);
        };
        match (gate.tls.clone(), meant) {
            (_, Some(meant)) => {
                let peer = Standing::intercepted(address, &gate.trust, meant);
                Box::pin(serve_intercepted(conn, gate, peer, worker, meant)).await;
            }
            (None, None) => {
                let peer = Standing::of_peer(address, &gate.trust);
                serve(conn, gate, peer, worker).await;
            }
            // Boxed, so that others do not pay for its size.
            (Some(tls), None) => Box::pin(admit_tls(conn, address, tls, gate, worker)).await,
        }
    }
}

/// Who the client of a connection from `peer` is; `None` where it is to be said, and is not.
async fn client_of(conn: &mut Conn<Socket>, peer: IpAddr, gate: &Gate, worker: &Worker) -> Option<IpAddr> {
    let announces =
        || worker.plane.proxy_protocol.iter().any(|network| network.contains(&peer.to_canonical()));
    if matches!(gate.listener.role, Role::Outbound { .. }) || !announces() {
        return Some(peer);
    }
    let until = Instant::now() + worker.plane.limits.head;
    // Boxed, so that others do not pay for its size.
    match Box::pin(announced(conn, until)).await? {
        Announced::Client(client) => Some(client),
        Announced::Itself => Some(peer),
    }
}

/// Serves an accepted connection that is to speak TLS.
async fn admit_tls(
    conn: Conn<Socket>,
    address: IpAddr,
    tls: Arc<Credentials>,
    gate: Arc<Gate>,
    worker: Arc<Worker>,
) {
    // Boxed one by one, so that the memory of each is gone when it is over.
    if let Some((conn, peer)) = Box::pin(accept(conn, address, tls, &gate, &worker)).await {
        Box::pin(serve(conn, gate, peer, worker)).await;
    }
}
