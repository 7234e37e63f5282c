//! The hub's end of tunnels (`tunnel`): ports whose connections go to machines that nothing can reach, and
//! connections that are made for these.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use foldhash::fast::RandomState;
use hyper::body::Frame;
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::url::{Scheme, Url, split_authority};
use serde::Deserialize;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::admin::problem;
use crate::names::resolve_url;
use crate::plane::listen::bind;
use crate::snapshot::Published;
use crate::tunnel::{BYTES, Deferred, GO, Handed, Opened, pass_on};
use crate::upstream::Address;

/// The most tunnels at a time.
const MOST: usize = 1024;
/// For how long a connection waits to be taken, and how long one may take to be made.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where no descriptor is left to accept with.
const SHORTAGE: Duration = Duration::from_millis(50);

/// Where the ports of tunnels are: `HOST`, or `HOST:FIRST-LAST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPorts {
    /// The host by which others reach them.
    pub host: String,
    /// The first and the last; any free one, where they are not told.
    pub ports: Option<(u16, u16)>,
}

impl FromStr for TunnelPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, range) = match text.rsplit_once(':') {
            Some((host, range)) if range.contains('-') => (host, Some(range)),
            _ => (text, None),
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_err() && !matches!(split_authority(host), Ok((_, None))) {
            return Err(format!("`{host}` is no host; write HOST or HOST:20000-20999"));
        }
        let ports = |range: &str| {
            let (first, last) = range.split_once('-')?;
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (1..=last).contains(&first).then_some((first, last))
        };
        let wrong = || "the ports are written FIRST-LAST, such as 20000-20999".to_owned();
        let ports = range.map(|range| ports(range).ok_or_else(wrong)).transpose()?;
        Ok(Self { host: bare.to_owned(), ports })
    }
}

/// A request that waits for a connection: what gives it its socket, and what it sends.
struct Waiting {
    handed: Handed,
    body: Body,
}

/// By the id of each tunnel, where requests come in that wait.
type Doors = Mutex<HashMap<String, mpsc::UnboundedSender<Waiting>, RandomState>>;

/// The addresses of the routing table of one generation.
#[derive(Default)]
struct Known {
    generation: u64,
    places: HashSet<String, RandomState>,
}

/// All tunnels of a hub.
pub struct Tunnels {
    /// Where their ports are; no tunnels are offered without.
    ports: Option<TunnelPorts>,
    /// Where the ports listen.
    at: IpAddr,
    doors: Arc<Doors>,
    published: Arc<Published>,
    known: Mutex<Known>,
    /// Listeners to which nobody is led.
    own: Vec<Address>,
}

impl Tunnels {
    /// No tunnel yet; `own` are listeners to which nobody is led.
    #[must_use]
    pub fn new(
        ports: Option<TunnelPorts>,
        at: IpAddr,
        published: Arc<Published>,
        own: Vec<Address>,
    ) -> Arc<Self> {
        Arc::new(Self { ports, at, doors: Arc::default(), published, known: Mutex::default(), own })
    }

    /// Listens on a port of the range.
    fn listen(&self, ports: &TunnelPorts) -> io::Result<(TcpListener, u16)> {
        let mut range = ports.ports.map_or(0..=0, |(first, last)| first..=last);
        let taken = || io::Error::new(io::ErrorKind::AddrInUse, "all of them are taken");
        let found = range.find_map(|port| bind(SocketAddr::new(self.at, port), 1).ok());
        let (address, sockets) = found.ok_or_else(taken)?;
        let socket = sockets.into_iter().next().ok_or_else(taken)?;
        Ok((TcpListener::from_std(socket)?, address.port()))
    }

    /// Whether a url of the routing table leads to this place.
    fn is_known(&self, to: &str) -> bool {
        let snapshot = self.published.load_full();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.generation != snapshot.generation {
            let ids = snapshot.table.environments().map(|(id, _)| id);
            let urls = ids.flat_map(|id| snapshot.table.own_routes(id)).flat_map(|route| &*route.urls);
            let places = urls.filter(|url| url.scheme != Scheme::Unix).map(Url::authority).collect();
            *known = Known { generation: snapshot.generation, places };
        }
        known.places.contains(to)
    }

    /// Whether a connection would come to a listener of this process to which nobody is led.
    fn is_own(&self, to: SocketAddr) -> bool {
        let to_ip = to.ip().to_canonical();
        self.own.iter().filter_map(Address::tcp).filter(|own| own.port() == to.port()).any(|own| {
            // Only addresses of this machine can be bound.
            let here = || UdpSocket::bind((to_ip, 0)).is_ok();
            to_ip.is_unspecified() || own.ip().to_canonical() == to_ip || own.ip().is_unspecified() && here()
        })
    }

    /// Connects to the place of a url.
    async fn connect(&self, url: &Url) -> Result<TcpStream, String> {
        let place = url.authority();
        let mut why = "it has no address".to_owned();
        for address in resolve_url(url).await?.iter().filter_map(Address::tcp) {
            if self.is_own(address) {
                return Err(format!("{place} is a listener of the hub itself, to which nobody is led"));
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => why = error.to_string(),
            }
        }
        Err(format!("{place}: {why}"))
    }
}

fn locked(doors: &Doors) -> MutexGuard<'_, HashMap<String, mpsc::UnboundedSender<Waiting>, RandomState>> {
    doors.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is tunnelled.
#[derive(Deserialize)]
pub(super) struct Asked {
    overlay: String,
    service: String,
}

/// `POST /hub/v1/tunnels`: a tunnel that is there for as long as its answer is read.
pub(super) async fn open(State(tunnels): State<Arc<Tunnels>>, Json(asked): Json<Asked>) -> Response {
    // Only for the log, which shows nothing else.
    let (Ok(overlay), Ok(service)) =
        (asked.overlay.parse::<EnvironmentId>(), asked.service.parse::<ServiceName>())
    else {
        return problem(StatusCode::BAD_REQUEST, "`overlay` and `service` are names");
    };
    let Some(ports) = &tunnels.ports else {
        let why = "this hub offers no tunnels: it is to be started with `--hub-tunnels HOST`";
        return problem(StatusCode::FORBIDDEN, why);
    };
    if locked(&tunnels.doors).len() >= MOST {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "there are too many tunnels");
    }
    let (socket, port) = match tunnels.listen(ports) {
        Ok(found) => found,
        Err(error) => {
            let why = format!("no port of this hub can be had for a tunnel: {error}");
            return problem(StatusCode::SERVICE_UNAVAILABLE, &why);
        }
    };
    let tunnel = format!("{:032x}", fastrand::u128(..));
    let (door, waiting) = mpsc::unbounded_channel();
    locked(&tunnels.doors).insert(tunnel.clone(), door);
    tracing::info!(%overlay, %service, port, "a tunnel is open");
    let accepting = tokio::spawn(accept(socket, waiting)).abort_handle();
    let opened = Opened { tunnel: tunnel.clone(), host: ports.host.clone(), port };
    let line = serde_json::to_string(&opened).unwrap_or_default() + "\n";
    let held = Held { line: Some(line.into()), tunnel, doors: tunnels.doors.clone(), accepting, port };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(held)).into_response()
}

/// The answer by which a tunnel is held: it says where that is, and then nothing until it is dropped.
struct Held {
    line: Option<Bytes>,
    tunnel: String,
    doors: Arc<Doors>,
    accepting: AbortHandle,
    port: u16,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.line.take() {
            Some(line) => Poll::Ready(Some(Ok(Frame::data(line)))),
            None => Poll::Pending,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.accepting.abort();
        locked(&self.doors).remove(&self.tunnel);
        tracing::info!(port = self.port, "a tunnel is closed");
    }
}

/// Hands each connection to a request that waits for one. Those that come meanwhile wait in the kernel's queue.
async fn accept(socket: TcpListener, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
    loop {
        let Ok((stream, _)) = socket.accept().await else {
            tokio::time::sleep(SHORTAGE).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        match timeout(PATIENCE, next(&mut waiting)).await {
            Ok(Some(Waiting { handed, body })) => {
                let (read, write) = stream.into_split();
                if handed.send(read).is_ok() {
                    tokio::spawn(pass_on(body, write));
                }
            }
            Ok(None) => return,
            // Nobody takes it: whoever connected is to know that at once.
            Err(_) => drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO))),
        }
    }
}

/// The next request that still waits.
async fn next(waiting: &mut mpsc::UnboundedReceiver<Waiting>) -> Option<Waiting> {
    loop {
        let one = waiting.recv().await?;
        if !one.handed.is_closed() {
            return Some(one);
        }
    }
}

/// Which tunnel.
#[derive(Deserialize)]
pub(super) struct Of {
    tunnel: String,
}

/// `POST /hub/v1/tunnels/connections?tunnel=ID`: the next connection of a tunnel.
pub(super) async fn wait(State(tunnels): State<Arc<Tunnels>>, Query(of): Query<Of>, body: Body) -> Response {
    let (handed, answer) = Deferred::later(Some(Bytes::from_static(&[GO])));
    let sent = locked(&tunnels.doors).get(&of.tunnel).map(|door| door.send(Waiting { handed, body }));
    match sent {
        Some(Ok(())) => streamed(answer),
        _ => problem(StatusCode::NOT_FOUND, "there is no such tunnel any more"),
    }
}

/// Where to.
#[derive(Deserialize)]
pub(super) struct To {
    to: String,
}

/// `POST /hub/v1/dial?to=HOST:PORT`: a connection to an address of the routing table, and to no other.
pub(super) async fn dial(
    State(tunnels): State<Arc<Tunnels>>,
    Query(To { to }): Query<To>,
    body: Body,
) -> Response {
    if tunnels.ports.is_none() {
        return problem(StatusCode::FORBIDDEN, "this hub offers no tunnels");
    }
    let url = format!("http://{to}").parse::<Url>().ok();
    let Some(url) = url.filter(|url| tunnels.is_known(&url.authority())) else {
        return problem(StatusCode::FORBIDDEN, "no service of this hub's environments is there");
    };
    match timeout(PATIENCE, tunnels.connect(&url)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            let (read, write) = stream.into_split();
            tokio::spawn(pass_on(body, write));
            streamed(Deferred::of(read))
        }
        Ok(Err(why)) => problem(StatusCode::BAD_GATEWAY, &why),
        Err(_) => problem(StatusCode::GATEWAY_TIMEOUT, "it does not answer"),
    }
}

fn streamed(body: Deferred) -> Response {
    ([(header::CONTENT_TYPE, BYTES)], Body::new(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_tunnels_are_a_host_and_a_range() {
        let read = |text: &str| text.parse::<TunnelPorts>().map(|it| (it.host, it.ports)).ok();
        for (text, expected) in [
            ("hub.example.com", Some(("hub.example.com", None))),
            ("hub:20000-20999", Some(("hub", Some((20000, 20999))))),
            ("10.0.0.1:1-1", Some(("10.0.0.1", Some((1, 1))))),
            ("[::1]:5-9", Some(("::1", Some((5, 9))))),
            ("::1", Some(("::1", None))),
            ("hub:7000", None),
            ("hub:9-5", None),
            ("hub:0-5", None),
            ("hub:a-b", None),
            ("a b", None),
            ("", None),
        ] {
            let expected = expected.map(|(host, ports): (&str, _)| (host.to_owned(), ports));
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
