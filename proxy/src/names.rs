//! Name resolution on the control side: in the background, refreshed, and kept when it fails.
//!
//! Upstreams with names register once; from then on they are resolved every [`REFRESH`] while
//! requests ask for them, and every [`RETRY`] where that fails. No request waits for a resolution but the very first of an upstream,
//! and that one waits as for any unavailable upstream: at most `holdFor`.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use overlane_config::lineage::is_link_local;
use overlane_config::url::Url;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::upstream::{Address, Upstream, literal_address};

/// How often names that are in use are resolved again.
pub const REFRESH: Duration = Duration::from_secs(10);
/// How often names that do not resolve are tried again.
pub const RETRY: Duration = Duration::from_secs(1);
/// How long one resolution may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many run at once.
const AT_ONCE: usize = 32;

/// The door to the resolver; cheap to clone.
#[derive(Debug, Clone)]
pub struct Names(Option<mpsc::UnboundedSender<Weak<Upstream>>>);

impl Names {
    /// A resolver, and the task that runs it on the control runtime until the last door is gone.
    pub fn new() -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(Some(sender)), run(receiver))
    }

    /// A door that leads nowhere: names stay unresolved (checks, tests).
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Has the names of `upstream` resolved from now on.
    pub(crate) fn follow(&self, upstream: &Arc<Upstream>) {
        if let Some(sender) = &self.0 {
            // The receiver is only gone when the process stops.
            let _ = sender.send(Arc::downgrade(upstream));
        }
    }
}

async fn run(mut registrations: mpsc::UnboundedReceiver<Weak<Upstream>>) {
    let mut followed: Vec<Weak<Upstream>> = Vec::new();
    let mut tick = tokio::time::interval(RETRY);
    let mut ticks: u64 = 0;
    let mut running = JoinSet::new();
    let limit = Arc::new(Semaphore::new(AT_ONCE));
    let start = |weak: &Weak<Upstream>, running: &mut JoinSet<()>| {
        if let Some(upstream) = weak.upgrade() {
            running.spawn(resolve(upstream, limit.clone()));
        }
    };
    loop {
        tokio::select! {
            registered = registrations.recv() => match registered {
                Some(weak) => {
                    start(&weak, &mut running);
                    followed.push(weak);
                }
                None => return,
            },
            _ = tick.tick() => {
                ticks += 1;
                let refresh = ticks.is_multiple_of(REFRESH.as_secs() / RETRY.as_secs());
                followed.retain(|weak| weak.strong_count() > 0);
                let due = |weak: &&Weak<Upstream>| {
                    weak.upgrade().is_some_and(|upstream| (refresh || upstream.unresolved()) && upstream.take_asked())
                };
                followed.iter().filter(due).for_each(|weak| start(weak, &mut running));
            }
            Some(_) = running.join_next(), if !running.is_empty() => {}
        }
    }
}

async fn resolve(upstream: Arc<Upstream>, limit: Arc<Semaphore>) {
    let Ok(_permit) = limit.acquire().await else {
        return;
    };
    let mut found = Vec::new();
    let mut problem = None;
    for url in upstream.urls() {
        match resolve_url(url).await {
            Ok(addresses) => found.extend(addresses.into_iter().map(|address| (url.clone(), address))),
            Err(why) => problem = Some(why),
        }
    }
    // One name that fails while others resolve keeps everything as it was.
    if problem.is_some() && upstream.endpoints().is_some_and(|known| !known.list.is_empty()) {
        found.clear();
    }
    upstream.resolved(found, problem);
}

/// The addresses of a url, sorted so that a reordered answer changes nothing.
///
/// # Errors
/// A message that names the host and says why it has no usable address.
pub async fn resolve_url(url: &Url) -> Result<Vec<Address>, String> {
    if let Some(address) = literal_address(url) {
        return Ok(vec![address]);
    }
    let lookup = tokio::net::lookup_host((&*url.host, url.port));
    let found = match tokio::time::timeout(TIMEOUT, lookup).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(format!("`{}` does not resolve: {error}", url.host)),
        Err(_) => {
            return Err(format!("`{}` does not resolve within {} s", url.host, TIMEOUT.as_secs()));
        }
    };
    let (forbidden, mut usable): (Vec<_>, Vec<_>) =
        found.partition(|address: &SocketAddr| is_link_local(address.ip()));
    usable.sort_unstable();
    usable.dedup();
    match (usable.is_empty(), forbidden.first()) {
        (false, _) => Ok(usable.into_iter().map(Address::Tcp).collect()),
        (true, Some(address)) => {
            Err(format!("`{}` resolves to the link-local address {}", url.host, address.ip()))
        }
        (true, None) => Err(format!("`{}` has no address", url.host)),
    }
}
