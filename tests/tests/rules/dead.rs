//! An overlay's upstream that is dead, in every way in which one can be: what its blueprint says happens and nothing else;
//! it is marked; and nothing is sent twice, nor elsewhere, once a byte of it was sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use overlane::control::Trigger;
use overlane::plane::Limits;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::lineage::FileChange;
use overlane_config::route::Role;
use overlane_tests::message::{self, Kind, Read};
use overlane_tests::stage::{self, Started};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::frames::{DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, frame};
use crate::lost::file;

/// A way in which an upstream is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    NobodyListens,
    NoSocket,
    NoName,
    NoAddress,
    /// It ends the connection at the first byte, which is of a handshake.
    NoTls,
    ClosesAtOnce,
    ClosesAfterTheHead,
    ClosesAfterTheRequest,
    ResetsAfterTheRequest,
    ClosesAfterItsHead,
    ResetsInItsBody,
    Hangs,
    /// It speaks HTTP/2, and resets the stream with this error.
    ResetsTheStream(u8),
    /// It speaks HTTP/2, and goes away with this as the last stream that it looked at.
    GoesAway(u8),
}

const REFUSED_STREAM: u8 = 7;

impl Death {
    const ALL: [Self; 17] = [
        Self::NobodyListens,
        Self::NoSocket,
        Self::NoName,
        Self::NoAddress,
        Self::NoTls,
        Self::ClosesAtOnce,
        Self::ClosesAfterTheHead,
        Self::ClosesAfterTheRequest,
        Self::ResetsAfterTheRequest,
        Self::ClosesAfterItsHead,
        Self::ResetsInItsBody,
        Self::Hangs,
        Self::ResetsTheStream(0),
        Self::ResetsTheStream(2),
        Self::ResetsTheStream(REFUSED_STREAM),
        Self::GoesAway(0),
        Self::GoesAway(1),
    ];

    /// The reason with which it is marked, where it is known before anything is sent.
    fn before(self) -> Option<&'static str> {
        match self {
            Self::NobodyListens => Some("refused"),
            Self::NoAddress => Some("pending"),
            Self::NoSocket | Self::NoName | Self::NoTls => Some("unhealthy"),
            _ => None,
        }
    }

    /// The status of the answer where something was sent; `None` where the client has the start of another.
    fn after(self) -> Option<u16> {
        match self {
            Self::ClosesAfterItsHead | Self::ResetsInItsBody => None,
            Self::Hangs => Some(504),
            // It says that it did nothing, as often as it is asked.
            Self::ResetsTheStream(REFUSED_STREAM) | Self::GoesAway(0) => Some(503),
            _ => Some(502),
        }
    }

    /// How often a request may be seen.
    fn seen(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::ClosesAtOnce => 0..=0,
            // Refused unprocessed: two repetitions.
            Self::ResetsTheStream(REFUSED_STREAM) | Self::GoesAway(0) => 1..=3,
            death if death.before().is_some() => 0..=0,
            _ => 1..=1,
        }
    }

    fn speaks_http2(self) -> bool {
        matches!(self, Self::ResetsTheStream(_) | Self::GoesAway(_))
    }

    /// An upstream that is dead so, as a service in a blueprint. It counts the requests that it has seen.
    async fn service(self, seen: Arc<AtomicUsize>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = match self {
            Self::NobodyListens => {
                drop(listener);
                return format!("{{name: web, url: 'http://{address}'}}");
            }
            Self::NoSocket => "unix:/nowhere/socket".to_owned(),
            Self::NoName => "http://nobody.invalid:80".to_owned(),
            Self::NoAddress => return "{name: web}".to_owned(),
            Self::NoTls => format!("https://{address}"),
            _ if self.speaks_http2() => format!("h2c://{address}"),
            _ => format!("http://{address}"),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                match self.speaks_http2() {
                    true => tokio::spawn(die_in_http2(stream, self, seen.clone())),
                    false => tokio::spawn(die(stream, self, seen.clone())),
                };
            }
        });
        format!("{{name: web, url: '{url}'}}")
    }
}

async fn die(mut stream: TcpStream, death: Death, seen: Arc<AtomicUsize>) {
    match death {
        Death::ClosesAtOnce => return,
        Death::NoTls => return drop(stream.read_u8().await),
        _ => {}
    }
    let Some(_) = request(&mut stream, death == Death::ClosesAfterTheHead).await else { return };
    seen.fetch_add(1, SeqCst);
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    match death {
        Death::ResetsAfterTheRequest => stream.set_zero_linger().unwrap(),
        Death::ClosesAfterItsHead => drop(stream.write_all(head.as_bytes()).await),
        Death::ResetsInItsBody => {
            stream.write_all(format!("{head}he").as_bytes()).await.unwrap();
            // What was sent is read before the reset is: the proxy closes when it has seen it, or after this.
            let _ = tokio::time::timeout(Duration::from_millis(100), stream.read_u8()).await;
            stream.set_zero_linger().unwrap();
        }
        Death::Hangs => while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {},
        _ => {}
    }
}

/// A request that arrives, or its head; `None` where none does.
async fn request(stream: &mut TcpStream, only_head: bool) -> Option<message::Message> {
    let mut bytes = Vec::new();
    loop {
        if let Read::Message(message) = message::read(&bytes, Kind::Request, false)
            && (only_head || message.whole)
        {
            return Some(message);
        }
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return None;
        }
    }
}

async fn die_in_http2(mut stream: TcpStream, death: Death, seen: Arc<AtomicUsize>) {
    let mut preface = [0; 24];
    let _ = stream.read_exact(&mut preface).await;
    let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        let _ = stream.read_exact(&mut payload).await;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let (begun, ended) =
            (head[3] == HEADERS, matches!(head[3], HEADERS | DATA) && head[4] & END_STREAM > 0);
        seen.fetch_add(usize::from(begun), SeqCst);
        let said = match death {
            Death::ResetsTheStream(error) if ended => frame(RST_STREAM, 0, id, &[0, 0, 0, error]),
            Death::GoesAway(last) if ended => frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0]),
            _ if head[3] == SETTINGS && head[4] == 0 => frame(SETTINGS, 1, 0, &[]),
            _ => continue,
        };
        let _ = stream.write_all(&said).await;
        if ended && matches!(death, Death::GoesAway(_)) {
            // Closed with something unread, it would be reset, and what it said be lost.
            let _ = stream.shutdown().await;
            while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
            return;
        }
    }
}

/// Answers with its name and the body that it got, and counts.
async fn live(listener: TcpListener, name: &'static str, seen: Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, name, seen.clone()));
    }
}

async fn answer(mut stream: TcpStream, name: &'static str, seen: Arc<AtomicUsize>) {
    while let Some(request) = request(&mut stream, false).await {
        seen.fetch_add(1, SeqCst);
        let body = format!("{name} {}", String::from_utf8_lossy(&request.body));
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

/// A request, as a client of either protocol sends it.
#[derive(Debug, Clone, Copy)]
struct Ask {
    http2: bool,
    method: &'static str,
    /// Its framing in HTTP/1.1, and the body.
    body: (&'static str, &'static str),
}

const NOTHING: (&str, &str) = ("", "");
const LENGTH: (&str, &str) = ("Content-Length: 5\r\n", "hello");
const CHUNKED: (&str, &str) = ("Transfer-Encoding: chunked\r\n", "hello");

fn asks() -> impl Iterator<Item = Ask> {
    let asked = [("GET", NOTHING), ("DELETE", LENGTH), ("PUT", CHUNKED), ("POST", LENGTH), ("POST", CHUNKED)];
    [false, true].into_iter().flat_map(move |http2| asked.map(|(method, body)| Ask { http2, method, body }))
}

/// What a client got; no body where it was cut, no status where there was none.
#[derive(Debug, Default, PartialEq)]
struct Got {
    status: u16,
    receipt: String,
    body: Option<String>,
}

impl Ask {
    async fn of(self, gateway: SocketAddr) -> Got {
        let stream = TcpStream::connect(gateway).await.unwrap();
        stream.set_nodelay(true).unwrap();
        if self.http2 { self.in_http2(stream).await } else { self.in_http1(stream).await }
    }

    async fn in_http1(self, mut stream: TcpStream) -> Got {
        let (framing, body) = self.body;
        let body = if framing == CHUNKED.0 { format!("5\r\n{body}\r\n0\r\n\r\n") } else { body.to_owned() };
        let method = self.method;
        let request =
            format!("{method} / HTTP/1.1\r\nHost: web\r\nx-overlay-id: alice\r\n{framing}\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut bytes, mut ended) = (Vec::new(), false);
        loop {
            let read = message::read(&bytes, Kind::Response, ended);
            if let Read::Message(response) = read
                && (response.whole || ended)
            {
                let whole = response.whole.then(|| String::from_utf8(response.body.clone()).unwrap());
                let receipt = response.values("x-overlay-route").collect();
                return Got { status: response.status().parse().unwrap(), receipt, body: whole };
            }
            if ended {
                return Got::default();
            }
            ended = !matches!(stream.read_buf(&mut bytes).await, Ok(1..));
        }
    }

    async fn in_http2(self, stream: TcpStream) -> Got {
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request =
            http::Request::builder().method(self.method).uri("http://web/").header("x-overlay-id", "alice");
        let ended = self.body.1.is_empty();
        let mut sender = sender.ready().await.unwrap();
        let (coming, mut sending) = sender.send_request(request.body(()).unwrap(), ended).unwrap();
        if !ended {
            sending.send_data(Bytes::from_static(self.body.1.as_bytes()), true).unwrap();
        }
        let Ok(response) = coming.await else { return Got::default() };
        let (head, mut coming) = response.into_parts();
        let receipt =
            head.headers.get("x-overlay-route").map_or("", |value| value.to_str().unwrap()).to_owned();
        let (mut body, mut cut) = (Vec::new(), false);
        while let Some(piece) = coming.data().await.filter(|_| !cut) {
            // After an error there is nothing but errors.
            match piece {
                Ok(piece) => body.extend(piece),
                Err(_) => cut = true,
            }
        }
        let body = (!cut).then(|| String::from_utf8(body).unwrap());
        Got { status: head.status.as_u16(), receipt, body }
    }
}

/// A gateway before a baseline that lives and an overlay whose service is this.
struct Mesh {
    running: Started,
    base: Arc<AtomicUsize>,
}

fn alice(policy: &str, service: &str) -> FileChange {
    let text = format!(
        "name: alice\nrouting: {{mode: overlay, baselineId: base, {policy}}}\nservices: [{service}]\n"
    );
    file("alice", &text)
}

impl Mesh {
    async fn of(policy: &str, service: &str, upstream_read: Duration) -> Self {
        let base = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(live(listener, "base", base.clone()));
        let text = format!(
            "name: base\nrouting: {{mode: baseline}}\nservices: [{{name: web, expose: true, url: 'http://{address}'}}]\n"
        );
        // A busy machine is no dead upstream.
        let limits = Limits { upstream_read, connect: Duration::from_secs(30), ..Limits::default() };
        let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
        let allow_unix = vec!["/".to_owned()];
        let settings = Settings { limits, allow_unix, ..Settings::in_process(listeners) };
        let running = stage::start_as(settings, vec![file("base", &text), alice(policy, service)]);
        Self { running, base }
    }

    async fn ask(&self, ask: Ask) -> Got {
        let asked = tokio::time::timeout(Duration::from_secs(120), ask.of(self.running.addresses()[0])).await;
        asked.unwrap_or_else(|_| panic!("{ask:?} hangs"))
    }
}

fn run(test: impl AsyncFnOnce() -> Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wrong = runtime.block_on(test());
    assert!(wrong.is_empty(), "{} problems\n{}", wrong.len(), wrong.join("\n"));
}

/// What is wrong about what came of a request to a dead upstream under a policy.
fn judged(
    death: Death,
    falls_back: bool,
    ask: Ask,
    got: &Got,
    seen: usize,
    base: usize,
) -> Result<(), String> {
    let (status, by, body) = match death.before() {
        Some(reason) if falls_back => {
            let body = Some(format!("base {}", ask.body.1));
            (200, format!("web;env=base;via=baseline;reason={reason}"), body)
        }
        Some(reason) => (503, format!("web;env=alice;via=overlay;reason={reason}"), None),
        None => match death.after() {
            Some(status) => (status, "web;env=alice;via=overlay;reason=unhealthy".to_owned(), None),
            None => (200, "web;env=alice;via=overlay;reason=owned".to_owned(), None),
        },
    };
    let own = status != 200;
    let fine = (got.status, &got.receipt) == (status, &stripped(&got.receipt, &by))
        && (if own {
            got.body.as_ref().is_some_and(|body| body.starts_with("overlane: "))
        } else {
            got.body == body
        })
        && death.seen().contains(&seen)
        && base == usize::from(death.before().is_some() && falls_back);
    fine.then_some(()).ok_or_else(|| {
        format!("{death:?}, falls back {falls_back}, {ask:?}: {got:?}, seen {seen}, base {base}")
    })
}

/// The receipt, if it is what it should be but for the name of its hop.
fn stripped(receipt: &str, expected: &str) -> String {
    let same = receipt.split(";hop=").next() == Some(expected);
    if same { receipt.to_owned() } else { expected.to_owned() }
}

#[test]
fn what_the_blueprint_says_happens_and_nothing_is_sent_twice_or_elsewhere() {
    run(async || {
        let mut wrong = Vec::new();
        for death in Death::ALL {
            for falls_back in [false, true] {
                let seen = Arc::new(AtomicUsize::new(0));
                let policy = if falls_back { "holdFor: 0s, onUnavailable: fallback" } else { "holdFor: 0s" };
                // Only who hangs is waited for.
                let patience = Duration::from_millis(if death == Death::Hangs { 200 } else { 60_000 });
                let mesh = Mesh::of(policy, &death.service(seen.clone()).await, patience).await;
                for ask in asks() {
                    let got = mesh.ask(ask).await;
                    let (seen, base) = (seen.swap(0, SeqCst), mesh.base.swap(0, SeqCst));
                    wrong.extend(judged(death, falls_back, ask, &got, seen, base).err());
                }
            }
        }
        wrong
    });
}

/// Waits until so many requests were held.
async fn until_held(mesh: &Mesh, count: usize) {
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while crate::lost::counted(&mesh.running, "overlane_held_requests_total") < count {
        assert!(std::time::Instant::now() < until, "nothing is held");
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_held_request_goes_to_the_overlay_once_when_it_is_back() {
    run(async || {
        let mut wrong = Vec::new();
        let folder = tempfile::tempdir().unwrap();
        for (number, way) in ["listens again", "has a socket", "has an address"].into_iter().enumerate() {
            for (count, ask) in asks().enumerate() {
                let socket = folder.path().join(format!("{number}-{count}"));
                let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
                let service = match number {
                    0 => format!("{{name: web, url: 'http://{closed}'}}"),
                    1 => format!("{{name: web, url: 'unix:{}'}}", socket.display()),
                    _ => "{name: web}".to_owned(),
                };
                let policy = "holdFor: 60s, onUnavailable: fallback";
                let mesh = Mesh::of(policy, &service, Duration::from_secs(60)).await;
                let seen = Arc::new(AtomicUsize::new(0));
                let back = async {
                    until_held(&mesh, 1).await;
                    if number == 1 {
                        let listener = UnixListener::bind(&socket).unwrap();
                        let stream = listener.accept().await.unwrap().0;
                        return serve_unix(stream, seen.clone()).await;
                    }
                    let listener = TcpListener::bind(closed).await.unwrap();
                    tokio::spawn(live(listener, "alice", seen.clone()));
                    if number == 2 {
                        let service = format!("{{name: web, url: 'http://{closed}'}}");
                        mesh.running.control().apply(&[alice(policy, &service)], Trigger::Change);
                    }
                };
                let (got, ()) = tokio::join!(mesh.ask(ask), back);
                let right = "web;env=alice;via=overlay;reason=owned";
                let fine = got.status == 200
                    && stripped(&got.receipt, right) == got.receipt
                    && got.body == Some(format!("alice {}", ask.body.1))
                    && (seen.load(SeqCst), mesh.base.load(SeqCst)) == (1, 0);
                if !fine {
                    wrong.push(format!("{way}, {ask:?}: {got:?}"));
                }
            }
        }
        wrong
    });
}

/// Answers one request, as `live` does.
async fn serve_unix(mut stream: tokio::net::UnixStream, seen: Arc<AtomicUsize>) {
    let mut bytes = Vec::new();
    loop {
        if let Read::Message(request) = message::read(&bytes, Kind::Request, false)
            && request.whole
        {
            seen.fetch_add(1, SeqCst);
            let body = format!("alice {}", String::from_utf8_lossy(&request.body));
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            return stream.write_all(answer.as_bytes()).await.unwrap();
        }
        stream.read_buf(&mut bytes).await.unwrap();
    }
}
