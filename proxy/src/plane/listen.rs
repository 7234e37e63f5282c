//! Listening sockets: one per worker on each address.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

/// By which a peer that is gone without a word is noticed, within two minutes: a stream may be silent for
/// as long as it likes.
#[must_use]
pub fn keepalive() -> TcpKeepalive {
    let (after, between) = (Duration::from_secs(60), Duration::from_secs(15));
    TcpKeepalive::new().with_time(after).with_interval(between).with_retries(4)
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_keepalive(&keepalive())?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// `count` sockets that share one address; returns the address with the port that was taken.
///
/// `SO_REUSEPORT` would hide a port that another process with the same option holds, so a socket
/// without it probes first.
///
/// # Errors
/// The address is taken or not ours; the message names it.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let context =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    if address.port() != 0 {
        let probe = socket(address).map_err(context)?;
        probe.bind(&address.into()).and_then(|()| probe.listen(1)).map_err(context)?;
    }
    let mut taken = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = socket(address).map_err(context)?;
        socket.set_reuse_port(true).and_then(|()| socket.set_nonblocking(true)).map_err(context)?;
        socket.bind(&taken.into()).and_then(|()| socket.listen(BACKLOG)).map_err(context)?;
        let listener: TcpListener = socket.into();
        taken = listener.local_addr().map_err(context)?;
        sockets.push(listener);
    }
    Ok((taken, sockets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_an_error_that_names_it() {
        let (taken, _held) = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 2).expect("free port");
        let error = bind(taken, 1).expect_err("taken");
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
    }
}
