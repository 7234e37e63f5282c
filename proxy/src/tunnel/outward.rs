//! Outwards: the addresses of the routing table, as listeners on loopback whose connections a hub makes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::RandomState;
use http::Method;
use http_body_util::BodyExt as _;
use overlane_config::url::{Scheme, Url};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

use super::{BYTES, DIAL, Deferred, pass_on};
use crate::names::Reach;
use crate::store::hub::{HubStore, Refused};

/// Where services are for a machine that reaches them only through a hub.
pub(crate) struct Outward {
    hub: Arc<HubStore>,
    runtime: Handle,
    /// The listener of each `host:port`.
    listeners: Mutex<HashMap<String, SocketAddr, RandomState>>,
}

impl fmt::Debug for Outward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outward").finish_non_exhaustive()
    }
}

impl Outward {
    /// Through a hub; its connections are made on this runtime.
    pub(crate) fn new(hub: HubStore, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { hub: Arc::new(hub), runtime, listeners: Mutex::default() })
    }
}

impl Reach for Outward {
    /// A listener for each address, made when it is first asked for and there until the process ends. They are as
    /// many as the table has addresses.
    fn reach(&self, url: &Url) -> Result<SocketAddr, String> {
        if url.scheme == Scheme::Unix {
            return Err(format!("`{url}` is of another machine"));
        }
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        match listeners.entry(url.authority()) {
            Entry::Occupied(known) => Ok(*known.get()),
            Entry::Vacant(new) => {
                let _inside = self.runtime.enter();
                let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| {
                    socket.set_nonblocking(true)?;
                    Ok((socket.local_addr()?, TcpListener::from_std(socket)?))
                });
                let (address, socket) =
                    bound.map_err(|error| format!("no listener for `{url}` can be had: {error}"))?;
                self.runtime.spawn(accept(socket, self.hub.clone(), new.key().clone()));
                Ok(*new.insert(address))
            }
        }
    }
}

async fn accept(socket: TcpListener, hub: Arc<HubStore>, to: String) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let (hub, to) = (hub.clone(), to.clone());
                tokio::spawn(async move { dial(stream, &hub, &to).await });
            }
            // No descriptor is left, most likely.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}

/// One connection. Where the hub cannot make it, it is closed without a byte.
async fn dial(stream: TcpStream, hub: &HubStore, to: &str) {
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    let body = Deferred::of(read).boxed_unsync();
    match hub.ask(Method::POST, &format!("{DIAL}?to={to}"), Some(BYTES), body).await {
        Ok(answer) => pass_on(answer.into_body(), write).await,
        Err(Refused::Status(_, why)) => tracing::debug!(to, why, "the hub does not connect"),
        Err(Refused::Fault(why) | Refused::Broken(why)) => {
            tracing::debug!(to, %why, "the hub does not connect");
        }
    }
}
