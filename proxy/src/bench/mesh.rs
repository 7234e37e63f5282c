//! The built-in mesh: upstreams and a gateway in this process, with as many overlays and lineages as
//! deep as asked for, led along one path after the other.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::route::{Listener, ROUTE_HEADER, Role, receipt};
use serde::Serialize;
use socket2::{Domain, Socket, Type};
use tokio::runtime::Runtime;

use crate::client;
use crate::control::Trigger;
use crate::plane::trust::Trust;
use crate::plane::{EngineChoice, ListenerSettings};
use crate::process::{Prepared, Running};
use crate::settings::Settings;

const BASELINE: &str = "staging";
/// The header that carries the key.
pub const KEY_HEADER: &str = "x-overlay-id";
/// Services of the baseline; the first is the one that is called.
const SERVICES: usize = 30;
/// Services that an overlay owns.
const OWNED: usize = 3;

/// The paths that a request can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Straight to the upstream, without a proxy.
    Direct,
    /// Through the gateway, without a key.
    Baseline,
    /// The key's overlay owns the service.
    Overlay,
    /// The last ancestor before the baseline owns it.
    Ancestor,
    /// Nobody in the lineage but the baseline has it.
    NotOwned,
    /// The key's overlay owns it, its upstream refuses connections, and the baseline takes over.
    Fallback,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Direct, Self::Baseline, Self::Overlay, Self::Ancestor, Self::NotOwned, Self::Fallback];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Baseline => "baseline",
            Self::Overlay => "overlay",
            Self::Ancestor => "ancestor",
            Self::NotOwned => "not-owned",
            Self::Fallback => "fallback",
        }
    }

    /// What it is, for people.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Direct => "straight to the upstream, no proxy",
            Self::Baseline => "through the gateway, no key",
            Self::Overlay => "the key's overlay owns the service",
            Self::Ancestor => "the last ancestor before the baseline owns it",
            Self::NotOwned => "only the baseline has it",
            Self::Fallback => "the overlay's upstream refuses connections, the baseline takes over",
        }
    }

    /// Whether its requests carry a key.
    #[must_use]
    pub fn keyed(self) -> bool {
        !matches!(self, Self::Direct | Self::Baseline)
    }

    /// Who answers, and what the receipt says of it.
    fn expected(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Direct | Self::Baseline => ("baseline", None),
            Self::Overlay => ("overlay", Some("via=overlay;reason=owned")),
            Self::Ancestor => ("overlay", Some("via=ancestor;reason=inherited")),
            Self::NotOwned => ("baseline", Some("via=baseline;reason=not-owned")),
            Self::Fallback => ("baseline", Some("via=baseline;reason=refused")),
        }
    }
}

/// How large a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Overlays.
    pub overlays: usize,
    /// Overlays in each lineage.
    pub depth: usize,
}

/// The services behind the gateway.
pub struct Upstreams {
    baseline: SocketAddr,
    overlay: SocketAddr,
    /// A port that is taken and refuses connections.
    refusing: (SocketAddr, Socket),
    runtime: Runtime,
}

impl Upstreams {
    /// Starts them.
    ///
    /// # Errors
    /// No socket or thread can be had.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("upstream")
            .enable_all()
            .build()?;
        let serve = |name: &'static str| {
            let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            runtime.spawn(serve(socket, name));
            Ok::<_, io::Error>(address)
        };
        let (baseline, overlay) = (serve("baseline")?, serve("overlay")?);
        // Bound, so that nobody else gets the port, and never listening.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let address = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no address"))?;
        Ok(Self { baseline, overlay, refusing: (address, socket), runtime })
    }

    /// Where the baseline's service listens.
    #[must_use]
    pub fn baseline(&self) -> SocketAddr {
        self.baseline
    }

    /// Asks an address and says what is wrong with the answer, unless it is the one of `path`.
    ///
    /// # Errors
    /// What was answered instead.
    pub fn check(&self, address: SocketAddr, path: Path, key: &str) -> Result<(), String> {
        let mut request = Request::get("/").header(http::header::HOST, address.to_string());
        if path.keyed() {
            request = request.header(KEY_HEADER, key);
        }
        let request = request.body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
        let response = self.runtime.block_on(client::send(&address.to_string(), request))?;
        let list = response.headers().get(ROUTE_HEADER).map(HeaderValue::as_bytes);
        let last = list.and_then(|list| receipt::parse(list).ok()?.pop());
        let receipt = last.map(|last| format!("via={};reason={}", last.via.as_str(), last.reason));
        let (body, expected) = path.expected();
        let said = match (&receipt, expected) {
            (Some(receipt), Some(expected)) => receipt == expected,
            (None, None) => true,
            _ => false,
        };
        if said && response.body() == body.as_bytes() {
            return Ok(());
        }
        let answer = String::from_utf8_lossy(response.body());
        let receipt = receipt.as_deref().unwrap_or("none");
        Err(format!("the path `{}` gave {}, `{answer}`, receipt {receipt}", path.name(), response.status()))
    }

    /// Ends them.
    pub fn stop(self) {
        self.runtime.shutdown_background();
    }
}

async fn serve(socket: TcpListener, name: &'static str) {
    let Ok(socket) = tokio::net::TcpListener::from_std(socket) else {
        return;
    };
    while let Ok((stream, _)) = socket.accept().await {
        let _ = stream.set_nodelay(true);
        let answers = service_fn(move |request| answer(request, name));
        // A connection that breaks off is its client's affair.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answers));
    }
}

/// A body comes back as it is; without one, the service says its name.
async fn answer(
    request: Request<Incoming>,
    name: &'static str,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let body = if body.is_empty() { Bytes::from_static(name.as_bytes()) } else { body };
    Ok(Response::new(Full::new(body)))
}

/// A gateway before the upstreams.
pub struct Mesh {
    size: Size,
    gateway: SocketAddr,
    addresses: [SocketAddr; 3],
    running: Running,
    path: Path,
}

impl Mesh {
    /// Starts a gateway with a table of this size; its one worker shares the machine with the others.
    ///
    /// # Errors
    /// No socket or thread can be had, or the blueprints are refused.
    pub fn start(size: Size, engine: EngineChoice, upstreams: &Upstreams) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let baseline = Some(BASELINE.parse().map_err(io::Error::other)?);
        let listener = Listener { role: Role::Gateway, baseline };
        let gateway = ListenerSettings { address: address.into(), listener, app: None, trust: Trust::Any };
        let settings = Settings { engine, ..Settings::in_process(vec![gateway]) };
        let prepared = Prepared::bind(settings)?;
        let gateway = prepared.addresses()[0];
        let addresses = [upstreams.baseline, upstreams.overlay, upstreams.refusing.0];
        let documents = Blueprints { size, addresses };
        let running = prepared.start(documents.all(Path::Overlay))?;
        let mesh = Self { size, gateway, addresses, running, path: Path::Overlay };
        match mesh.running.control().problems() {
            problems if problems.is_empty() => Ok(mesh),
            problems => Err(io::Error::other(problems.join("\n"))),
        }
    }

    /// How large its table is.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// Where the gateway listens.
    #[must_use]
    pub fn gateway(&self) -> SocketAddr {
        self.gateway
    }

    /// The key of the requests.
    #[must_use]
    pub fn key(&self) -> String {
        id(self.size.measured().end - 1)
    }

    /// Gives the measured lineage the shape of `path`, by a reload while everything runs.
    pub fn lead(&mut self, path: Path) {
        if self.path != path {
            let documents = Blueprints { size: self.size, addresses: self.addresses };
            self.running.control().apply(&documents.measured(path), Trigger::Change);
            self.path = path;
        }
    }

    /// Ends it.
    pub fn stop(self) {
        self.running.stop();
    }
}

impl Size {
    /// The overlays of the lineage that is measured, from the middle of the table.
    fn measured(self) -> std::ops::Range<usize> {
        let lineages = (self.overlays / self.depth).max(1);
        let first = lineages / 2 * self.depth;
        first..first + self.depth
    }
}

/// The blueprints of a mesh.
struct Blueprints {
    size: Size,
    /// Where the baseline's service, an overlay's, and one that refuses connections are.
    addresses: [SocketAddr; 3],
}

impl Blueprints {
    fn all(&self, path: Path) -> Vec<FileChange> {
        let measured = self.size.measured();
        let [baseline, overlay, _] = self.addresses;
        let mut text = format!("name: {BASELINE}\nrouting: {{mode: baseline}}\nservices:\n");
        for service in 0..SERVICES {
            let expose = if service == 0 { ", expose: true" } else { "" };
            let _ = writeln!(text, "  - {{name: service-{service}, url: 'http://{baseline}'{expose}}}");
        }
        let others = (0..self.size.overlays).filter(|number| !measured.contains(number));
        let others = others.map(|number| {
            let owned = (0..OWNED).map(|nth| (number * 7 + nth) % SERVICES);
            self.overlay(number, owned, overlay, "")
        });
        std::iter::once(file(BASELINE, text)).chain(others).chain(self.measured(path)).collect()
    }

    /// The lineage that is measured, in the shape of a path.
    fn measured(&self, path: Path) -> Vec<FileChange> {
        let [_, overlay, refusing] = self.addresses;
        let measured = self.size.measured();
        let (first, last) = (measured.start, measured.end - 1);
        let fallback = ", onUnavailable: fallback, holdFor: 0s";
        measured
            .map(|number| {
                let (address, policy) = match path {
                    Path::Fallback if number == last => (refusing, fallback),
                    _ => (overlay, ""),
                };
                let owns = match path {
                    Path::Overlay | Path::Fallback => number == last,
                    Path::Ancestor => number == first,
                    Path::Direct | Path::Baseline | Path::NotOwned => false,
                };
                // The service that is called is the first; each overlay owns some others at any rate.
                let from = usize::from(!owns);
                self.overlay(number, from..from + OWNED, address, policy)
            })
            .collect()
    }

    fn overlay(
        &self,
        number: usize,
        owned: impl Iterator<Item = usize>,
        address: SocketAddr,
        policy: &str,
    ) -> FileChange {
        let id = id(number);
        let parent = match number.is_multiple_of(self.size.depth) {
            true => BASELINE.to_owned(),
            false => self::id(number - 1),
        };
        let mut text =
            format!("name: {id}\nrouting: {{mode: overlay, baselineId: {parent}{policy}}}\nservices:\n");
        for service in owned {
            let _ = writeln!(text, "  - {{name: service-{service}, url: 'http://{address}'}}");
        }
        file(&id, text)
    }
}

fn id(number: usize) -> String {
    format!("overlay-{number}")
}

fn file(id: &str, text: String) -> FileChange {
    let path: Arc<str> = format!("({id})").into();
    let source = Source::new(path.clone(), text, None);
    FileChange { path, content: Content::Text(Arc::new(source)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_where_its_name_says() {
        let upstreams = Upstreams::start().unwrap();
        for size in [Size { overlays: 1, depth: 1 }, Size { overlays: 40, depth: 16 }] {
            let mut mesh = Mesh::start(size, EngineChoice::Auto, &upstreams).unwrap();
            let overlays = mesh.running.control().lineages(|lineages| lineages.standings().count()) - 1;
            assert_eq!(overlays, size.overlays);
            for path in Path::ALL {
                if path == Path::Ancestor && size.depth == 1 {
                    continue;
                }
                mesh.lead(path);
                let address = if path == Path::Direct { upstreams.baseline() } else { mesh.gateway() };
                assert_eq!(upstreams.check(address, path, &mesh.key()), Ok(()), "{size:?}");
            }
            let wrong = upstreams.check(mesh.gateway(), Path::Overlay, &mesh.key());
            assert!(wrong.unwrap_err().contains("reason=refused"), "the last path was fallback");
            mesh.stop();
        }
        upstreams.stop();
    }

    #[test]
    fn the_measured_lineage_is_whole_and_in_the_middle() {
        for (overlays, depth, expected) in [(1, 1, 0..1), (10, 1, 5..6), (16, 16, 0..16), (40, 16, 16..32)] {
            assert_eq!(Size { overlays, depth }.measured(), expected);
        }
    }
}
