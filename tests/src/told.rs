//! Messages as text: as scripts expect them, and as two engines are compared.

use std::hash::{DefaultHasher, Hash, Hasher};

use overlane_config::carrier::trace::TraceId;

use crate::message::{Field, Framing, Message};

/// Longer bodies are shown by length and hash.
const SHOWN: usize = 400;

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

/// Text with the names of environments as scripts know them: without the suffix of a slot.
pub(crate) fn unnamed(text: &str, suffix: &str) -> String {
    let text = without_hops(text);
    if suffix.is_empty() {
        return text;
    }
    ["alice", "base"].iter().fold(text, |text, name| text.replace(&format!("{name}{suffix}"), name))
}

/// Receipts without the names of their hops, which are random.
#[must_use]
pub fn without_hops(text: &str) -> String {
    let mut parts = text.split(';');
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.strip_prefix("hop=").or_else(|| part.strip_prefix("parent=")) {
            // A parameter may end its item.
            Some(name) => {
                kept.push_str(name.trim_start_matches(|letter: char| letter.is_ascii_alphanumeric()));
            }
            None => {
                kept.push(';');
                kept.push_str(part);
            }
        }
    }
    kept
}

/// A message on one line, as scripts expect it: `POST /target body`, `200 body`. An answer of the proxy's own is
/// `400 overlane`, whatever its text.
pub(crate) fn summary(message: &Message) -> String {
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
pub(crate) fn own(message: &Message) -> bool {
    message.values("proxy-status").any(|value| value.starts_with("overlane;"))
}

/// Everything about a message in which engines must agree; whether it closes the connection where that `closing` matters.
pub(crate) fn normalised(message: &Message, closing: bool) -> String {
    let normalised_field =
        |field| normalised_field(field).filter(|line| closing || line != "connection: close");
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
        "connection" if value.eq_ignore_ascii_case("close") => "close",
        "connection" => return None,
        // Every proxy begins traces of its own.
        "traceparent" | "b3" | "uber-trace-id" if TraceId::read([(&*name, value.as_bytes())]).is_some() => {
            "a trace"
        }
        "x-request-id" if value.len() == 32 => "an id",
        // Up to the reason, which is a word of a closed list.
        "proxy-status" => value.split(": ").next().unwrap_or_default(),
        _ => value,
    };
    Some(format!("{name}: {value}"))
}
