//! The corpus of hostile requests of HTTP/2 (`tests/corpus/http2.txt`) before an upstream of HTTP/1.1, through each engine.

use overlane::plane::EngineChoice;
use overlane_tests::message::{Field, Kind, Read};
use overlane_tests::scene::{Scene, Side, Wire};
use overlane_tests::stage::Slot;

use super::corpus::{Conversation, Meaning, PATIENCE};
use crate::frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, frame, literal};
use overlane_tests::corpus::{framed, unescaped};

const CORPUS: &str = include_str!("../../../corpus/http2.txt");
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client sees of a stream.
#[derive(Debug, PartialEq)]
enum Seen {
    Answer(String),
    Reset,
}

/// Where the frames of a connection are.
fn frames(bytes: &[u8]) -> impl Iterator<Item = (u8, u8, u32, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let head = rest.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = rest.get(9..9 + length)?;
        rest = &rest[9 + length..];
        Some((head[3], head[4], stream, payload))
    })
}

fn is_over(client: &Wire) -> bool {
    client.end.is_some() || frames(&client.bytes).any(|(kind, ..)| kind == GOAWAY)
}

/// What came of a stream, if it is over.
fn seen(client: &Wire, own: u32) -> Option<Seen> {
    let mut body = Vec::new();
    for (kind, flags, stream, payload) in frames(&client.bytes) {
        match kind {
            RST_STREAM if stream == own => return Some(Seen::Reset),
            DATA if stream == own => body.extend_from_slice(payload),
            _ => {}
        }
        if matches!(kind, HEADERS | DATA) && stream == own && flags & END_STREAM > 0 {
            return Some(Seen::Answer(String::from_utf8_lossy(&body).into_owned()));
        }
    }
    is_over(client).then_some(Seen::Reset)
}

/// A case: its fields, and what follows them.
struct Case {
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    body: Option<Vec<u8>>,
    trailer: Option<(Vec<u8>, Vec<u8>)>,
}

impl Case {
    fn read(text: &str) -> Self {
        let field = |text: &str| {
            // A name may begin with a colon, and be empty.
            let at = text.find('=').unwrap();
            (unescaped(&text[..at]), unescaped(&text[at + 1..]))
        };
        let (text, trailer) =
            text.split_once(" ^ ").map_or((text, None), |(text, trailer)| (text, Some(trailer)));
        let (text, body) = text.split_once(" >> ").map_or((text, None), |(text, body)| (text, Some(body)));
        Self {
            fields: text.split(" | ").map(field).collect(),
            body: body.map(unescaped),
            trailer: trailer.map(field),
        }
    }

    /// Its frames, on the first stream.
    fn frames(&self) -> Vec<u8> {
        let block: Vec<u8> = self.fields.iter().flat_map(|(name, value)| literal(name, value)).collect();
        let end = |last: bool| if last { END_STREAM } else { 0 };
        let mut bytes = frame(HEADERS, END_HEADERS | end(self.body.is_none()), 1, &block);
        if let Some(body) = &self.body {
            bytes.extend(frame(DATA, end(self.trailer.is_none()), 1, body));
        }
        if let Some((name, value)) = &self.trailer {
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &literal(name, value)));
        }
        bytes
    }

    /// What it means, where it is right.
    fn meaning(&self, engine: EngineChoice) -> Meaning {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let value = |name: &str| {
            let own = self.fields.iter().find(|(own, _)| own == name.as_bytes());
            own.map(|(_, value)| text(value))
        };
        // Pingora forwards no trailers.
        let trailer = self.trailer.as_ref().filter(|_| engine == EngineChoice::Auto);
        let trailer = trailer.filter(|(name, _)| !name.starts_with(b":"));
        let trailers: Vec<Field> = trailer.iter().map(|(name, value)| (text(name), text(value))).collect();
        Meaning {
            method: value(":method").unwrap(),
            target: value(":path").unwrap(),
            host: value(":authority").or(value("host")).unwrap(),
            body: self.body.clone().unwrap_or_default(),
            trailers,
        }
    }
}

async fn converse(engine: EngineChoice, outcome: &str, text: &str) -> Result<(), String> {
    let case = Case::read(text);
    let scene = Scene::new(PATIENCE).await.unwrap();
    let slot = Slot::lease(engine, scene.upstream_address().unwrap());
    let mut play = Conversation::of(scene, engine);
    play.scene.connect(slot.address()).await.unwrap();
    let begun = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &case.frames()].concat();
    play.scene.send(Side::Client, 0, &begun).await?;
    play.serve(|clients| seen(&clients[0], 1).is_some()).await?;
    let got = seen(&play.scene.clients[0], 1).unwrap();
    let fine = match (outcome, &got) {
        ("pass", Seen::Answer(answer)) => {
            let meaning = case.meaning(engine);
            let right = [&meaning.answer()[..], ""].contains(&&**answer);
            right && play.arrived == [meaning]
        }
        ("refused", Seen::Answer(answer)) => answer.starts_with("overlane: ") && play.arrived.is_empty(),
        ("reset", Seen::Reset) => play.arrived.is_empty(),
        _ => false,
    };
    if !fine {
        return Err(format!("{got:?}, and there arrived {:?}", play.arrived));
    }
    if !is_over(&play.scene.clients[0]) {
        let next = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/next")];
        let block: Vec<u8> = next.iter().flat_map(|(name, value)| literal(name, value)).collect();
        let next = frame(HEADERS, END_HEADERS | END_STREAM, 3, &block);
        play.scene.send(Side::Client, 0, &next).await?;
        play.serve(|clients| seen(&clients[0], 3).is_some()).await?;
        let got = seen(&play.scene.clients[0], 3);
        if got != Some(Seen::Answer("GET /next 0".to_owned())) {
            return Err(format!("the next one got {got:?}"));
        }
    }
    play.innocent(slot.address()).await?;
    let smuggled = |wire: &Wire| matches!(wire.peek(Kind::Request), Read::Malformed(_));
    (!play.scene.upstreams.iter().any(smuggled))
        .then_some(())
        .ok_or_else(|| "what arrived is malformed".to_owned())
}

fn every_case(engine: EngineChoice) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cases: Vec<_> = framed(CORPUS).collect();
    assert!(cases.len() > 100);
    let told = cases.iter().filter_map(|(line, outcome, text)| {
        let came = runtime.block_on(converse(engine, outcome, text));
        came.err().map(|why| format!("line {line}: {outcome}  {text}\n  {why}"))
    });
    let told: Vec<_> = told.collect();
    assert!(told.is_empty(), "{} of {} cases\n{}", told.len(), cases.len(), told.join("\n"));
}

#[test]
fn a_request_of_http_2_becomes_the_same_of_http_1_or_none() {
    every_case(EngineChoice::Auto);
}

#[test]
fn a_request_of_http_2_becomes_the_same_of_http_1_or_none_also_on_pingora() {
    every_case(EngineChoice::Pingora);
}
