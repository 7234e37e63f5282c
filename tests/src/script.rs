//! A case as a script: what the clients and the upstream do, in order, and what each must see.
//!
//! Both ends are driven by one task, so a script needs no sleeps and no locks: each wait is for bytes, or for the
//! end of a connection. What is seen goes to a transcript, in a form in which two engines can be compared.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::process::Running;
use overlane_config::route::Role;

use crate::message::{Field, Framing, Kind, Message, Read};
use crate::scene::{End, Scene, Side};
use crate::stage::{self, EXPRESS, Slot};

/// How long a wait lasts before it is a failure.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where a failure is what is expected.
const LITTLE_PATIENCE: Duration = Duration::from_millis(300);
/// Longer bodies are shown by length and hash.
const SHOWN: usize = 400;

#[derive(Debug, Clone)]
enum Step {
    Client(usize),
    Send(Vec<u8>),
    Drip(Vec<u8>),
    HalfClose(Side),
    Close(Side, End),
    Answered(Kind, String),
    AnswerSoFar(String),
    AnswerCut(String),
    Ended,
    Arrives(String),
    ArrivesSoFar(String),
    Reply(Vec<u8>),
    UpstreamEnded,
    Gets(Side, Vec<u8>),
    Has(String),
    Lacks(String),
    Trailer(String),
    Framed(Framing),
    Untouched,
    Connections(usize),
}

/// The listener that a script's clients call.
#[derive(Debug, Clone)]
enum Place {
    Gateway,
    Own(Role, Trust),
}

/// What happens, in order, and what must be seen.
#[derive(Debug, Clone)]
pub struct Script {
    place: Place,
    steps: Vec<Step>,
}

impl Default for Script {
    fn default() -> Self {
        Self::new()
    }
}

impl Script {
    /// An empty script; its clients call a gateway with one service behind it, `web`, that the baseline `base` and
    /// the overlay `alice` own.
    #[must_use]
    pub fn new() -> Self {
        Self { place: Place::Gateway, steps: Vec::new() }
    }

    /// An empty script at a listener of its own: of another role, or with other trust. The upstream is the application
    /// where the role is inbound.
    #[must_use]
    pub fn at(role: Role, trust: Trust) -> Self {
        Self { place: Place::Own(role, trust), steps: Vec::new() }
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// The client that acts and sees from here on; 0 at first. Each has one connection.
    #[must_use]
    pub fn client(self, number: usize) -> Self {
        self.then(Step::Client(number))
    }

    /// The client sends bytes.
    #[must_use]
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Send(bytes.as_ref().to_vec()))
    }

    /// The client sends bytes one by one.
    #[must_use]
    pub fn drip(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Drip(bytes.as_ref().to_vec()))
    }

    /// The client sends no more, and still reads.
    #[must_use]
    pub fn half_close(self) -> Self {
        self.then(Step::HalfClose(Side::Client))
    }

    /// The client closes its connection.
    #[must_use]
    pub fn close(self) -> Self {
        self.then(Step::Close(Side::Client, End::Closed))
    }

    /// The client resets its connection.
    #[must_use]
    pub fn reset(self) -> Self {
        self.then(Step::Close(Side::Client, End::Reset))
    }

    /// The client gets a whole response: `200 body`. Responses of status 1xx are responses of their own.
    #[must_use]
    pub fn answered(self, expected: impl Into<String>) -> Self {
        self.then(Step::Answered(Kind::Response, expected.into()))
    }

    /// The same for the response to HEAD.
    #[must_use]
    pub fn answered_to_head(self, expected: impl Into<String>) -> Self {
        self.then(Step::Answered(Kind::ResponseToHead, expected.into()))
    }

    /// The client has got the head of a response and so much of its body, and waits for more.
    #[must_use]
    pub fn answered_so_far(self, expected: impl Into<String>) -> Self {
        self.then(Step::AnswerSoFar(expected.into()))
    }

    /// The client's connection ends before the response does; what came of the body is a part of the expected one.
    #[must_use]
    pub fn cut(self, expected: impl Into<String>) -> Self {
        self.then(Step::AnswerCut(expected.into()))
    }

    /// The client's connection is ended by the proxy, and nothing came before that.
    #[must_use]
    pub fn ended(self) -> Self {
        self.then(Step::Ended)
    }

    /// The proxy answers itself, says so and why, and closes.
    #[must_use]
    pub fn refused(self, status: u16) -> Self {
        self.answered(format!("{status} overlane")).has("connection: close").ended()
    }

    /// A whole request arrives at the upstream: `POST /target body`.
    #[must_use]
    pub fn arrives(self, expected: impl Into<String>) -> Self {
        self.then(Step::Arrives(expected.into()))
    }

    /// The head of a request and so much of its body have arrived at the upstream, and not all.
    #[must_use]
    pub fn arrives_so_far(self, expected: impl Into<String>) -> Self {
        self.then(Step::ArrivesSoFar(expected.into()))
    }

    /// The upstream sends bytes on the connection on which a request arrived last.
    #[must_use]
    pub fn reply(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Reply(bytes.as_ref().to_vec()))
    }

    /// The same, byte by byte.
    #[must_use]
    pub fn reply_dripping(self, bytes: impl AsRef<[u8]>) -> Self {
        bytes.as_ref().iter().fold(self, |script, byte| script.then(Step::Reply(vec![*byte])))
    }

    /// The upstream sends no more on that connection, and still reads.
    #[must_use]
    pub fn upstream_half_closes(self) -> Self {
        self.then(Step::HalfClose(Side::Upstream))
    }

    /// The upstream closes that connection.
    #[must_use]
    pub fn upstream_closes(self) -> Self {
        self.then(Step::Close(Side::Upstream, End::Closed))
    }

    /// The upstream resets that connection.
    #[must_use]
    pub fn upstream_resets(self) -> Self {
        self.then(Step::Close(Side::Upstream, End::Reset))
    }

    /// The proxy ends that connection.
    #[must_use]
    pub fn upstream_ended(self) -> Self {
        self.then(Step::UpstreamEnded)
    }

    /// The client gets exactly these bytes next.
    #[must_use]
    pub fn client_gets(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Gets(Side::Client, bytes.as_ref().to_vec()))
    }

    /// The upstream gets exactly these bytes next.
    #[must_use]
    pub fn upstream_gets(self, bytes: impl AsRef<[u8]>) -> Self {
        self.then(Step::Gets(Side::Upstream, bytes.as_ref().to_vec()))
    }

    /// The message that was seen last has exactly this field: `name: value`.
    #[must_use]
    pub fn has(self, field: impl Into<String>) -> Self {
        self.then(Step::Has(field.into()))
    }

    /// The message that was seen last has no field of this name.
    #[must_use]
    pub fn lacks(self, name: impl Into<String>) -> Self {
        self.then(Step::Lacks(name.into()))
    }

    /// The message that was seen last has exactly this trailer.
    #[must_use]
    pub fn has_trailer(self, field: impl Into<String>) -> Self {
        self.then(Step::Trailer(field.into()))
    }

    /// The message that was seen last is delimited so.
    #[must_use]
    pub fn framed(self, framing: Framing) -> Self {
        self.then(Step::Framed(framing))
    }

    /// Nothing more has arrived at the upstream.
    #[must_use]
    pub fn nothing_more_arrives(self) -> Self {
        self.then(Step::Untouched)
    }

    /// So many connections were made to the upstream by now.
    #[must_use]
    pub fn upstream_connections(self, number: usize) -> Self {
        self.then(Step::Connections(number))
    }

    /// The same case where Pingora differs on purpose or cannot be mended: what happens on it instead.
    #[must_use]
    pub fn but_on_pingora(self, difference: Difference, instead: Self) -> Case {
        Case { script: self, known: Some((difference, instead)) }
    }
}

/// A difference between the engines, and its reason.
#[derive(Debug, Clone, Copy)]
pub struct Difference(pub &'static str);

/// A script, and what is different about it on Pingora.
#[derive(Debug, Clone)]
pub struct Case {
    script: Script,
    known: Option<(Difference, Script)>,
}

impl From<Script> for Case {
    fn from(script: Script) -> Self {
        Self { script, known: None }
    }
}

impl Case {
    fn on(&self, engine: EngineChoice) -> &Script {
        match &self.known {
            Some((_, instead)) if engine == EngineChoice::Pingora || !EXPRESS => instead,
            _ => &self.script,
        }
    }
}

/// What came of a script.
#[derive(Debug)]
pub struct Outcome {
    /// What was seen, normalised.
    pub transcript: Vec<String>,
    /// The first thing that was not as it must be, with everything that had arrived by then.
    pub failure: Option<String>,
}

/// Runs a case on both engines.
///
/// # Panics
/// Where one of them fails it, where they differ and no difference is known, or where one is known and is gone.
pub fn holds(case: impl Into<Case>) {
    let problems = problems(&case.into());
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

/// Runs a family of cases on both engines; all that fail are told.
///
/// # Panics
/// As [`holds`] does.
pub fn each_holds<C: Into<Case>>(cases: impl IntoIterator<Item = (impl Into<String>, C)>) {
    let mut all = Vec::new();
    for (name, case) in cases {
        let name = name.into();
        all.extend(problems(&case.into()).into_iter().map(|problem| format!("{name:?}: {problem}")));
    }
    assert!(all.is_empty(), "{} problems\n{}", all.len(), all.join("\n\n"));
}

fn problems(case: &Case) -> Vec<String> {
    let outcomes = [EngineChoice::Pingora, EngineChoice::Auto]
        .map(|engine| (engine, run(engine, case.on(engine), PATIENCE)));
    let mut problems: Vec<_> = outcomes
        .iter()
        .filter_map(|(engine, outcome)| Some(format!("on {engine:?}: {}", outcome.failure.as_ref()?)))
        .collect();
    let [(_, pingora), (_, auto)] = &outcomes;
    match &case.known {
        None if problems.is_empty() && pingora.transcript != auto.transcript => {
            problems.push(format!("the engines differ{}", differing(&pingora.transcript, &auto.transcript)));
        }
        Some((difference, _)) if EXPRESS => {
            if run(EngineChoice::Pingora, &case.script, LITTLE_PATIENCE).failure.is_none() {
                problems.push(format!("no difference any more: {}", difference.0));
            }
        }
        _ => {}
    }
    problems
}

/// The lines in which two transcripts differ.
#[must_use]
pub fn differing(pingora: &[String], auto: &[String]) -> String {
    let mut told = String::new();
    for number in 0..pingora.len().max(auto.len()) {
        let of =
            |transcript: &[String]| transcript.get(number).cloned().unwrap_or_else(|| "(nothing)".to_owned());
        let (pingora, auto) = (of(pingora), of(auto));
        if pingora != auto {
            told.push_str(&format!("\n  Pingora: {pingora}\n  Auto:    {auto}"));
        }
    }
    told
}

/// Runs a script on an engine.
#[must_use]
pub fn run(engine: EngineChoice, script: &Script, patience: Duration) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let scene = Scene::new(patience).await.unwrap();
        let upstream = scene.upstream_address().unwrap();
        let proxy = Proxy::of(engine, &script.place, upstream);
        let mut play = Play {
            scene,
            proxy: proxy.address(),
            suffix: proxy.suffix(),
            client: 0,
            upstream: None,
            last: None,
            transcript: Vec::new(),
        };
        let mut failure = None;
        for (number, step) in script.steps.iter().enumerate() {
            if let Err(why) = play.step(step).await {
                failure = Some(format!("step {} {}: {why}\n{}", number + 1, shown(step), play.dump()));
                break;
            }
        }
        let transcript = play.transcript;
        Outcome { transcript, failure }
    })
}

enum Proxy {
    Shared(Slot),
    /// Only taken when it is dropped.
    Own(Option<Running>, SocketAddr),
}

impl Proxy {
    fn of(engine: EngineChoice, place: &Place, upstream: SocketAddr) -> Self {
        match place {
            Place::Gateway => Self::Shared(Slot::lease(engine, upstream)),
            Place::Own(role, trust) => {
                let app = matches!(role, Role::Inbound { .. }).then_some(upstream);
                let listener = stage::listener(role.clone(), "", app, trust.clone());
                let running = stage::start(engine, vec![listener], stage::files("", upstream));
                let address = running.gates()[0].address;
                Self::Own(Some(running), address)
            }
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Shared(slot) => slot.address(),
            Self::Own(_, address) => *address,
        }
    }

    fn suffix(&self) -> String {
        match self {
            Self::Shared(slot) => slot.suffix(),
            Self::Own(..) => String::new(),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A running proxy has a runtime, which must not be dropped on another one's thread.
        if let Self::Own(running, _) = self
            && let Some(running) = running.take()
        {
            drop(running.stop_in_background());
        }
    }
}

/// A script that is being run.
struct Play {
    scene: Scene,
    proxy: SocketAddr,
    suffix: String,
    client: usize,
    upstream: Option<usize>,
    last: Option<Message>,
    transcript: Vec<String>,
}

impl Play {
    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Client(number) => self.client = *number,
            Step::Send(bytes) => self.send(bytes).await?,
            Step::Drip(bytes) => {
                for byte in self.named(bytes) {
                    self.send(&[byte]).await?;
                }
            }
            Step::HalfClose(side) => {
                let number = self.number(*side).await?;
                self.scene.half_close(*side, number).await;
            }
            Step::Close(side, end) => {
                let number = self.number(*side).await?;
                self.scene.close(*side, number, *end);
            }
            Step::Answered(kind, expected) => self.answered(*kind, expected).await?,
            Step::AnswerSoFar(expected) => self.answered_so_far(expected).await?,
            Step::AnswerCut(expected) => self.cut(expected).await?,
            Step::Ended => self.ended().await?,
            Step::Arrives(expected) => self.arrives(expected).await?,
            Step::ArrivesSoFar(expected) => self.arrives_so_far(expected).await?,
            Step::Reply(bytes) => {
                let number = self.number(Side::Upstream).await?;
                let bytes = self.named(bytes);
                self.scene.send(Side::Upstream, number, &bytes).await?;
            }
            Step::UpstreamEnded => {
                let number = self.number(Side::Upstream).await?;
                self.scene.until(|scene| scene.upstreams[number].end).await?;
                self.transcript.push("the upstream's connection ended".to_owned());
            }
            Step::Gets(side, bytes) => self.gets(*side, bytes).await?,
            Step::Has(_) | Step::Lacks(_) | Step::Trailer(_) | Step::Framed(_) => self.check_last(step)?,
            Step::Untouched => self.untouched().await?,
            Step::Connections(expected) => {
                let made = self.scene.upstreams.len();
                equal(&made.to_string(), &expected.to_string())?;
            }
        }
        Ok(())
    }

    /// Names of environments are different in each slot; scripts know them without their suffix.
    fn named(&self, bytes: &[u8]) -> Vec<u8> {
        let mut named = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while let Some(at) = rest.windows(5).position(|window| window == b"alice") {
            named.extend_from_slice(&rest[..at + 5]);
            named.extend_from_slice(self.suffix.as_bytes());
            rest = &rest[at + 5..];
        }
        named.extend_from_slice(rest);
        named
    }

    fn unnamed(&self, text: &str) -> String {
        if self.suffix.is_empty() {
            return text.to_owned();
        }
        let strip = |text: String, name: &str| text.replace(&format!("{name}{}", self.suffix), name);
        strip(strip(text.to_owned(), "alice"), "base")
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let number = self.number(Side::Client).await?;
        let bytes = self.named(bytes);
        self.scene.send(Side::Client, number, &bytes).await
    }

    /// The connection that acts on a side; a client connects when it first acts.
    async fn number(&mut self, side: Side) -> Result<usize, String> {
        if side == Side::Upstream {
            return self.upstream.ok_or_else(|| "no request has arrived yet".to_owned());
        }
        while self.scene.clients.len() <= self.client {
            self.scene.connect(self.proxy).await.map_err(|error| error.to_string())?;
        }
        Ok(self.client)
    }

    async fn answered(&mut self, kind: Kind, expected: &str) -> Result<(), String> {
        let number = self.number(Side::Client).await?;
        let message = self
            .scene
            .until(|scene| {
                let wire = &mut scene.clients[number];
                match wire.peek(kind) {
                    Read::Message(message) if message.whole => {
                        wire.take(&message);
                        Some(Ok(message))
                    }
                    Read::Malformed(why) => Some(Err(why)),
                    _ if wire.end.is_some() => Some(Err("the connection ended".to_owned())),
                    _ => None,
                }
            })
            .await??;
        self.see("client", &message);
        equal(&self.unnamed(&summary(&message)), expected)?;
        self.last = Some(message);
        Ok(())
    }

    async fn answered_so_far(&mut self, expected: &str) -> Result<(), String> {
        let number = self.number(Side::Client).await?;
        let found = self.so_far(Side::Client, Some(number), Kind::Response, expected).await?;
        self.last = Some(found.1);
        Ok(())
    }

    async fn arrives_so_far(&mut self, expected: &str) -> Result<(), String> {
        let (number, message) = self.so_far(Side::Upstream, None, Kind::Request, expected).await?;
        self.upstream = Some(number);
        self.last = Some(message);
        Ok(())
    }

    /// Waits until a message that is not whole has come as far as expected; it is not taken.
    async fn so_far(
        &mut self,
        side: Side,
        number: Option<usize>,
        kind: Kind,
        expected: &str,
    ) -> Result<(usize, Message), String> {
        let suffix = self.suffix.clone();
        let mut seen = "nothing".to_owned();
        let found = self
            .scene
            .until(|scene| {
                let wires = if side == Side::Client { &scene.clients } else { &scene.upstreams };
                let wires =
                    wires.iter().enumerate().filter(|(at, _)| number.is_none_or(|number| *at == number));
                for (at, wire) in wires {
                    if let Read::Message(message) = wire.peek(kind) {
                        seen = summary(&message).replace(&suffix, "");
                        if seen == expected {
                            return Some((at, message));
                        }
                    }
                }
                None
            })
            .await
            .map_err(|why| format!("{why}; so far {seen:?}"))?;
        if found.1.whole {
            return Err("it is whole already".to_owned());
        }
        self.transcript.push(format!("{side:?} so far: {seen}"));
        Ok(found)
    }

    async fn cut(&mut self, expected: &str) -> Result<(), String> {
        let number = self.number(Side::Client).await?;
        self.scene.until(|scene| scene.clients[number].end).await?;
        let wire = &mut self.scene.clients[number];
        let Read::Message(message) = wire.peek(Kind::Response) else {
            return Err("no head of a response came".to_owned());
        };
        wire.take(&message);
        if message.whole {
            return Err(format!("the response is whole: {}", summary(&message)));
        }
        let seen = self.unnamed(&summary(&message));
        if !expected.starts_with(&seen) || message.status() != expected.split(' ').next().unwrap_or_default()
        {
            return Err(format!("expected a part of {expected:?}, and it is {seen:?}"));
        }
        self.transcript.push(format!("client: {} cut short", message.status()));
        self.last = Some(message);
        Ok(())
    }

    async fn ended(&mut self) -> Result<(), String> {
        let number = self.number(Side::Client).await?;
        self.scene.until(|scene| scene.clients[number].end).await?;
        let rest = String::from_utf8_lossy(self.scene.clients[number].rest()).into_owned();
        self.transcript.push("client: the end".to_owned());
        equal(&rest, "")
    }

    async fn arrives(&mut self, expected: &str) -> Result<(), String> {
        let (number, message) = self
            .scene
            .until(|scene| {
                scene.upstreams.iter_mut().enumerate().find_map(|(number, wire)| {
                    match wire.peek(Kind::Request) {
                        Read::Message(message) if message.whole => {
                            wire.take(&message);
                            Some(Ok((number, message)))
                        }
                        Read::Malformed(why) => Some(Err(why)),
                        _ => None,
                    }
                })
            })
            .await??;
        self.upstream = Some(number);
        self.see("upstream", &message);
        equal(&self.unnamed(&summary(&message)), expected)?;
        self.last = Some(message);
        Ok(())
    }

    async fn gets(&mut self, side: Side, expected: &[u8]) -> Result<(), String> {
        let number = self.number(side).await?;
        let got = self
            .scene
            .until(|scene| {
                let wire = scene.wire(side, number);
                let enough = wire.rest().len() >= expected.len();
                (enough || wire.end.is_some()).then(|| {
                    let got = wire.rest()[..expected.len().min(wire.rest().len())].to_vec();
                    wire.taken += got.len();
                    got
                })
            })
            .await?;
        equal(&String::from_utf8_lossy(&got), &String::from_utf8_lossy(expected))
    }

    fn check_last(&mut self, step: &Step) -> Result<(), String> {
        let Some(last) = &self.last else {
            return Err("no message was seen yet".to_owned());
        };
        let values_are = |fields: &[Field], expected: &str| {
            let (name, value) = expected.split_once(": ").unwrap_or((expected, ""));
            let own = fields.iter().filter(|field| field.0.eq_ignore_ascii_case(name));
            let values: Vec<_> = own.map(|field| self.unnamed(&field.1)).collect();
            equal(&values.join(" | "), value)
        };
        match step {
            Step::Has(field) => values_are(&last.fields, field),
            Step::Trailer(field) => values_are(&last.trailers, field),
            Step::Lacks(name) => equal(&last.values(name).collect::<Vec<_>>().join(" | "), ""),
            Step::Framed(framing) => equal(&format!("{:?}", last.framing), &format!("{framing:?}")),
            _ => Ok(()),
        }
    }

    /// Lets arrive what is under way, and sees that there is nothing.
    async fn untouched(&mut self) -> Result<(), String> {
        let look = self.scene.until(|_| None::<()>);
        let _ = tokio::time::timeout(Duration::from_millis(1), look).await;
        let rest: Vec<_> =
            self.scene.upstreams.iter().map(|wire| String::from_utf8_lossy(wire.rest())).collect();
        equal(&rest.concat(), "")
    }

    fn see(&mut self, who: &str, message: &Message) {
        let line = format!("{who}: {}", self.unnamed(&normalised(message)));
        self.transcript.push(line);
    }

    fn dump(&self) -> String {
        let mut told = String::new();
        for (side, wires) in [("client", &self.scene.clients), ("upstream", &self.scene.upstreams)] {
            for (number, wire) in wires.iter().enumerate() {
                let end = wire.end.map_or_else(|| "open".to_owned(), |end| format!("{end:?}"));
                told.push_str(&format!(
                    "  {side} {number} ({end}) got {}\n",
                    show(&wire.bytes).escape_debug()
                ));
            }
        }
        told
    }
}

fn equal(seen: &str, expected: &str) -> Result<(), String> {
    if seen == expected { Ok(()) } else { Err(format!("expected {expected:?}, and it is {seen:?}")) }
}

fn shown(step: &Step) -> String {
    let text = format!("{step:?}");
    if text.len() > SHOWN { format!("{}…", text.chars().take(SHOWN / 4).collect::<String>()) } else { text }
}

/// Bytes as text, or by length and hash where they are many.
#[must_use]
pub fn show(bytes: &[u8]) -> String {
    if bytes.len() <= SHOWN {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("<{} bytes #{:x}>", bytes.len(), hasher.finish())
}

/// A message on one line, as scripts expect it: `POST /target body`, `200 body`. An answer of the proxy's own is
/// `400 overlane`, whatever its text.
fn summary(message: &Message) -> String {
    let mut words = message.start.split(' ');
    let head = if message.start.starts_with("HTTP/") {
        message.status().to_owned()
    } else {
        format!("{} {}", words.next().unwrap_or_default(), words.next().unwrap_or_default())
    };
    let body = if own(message) { "overlane".to_owned() } else { show(&message.body) };
    format!("{head} {body}").trim_end().to_owned()
}

/// Whether an answer is the proxy's own.
fn own(message: &Message) -> bool {
    message.values("proxy-status").any(|value| value.starts_with("overlane;"))
}

/// Everything about a message in which engines must agree.
fn normalised(message: &Message) -> String {
    let mut fields: Vec<_> = message.fields.iter().filter_map(normalised_field).collect();
    fields.sort();
    let mut trailers: Vec<_> = message.trailers.iter().filter_map(normalised_field).collect();
    trailers.sort();
    let framing = match message.framing {
        // The texts of the proxy's own answers may differ in what they know.
        Framing::Length(_) if own(message) => "own".to_owned(),
        framing => format!("{framing:?}"),
    };
    let start = if message.start.starts_with("HTTP/") {
        message.start.split(' ').take(2).collect::<Vec<_>>().join(" ")
    } else {
        message.start.clone()
    };
    let body = if own(message) { String::new() } else { show(&message.body) };
    format!("{start} [{}] {framing} {body:?} [{}]", fields.join(" | "), trailers.join(" | "))
}

/// A field without what may differ: the case and place of its name, the date, and what belongs to a connection alone
/// and changes nothing.
fn normalised_field((name, value): &Field) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let value = match &*name {
        "date" | "keep-alive" | "content-length" | "transfer-encoding" => return None,
        "connection" if !value.eq_ignore_ascii_case("close") => return None,
        // Up to the reason, which is a word of a closed list.
        "proxy-status" => value.split(": ").next().unwrap_or_default(),
        _ => value,
    };
    Some(format!("{name}: {value}"))
}
