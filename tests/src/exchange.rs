//! One exchange without a script: whatever a client sends, whatever the upstream replies, and what both saw in the end.

use std::time::Duration;

use overlane::plane::EngineChoice;

use crate::message::{self, Kind, Read, messages};
use crate::scene::{Scene, Side, Wire};
use crate::stage::Slot;
use crate::told::{normalised, show, unnamed};

/// How long an exchange may last.
const PATIENCE: Duration = Duration::from_secs(5);

/// What both ends saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What arrived at the upstream, normalised.
    pub upstream: Vec<String>,
    /// What arrived at the client until its end, normalised.
    pub client: Vec<String>,
}

impl Seen {
    /// Whether the proxy gave the first answer itself, with a status that begins so.
    #[must_use]
    pub fn refused(&self, status: &str) -> bool {
        self.client.first().is_some_and(|answer| {
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains("proxy-status: overlane;")
        })
    }

    /// Whether the client got anything that is not whole.
    #[must_use]
    pub fn cut(&self) -> bool {
        self.client.iter().any(|answer| answer.starts_with("cut ") || answer.starts_with("rest "))
    }
}

/// Sends the pieces of a client; replies to each request that arrives whole with `reply`, and no more. The client ends
/// its sending when it has an answer, or at once where its request is not whole.
#[must_use]
pub fn exchange(engine: EngineChoice, pieces: &[Vec<u8>], reply: &[u8]) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut scene = Scene::new(PATIENCE).await.unwrap();
        let slot = Slot::lease(engine, scene.upstream_address().unwrap());
        scene.connect(slot.address()).await.unwrap();
        let sent = pieces.concat();
        let kind = if sent.starts_with(b"HEAD ") { Kind::ResponseToHead } else { Kind::Response };
        let mut upstream = Vec::new();
        let ended = converse(&mut scene, &slot, pieces, reply, kind, &mut upstream).await;
        let mut client = answers(&mut scene, kind);
        client.extend(ended.err());
        let known = |lines: Vec<String>| lines.iter().map(|line| unnamed(line, &slot.suffix())).collect();
        Seen { upstream: known(upstream), client: known(client) }
    })
}

async fn converse(
    scene: &mut Scene,
    slot: &Slot,
    pieces: &[Vec<u8>],
    reply: &[u8],
    kind: Kind,
    arrived: &mut Vec<String>,
) -> Result<(), String> {
    for piece in pieces {
        scene.send(Side::Client, 0, &named(piece, slot)).await?;
    }
    if !messages(&pieces.concat(), Kind::Request).is_empty() {
        serve(scene, reply, arrived, |client| has_answer(client, kind)).await?;
    }
    scene.half_close(Side::Client, 0).await;
    serve(scene, reply, arrived, |client| client.end.is_some()).await?;
    // What reached the upstream and is no whole request is seen as well.
    arrived.extend(scene.upstreams.iter().filter(|wire| !wire.rest().is_empty()).map(|wire| {
        match wire.peek(Kind::Request) {
            Read::Message(message) => format!("cut {}", normalised(&message, false)),
            _ => format!("rest {}", show(wire.rest())),
        }
    }));
    Ok(())
}

/// Whether a client has a whole response that is not interim, or its end.
fn has_answer(client: &Wire, kind: Kind) -> bool {
    let mut rest = client.rest();
    loop {
        match message::read(rest, kind, client.end.is_some()) {
            Read::Message(message) if message.interim() => rest = &rest[message.length..],
            Read::Message(message) if message.whole => return true,
            _ => return client.end.is_some(),
        }
    }
}

fn named(piece: &[u8], slot: &Slot) -> Vec<u8> {
    match piece.windows(5).position(|window| window == b"alice") {
        Some(at) => [&piece[..at + 5], slot.suffix().as_bytes(), &piece[at + 5..]].concat(),
        None => piece.to_vec(),
    }
}

/// Replies until the client has what it waits for.
async fn serve(
    scene: &mut Scene,
    reply: &[u8],
    arrived: &mut Vec<String>,
    done: impl Fn(&Wire) -> bool,
) -> Result<(), String> {
    while let Some(number) = scene.until(|scene| next_request(scene, &done)).await? {
        let wire = &mut scene.upstreams[number];
        if let Read::Message(message) = wire.peek(Kind::Request) {
            wire.take(&message);
            arrived.push(normalised(&message, false));
        }
        scene.send(Side::Upstream, number, reply).await?;
        scene.half_close(Side::Upstream, number).await;
    }
    Ok(())
}

/// The connection on which a whole request arrived; `None` where the client has what it waits for.
fn next_request(scene: &mut Scene, done: impl Fn(&Wire) -> bool) -> Option<Option<usize>> {
    let whole = scene
        .upstreams
        .iter()
        .position(|wire| matches!(wire.peek(Kind::Request), Read::Message(message) if message.whole));
    match whole {
        Some(number) => Some(Some(number)),
        None => done(&scene.clients[0]).then_some(None),
    }
}

fn answers(scene: &mut Scene, kind: Kind) -> Vec<String> {
    let wire = &mut scene.clients[0];
    let mut answers = Vec::new();
    while !wire.rest().is_empty() {
        match wire.peek(kind) {
            Read::Message(message) => {
                wire.take(&message);
                let told = normalised(&message, false);
                answers.push(if message.whole { told } else { format!("cut {}", message.status()) });
            }
            _ => {
                answers.push(format!("rest {}", show(wire.rest())));
                break;
            }
        }
    }
    answers
}
