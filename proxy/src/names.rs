//! Name resolution on the control side: in the background, refreshed, and kept when it fails.
//!
//! Upstreams with names register once; from then on they are resolved every [`REFRESH`] while
//! requests ask for them, and every [`RETRY`] where that fails. No request waits for a resolution but the very first of an upstream,
//! and that one waits as for any unavailable upstream: at most `holdFor`.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use overlane_config::lineage::is_off_limits;
use overlane_config::url::Url;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::upstream::{Address, Upstream, literal_address};

/// How often names that are in use are resolved again.
pub const REFRESH: Duration = Duration::from_secs(10);
/// How often names that do not resolve are tried again.
pub const RETRY: Duration = Duration::from_secs(1);
/// How long one resolution may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How many run at once, of services and of hosts outside. Each has a thread, which a silent name server holds
/// for as long as the system's resolver waits for it.
const AT_ONCE: usize = 32;

/// By which way services are reached from a machine that does not reach them itself.
pub trait Reach: fmt::Debug + Send + Sync {
    /// Where to connect to come to the place of a url. Does not wait.
    ///
    /// # Errors
    /// There is no way, for this reason.
    fn reach(&self, url: &Url) -> Result<SocketAddr, String>;
}

/// The door to the resolver; cheap to clone.
#[derive(Debug, Clone)]
pub struct Names {
    door: Option<mpsc::UnboundedSender<Weak<Upstream>>>,
    /// How upstreams are reached whose addresses lead nowhere from here.
    reach: Option<Arc<dyn Reach>>,
}

impl Names {
    /// A resolver, and the task that runs it on the control runtime until the last door is gone.
    pub fn new() -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { door: Some(sender), reach: None }, run(receiver))
    }

    /// A door that leads nowhere: names stay unresolved (checks, tests).
    #[must_use]
    pub fn none() -> Self {
        Self { door: None, reach: None }
    }

    /// Has the names of `upstream` resolved from now on.
    pub(crate) fn follow(&self, upstream: &Arc<Upstream>) {
        if let Some(sender) = &self.door {
            // The receiver is only gone when the process stops.
            let _ = sender.send(Arc::downgrade(upstream));
        }
    }

    /// The same for upstreams that are reached by another way.
    #[must_use]
    pub fn by_way_of(&self, reach: Arc<dyn Reach>) -> Self {
        Self { door: self.door.clone(), reach: Some(reach) }
    }

    /// The address of a url that can be connected to as it is.
    pub(crate) fn literal(&self, url: &Url) -> Option<Address> {
        if self.reach.is_none() { literal_address(url) } else { None }
    }

    /// The addresses of a url, and the lookup that goes on nevertheless where it took too long.
    async fn look_up(&self, url: &Url) -> (Result<Vec<Address>, String>, Option<Lookup>) {
        match &self.reach {
            Some(reach) => (reach.reach(url).map(|address| vec![address.into()]), None),
            None => look_up(url).await,
        }
    }
}

/// Upstreams whose names wait to be resolved, and resolutions that run. What nobody wants any more leaves it.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Weak<Upstream>>,
    running: JoinSet<()>,
}

/// Has an upstream join its line, unless it is there already.
fn join(lines: &mut [Line; 2], weak: &Weak<Upstream>) {
    if let Some(upstream) = weak.upgrade()
        && upstream.claim_resolution()
    {
        lines[usize::from(upstream.outside)].waiting.push_back(weak.clone());
    }
}

impl Line {
    fn advance(&mut self) {
        while self.running.len() < AT_ONCE
            && let Some(weak) = self.waiting.pop_front()
        {
            if let Some(upstream) = weak.upgrade() {
                self.running.spawn(resolve(upstream));
            }
        }
    }
}

async fn run(mut registrations: mpsc::UnboundedReceiver<Weak<Upstream>>) {
    let mut followed: Vec<Weak<Upstream>> = Vec::new();
    let mut tick = tokio::time::interval(RETRY);
    let mut ticks: u64 = 0;
    // Services, and hosts outside: whoever calls ever new ones of those does not keep services waiting.
    let mut lines = [Line::default(), Line::default()];
    loop {
        lines.iter_mut().for_each(Line::advance);
        let [services, outside] = &mut lines;
        tokio::select! {
            registered = registrations.recv() => match registered {
                Some(weak) => {
                    join(&mut lines, &weak);
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
                followed.iter().filter(due).for_each(|weak| join(&mut lines, weak));
                for line in &mut lines {
                    line.waiting.retain(|weak| weak.strong_count() > 0);
                }
            }
            Some(_) = services.running.join_next() => {}
            Some(_) = outside.running.join_next() => {}
        }
    }
}

/// Resolves the names of an upstream, which are known or not to be had after [`TIMEOUT`] each. Completes once no
/// thread waits for them any more.
async fn resolve(upstream: Arc<Upstream>) {
    let mut found = Vec::new();
    let mut problem = None;
    let mut late = Vec::new();
    for url in upstream.urls() {
        let (addresses, lookup) = upstream.names().look_up(url).await;
        late.extend(lookup);
        match addresses {
            Ok(addresses) => found.extend(addresses.into_iter().map(|address| (url.clone(), address))),
            Err(why) => problem = Some(why),
        }
    }
    // One name that fails while others resolve keeps everything as it was.
    if problem.is_some() && upstream.endpoints().is_some_and(|known| !known.list.is_empty()) {
        found.clear();
    }
    upstream.resolved(found, problem);
    for lookup in late {
        // What it found is too late, and a panic in it is counted.
        let _ = lookup.await;
    }
    upstream.release_resolution();
}

/// A call of the system's resolver, on a thread of its own.
type Lookup = JoinHandle<std::io::Result<Vec<SocketAddr>>>;

/// The addresses of a url, sorted so that a reordered answer changes nothing.
///
/// # Errors
/// A message that names the host and says why it has no usable address.
pub async fn resolve_url(url: &Url) -> Result<Vec<Address>, String> {
    look_up(url).await.0
}

/// The same, and the lookup that goes on nevertheless where it took too long.
async fn look_up(url: &Url) -> (Result<Vec<Address>, String>, Option<Lookup>) {
    if let Some(address) = literal_address(url) {
        return (Ok(vec![address]), None);
    }
    let name = (url.host.clone(), url.port);
    let mut lookup: Lookup = spawn_blocking(move || {
        std::net::ToSocketAddrs::to_socket_addrs(&(&*name.0, name.1)).map(Iterator::collect)
    });
    match timeout(TIMEOUT, &mut lookup).await {
        Ok(Ok(Ok(found))) => (usable(&url.host, found), None),
        Ok(Ok(Err(error))) => (Err(format!("`{}` does not resolve: {error}", url.host)), None),
        Ok(Err(error)) => (Err(format!("`{}` does not resolve: {error}", url.host)), None),
        Err(_) => {
            let why = format!("`{}` does not resolve within {} s", url.host, TIMEOUT.as_secs());
            (Err(why), Some(lookup))
        }
    }
}

/// Those of the addresses of `host` that something may lead to.
fn usable(host: &str, found: Vec<SocketAddr>) -> Result<Vec<Address>, String> {
    let (forbidden, mut usable): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| is_off_limits(address.ip()));
    usable.sort_unstable();
    usable.dedup();
    match (usable.is_empty(), forbidden.first()) {
        (false, _) => Ok(usable.into_iter().map(Address::Tcp).collect()),
        (true, Some(address)) => Err(format!(
            "`{host}` resolves to {}, a link-local address or one that serves a machine's credentials",
            address.ip()
        )),
        (true, None) => Err(format!("`{host}` has no address")),
    }
}
