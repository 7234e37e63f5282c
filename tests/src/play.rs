//! Runs scripts. Both ends are driven by one task, so a script needs no sleeps and no locks: each wait is for bytes, or
//! for the end of a connection. What is seen goes to a transcript, in a form in which two engines can be compared.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use overlane::control::{Control, Trigger};
use overlane::plane::EngineChoice;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane_config::name::ServiceName;
use overlane_config::route::Role;

use crate::message::{Field, Kind, Message, Read, messages};
use crate::scene::{Scene, Side};
use crate::script::{Place, Script, Step};
use crate::stage::{self, Slot, Started};
use crate::told::{normalised, summary, unnamed};

/// How much of what arrived is told where a case fails.
const DUMPED: usize = 2000;
/// The same of a step.
const SHOWN: usize = 100;

/// What came of a script.
#[derive(Debug)]
pub struct Outcome {
    /// What was seen, normalised.
    pub transcript: Vec<String>,
    /// The first thing that was not as it must be, with everything that had arrived by then.
    pub failure: Option<String>,
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
            proxies: proxy.addresses(),
            admin: proxy.admin(),
            suffix: proxy.suffix(),
            control: proxy.control().clone(),
            port: upstream.port().to_string(),
            client: 0,
            upstream: None,
            last: None,
            half_closed: false,
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
    Own(Box<Started>),
}

impl Proxy {
    fn of(engine: EngineChoice, place: &Place, upstream: SocketAddr) -> Self {
        match place {
            Place::Gateway => Self::Shared(Slot::lease(engine, upstream)),
            Place::Own(own) => {
                let (role, trust, limits) = &**own;
                let app = matches!(role, Role::Inbound { .. }).then_some(upstream);
                let listener = stage::listener(role.clone(), "", app, trust.clone());
                let running =
                    stage::start_within(engine, limits.clone(), vec![listener], stage::files("", upstream));
                Self::Own(Box::new(running))
            }
            Place::Carrying(own) => {
                let (role, trust, carriers) = &**own;
                let app = matches!(role, Role::Inbound { .. }).then_some(upstream);
                let listeners = vec![stage::listener(role.clone(), "", app, trust.clone())];
                let carriers = Arc::new(carriers.clone());
                let settings = Settings { engine, carriers, ..Settings::in_process(listeners) };
                Self::Own(Box::new(stage::start_as(settings, stage::files("", upstream))))
            }
            Place::Sidecar(own) => {
                let (environment, correlation) = &**own;
                let environment = environment.as_deref().map(|id| id.parse().unwrap());
                let service: ServiceName = "web".parse().unwrap();
                let inbound = Role::Inbound { service: service.clone(), environment: environment.clone() };
                let outbound = Role::Outbound { service: Some(service), environment };
                let listeners = vec![
                    stage::listener(inbound, "", Some(upstream), Trust::Any),
                    stage::listener(outbound, "", None, Trust::Any),
                ];
                let correlation = correlation.clone();
                let settings = Settings { engine, correlation, ..Settings::in_process(listeners) };
                Self::Own(Box::new(stage::start_as(settings, stage::files("", upstream))))
            }
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            Self::Shared(slot) => vec![slot.address()],
            Self::Own(running) => running.addresses(),
        }
    }

    fn admin(&self) -> SocketAddr {
        match self {
            Self::Shared(slot) => slot.admin(),
            Self::Own(running) => running.admin(),
        }
    }

    fn control(&self) -> &Arc<Control> {
        match self {
            Self::Shared(slot) => slot.control(),
            Self::Own(running) => running.control(),
        }
    }

    fn suffix(&self) -> String {
        match self {
            Self::Shared(slot) => slot.suffix(),
            Self::Own(_) => String::new(),
        }
    }
}

/// A script that is being run.
struct Play {
    scene: Scene,
    proxies: Vec<SocketAddr>,
    admin: SocketAddr,
    suffix: String,
    control: Arc<Control>,
    port: String,
    client: usize,
    upstream: Option<usize>,
    last: Option<Message>,
    half_closed: bool,
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
                self.half_closed |= *side == Side::Client;
                self.scene.half_close(*side, number).await;
            }
            Step::Close(side, end) => {
                let number = self.number(*side).await?;
                self.scene.close(*side, number, *end);
            }
            Step::Answered(kind, expected) => self.answered(*kind, expected).await?,
            Step::AnswerSoFar(expected) => self.answered_so_far(expected).await?,
            Step::AnswerCut(expected) => self.cut(expected).await?,
            Step::Interims => self.interims().await?,
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
            Step::Metric(line) => self.counted(line)?,
            Step::Message(headers) => self.consumes(headers)?,
            Step::Has(_) | Step::Lacks(_) | Step::Names(_) | Step::Trailer(_) | Step::Framed(_) => {
                self.check_last(step)?;
            }
            Step::Untouched => self.untouched().await?,
            Step::NeverArrives(request) => {
                self.look().await;
                let requests =
                    self.scene.upstreams.iter().flat_map(|wire| messages(&wire.bytes, Kind::Request));
                let seen: Vec<_> = requests.map(|message| summary(&message)).collect();
                if seen.iter().any(|seen| seen.starts_with(request)) {
                    return Err(format!("it arrived: {seen:?}"));
                }
            }
            Step::Remove => {
                self.control.apply(&[stage::gone("alice", &self.suffix)], Trigger::Change);
            }
            Step::Connections(expected) => {
                let made = self.scene.upstreams.len();
                equal(&made.to_string(), &expected.to_string())?;
            }
        }
        Ok(())
    }

    /// Names of environments are different in each slot, and so is the upstream's port: scripts say `alice` and
    /// `{port}`.
    fn named(&self, bytes: &[u8]) -> Vec<u8> {
        let mut named = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while let Some(at) = rest.windows(5).position(|window| window == b"alice" || window == b"{port") {
            named.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix(b"{port}") {
                named.extend_from_slice(self.port.as_bytes());
                rest = after;
            } else {
                named.extend_from_slice(&rest[..5]);
                named.extend_from_slice(self.suffix.as_bytes());
                rest = &rest[5..];
            }
        }
        named.extend_from_slice(rest);
        named
    }

    fn unnamed(&self, text: &str) -> String {
        unnamed(&text.replace(&format!(":{}", self.port), ":{port}"), &self.suffix)
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
            let proxy = self.proxies[self.scene.clients.len() % self.proxies.len()];
            self.scene.connect(proxy).await.map_err(|error| error.to_string())?;
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
                        seen = unnamed(&summary(&message), &suffix);
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
        self.scene.wire(side, found.0).look_at(&found.1);
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

    async fn interims(&mut self) -> Result<(), String> {
        let number = self.number(Side::Client).await?;
        self.scene
            .until(|scene| {
                let wire = &mut scene.clients[number];
                loop {
                    match wire.peek(Kind::Response) {
                        Read::Message(message) if message.interim() => wire.take(&message),
                        Read::NoHead if wire.end.is_none() => return None,
                        _ => return Some(()),
                    }
                }
            })
            .await
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
            Step::Names(name) => last.values(name).next().map(drop).ok_or(format!("there is no `{name}`")),
            Step::Framed(framing) => equal(&format!("{:?}", last.framing), &format!("{framing:?}")),
            _ => Ok(()),
        }
    }

    /// The workers answer a scrape on their threads, whatever this one waits for.
    fn counted(&self, line: &str) -> Result<(), String> {
        let text = metrics(self.admin).map_err(|error| error.to_string())?;
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let found: Vec<_> = text.lines().filter(|found| found.starts_with(name)).collect();
        found.contains(&line).then_some(()).ok_or_else(|| format!("there is {found:?}"))
    }

    fn consumes(&self, headers: &str) -> Result<(), String> {
        let message = format!("{{\"headers\": {headers}}}");
        let request = format!(
            "POST /api/v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{message}",
            message.len()
        );
        let answer = asked(self.admin, &request).map_err(|error| error.to_string())?;
        answer.starts_with("HTTP/1.1 200 ").then_some(()).ok_or(answer)
    }

    /// Lets arrive what is under way.
    async fn look(&mut self) {
        let look = self.scene.until(|_| None::<()>);
        let _ = tokio::time::timeout(Duration::from_millis(1), look).await;
    }

    async fn untouched(&mut self) -> Result<(), String> {
        self.look().await;
        let unseen: Vec<_> =
            self.scene.upstreams.iter().map(|wire| String::from_utf8_lossy(wire.unseen())).collect();
        equal(&unseen.concat(), "")
    }

    fn see(&mut self, who: &str, message: &Message) {
        // Whether the end of the client's sending is seen before the head of its answer leaves is a matter of time.
        let line = format!("{who}: {}", self.unnamed(&normalised(message, !self.half_closed)));
        self.transcript.push(line);
    }

    fn dump(&self) -> String {
        let mut told = String::new();
        for (side, wires) in [("client", &self.scene.clients), ("upstream", &self.scene.upstreams)] {
            for (number, wire) in wires.iter().enumerate() {
                let end = wire.end.map_or_else(|| "open".to_owned(), |end| format!("{end:?}"));
                told.push_str(&format!(
                    "  {side} {number} ({end}) got {}\n",
                    String::from_utf8_lossy(&wire.bytes[..wire.bytes.len().min(DUMPED)]).escape_debug()
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
    if text.len() > SHOWN { format!("{}…", text.chars().take(SHOWN).collect::<String>()) } else { text }
}

/// The text of `/metrics`.
fn metrics(admin: SocketAddr) -> io::Result<String> {
    asked(admin, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// What the admin listener answers.
fn asked(admin: SocketAddr, request: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
