//! Nobody gets another environment's answer: a load of many overlays over shared connections, while their upstreams are
//! killed and others', at the same addresses, take their place.
//!
//! `OVERLANE_REQUESTS` sets how many requests; `.ci/full` asks for a million.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use overlane::control::Trigger;
use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::lineage::FileChange;
use overlane_config::route::Role;
use overlane_tests::message::{self, Kind, Read};
use overlane_tests::stage::{self, Started};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::lost::file;

const OVERLAYS: usize = 1000;
/// Connections of clients in each protocol; requests of all overlays share them.
const CONNECTIONS: usize = 8;

fn count() -> usize {
    std::env::var("OVERLANE_REQUESTS").map_or(2_000, |count| count.parse().unwrap())
}

/// An overlay as a blueprint: with a service of its own at an address, or none.
fn overlay(number: usize, at: Option<SocketAddr>) -> FileChange {
    let services =
        at.map_or_else(String::new, |at| format!("services: [{{name: web, url: 'http://{at}'}}]\n"));
    let routing = "{mode: overlay, baselineId: base, holdFor: 200ms}";
    file(&format!("o{number}"), &format!("name: o{number}\nrouting: {routing}\n{services}"))
}

/// An address of this test alone: it is kept while nobody listens there, or a connection of anybody's could have its port.
struct Place(TcpSocket);

impl Place {
    fn at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind(address).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// An upstream that says whose it is, until it is killed.
struct Upstream {
    killed: Option<tokio::sync::oneshot::Sender<()>>,
    over: tokio::task::JoinHandle<()>,
}

impl Upstream {
    /// One of `name` at a place, which may have been somebody else's until now.
    fn at(name: String, place: &Place) -> Self {
        let listener = Place::at(place.address()).0.listen(128).unwrap();
        let (killed, mut kill) = tokio::sync::oneshot::channel();
        let over = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    _ = &mut kill => return connections.shutdown().await,
                    Ok((stream, _)) = listener.accept() => drop(connections.spawn(serve(stream, name.clone()))),
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Self { killed: Some(killed), over }
    }

    /// Ends it and all its connections.
    async fn kill(mut self) {
        drop(self.killed.take());
        self.over.await.unwrap();
    }
}

async fn serve(mut stream: TcpStream, name: String) {
    let _ = stream.set_nodelay(true);
    let mut bytes = Vec::new();
    loop {
        if let Read::Message(request) = message::read(&bytes, Kind::Request, false)
            && request.whole
        {
            bytes.drain(..request.length);
            // It names the key as well: nobody's request went astray on the way.
            let key = request.values("x-overlay-id").next().unwrap_or_default();
            let answer =
                format!("HTTP/1.1 200 OK\r\nx-who: {name}\r\nx-key: {key}\r\nContent-Length: 0\r\n\r\n");
            // Some are killed while they answer.
            tokio::task::yield_now().await;
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        } else if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return;
        }
    }
}

/// Whose an overlay's service is, for those who ask: how often it was moved, twice; odd while it is being moved.
type Moves = Vec<AtomicUsize>;

/// What came of all requests.
#[derive(Debug, Default)]
struct Tally {
    /// Answered by the overlay itself.
    own: AtomicUsize,
    /// Answered by the baseline while the overlay had no service.
    base: AtomicUsize,
    /// Answered by no upstream: it was killed meanwhile, or the machine was too busy to connect in time.
    failed: AtomicUsize,
    /// Whatever must not be, and the first of them in words.
    wrong: AtomicUsize,
    words: Mutex<Vec<String>>,
}

impl Tally {
    fn count(&self, key: usize, steady: bool, status: u16, who: &str, seen_key: &str, receipt: &str) {
        let name = format!("o{key}");
        let cell = match status {
            200 if who == name && seen_key == name && receipt.contains(";via=overlay;reason=owned") => {
                &self.own
            }
            // While it was moved the tables in force gave it to the one or the other.
            200 if !steady && who == "base" && receipt.contains(";env=base;via=baseline;") => &self.base,
            502..=504 => &self.failed,
            _ => {
                let told = format!("{name} (steady: {steady}): {status} of {who} for {seen_key}, {receipt}");
                self.words.lock().unwrap().push(told);
                &self.wrong
            }
        };
        cell.fetch_add(1, SeqCst);
    }
}

struct Load {
    gateway: SocketAddr,
    moves: Moves,
    next: AtomicUsize,
    count: usize,
    tally: Tally,
}

impl Load {
    /// The next overlay to ask for, and how often it was moved; `None` where it is enough.
    fn next(&self) -> Option<(usize, usize)> {
        let number = self.next.fetch_add(1, SeqCst);
        let key = number * 7919 % OVERLAYS;
        (number < self.count).then(|| (key, self.moves[key].load(SeqCst)))
    }

    fn note(&self, (key, moved): (usize, usize), status: u16, fields: &HashMap<String, String>) {
        let steady = moved.is_multiple_of(2) && self.moves[key].load(SeqCst) == moved;
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        self.tally.count(key, steady, status, field("x-who"), field("x-key"), field("x-overlay-route"));
    }

    async fn in_http1(self: Arc<Self>) {
        let mut stream = None;
        while let Some(asked) = self.next() {
            let mut io = match stream.take() {
                Some(io) => io,
                None => TcpStream::connect(self.gateway).await.unwrap(),
            };
            let request = format!("GET / HTTP/1.1\r\nHost: web\r\nx-overlay-id: o{}\r\n\r\n", asked.0);
            io.write_all(request.as_bytes()).await.unwrap();
            let mut bytes = Vec::new();
            let response = loop {
                match message::read(&bytes, Kind::Response, false) {
                    Read::Message(response) if response.whole => break response,
                    _ => assert!(matches!(io.read_buf(&mut bytes).await, Ok(1..)), "no answer"),
                }
            };
            let fields: HashMap<_, _> = response
                .fields
                .iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect();
            self.note(asked, response.status().parse().unwrap(), &fields);
            if !fields.contains_key("connection") {
                stream = Some(io);
            }
        }
    }

    async fn in_http2(self: Arc<Self>) {
        let stream = TcpStream::connect(self.gateway).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        while let Some(asked) = self.next() {
            let mut sender = sender.clone().ready().await.unwrap();
            let request = http::Request::get("http://web/").header("x-overlay-id", format!("o{}", asked.0));
            let (coming, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
            let (head, mut body) = coming.await.unwrap().into_parts();
            while let Some(piece) = body.data().await {
                body.flow_control().release_capacity(piece.unwrap().len()).unwrap();
            }
            let fields = head.headers.iter();
            let fields = fields.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
            self.note(asked, head.status.as_u16(), &fields.collect());
        }
    }
}

/// Swaps the addresses of two overlays again and again: each is taken from its overlay in the table before another's
/// upstream may stand there. Says how often.
async fn swap(
    load: Arc<Load>,
    running: Arc<Started>,
    mut at: Vec<Option<(Upstream, Place)>>,
    stop: Arc<AtomicBool>,
) -> usize {
    let mut swaps = 0;
    while !stop.load(SeqCst) {
        let pick = |salt: usize| (swaps * 31 + salt) % OVERLAYS;
        let (a, b) = (pick(0), pick(15));
        let apply = |files: &[FileChange]| drop(running.control().apply(files, Trigger::Change));
        for moved in [a, b] {
            load.moves[moved].fetch_add(1, SeqCst);
        }
        let ((up_a, at_a), (up_b, at_b)) = (at[a].take().unwrap(), at[b].take().unwrap());
        // Either goes first: killed under its requests, or taken from the table while it serves.
        if swaps % 2 == 0 {
            up_a.kill().await;
            apply(&[overlay(a, None), overlay(b, None)]);
            up_b.kill().await;
        } else {
            apply(&[overlay(a, None), overlay(b, None)]);
            up_a.kill().await;
            up_b.kill().await;
        }
        let (up_a, up_b) = (Upstream::at(format!("o{a}"), &at_b), Upstream::at(format!("o{b}"), &at_a));
        apply(&[overlay(a, Some(at_b.address())), overlay(b, Some(at_a.address()))]);
        (at[a], at[b]) = (Some((up_a, at_b)), Some((up_b, at_a)));
        for moved in [a, b] {
            load.moves[moved].fetch_add(1, SeqCst);
        }
        swaps += 1;
    }
    swaps
}

/// Says what came of it, which is the figure of a large run.
#[allow(clippy::print_stdout)]
fn nobody_gets_anothers(engine: EngineChoice, count: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let place = || Place::at(SocketAddr::from(([127, 0, 0, 1], 0)));
        let base = place();
        let _upstream = Upstream::at("base".to_owned(), &base);
        let web = format!("services: [{{name: web, expose: true, url: 'http://{}'}}]\n", base.address());
        let mut files = vec![file("base", &format!("name: base\nrouting: {{mode: baseline}}\n{web}"))];
        let mut at = Vec::new();
        for number in 0..OVERLAYS {
            let place = place();
            files.push(overlay(number, Some(place.address())));
            at.push(Some((Upstream::at(format!("o{number}"), &place), place)));
        }
        let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
        let settings = Settings { engine, workers: 2, ..Settings::in_process(listeners) };
        let running = Arc::new(stage::start_as(settings, files));
        let load = Arc::new(Load {
            gateway: running.addresses()[0],
            moves: (0..OVERLAYS).map(|_| AtomicUsize::new(0)).collect(),
            next: AtomicUsize::new(0),
            count,
            tally: Tally::default(),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let swapping = tokio::spawn(swap(load.clone(), running.clone(), at, stop.clone()));
        let mut clients = JoinSet::new();
        for _ in 0..CONNECTIONS {
            clients.spawn(load.clone().in_http1());
            clients.spawn(load.clone().in_http2());
        }
        tokio::time::timeout(Duration::from_secs(3600), clients.join_all()).await.unwrap();
        stop.store(true, SeqCst);
        let swaps = swapping.await.unwrap();
        let Tally { own, base, failed, wrong, words } = &load.tally;
        let [own, base, failed, wrong] = [own, base, failed, wrong].map(|cell| cell.load(SeqCst));
        println!("{engine:?}: {count} requests, {swaps} swaps: {own} own, {base} by the baseline, {failed} failed, {wrong} wrong");
        let words = words.lock().unwrap();
        assert_eq!(wrong, 0, "{:#?}", words.iter().take(10).collect::<Vec<_>>());
        assert_eq!(own + base + failed, count);
        assert!(swaps > 0 && own > count / 2);
    });
}

#[test]
fn nobody_gets_the_answer_of_another_environment_while_upstreams_change_places() {
    nobody_gets_anothers(EngineChoice::Auto, count());
}

#[test]
fn nobody_gets_the_answer_of_another_environment_while_upstreams_change_places_also_on_pingora() {
    nobody_gets_anothers(EngineChoice::Pingora, count() / 4);
}
