//! Calls of etcd: gRPC over one connection of HTTP/2, to whichever endpoint answers. Every wait is bounded.

use std::convert::Infallible;
use std::error::Error as _;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::access::{Access, User};
use super::address::Endpoint;
use super::messages::{AuthenticateRequest, AuthenticateResponse};
use crate::store::shared::Fault;

/// An endpoint is given so long to be connected to.
const CONNECT: Duration = Duration::from_secs(3);
/// And so long to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(8);
/// Of a connection or a stream: a listing comes in large messages.
const WINDOW: u32 = 4 << 20;
/// What one message may take: many times what etcd lets one write, or one page, have.
const LARGEST: usize = 256 << 20;

type Outgoing = StreamBody<Messages>;
type Sender = SendRequest<Outgoing>;

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody can be asked, or not by us: nothing was sent.
    Unsent(String),
    /// The connection broke, or nothing came in time: it may have been done.
    Broken(String),
    /// What etcd says.
    Refused {
        /// Of gRPC.
        code: u32,
        /// In its words.
        message: String,
        /// The endpoint.
        by: String,
    },
}

/// Codes of gRPC: <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>.
const DEADLINE_EXCEEDED: u32 = 4;
const PERMISSION_DENIED: u32 = 7;
const UNAVAILABLE: u32 = 14;

const SMALLER: &str = "write fewer environments at once, or start etcd with a larger --max-request-bytes";

impl Failure {
    fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains(words))
    }

    /// Whether the state that was asked for is forgotten.
    pub(super) fn is_compacted(&self) -> bool {
        self.says("required revision has been compacted")
    }

    /// Whether what was sent may have been done.
    pub(super) fn is_ambiguous(&self) -> bool {
        match self {
            Self::Unsent(_) => false,
            Self::Broken(_) => true,
            Self::Refused { code, .. } => {
                matches!(*code, DEADLINE_EXCEEDED | UNAVAILABLE) && !self.says("etcdserver: no leader")
            }
        }
    }

    /// Whether another endpoint may do better.
    fn is_of_endpoint(&self) -> bool {
        match self {
            Self::Unsent(_) | Self::Broken(_) => true,
            Self::Refused { code, .. } => matches!(*code, DEADLINE_EXCEEDED | UNAVAILABLE),
        }
    }

    /// Whether who we are is to be said anew.
    pub(super) fn is_of_token(&self) -> bool {
        self.says("invalid auth token") || self.says("revision of auth store is old")
    }

    /// What to do, where that is known.
    fn remedy(&self) -> Option<&'static str> {
        let Self::Refused { code, message, .. } = self else { return None };
        let remedies = [
            ("user name is empty", "set ETCDCTL_USER and ETCDCTL_PASSWORD"),
            ("authentication failed", "correct ETCDCTL_USER and ETCDCTL_PASSWORD"),
            (
                "too many operations",
                "write fewer environments at once, or start etcd with a larger --max-txn-ops",
            ),
            ("request is too large", SMALLER),
            ("larger than max", SMALLER),
            ("database space exceeded", "compact and defragment it, then `etcdctl alarm disarm`"),
            (
                "no leader",
                "most of its members must be up: `etcdctl endpoint status --cluster` says which are",
            ),
        ];
        let known = remedies.iter().find(|(words, _)| message.contains(words)).map(|(_, remedy)| *remedy);
        known.or((*code == PERMISSION_DENIED).then_some(
            "`etcdctl role grant-permission ROLE readwrite --prefix=true` gives its user the keys of this store",
        ))
    }

    /// For people.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Unsent(why) | Self::Broken(why) => Fault(why.clone()),
            Self::Refused { message, by, .. } => {
                let remedy = self.remedy().map(|remedy| format!(": {remedy}")).unwrap_or_default();
                Fault(format!("etcd at {by} says `{message}`{remedy}"))
            }
        }
    }
}

/// A connection to one endpoint.
#[derive(Clone)]
struct Channel {
    number: u64,
    sender: Sender,
    endpoint: Endpoint,
    scheme: &'static str,
    /// Who we are, as this etcd knows it.
    token: Option<HeaderValue>,
}

#[derive(Default)]
struct State {
    channel: Option<Channel>,
    connected: u64,
    token: Option<HeaderValue>,
}

/// An etcd that can be asked. Its connection lives on the runtime on which it is first asked.
pub(super) struct Connection {
    endpoints: Vec<Endpoint>,
    access: Access,
    /// Which endpoint is tried first.
    first: AtomicUsize,
    state: Mutex<State>,
}

impl Connection {
    pub(super) fn new(endpoints: Vec<Endpoint>, access: Access) -> Self {
        // A fleet spreads over the members.
        let first = AtomicUsize::new(fastrand::usize(..endpoints.len().max(1)));
        Self { endpoints, access, first, state: Mutex::default() }
    }

    /// Asks, and asks another endpoint where one fails: as long as nothing can have been done, or it may be done twice.
    pub(super) async fn ask<A: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
        repeatable: bool,
    ) -> Result<A, Failure> {
        let mut left = self.endpoints.len().max(2);
        loop {
            left -= 1;
            let channel = self.channel().await?;
            let answer = channel.ask(method, request).await;
            let Err(failure) = answer else { return answer };
            if !self.again(&channel, &failure).await || left == 0 || failure.is_ambiguous() && !repeatable {
                return Err(failure);
            }
        }
    }

    /// Opens a stream of answers; what is sent over `requests` goes up on it.
    pub(super) async fn open(
        &self,
        method: &'static str,
        requests: mpsc::Receiver<Bytes>,
    ) -> Result<(Answers, String), Failure> {
        let channel = self.channel().await?;
        match channel.open(method, Messages(requests)).await {
            Ok(answers) => Ok((answers, channel.endpoint.to_string())),
            Err(failure) => {
                self.again(&channel, &failure).await;
                Err(failure)
            }
        }
    }

    /// Leaves what failed, so that the next call does better; whether it can.
    pub(super) async fn leave(&self, failure: &Failure) -> bool {
        let mut state = self.state.lock().await;
        self.leave_from(&mut state, failure)
    }

    async fn again(&self, channel: &Channel, failure: &Failure) -> bool {
        let mut state = self.state.lock().await;
        match &state.channel {
            // Somebody else left it already.
            Some(now) if now.number != channel.number => failure.is_of_token() || failure.is_of_endpoint(),
            _ => self.leave_from(&mut state, failure),
        }
    }

    fn leave_from(&self, state: &mut State, failure: &Failure) -> bool {
        if failure.is_of_token() {
            (state.token, state.channel) = (None, None);
            return true;
        }
        if failure.is_of_endpoint() {
            state.channel = None;
            self.first.fetch_add(1, Relaxed);
            return true;
        }
        false
    }

    /// The connection that there is, or one to the first endpoint that can be had.
    async fn channel(&self) -> Result<Channel, Failure> {
        let mut state = self.state.lock().await;
        if let Some(channel) = &state.channel
            && !channel.sender.is_closed()
        {
            return Ok(channel.clone());
        }
        state.channel = None;
        let mut failures = String::new();
        for _ in 0..self.endpoints.len() {
            let at = self.first.load(Relaxed) % self.endpoints.len();
            match self.connect(&self.endpoints[at], &mut state).await {
                Ok(channel) => {
                    state.channel = Some(channel.clone());
                    return Ok(channel);
                }
                Err(failure) if failure.is_of_endpoint() => {
                    let separator = if failures.is_empty() { "" } else { "; " };
                    // Writing to a string does not fail.
                    let _ = write!(failures, "{separator}{}", failure.fault());
                    self.first.fetch_add(1, Relaxed);
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::Unsent(format!("{failures}: start it, or correct its address")))
    }

    async fn connect(&self, endpoint: &Endpoint, state: &mut State) -> Result<Channel, Failure> {
        let connecting = self.connect_to(endpoint);
        let connected = match timeout(CONNECT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(format!("cannot be connected to within {} s", CONNECT.as_secs())),
        };
        let (sender, scheme) =
            connected.map_err(|why| Failure::Unsent(format!("etcd at {endpoint}: {why}")))?;
        state.connected += 1;
        let mut channel =
            Channel { number: state.connected, sender, endpoint: endpoint.clone(), scheme, token: None };
        if let Some(user) = &self.access.user {
            if state.token.is_none() {
                state.token = authenticate(&channel, user).await?;
            }
            channel.token.clone_from(&state.token);
        }
        Ok(channel)
    }

    async fn connect_to(&self, endpoint: &Endpoint) -> Result<(Sender, &'static str), String> {
        let stream =
            TcpStream::connect((endpoint.host(), endpoint.port)).await.map_err(|why| why.to_string())?;
        stream.set_nodelay(true).map_err(|why| why.to_string())?;
        if !endpoint.tls.unwrap_or_else(|| self.access.speaks_tls()) {
            return Ok((handshake(stream).await?, "http"));
        }
        let handshakes = self.access.handshakes().map_err(|why| match why.hint {
            Some(hint) => format!("{}: {hint}", why.message),
            None => why.message,
        })?;
        let name = ServerName::try_from(endpoint.host().to_owned()).map_err(|why| why.to_string())?;
        let stream = TlsConnector::from(handshakes).connect(name, stream).await;
        let stream = stream.map_err(|why| format!("TLS failed: {why}; ETCDCTL_CACERT names its authority, ETCDCTL_CERT and ETCDCTL_KEY what it asks of clients"))?;
        Ok((handshake(stream).await?, "https"))
    }
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender, String> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|why| format!("does not speak HTTP/2: {why}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// The token of a user; none where this etcd asks for no user.
async fn authenticate(channel: &Channel, user: &User) -> Result<Option<HeaderValue>, Failure> {
    let password = user.password().map_err(|fault| Failure::Unsent(fault.0))?;
    let request = AuthenticateRequest { name: user.name.clone(), password };
    let answer: Result<AuthenticateResponse, _> =
        channel.ask("/etcdserverpb.Auth/Authenticate", &request).await;
    match answer {
        Ok(answer) => {
            let mut token = HeaderValue::from_str(&answer.token)
                .map_err(|_| Failure::Broken("etcd gave a token that cannot be sent".to_owned()))?;
            token.set_sensitive(true);
            Ok(Some(token))
        }
        Err(failure) if failure.says("authentication is not enabled") => Ok(None),
        // Nothing was done for whoever asked: only a token was.
        Err(Failure::Broken(why)) => Err(Failure::Unsent(why)),
        Err(failure) => Err(failure),
    }
}

impl Channel {
    async fn ask<A: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<A, Failure> {
        let (sender, requests) = mpsc::channel(1);
        // There is room for one.
        let _ = sender.try_send(framed(request));
        drop(sender);
        let mut answers = self.open(method, Messages(requests)).await?;
        let answer = answers.next_within(ANSWER).await?;
        answer.ok_or_else(|| answers.broken("it answered nothing"))
    }

    async fn open(&self, method: &'static str, requests: Messages) -> Result<Answers, Failure> {
        let uri = format!("{}://{}{method}", self.scheme, self.endpoint.authority());
        let mut request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            // A member that lost the others answers with an error, and ends its watches.
            .header("hasleader", "true");
        if let Some(token) = &self.token {
            request = request.header("token", token);
        }
        let request = request.body(StreamBody::new(requests));
        let request = request.map_err(|why| Failure::Unsent(why.to_string()))?;
        let mut sender = self.sender.clone();
        let by = self.endpoint.to_string();
        let sent = timeout(ANSWER, async {
            let unsent = |why| Failure::Unsent(format!("etcd at {by}: {}", whole(&why)));
            sender.ready().await.map_err(unsent)?;
            sender.try_send_request(request).await.map_err(|mut why| match why.take_message() {
                Some(_) => unsent(why.into_error()),
                None => Failure::Broken(format!("etcd at {by}: {}", whole(&why.into_error()))),
            })
        });
        let slow = |_| {
            Err(Failure::Broken(format!(
                "etcd at {} does not answer within {} s",
                self.endpoint,
                ANSWER.as_secs()
            )))
        };
        let response = sent.await.unwrap_or_else(slow)?;
        if response.status() != StatusCode::OK {
            let why = format!("etcd at {by} answers {}: is it an etcd?", response.status());
            return Err(Failure::Refused { code: 2, message: why, by });
        }
        status(response.headers(), &by)?;
        Ok(Answers { body: response.into_body(), unread: BytesMut::new(), by })
    }
}

/// An error of the connection, and what caused it.
fn whole(error: &hyper::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A message as gRPC frames it.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // A buffer that grows takes any message.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// What goes up.
pub(super) struct Messages(mpsc::Receiver<Bytes>);

impl futures_util::Stream for Messages {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|message| message.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Messages that come down.
pub(super) struct Answers {
    body: Incoming,
    unread: BytesMut,
    by: String,
}

impl Answers {
    /// The next message; none where the stream ended well.
    pub(super) async fn next<A: Message + Default>(&mut self) -> Result<Option<A>, Failure> {
        loop {
            if let Some(message) = self.unframed()? {
                return Ok(Some(message));
            }
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// The same where something of it comes all the time: a large one may take long, and is not silence.
    async fn next_within<A: Message + Default>(&mut self, silence: Duration) -> Result<Option<A>, Failure> {
        loop {
            if let Some(message) = self.unframed()? {
                return Ok(Some(message));
            }
            let read = timeout(silence, self.read()).await;
            let silent = |_| Err(self.broken(&format!("does not answer within {} s", silence.as_secs())));
            if !read.unwrap_or_else(silent)? {
                return Ok(None);
            }
        }
    }

    /// Reads on; whether there was anything.
    async fn read(&mut self) -> Result<bool, Failure> {
        let mut body = pin!(&mut self.body);
        match poll_fn(|context| body.as_mut().poll_frame(context)).await {
            None => return Ok(false),
            Some(Err(why)) => return Err(self.broken(&whole(&why))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.unread.extend_from_slice(&data),
                Err(frame) => status(&frame.into_trailers().unwrap_or_default(), &self.by)?,
            },
        }
        Ok(true)
    }

    /// The message that was read whole, if one was.
    fn unframed<A: Message + Default>(&mut self) -> Result<Option<A>, Failure> {
        let Some(message) = self.unframe()? else { return Ok(None) };
        let message = A::decode(message);
        message.map(Some).map_err(|why| self.broken(&format!("it answers nonsense: {why}")))
    }

    fn unframe(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(head) = self.unread.first_chunk::<5>() else { return Ok(None) };
        let [compressed, length @ ..] = *head;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 || length > LARGEST {
            return Err(self.broken("it answers what was not asked for"));
        }
        if self.unread.len() < 5 + length {
            self.unread.reserve(5 + length - self.unread.len());
            return Ok(None);
        }
        self.unread.advance(5);
        Ok(Some(self.unread.split_to(length).freeze()))
    }

    pub(super) fn broken(&self, why: &str) -> Failure {
        Failure::Broken(format!("etcd at {}: {why}", self.by))
    }
}

/// What gRPC says of a call, in headers or trailers.
fn status(headers: &HeaderMap, by: &str) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(code) = text("grpc-status") else { return Ok(()) };
    match code.parse() {
        Ok(0) => Ok(()),
        code => {
            let message = percent_decode_str(text("grpc-message").unwrap_or_default());
            let message = message.decode_utf8_lossy().into_owned();
            Err(Failure::Refused { code: code.unwrap_or(2), message, by: by.to_owned() })
        }
    }
}
