//! What happens to an accepted connection before requests are read from it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Gate;
use super::conn::{Conn, Tcp};
use super::serve::{Worker, serve};
use crate::metrics::{Event, count};

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
        let Ok(tcp) = Tcp::new(stream) else { return };
        let conn = Conn::new(tcp, worker.plane.limits.write);
        serve(conn, gate, peer.ip(), worker).await;
    }
}
