//! A collector of spans: OTLP over HTTP, read by the published protobuf (`otlp/*.proto`, as opentelemetry-proto has them), so
//! that nothing of the proxy judges the proxy.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::message::{self, Kind, Message, Read};

const PUBLISHED: [&str; 4] = [
    include_str!("otlp/common.proto"),
    include_str!("otlp/resource.proto"),
    include_str!("otlp/trace.proto"),
    include_str!("otlp/trace_service.proto"),
];
const PATIENCE: Duration = Duration::from_secs(20);
/// The answer of a collector that took everything.
pub const TAKEN: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";

/// One span, and who sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What the sender says of itself.
    pub resource: BTreeMap<String, String>,
    /// The digits of its trace.
    pub trace: String,
    /// Its own.
    pub id: String,
    /// Those of its parent; empty where it has none.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// `SPAN_KIND_SERVER` or another one.
    pub kind: String,
    /// Whether it ended in an error.
    pub error: bool,
    /// Its flags.
    pub flags: u64,
    /// When it began and when it ended, in nanoseconds since 1970.
    pub time: (u64, u64),
    /// What it says.
    pub attributes: BTreeMap<String, String>,
}

impl Seen {
    /// What it says under this key; nothing is an empty text.
    #[must_use]
    pub fn says(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

#[derive(Default)]
struct Desk {
    spans: Vec<Seen>,
    requests: Vec<Message>,
    /// What is answered first, raw; then all is taken.
    answers: VecDeque<String>,
}

/// A collector that listens.
pub struct Collector {
    address: SocketAddr,
    desk: Arc<(Mutex<Desk>, Condvar)>,
}

impl Collector {
    /// One that gives these answers, raw, to the first requests, and then takes everything. What is answered otherwise than
    /// with 2xx is not kept.
    #[must_use]
    pub fn start(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let desk =
            Desk { answers: answers.iter().map(|&answer| answer.to_owned()).collect(), ..Desk::default() };
        let collector = Self {
            address: listener.local_addr().unwrap(),
            desk: Arc::new((Mutex::new(desk), Condvar::new())),
        };
        let desk = collector.desk.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let desk = desk.clone();
                std::thread::spawn(move || serve(stream, &desk));
            }
        });
        collector
    }

    /// The base of its urls.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Message> {
        self.desk.0.lock().unwrap().requests.clone()
    }

    /// The spans that it has, as soon as they are so many.
    #[must_use]
    pub fn spans(&self, many: usize) -> Vec<Seen> {
        let (desk, changed) = &*self.desk;
        let waited =
            changed.wait_timeout_while(desk.lock().unwrap(), PATIENCE, |desk| desk.spans.len() < many);
        let spans = waited.unwrap().0.spans.clone();
        assert!(spans.len() >= many, "{} instead of {many}: {spans:#?}", spans.len());
        spans
    }
}

fn serve(mut stream: TcpStream, (desk, changed): &(Mutex<Desk>, Condvar)) {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 16 * 1024]);
    loop {
        if let Read::Message(request) = message::read(&bytes, Kind::Request, false)
            && request.whole
        {
            bytes.drain(..request.length);
            let mut desk = desk.lock().unwrap();
            let answer = desk.answers.pop_front().unwrap_or_else(|| TAKEN.to_owned());
            if answer.starts_with("HTTP/1.1 2") {
                desk.spans.extend(seen(&request.body));
            }
            desk.requests.push(request);
            changed.notify_all();
            drop(desk);
            let _ = stream.write_all(answer.as_bytes());
            continue;
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
        }
    }
}

/// The bytes of an answer that takes all but some of the spans, and says why.
#[must_use]
pub fn partial_success(rejected: u8, why: &str) -> String {
    assert!(rejected < 128 && why.len() < 100);
    let inside = format!("\u{8}{}\u{12}{}{why}", char::from(rejected), char::from(why.len() as u8));
    let body = format!("\n{}{inside}", char::from(inside.len() as u8));
    let answer = decode("ExportTraceServiceResponse", body.as_bytes());
    let expected = json!({ "partial_success": { "rejected_spans": rejected, "error_message": why } });
    assert_eq!(answer, expected, "as published");
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

fn attributes(of: &Value) -> BTreeMap<String, String> {
    let value =
        |value: &Value| value.as_object().and_then(|one| one.values().next()).map_or_else(String::new, text);
    list(&of["attributes"]).iter().map(|one| (text(&one["key"]), value(&one["value"]))).collect()
}

fn seen(body: &[u8]) -> Vec<Seen> {
    let request = decode("ExportTraceServiceRequest", body);
    let mut all = Vec::new();
    for of in list(&request["resource_spans"]) {
        let resource = attributes(&of["resource"]);
        for span in list(&of["scope_spans"]).iter().flat_map(|scope| list(&scope["spans"])) {
            let nanos = |key: &str| span[key].as_u64().unwrap_or(0);
            all.push(Seen {
                resource: resource.clone(),
                trace: text(&span["trace_id"]),
                id: text(&span["span_id"]),
                parent: text(&span["parent_span_id"]),
                name: text(&span["name"]),
                kind: text(&span["kind"]),
                error: text(&span["status"]["code"]) == "STATUS_CODE_ERROR",
                flags: nanos("flags"),
                time: (nanos("start_time_unix_nano"), nanos("end_time_unix_nano")),
                attributes: attributes(span),
            });
        }
    }
    all
}

/// A field of a message, as published.
struct Field {
    name: String,
    kind: String,
    repeated: bool,
}

/// What is published: messages by their name, with their fields by number, and enumerations with their words.
#[derive(Default)]
struct Published {
    messages: HashMap<String, HashMap<u64, Field>>,
    words: HashMap<String, HashMap<u64, String>>,
}

impl Published {
    fn read() -> Self {
        let mut published = Self::default();
        for file in PUBLISHED {
            let mut open: Vec<(&str, String)> = Vec::new();
            for line in file.lines().map(|line| line.split("//").next().unwrap_or_default().trim()) {
                let words: Vec<_> = line.split([' ', ';']).filter(|word| !word.is_empty()).collect();
                match (words.as_slice(), open.last()) {
                    ([what @ ("message" | "enum"), name, "{"], _) => open.push((what, (*name).to_owned())),
                    // Fields of a `oneof` are the message's.
                    (["oneof", _, "{"], Some((_, inside))) => open.push(("message", inside.clone())),
                    (["service" | "rpc", .., "{"], _) => open.push(("", String::new())),
                    (["}"], _) => drop(open.pop()),
                    ([name, "=", number], Some(("enum", inside))) => {
                        let of = published.words.entry(inside.clone()).or_default();
                        of.extend(number.parse().ok().map(|number| (number, (*name).to_owned())));
                    }
                    ([repeated @ .., kind, name, "=", number], Some(("message", inside))) => {
                        let kind = kind.rsplit('.').next().unwrap_or_default().to_owned();
                        let field =
                            Field { name: (*name).to_owned(), kind, repeated: repeated == ["repeated"] };
                        let of = published.messages.entry(inside.clone()).or_default();
                        of.insert(number.parse().unwrap(), field);
                    }
                    _ => {}
                }
            }
        }
        published
    }
}

/// A message of protobuf as JSON; panics where it is not what is published.
fn decode(message: &str, bytes: &[u8]) -> Value {
    decoded(&Published::read(), message, bytes)
}

fn decoded(published: &Published, message: &str, mut bytes: &[u8]) -> Value {
    let fields = published.messages.get(message).unwrap_or_else(|| panic!("`{message}` is not published"));
    let mut read = Map::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let field =
            fields.get(&(tag >> 3)).unwrap_or_else(|| panic!("`{message}` has no field {}", tag >> 3));
        let value = match (tag & 7, field.kind.as_str()) {
            (0, "int64" | "int32" | "uint32") => json!(varint(&mut bytes) as i64),
            (0, "bool") => json!(varint(&mut bytes) != 0),
            (0, word) => json!(published.words[word][&varint(&mut bytes)]),
            (1, "fixed64") => {
                json!(u64::from_le_bytes(*bytes.split_off(..8).unwrap().first_chunk().unwrap()))
            }
            (5, "fixed32") => {
                json!(u32::from_le_bytes(*bytes.split_off(..4).unwrap().first_chunk().unwrap()))
            }
            (2, kind) => {
                let length = varint(&mut bytes) as usize;
                let inside = bytes.split_off(..length).expect("as long as it says");
                match kind {
                    "string" => json!(std::str::from_utf8(inside).expect("UTF-8")),
                    "bytes" => json!(inside.iter().fold(String::new(), |mut hex, byte| {
                        let _ = write!(hex, "{byte:02x}");
                        hex
                    })),
                    message => decoded(published, message, inside),
                }
            }
            (wire, kind) => panic!("`{message}.{}` is {kind}, and is sent as {wire}", field.name),
        };
        match (field.repeated, read.get_mut(&field.name)) {
            (true, Some(Value::Array(list))) => list.push(value),
            (true, _) => drop(read.insert(field.name.clone(), json!([value]))),
            (false, _) => drop(read.insert(field.name.clone(), value)),
        }
    }
    Value::Object(read)
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes.split_off_first().expect("a whole number");
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_read() {
        let published = Published::read();
        let span = &published.messages["Span"];
        assert_eq!((&*span[&16].name, &*span[&16].kind, span[&9].repeated), ("flags", "fixed32", true));
        assert_eq!(published.messages["AnyValue"][&3].name, "int_value");
        assert_eq!(published.words["SpanKind"][&2], "SPAN_KIND_SERVER");
        assert_eq!(published.words["StatusCode"][&2], "STATUS_CODE_ERROR");
    }
}
