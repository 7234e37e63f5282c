//! What a service manager hands over and wants to know: sockets (sd_listen_fds(3)) and states (sd_notify(3)).
//!
//! A socket that is handed over stays open when the process ends: whoever connects while it is started anew waits, and is
//! refused by nobody.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::sleep;

/// The sockets that were handed over.
struct Handed {
    /// Those that nobody wanted yet.
    free: Vec<(SocketAddr, TcpListener)>,
    /// The addresses of all.
    addresses: Vec<SocketAddr>,
}

fn handed() -> MutexGuard<'static, Handed> {
    static HANDED: OnceLock<Mutex<Handed>> = OnceLock::new();
    HANDED.get_or_init(|| Mutex::new(Handed::take())).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handed {
    fn take() -> Self {
        let mut all = ListenFd::from_env();
        let mut free = Vec::new();
        for at in 0..all.len() {
            let socket = all.take_tcp_listener(at);
            match socket
                .and_then(|socket| socket.map(|socket| Ok((socket.local_addr()?, socket))).transpose())
            {
                Ok(socket) => free.extend(socket),
                Err(error) => {
                    tracing::warn!(%error, "of the sockets that were handed over, number {at} is of no use: they have to listen, by TCP");
                }
            }
        }
        let addresses = free.iter().map(|(address, _)| *address).collect();
        Self { free, addresses }
    }
}

/// Whether a socket at `handed` is one for `wanted`: systemd listens on `[::]` for IPv4 as well.
fn serves(handed: SocketAddr, wanted: SocketAddr) -> bool {
    let any = handed.ip().is_unspecified() && wanted.ip().is_unspecified();
    handed.port() == wanted.port() && (any || handed.ip() == wanted.ip())
}

/// The socket that was handed over for this address, if there is one. It is given once.
#[must_use]
pub fn socket(wanted: SocketAddr) -> Option<(SocketAddr, TcpListener)> {
    let mut handed = handed();
    let at = handed.free.iter().position(|(address, _)| serves(*address, wanted))?;
    Some(handed.free.swap_remove(at))
}

/// Whether others hold the socket at this address too, so that it lives on without us.
#[must_use]
pub fn is_handed_over(address: SocketAddr) -> bool {
    handed().addresses.contains(&address)
}

/// The sockets that were handed over and that no listener asked for.
#[must_use]
pub fn unused() -> Vec<SocketAddr> {
    handed().free.iter().map(|(address, _)| *address).collect()
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager cannot be told how this process is");
    }
}

/// Tells whoever started this process that it serves.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// Tells whoever started this process that it ends.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// Says again and again that the control side lives, where somebody watches. Never ends where somebody does.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        tell(NotifyState::Watchdog);
        sleep(limit / 2).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_serves_its_own_address_and_any_address_serves_any_of_its_port() {
        for (handed, wanted, right) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("[::]:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "0.0.0.0:80", true),
            ("[::]:80", "0.0.0.0:81", false),
            ("[::]:80", "127.0.0.1:80", false),
            ("127.0.0.1:80", "0.0.0.0:80", false),
            ("[::]:80", "0.0.0.0:0", false),
        ] {
            let address = |text: &str| text.parse().expect("address");
            assert_eq!(serves(address(handed), address(wanted)), right, "{handed} for {wanted}");
        }
    }
}
