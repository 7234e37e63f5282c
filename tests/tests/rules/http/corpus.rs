//! The corpus of hostile requests (`tests/corpus/requests.txt`) through each engine: what the upstream sees is what was
//! meant, request by request, or it is refused and the connection ends. Nobody else's answer is ever another's.

use std::net::SocketAddr;
use std::time::Duration;

use overlane::plane::EngineChoice;
use overlane_tests::corpus::{Case, Outcome, cases};
use overlane_tests::message::{Field, Kind, Message, Read, messages};
use overlane_tests::scene::{Scene, Side, Wire};
use overlane_tests::stage::Slot;

const CORPUS: &str = include_str!("../../../corpus/requests.txt");
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";

/// When the request that follows an attack is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    InTheSameBytes,
    AfterTheAnswers,
}

/// What a request means, whoever reads it: method, target in origin form, host, body, trailers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) host: String,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<Field>,
}

impl Meaning {
    fn of(request: &Message, engine: EngineChoice) -> Self {
        let mut words = request.start.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let mut host = request.values("host").next().unwrap_or_default().to_owned();
        let mut target = target.to_owned();
        let scheme = target.get(..7).filter(|start| start.eq_ignore_ascii_case("http://"));
        if let Some(rest) = scheme.map(|scheme| &target[scheme.len()..]) {
            let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            host = authority.to_owned();
            target = format!("{}{path}", if path.starts_with('/') { "" } else { "/" });
        }
        // Pingora forwards none (`differences::TRAILERS`).
        let kept = engine == EngineChoice::Auto;
        let trailers = if kept { request.trailers.clone() } else { Vec::new() };
        Self { method: method.to_owned(), target, host, body: request.body.clone(), trailers }
    }

    /// What the upstream answers to it.
    pub(super) fn answer(&self) -> String {
        format!("{} {} {}", self.method, self.target, self.body.len())
    }

    fn kind(&self) -> Kind {
        if self.method == "HEAD" { Kind::ResponseToHead } else { Kind::Response }
    }
}

/// What must come of a case.
struct Expected {
    /// What must arrive, in order.
    meant: Vec<Meaning>,
    /// The status with which the one after these is refused.
    refused: Option<u16>,
    /// Whether its connection may end early: it speaks HTTP/1.0.
    old: bool,
}

/// Clients, an upstream that answers each request with what it took it for, and what arrived there.
pub(super) struct Conversation {
    pub(super) scene: Scene,
    engine: EngineChoice,
    pub(super) arrived: Vec<Meaning>,
}

impl Conversation {
    pub(super) fn of(scene: Scene, engine: EngineChoice) -> Self {
        Self { scene, engine, arrived: Vec::new() }
    }

    /// Waits until `done` says so of the clients, while the upstream answers whatever arrives.
    pub(super) async fn serve(&mut self, done: impl Fn(&[Wire]) -> bool) -> Result<(), String> {
        loop {
            let next = self.scene.until(|scene| {
                let whole = scene.upstreams.iter().position(|wire| {
                    matches!(wire.peek(Kind::Request), Read::Message(message) if message.whole)
                        || matches!(wire.peek(Kind::Request), Read::Malformed(_))
                });
                match whole {
                    Some(number) => Some(Some(number)),
                    None => done(&scene.clients).then_some(None),
                }
            });
            let Some(number) = next.await.map_err(|why| format!("{why}\n{}", self.dump()))? else {
                return Ok(());
            };
            let wire = &mut self.scene.upstreams[number];
            let request = match wire.peek(Kind::Request) {
                Read::Message(request) => request,
                other => return Err(format!("the upstream got {other:?}")),
            };
            wire.take(&request);
            let meaning = Meaning::of(&request, self.engine);
            let answer = meaning.answer();
            let body = if meaning.kind() == Kind::ResponseToHead { "" } else { &answer };
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", answer.len());
            self.arrived.push(meaning);
            self.scene.send(Side::Upstream, number, reply.as_bytes()).await?;
        }
    }

    /// The answers that a client got to these requests, taken; an answer of the proxy's own is `400 overlane`.
    fn answers(&mut self, client: usize, to: &[Meaning]) -> Result<Vec<String>, String> {
        let wire = &mut self.scene.clients[client];
        let mut answers = Vec::new();
        let kinds = to.iter().map(Meaning::kind).chain(std::iter::repeat(Kind::Response));
        for kind in kinds {
            let mut message = wire.peek(kind);
            while let Read::Message(interim) = &message
                && interim.interim()
            {
                wire.take(interim);
                message = wire.peek(kind);
            }
            match message {
                Read::Message(message) if message.whole => {
                    wire.take(&message);
                    let own = message.values("proxy-status").any(|value| value.starts_with("overlane;"))
                        // It refuses a target with `<`, `>` or a backtick in its path before it asks us.
                        || message.values("server").any(|server| server == "Pingora");
                    let told = match (own, kind) {
                        (true, _) => format!("{} overlane", message.status()),
                        (false, Kind::ResponseToHead) => to[answers.len()].answer(),
                        (false, _) => String::from_utf8_lossy(&message.body).into_owned(),
                    };
                    answers.push(told);
                }
                Read::NoHead if wire.rest().is_empty() => return Ok(answers),
                other => return Err(format!("the client got {other:?}")),
            }
        }
        Ok(answers)
    }

    async fn run(
        &mut self,
        address: SocketAddr,
        sent: &[u8],
        expected: &Expected,
        next: Next,
    ) -> Result<(), String> {
        self.scene.connect(address).await.map_err(|error| error.to_string())?;
        let then = if next == Next::InTheSameBytes { NEXT.as_bytes() } else { b"" };
        self.scene.send(Side::Client, 0, &[sent, then].concat()).await?;
        let last = Meaning::of(&messages(NEXT.as_bytes(), Kind::Request)[0], self.engine);
        let (mut meant, refused) = (expected.meant.clone(), expected.refused);
        if refused.is_none() && next == Next::InTheSameBytes {
            meant.push(last.clone());
        }
        let kinds: Vec<_> = meant.iter().map(Meaning::kind).collect();
        self.serve(|clients| {
            clients[0].end.is_some() || (refused.is_none() && has_answers(&clients[0], &kinds))
        })
        .await?;
        let mut answers = self.answers(0, &meant)?;
        if refused.is_none() && next == Next::AfterTheAnswers && self.scene.clients[0].end.is_none() {
            self.scene.send(Side::Client, 0, NEXT.as_bytes()).await?;
            self.serve(|clients| clients[0].end.is_some() || has_answers(&clients[0], &[Kind::Response]))
                .await?;
            meant.push(last.clone());
            answers.extend(self.answers(0, &[last])?);
        }
        let mut right: Vec<_> = meant.iter().map(Meaning::answer).collect();
        right.extend(refused.map(|status| format!("{status} overlane")));
        let ended = self.scene.clients[0].end.is_some();
        // What was sent with HTTP/1.0 may be the last on its connection.
        let early = expected.old && ended && !answers.is_empty() && right.starts_with(&answers);
        let whole = answers.len() - usize::from(refused.is_some());
        if !(answers == right || early) || (refused.is_some() && !ended) {
            return Err(format!("answered with {answers:?}, not {right:?}\n{}", self.dump()));
        }
        if self.arrived != meant[..whole] {
            return Err(format!("there arrived {:?}, not {meant:?}", self.arrived));
        }
        self.innocent(address).await
    }

    /// Somebody else's request, which may go out on a connection that the attack has left.
    pub(super) async fn innocent(&mut self, address: SocketAddr) -> Result<(), String> {
        self.arrived.clear();
        self.scene.connect(address).await.map_err(|error| error.to_string())?;
        self.scene.send(Side::Client, 1, b"GET /innocent HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        self.serve(|clients| clients[1].end.is_some() || has_answers(&clients[1], &[Kind::Response])).await?;
        let answers = self.answers(1, &[])?;
        let left = |wire: &Wire| !wire.rest().is_empty() && wire.end.is_none();
        match answers == ["GET /innocent 0"] && self.arrived.len() == 1 {
            true if self.scene.upstreams.iter().any(left) => Err(format!("left open:\n{}", self.dump())),
            true => Ok(()),
            false => Err(format!("the innocent got {answers:?}, and there arrived {:?}", self.arrived)),
        }
    }

    fn dump(&self) -> String {
        let told = |side: &'static str, wires: &[Wire]| {
            let told = wires.iter().map(|wire| {
                let shown = &wire.bytes[..wire.bytes.len().min(600)];
                format!("  {side} {:?} {}\n", wire.end, shown.escape_ascii())
            });
            told.collect::<String>()
        };
        told("client", &self.scene.clients) + &told("upstream", &self.scene.upstreams)
    }
}

/// Whether final answers of these kinds are there.
fn has_answers(wire: &Wire, kinds: &[Kind]) -> bool {
    let mut rest = wire.rest();
    for kind in kinds {
        loop {
            match overlane_tests::message::read(rest, *kind, wire.end.is_some()) {
                Read::Message(message) if message.whole => {
                    rest = &rest[message.length..];
                    if !message.interim() {
                        break;
                    }
                }
                Read::Malformed(_) => return true,
                _ => return false,
            }
        }
    }
    true
}

fn converse(engine: EngineChoice, case: &Case, next: Next) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let scene = Scene::new(PATIENCE).await.unwrap();
        let slot = Slot::lease(engine, scene.upstream_address().unwrap());
        let read = messages(&case.bytes, Kind::Request);
        let outcome = match (engine, case.on_pingora) {
            (EngineChoice::Pingora, Some(other)) => other,
            _ => case.outcome,
        };
        let (through, refused) = match outcome {
            Outcome::Passes => (read.len(), None),
            Outcome::Refused(before, status) => (before, Some(status)),
        };
        let upstream = scene.upstream_address().unwrap().to_string();
        let meant = read[..through].iter().map(|request| {
            let meaning = Meaning::of(request, engine);
            // Who asks with HTTP/1.0 need not say whom; HTTP/1.1, as it goes on, wants a host.
            let host = if request.values("host").next().is_none() { upstream.clone() } else { meaning.host };
            Meaning { host, ..meaning }
        });
        let old = case.bytes.windows(9).any(|window| window == b" HTTP/1.0");
        let expected = Expected { meant: meant.collect(), refused, old };
        Conversation::of(scene, engine).run(slot.address(), &case.bytes, &expected, next).await
    })
}

fn every_case(engine: EngineChoice, next: Next) {
    let mut cases = cases(CORPUS);
    if next == Next::AfterTheAnswers {
        // After a refusal there is nothing on the same connection.
        cases.retain(|case| case.outcome == Outcome::Passes);
    }
    let told = cases.iter().filter_map(|case| {
        let why = converse(engine, case, next).err()?;
        let sent = &case.bytes[..case.bytes.len().min(300)];
        Some(format!("{}\n  sent {}\n{why}", case.name, sent.escape_ascii()))
    });
    let told: Vec<_> = told.collect();
    assert!(told.is_empty(), "{} of {} cases\n{}", told.len(), cases.len(), told.join("\n\n"));
}

#[test]
fn what_is_read_once_is_read_the_same_by_all_or_refused() {
    every_case(EngineChoice::Auto, Next::InTheSameBytes);
}

#[test]
fn what_is_read_once_is_read_the_same_by_all_or_refused_also_on_pingora() {
    every_case(EngineChoice::Pingora, Next::InTheSameBytes);
}

#[test]
fn what_comes_after_an_attack_gets_its_own_answer() {
    every_case(EngineChoice::Auto, Next::AfterTheAnswers);
}

#[test]
fn what_comes_after_an_attack_gets_its_own_answer_also_on_pingora() {
    every_case(EngineChoice::Pingora, Next::AfterTheAnswers);
}

#[test]
fn the_corpus_is_large_and_what_passes_is_right() {
    let cases = cases(CORPUS);
    assert!(cases.len() >= 200, "{} cases", cases.len());
    for case in cases.iter().filter(|case| case.outcome == Outcome::Passes) {
        let length: usize = messages(&case.bytes, Kind::Request).iter().map(|request| request.length).sum();
        // But for empty lines between requests.
        assert!(case.bytes.len() - length <= 4, "{}", case.name);
    }
}
