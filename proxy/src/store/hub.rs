//! Another Overlane as store: `hub:URL`. Everything that a process asks of it goes over one connection of HTTP/2.
//! Of several hubs of the same store, the first that answers is asked.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use memchr::memchr;
use overlane_config::blueprint::MAX_FILE_BYTES;
use overlane_config::lineage::About;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::shared::follow::SILENCE;
use super::shared::{
    Change, Changes, Commit, CommitError, Committed, Fault, Listing, Revision, Shared, WatchError, Watching,
};
use crate::hub::wire::{self, AROUND, COMMIT, ENTRIES, Line};
use crate::hub::{STREAM_WINDOW, STREAMS};
use crate::settings::SettingsError;
use crate::tls::certificates::Pair;
use crate::tls::upstreams::UpstreamTls;

/// How long one hub may take to be connected to, with the handshakes.
const CONNECT: Duration = Duration::from_secs(3);
/// How long an answer may take to begin; what is written is checked before.
const ANSWER: Duration = Duration::from_secs(15);
/// A connection on which nothing is heard is asked whether it is there, and given up where nothing comes back.
const PING: Duration = Duration::from_secs(10);
/// The longest line, in bytes: the largest blueprint, every byte of it escaped.
const LINE: usize = 2 * MAX_FILE_BYTES + SMALL;
/// The longest answer that is no list, in bytes.
const SMALL: usize = 16 << 20;

/// A request's body.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A whole body.
#[must_use]
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Where a hub listens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    tls: bool,
    host: String,
    port: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address of a hub; write http://HOST:PORT or https://HOST");
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        let (tls, port) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let host = authority.map(http::uri::Authority::host).filter(|host| !host.is_empty());
        if !uri.path().trim_matches('/').is_empty() || uri.query().is_some() {
            return Err(format!("{}: a hub has no path", wrong()));
        }
        let port = uri.port_u16().unwrap_or(port);
        Ok(Self { tls, host: host.ok_or_else(wrong)?.to_owned(), port })
    }
}

/// One or several hubs of the same store, and how they are spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubAddress {
    places: Vec<Place>,
    /// How they are spoken to.
    pub access: Access,
}

/// How hubs are spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Shown to them.
    pub token: Option<String>,
    /// A file with the token; it may change.
    pub token_file: Option<PathBuf>,
    /// Who issues their certificates; whom the system trusts, where it is not told.
    pub ca: Option<PathBuf>,
    /// The certificate that is shown to them.
    pub pair: Option<Pair>,
}

impl FromStr for HubAddress {
    type Err = String;

    /// Reads `URL[,URL…]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let places = text.split(',').map(|one| one.trim().parse()).collect::<Result<_, _>>()?;
        Ok(Self { places, access: Access::default() })
    }
}

impl fmt::Display for HubAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<_> = self.places.iter().map(ToString::to_string).collect();
        f.write_str(&places.join(","))
    }
}

impl HubAddress {
    /// Each hub alone.
    pub fn each(&self) -> impl Iterator<Item = Self> {
        self.places.iter().map(|place| Self { places: vec![place.clone()], access: self.access.clone() })
    }
}

impl Access {
    /// The token as it is now.
    fn token(&self) -> Result<Option<String>, Fault> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(token.trim().to_owned())),
            (None, None) => Ok(None),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|why| Fault(format!("cannot read the token {}: {why}", path.display())))?;
                let token =
                    text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
                token
                    .map(|token| Some(token.to_owned()))
                    .ok_or_else(|| Fault(format!("there is no token in {}", path.display())))
            }
        }
    }

    async fn encrypted(&self, place: &Place, socket: TcpStream) -> Result<Box<dyn Io>, Fault> {
        let tls = UpstreamTls {
            hosts: Vec::new(),
            ca: self.ca.clone(),
            pair: self.pair.clone(),
            server_name: None,
        };
        let config = tls.handshakes().map_err(|SettingsError { message, .. }| Fault(message))?.http2.clone();
        let name = place.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name)
            .map_err(|_| Fault(format!("{place}: no certificate can be of this host")))?;
        let stream = TlsConnector::from(config).connect(name, socket).await;
        let stream = stream.map_err(|why| Fault(format!("{place}: {why}")))?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Ok(Box::new(stream)),
            _ => Err(Fault(format!("{place} does not speak HTTP/2: it is no hub"))),
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// The connection, and which hub it leads to.
#[derive(Default)]
struct Link {
    sender: Option<SendRequest<Body>>,
    at: usize,
}

/// A hub, or several of the same store.
pub struct HubStore {
    address: HubAddress,
    /// Whether it is for tunnels: many streams, of which some are not read for long.
    tunnelling: bool,
    link: Mutex<Link>,
}

/// What was asked of a hub and not done.
#[derive(Debug)]
pub enum Refused {
    /// It answered with another status than one of success, and said why.
    Status(StatusCode, String),
    /// It cannot be asked.
    Fault(Fault),
    /// It was asked, and its answer did not come, or not whole.
    Broken(Fault),
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Status(_, why) => Self(why),
            Refused::Fault(fault) | Refused::Broken(fault) => fault,
        }
    }
}

impl HubStore {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(address: HubAddress) -> Self {
        Self { address, tunnelling: false, link: Mutex::default() }
    }

    /// The same, for tunnels.
    #[must_use]
    pub(crate) fn for_tunnels(address: HubAddress) -> Self {
        Self { tunnelling: true, ..Self::new(address) }
    }

    /// The connection; made where there is none.
    async fn sender(&self) -> Result<(SendRequest<Body>, Place), Fault> {
        let mut link = self.link.lock().await;
        if let Some(sender) = link.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), self.address.places[link.at].clone()));
        }
        if link.sender.take().is_some() {
            link.at = (link.at + 1) % self.address.places.len();
        }
        let mut faults = Vec::new();
        for _ in 0..self.address.places.len() {
            let place = self.address.places[link.at].clone();
            let silent = |_| Err(Fault(format!("{place} does not answer")));
            match timeout(CONNECT, self.connect(&place)).await.unwrap_or_else(silent) {
                Ok(sender) => {
                    link.sender = Some(sender.clone());
                    return Ok((sender, place));
                }
                Err(Fault(why)) => faults.push(why),
            }
            link.at = (link.at + 1) % self.address.places.len();
        }
        Err(Fault(faults.join("; ")))
    }

    async fn connect(&self, place: &Place) -> Result<SendRequest<Body>, Fault> {
        let failed = |why: &dyn fmt::Display| Fault(format!("the hub {place} cannot be reached: {why}"));
        let host = place.host.trim_start_matches('[').trim_end_matches(']');
        let socket = TcpStream::connect((host, place.port)).await.map_err(|why| failed(&why))?;
        let _ = socket.set_nodelay(true);
        let io: Box<dyn Io> = match place.tls {
            true => self.address.access.encrypted(place, socket).await?,
            false => Box::new(socket),
        };
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true);
        match self.tunnelling {
            false => http.adaptive_window(true),
            true => http
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(STREAM_WINDOW * STREAMS),
        };
        let (sender, connection) = http.handshake(TokioIo::new(io)).await.map_err(|why| failed(&why))?;
        // What goes wrong on it is seen by those who wait for answers.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    /// Gives up the hub that is asked, for the next one.
    async fn turn_away(&self, from: &Place) {
        let mut link = self.link.lock().await;
        if self.address.places[link.at] == *from && link.sender.take().is_some() {
            link.at = (link.at + 1) % self.address.places.len();
        }
    }

    /// Asks something, over the one connection.
    ///
    /// # Errors
    /// No hub answers, or it answers with a status that is not one of success.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Body,
    ) -> Result<Response<Incoming>, Refused> {
        let token = self.address.access.token().map_err(Refused::Fault)?;
        let (mut sender, place) = self.sender().await.map_err(Refused::Fault)?;
        let mut request = Request::builder().method(method).uri(format!("{place}{path}"));
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let failed = |why: &dyn fmt::Display| Fault(format!("the hub {place}: {why}"));
        let request = request.body(body).map_err(|why| Refused::Fault(failed(&why)))?;
        let answered = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let response = match timeout(ANSWER, answered).await {
            Ok(Ok(response)) => response,
            Ok(Err(why)) => {
                self.turn_away(&place).await;
                return Err(Refused::Broken(failed(&why)));
            }
            Err(_) => {
                self.turn_away(&place).await;
                let why = failed(&format_args!("no answer within {} s", ANSWER.as_secs()));
                return Err(Refused::Broken(why));
            }
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            self.turn_away(&place).await;
        }
        let body = small(response).await.unwrap_or_default();
        Err(Refused::Status(status, refusal(&place, status, &body)))
    }

    /// Asks for something small.
    ///
    /// # Errors
    /// See [`HubStore::ask`].
    pub async fn ask_small(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, Refused> {
        let response = self.ask(method, path, content_type, whole(body)).await?;
        small(response).await.map_err(Refused::Broken)
    }

    /// Asks for lines that come for as long as they are read.
    pub(crate) async fn lines(&self, path: &str) -> Result<Lines, Refused> {
        self.ask(Method::GET, path, None, whole("")).await.map(Lines::of)
    }
}

/// A whole answer.
async fn small(response: Response<Incoming>) -> Result<Bytes, Fault> {
    let body = timeout(SILENCE, Limited::new(response.into_body(), SMALL).collect()).await;
    match body {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(why)) => Err(Fault(format!("the hub's answer broke off: {why}"))),
        Err(_) => Err(Fault("the hub's answer does not come to its end".to_owned())),
    }
}

/// Why a hub refuses something, in its own words (RFC 9457).
fn refusal(place: &Place, status: StatusCode, body: &[u8]) -> String {
    let told: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let detail = told.as_ref().and_then(|told| told["detail"].as_str());
    match (status, detail) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(detail)) => {
            format!(
                "the hub {place}: {detail}; give its token with OVERLANE_SERVER_TOKEN or --server-token-file"
            )
        }
        (_, Some(detail)) => format!("the hub {place}: {detail}"),
        (_, None) => format!("{place} answers {status}: it is no hub"),
    }
}

/// Lines as they come.
pub(crate) struct Lines {
    body: Incoming,
    bytes: BytesMut,
}

/// What ended before it should.
fn broke_off(why: impl fmt::Display) -> WatchError {
    WatchError::Fault(Fault(format!("the hub's answer broke off: {why}")))
}

impl Lines {
    fn of(answer: Response<Incoming>) -> Self {
        Self { body: answer.into_body(), bytes: BytesMut::new() }
    }

    /// All that is told, and the state of which it is.
    async fn listing(&mut self) -> Result<Listing, Fault> {
        let Changes { changes, revision } = self.changes().await.map_err(|error| match error {
            WatchError::Fault(fault) => fault,
            WatchError::Compacted => Fault("the hub forgot what it was telling".to_owned()),
        })?;
        let entry = |change| match change {
            Change::Put(entry) => Some(entry),
            Change::Gone(_) => None,
        };
        Ok(Listing { entries: changes.into_iter().filter_map(entry).collect(), revision })
    }

    /// The next line, with its end.
    pub(crate) async fn line(&mut self) -> Result<BytesMut, WatchError> {
        let mut looked = 0;
        loop {
            if let Some(end) = memchr(b'\n', &self.bytes[looked..]) {
                let line = self.bytes.split_to(looked + end + 1);
                return Ok(line);
            }
            looked = self.bytes.len();
            if looked > LINE {
                return Err(broke_off("a line is too long"));
            }
            let frame = timeout(SILENCE, self.body.frame()).await.map_err(|_| broke_off("silence"))?;
            let frame = frame.ok_or_else(|| broke_off("it ended"))?.map_err(broke_off)?;
            if let Some(bytes) = frame.data_ref() {
                self.bytes.extend_from_slice(bytes);
            }
        }
    }

    /// What is told until the next state.
    async fn changes(&mut self) -> Result<Changes, WatchError> {
        let mut changes = Vec::new();
        loop {
            let line = self.line().await?;
            match serde_json::from_slice(&line).map_err(broke_off)? {
                Line::Put(put) => changes.push(Change::Put(put.into())),
                Line::Gone(name) => changes.push(Change::Gone(name.into_owned())),
                Line::At(revision) => return Ok(Changes { changes, revision }),
                Line::Forgotten => return Err(WatchError::Compacted),
            }
        }
    }
}

#[async_trait]
impl Shared for HubStore {
    fn address(&self) -> String {
        format!("hub:{}", self.address)
    }

    async fn list(&self) -> Result<Listing, Fault> {
        self.lines(ENTRIES).await?.listing().await
    }

    async fn around(&self, about: &About) -> Result<Option<Listing>, Fault> {
        let change = serde_json::to_vec(&wire::Change::from(about)).map_err(|why| Fault(why.to_string()))?;
        let answer = self.ask(Method::POST, AROUND, Some("application/json"), whole(change)).await;
        match answer {
            Ok(answer) => Lines::of(answer).listing().await.map(Some),
            // An older one; or it is about so much that all may be listed as well.
            Err(Refused::Status(StatusCode::NOT_FOUND | StatusCode::PAYLOAD_TOO_LARGE, _)) => Ok(None),
            Err(refused) => Err(refused.into()),
        }
    }

    async fn watch(&self, after: &Revision) -> Result<Watching, WatchError> {
        let after = form_urlencoded::byte_serialize(after.as_str().as_bytes()).collect::<String>();
        let lines = match self.lines(&format!("{ENTRIES}?after={after}")).await {
            Ok(lines) => lines,
            Err(Refused::Status(StatusCode::GONE, _)) => return Err(WatchError::Compacted),
            Err(refused) => return Err(Fault::from(refused).into()),
        };
        let next = async |lines: Option<Lines>| {
            let mut lines = lines?;
            match lines.changes().await {
                Ok(changes) => Some((Ok(changes), Some(lines))),
                Err(error) => Some((Err(error), None)),
            }
        };
        Ok(Box::pin(stream::unfold(Some(lines), next)))
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed, CommitError> {
        let body = serde_json::to_vec(commit).map_err(|why| Fault(why.to_string()))?;
        let answer = self.ask_small(Method::POST, COMMIT, Some("application/json"), body).await;
        match answer {
            Ok(answer) => {
                serde_json::from_slice(&answer).map_err(|why| CommitError::Unsure(Fault(why.to_string())))
            }
            Err(Refused::Status(StatusCode::CONFLICT, _)) => Err(CommitError::Conflict),
            Err(Refused::Broken(why)) => Err(CommitError::Unsure(why)),
            // Of the hub, or of somebody between.
            Err(Refused::Status(StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT, why)) => {
                Err(CommitError::Unsure(Fault(why)))
            }
            Err(refused) => Err(Fault::from(refused).into()),
        }
    }
}
