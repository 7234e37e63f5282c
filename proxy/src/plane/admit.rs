//! What happens to an accepted connection before requests are read from it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use overlane_config::route::Role;

use super::Gate;
use super::conn::{Conn, Tcp};
use super::passage::original_destination;
use super::serve::{Worker, serve, serve_intercepted};
use super::trust::Peer;
use crate::metrics::{Event, count};
use crate::tls::accept::accept;
use crate::tls::credentials::Credentials;

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
pub fn admit(
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
    gate: Arc<Gate>,
    worker: Arc<Worker>,
) -> impl Future<Output = ()> + Send {
    let counted = Counted::new();
    async move {
        let _counted = counted;
        let meant = match gate.listener.role {
            Role::Outbound { .. } if worker.plane.passage.intercept => original_destination(&stream),
            _ => None,
        };
        let Ok(tcp) = Tcp::new(stream) else { return };
        let conn = Conn::new(tcp, worker.plane.limits.write);
        match (gate.tls.clone(), meant) {
            (_, Some(meant)) => {
                let peer = Peer::intercepted(peer.ip(), &gate.trust, meant);
                Box::pin(serve_intercepted(conn, gate, peer, worker, meant)).await;
            }
            (None, None) => {
                let peer = Peer::new(peer.ip(), &gate.trust);
                serve(conn, gate, peer, worker).await;
            }
            // Boxed, so that others do not pay for its size.
            (Some(tls), None) => Box::pin(admit_tls(conn, peer.ip(), tls, gate, worker)).await,
        }
    }
}

/// Serves an accepted connection that is to speak TLS.
async fn admit_tls(
    conn: Conn<Tcp>,
    address: IpAddr,
    tls: Arc<Credentials>,
    gate: Arc<Gate>,
    worker: Arc<Worker>,
) {
    // Boxed, so that its memory is gone when the handshake is over.
    if let Some((conn, peer)) = Box::pin(accept(conn, address, &tls, &gate, &worker)).await {
        drop(tls);
        serve(conn, gate, peer, worker).await;
    }
}
