//! Upstreams: the live state beside the snapshot. Resolved addresses, which of them refuse, whose
//! turn it is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwapOption;
use overlane_config::route::Reason;
use overlane_config::url::{Scheme, Url};
use tokio::sync::Notify;

use crate::capacity::Capacity;
use crate::clock::monotonic_millis;
use crate::names::Names;

/// How long an endpoint that failed to connect is passed over, in milliseconds.
const PASSED_OVER: u64 = 200;

/// One in so many of the requests at an upstream may be a repeat (the budgets of Finagle and Envoy: 20 %).
const REPEATED_SHARE: u32 = 5;
/// So many repeats may be under way however few requests there are.
const MIN_REPEATS: u32 = 3;

/// Where to connect, or to listen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket's path.
    Unix(Box<str>),
}

impl Address {
    /// The address of TCP, where it is one.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.tcp().is_none_or(|address| address.ip().is_loopback())
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl FromStr for Address {
    type Err = String;

    /// Reads `127.0.0.1:80`, `[::1]:80` or `unix:/path`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("unix:") {
            return text.parse::<Url>().map(|url| Self::Unix(url.host));
        }
        let tcp = text.parse().map(Self::Tcp);
        tcp.map_err(|why| format!("{why}; write 127.0.0.1:7480 or unix:/run/overlane.sock"))
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// What an upstream speaks inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// As far as is known, what it is asked for.
    Either,
    /// HTTP/1.1: it chose that though it was offered HTTP/2.
    OnlyHttp1,
    /// HTTP/2: it refused HTTP/1.1.
    OnlyHttp2,
}

/// One address of an upstream and how it fares.
#[derive(Debug)]
pub struct Endpoint {
    /// Where to connect.
    pub address: Address,
    /// The same as text, once somebody wanted it.
    text: OnceLock<Box<str>>,
    /// The url that led here: scheme, and the name for TLS.
    pub url: Url,
    /// Passed over until then, in monotonic milliseconds.
    passed_over_until: AtomicU64,
    /// Whether the last failure was a refusal (1) or silence (0).
    refused: AtomicU8,
    /// What it speaks in TLS, as far as handshakes have shown.
    speaks: AtomicU8,
    /// Whether its address is one of this machine's, once somebody wanted to know.
    here: OnceLock<bool>,
}

impl Endpoint {
    fn new(url: &Url, address: Address) -> Arc<Self> {
        Arc::new(Self {
            address,
            text: OnceLock::new(),
            url: url.clone(),
            passed_over_until: AtomicU64::new(0),
            refused: AtomicU8::new(0),
            speaks: AtomicU8::new(Speaks::Either as u8),
            here: OnceLock::new(),
        })
    }

    /// Its address as text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.text.get_or_init(|| self.address.to_string().into())
    }

    /// Whether a connection to it comes to a listener at `listener`.
    #[must_use]
    pub fn leads_to(&self, listener: &Address) -> bool {
        let (Some(to), Some(at)) = (self.address.tcp(), listener.tcp()) else {
            return self.address == *listener;
        };
        if to.port() != at.port() {
            return false;
        }
        // Who connects to no address in particular comes to loopback (ip(7), ipv6(7)).
        let to = match to.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let at = at.ip().to_canonical();
        let every = at.is_unspecified() && at.is_ipv4() == to.is_ipv4();
        // Only this machine's addresses can be bound.
        to == at || (every && *self.here.get_or_init(|| UdpSocket::bind((to, 0)).is_ok()))
    }

    /// Notes that a connection could not be made, and why.
    pub fn failed(&self, reason: Reason) {
        self.refused.store(u8::from(reason == Reason::Refused), Relaxed);
        self.passed_over_until.store(monotonic_millis() + PASSED_OVER, Relaxed);
    }

    /// Notes what a handshake has shown that it speaks in TLS.
    pub fn speaks(&self, speaks: Speaks) {
        self.speaks.store(speaks as u8, Relaxed);
    }

    /// Whether a request goes there in HTTP/2 inside TLS, where the handshake comes to that. `http2` where it
    /// came in HTTP/2; one that did not only goes so where nothing else is spoken.
    #[must_use]
    pub fn may_agree_on_http2(&self, http2: bool) -> bool {
        let speaks = self.speaks.load(Relaxed);
        self.url.scheme == Scheme::Https
            && (speaks == Speaks::OnlyHttp2 as u8 || (http2 && speaks != Speaks::OnlyHttp1 as u8))
    }

    /// Whether a request may be sent there. Once it was passed over long enough, one of all requests finds out
    /// for the others whether it is back: however many there are, a dead one sees few attempts.
    fn is_offered(&self) -> bool {
        let until = self.passed_over_until.load(Relaxed);
        if until == 0 {
            return true;
        }
        // The clock is only read when something failed before.
        let now = monotonic_millis();
        let again = now + PASSED_OVER;
        until <= now && self.passed_over_until.compare_exchange(until, again, Relaxed, Relaxed).is_ok()
    }

    /// Notes that a connection was made; says whether that is news.
    fn reached(&self) -> bool {
        self.passed_over_until.load(Relaxed) != 0 && self.passed_over_until.swap(0, Relaxed) != 0
    }

    fn reason(&self) -> Reason {
        if self.refused.load(Relaxed) == 1 { Reason::Refused } else { Reason::Unhealthy }
    }
}

/// What the urls of an upstream resolved to.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// The addresses.
    pub list: Box<[Arc<Endpoint>]>,
    /// Why the last resolution failed; the addresses are then those of the one before.
    pub problem: Option<String>,
}

/// The live state of one service of one environment.
pub struct Upstream {
    urls: Arc<[Url]>,
    endpoints: ArcSwapOption<Endpoints>,
    turn: AtomicUsize,
    /// Whether it is a host outside that somebody called, and no service.
    pub(crate) outside: bool,
    /// Whether its names wait to be resolved, or are.
    resolving: AtomicBool,
    /// The requests that are there now.
    pub requests: Capacity,
    /// How many of them are there once again.
    repeats: AtomicU32,
    /// Whether a request asked since the last refresh.
    asked: AtomicBool,
    /// Whether the names are being resolved in the background.
    known_to_names: AtomicBool,
    changed: Notify,
    /// Whether no environment has it any more.
    retired: AtomicBool,
    names: Names,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("urls", &self.urls).finish_non_exhaustive()
    }
}

impl Upstream {
    /// An upstream at `urls`; none while it is pending. Its names are resolved in the background
    /// from the first request on, or from now on when `eager`.
    #[must_use]
    pub fn new(urls: Arc<[Url]>, names: &Names, eager: bool) -> Arc<Self> {
        Self::made(urls, names, eager, false)
    }

    /// A host outside.
    #[must_use]
    pub fn outside(url: Url, names: &Names) -> Arc<Self> {
        Self::made(Arc::new([url]), names, false, true)
    }

    fn made(urls: Arc<[Url]>, names: &Names, eager: bool, outside: bool) -> Arc<Self> {
        let upstream = Arc::new(Self {
            urls,
            endpoints: ArcSwapOption::empty(),
            turn: AtomicUsize::new(0),
            outside,
            resolving: AtomicBool::new(false),
            requests: Capacity::default(),
            repeats: AtomicU32::new(0),
            asked: AtomicBool::new(eager),
            known_to_names: AtomicBool::new(false),
            changed: Notify::new(),
            retired: AtomicBool::new(false),
            names: names.clone(),
        });
        if eager {
            upstream.ensure_endpoints();
        }
        upstream
    }

    /// Who resolves its names.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Its urls, as configured.
    #[must_use]
    pub fn urls(&self) -> &[Url] {
        &self.urls
    }

    /// What they resolved to, if they were asked for.
    #[must_use]
    pub fn endpoints(&self) -> Option<Arc<Endpoints>> {
        self.endpoints.load_full()
    }

    /// The next endpoint in turn that is not passed over.
    ///
    /// # Errors
    /// Pending without urls; else why none is available: not resolved, refused, or silent.
    pub fn pick(self: &Arc<Self>) -> Result<Arc<Endpoint>, Reason> {
        if self.urls.is_empty() {
            return Err(Reason::Pending);
        }
        if !self.asked.load(Relaxed) {
            self.asked.store(true, Relaxed);
        }
        let loaded = self.endpoints.load();
        let Some(endpoints) = loaded.as_ref() else {
            self.ensure_endpoints();
            let now = self.endpoints.load();
            return now
                .as_ref()
                .and_then(|endpoints| endpoints.list.first().cloned())
                .ok_or(Reason::Unhealthy);
        };
        let count = endpoints.list.len();
        let turn = if count > 1 { self.turn.fetch_add(1, Relaxed) } else { 0 };
        let in_turn = || (0..count).map(|step| &endpoints.list[turn.wrapping_add(step) % count]);
        let fresh = in_turn().find(|endpoint| endpoint.is_offered());
        match (fresh, in_turn().next()) {
            (Some(endpoint), _) => Ok(endpoint.clone()),
            (None, Some(endpoint)) => Err(endpoint.reason()),
            (None, None) => Err(Reason::Unhealthy),
        }
    }

    /// Why it has no usable address, in words; empty where there is nothing to say.
    #[must_use]
    pub fn problem(&self) -> String {
        self.endpoints.load().as_ref().and_then(|endpoints| endpoints.problem.clone()).unwrap_or_default()
    }

    /// Notes that a connection to `endpoint` was made: who waits for that goes on.
    pub fn reached(&self, endpoint: &Endpoint) {
        if endpoint.reached() {
            self.changed.notify_waiters();
        }
    }

    /// One of the repeats that may be under way at once, where there is one left: so many that what is
    /// refused under load does not become more load by being sent again.
    #[must_use]
    pub fn may_repeat(&self) -> bool {
        let most = MIN_REPEATS.max(self.requests.taken() / REPEATED_SHARE);
        let may = self.repeats.fetch_add(1, Relaxed) < most;
        if !may {
            self.repeated();
        }
        may
    }

    /// Notes that a repeat is over.
    pub fn repeated(&self) {
        self.repeats.fetch_sub(1, Relaxed);
    }

    /// Completes when the endpoints change after this was called.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Says that no environment has it any more.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Relaxed);
        self.changed.notify_waiters();
    }

    /// Completes when no environment has it any more.
    pub async fn retired(&self) {
        loop {
            let changed = self.changed.notified();
            if self.retired.load(Relaxed) {
                return;
            }
            changed.await;
        }
    }

    /// Whether `endpoint` is one of its own; `retired` where one of an upstream that no environment has any
    /// more does not count.
    #[must_use]
    pub fn leads_to(&self, endpoint: &Arc<Endpoint>, retired: bool) -> bool {
        let endpoints = self.endpoints.load();
        let own = endpoints.as_ref().is_some_and(|own| own.list.iter().any(|own| Arc::ptr_eq(own, endpoint)));
        own && !(retired && self.retired.load(Relaxed))
    }

    /// Whether its names were looked for and no address is known.
    pub(crate) fn unresolved(&self) -> bool {
        self.endpoints.load().as_ref().is_some_and(|endpoints| endpoints.list.is_empty())
    }

    /// Whether a request asked since this was last called.
    pub(crate) fn take_asked(&self) -> bool {
        self.asked.swap(false, Relaxed)
    }

    /// Claims the resolution of its names; false where somebody has it.
    pub(crate) fn claim_resolution(&self) -> bool {
        !self.resolving.swap(true, Relaxed)
    }

    /// Gives it back.
    pub(crate) fn release_resolution(&self) {
        self.resolving.store(false, Relaxed);
    }

    /// Literal addresses are ready at once; names go to the resolver, once.
    fn ensure_endpoints(self: &Arc<Self>) {
        let literal: Option<Vec<_>> = self
            .urls
            .iter()
            .map(|url| self.names.literal(url).map(|address| Endpoint::new(url, address)))
            .collect();
        match literal {
            Some(list) if !self.urls.is_empty() => {
                self.endpoints.store(Some(Arc::new(Endpoints { list: list.into(), problem: None })));
            }
            _ if self.urls.is_empty() => {}
            _ => {
                if !self.known_to_names.swap(true, Relaxed) {
                    self.names.follow(self);
                }
            }
        }
    }

    /// Takes in a resolution. Endpoints that stay keep how they fare; a failed one keeps them all.
    pub(crate) fn resolved(&self, found: Vec<(Url, Address)>, problem: Option<String>) {
        let before = self.endpoints.load_full();
        let known = before.as_ref().map_or(&[][..], |endpoints| &endpoints.list);
        let list = if found.is_empty() {
            known.to_vec()
        } else {
            let keep = |(url, address): (Url, Address)| {
                let same = known.iter().find(|endpoint| endpoint.address == address && endpoint.url == url);
                same.cloned().unwrap_or_else(|| Endpoint::new(&url, address))
            };
            found.into_iter().map(keep).collect()
        };
        self.endpoints.store(Some(Arc::new(Endpoints { list: list.into(), problem })));
        self.changed.notify_waiters();
    }
}

/// The address of a url that needs no resolution.
#[must_use]
pub fn literal_address(url: &Url) -> Option<Address> {
    match url.scheme {
        Scheme::Unix => Some(Address::Unix(url.host.clone())),
        _ => Some(Address::Tcp(SocketAddr::new(url.host.parse::<IpAddr>().ok()?, url.port))),
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(urls: &[&str]) -> Arc<Upstream> {
        let urls: Vec<Url> = urls.iter().map(|url| url.parse().expect("url")).collect();
        Upstream::new(urls.into(), &Names::none(), false)
    }

    #[test]
    fn an_endpoint_that_leads_to_a_listener_is_told_however_it_is_spelled() {
        let leads = |to: &str, at: &str| {
            let address: SocketAddr = to.parse().expect("address");
            let url = "http://127.0.0.1".parse().expect("url");
            Endpoint::new(&url, address.into()).leads_to(&Address::Tcp(at.parse().expect("address")))
        };
        // Another address of this machine than loopback's, if there is one.
        let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect("198.51.100.1:9")?;
            Ok(SocketAddr::new(socket.local_addr()?.ip(), 7).to_string())
        });
        let own = own.unwrap_or_else(|_| "127.0.0.9:7".to_owned());
        for (to, at, expected) in [
            ("127.0.0.1:7", "127.0.0.1:7", true),
            ("127.0.0.1:8", "127.0.0.1:7", false),
            ("127.0.0.2:7", "127.0.0.1:7", false),
            ("0.0.0.0:7", "127.0.0.1:7", true),
            ("[::]:7", "[::1]:7", true),
            ("[::ffff:127.0.0.1]:7", "127.0.0.1:7", true),
            ("127.0.0.1:7", "0.0.0.0:7", true),
            ("127.8.9.1:7", "0.0.0.0:7", true),
            ("[::ffff:127.0.0.1]:7", "0.0.0.0:7", true),
            ("0.0.0.0:7", "0.0.0.0:7", true),
            (&own, "0.0.0.0:7", true),
            ("198.51.100.1:7", "0.0.0.0:7", false),
            ("127.0.0.1:7", "[::]:7", false),
        ] {
            assert_eq!(leads(to, at), expected, "{to} {at}");
        }
    }

    #[test]
    fn endpoints_take_turns_and_a_failed_one_is_passed_over() {
        let upstream = upstream(&["http://127.0.0.1:1", "http://127.0.0.1:2"]);
        let first = upstream.pick().expect("first");
        let second = upstream.pick().expect("second");
        let third = upstream.pick().expect("third");
        assert!(first.address != second.address || second.address != third.address);
        second.failed(Reason::Refused);
        for _ in 0..4 {
            assert_ne!(upstream.pick().expect("the other one").address, second.address);
        }
    }

    #[test]
    fn when_all_endpoints_failed_the_reason_is_known() {
        let upstream = upstream(&["http://127.0.0.1:1"]);
        upstream.pick().expect("fresh").failed(Reason::Refused);
        assert_eq!(upstream.pick().err(), Some(Reason::Refused));
    }

    #[test]
    fn once_a_dead_endpoint_was_passed_over_one_request_finds_out_for_all() {
        let upstream = upstream(&["http://127.0.0.1:1"]);
        let endpoint = upstream.pick().expect("fresh");
        endpoint.failed(Reason::Refused);
        // Its time has passed.
        endpoint.passed_over_until.store(1, Relaxed);
        let offered = (0..100).filter(|_| upstream.pick().is_ok()).count();
        assert_eq!(offered, 1);
        upstream.reached(&endpoint);
        assert_eq!((0..100).filter(|_| upstream.pick().is_ok()).count(), 100);
    }

    #[test]
    fn repeats_are_a_part_of_what_is_under_way() {
        let upstream = upstream(&["http://127.0.0.1:1"]);
        let repeats = |most: usize| {
            let granted = (0..1000).take_while(|_| upstream.may_repeat()).count();
            (0..granted).for_each(|_| upstream.repeated());
            assert_eq!(granted, most);
        };
        repeats(3);
        let seats: Vec<_> = (0..100).map(|_| upstream.requests.take(1000, None).expect("a seat")).collect();
        repeats(20);
        seats.into_iter().for_each(|seat| seat.leave(&upstream.requests));
        repeats(3);
    }

    #[test]
    fn no_url_is_pending_and_an_unresolved_name_is_unhealthy() {
        assert_eq!(upstream(&[]).pick().err(), Some(Reason::Pending));
        assert_eq!(upstream(&["http://name.invalid:80"]).pick().err(), Some(Reason::Unhealthy));
    }

    #[test]
    fn a_failed_resolution_keeps_the_addresses_and_their_state() {
        let upstream = upstream(&["http://name.invalid:80"]);
        let url = upstream.urls()[0].clone();
        let address = |port| Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        upstream.resolved(vec![(url.clone(), address(1)), (url.clone(), address(2))], None);
        let failed = upstream.pick().expect("resolved");
        failed.failed(Reason::Unhealthy);
        upstream.resolved(Vec::new(), Some("no such name".to_owned()));
        assert_eq!(upstream.endpoints().expect("kept").list.len(), 2);
        upstream.resolved(vec![(url, failed.address.clone())], None);
        assert_eq!(upstream.pick().err(), Some(Reason::Unhealthy), "the same endpoint is still passed over");
    }
}
