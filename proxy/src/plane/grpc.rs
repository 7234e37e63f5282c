//! What gRPC wants of a proxy (the protocol document "gRPC over HTTP2"): errors that its clients
//! understand, and its deadlines.

use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::h1::request::Head;
use crate::h1::{Fields, Name};

const CONTENT_TYPE: Name<'_> = Name::of("content-type");
const TIMEOUT: Name<'_> = Name::of("grpc-timeout");
const STATUS: Name<'_> = Name::of("grpc-status");

/// What stays as it is in `grpc-message`: printable ASCII but `%`.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Whether a request is a call of gRPC, or of gRPC-Web.
#[must_use]
pub fn is_call(head: &Head<'_>) -> bool {
    head.method == "POST"
        && head.values(CONTENT_TYPE).any(|content_type| content_type.starts_with(b"application/grpc"))
}

/// For how long a call's client waits, where it says so.
#[must_use]
pub fn timeout(head: &Head<'_>) -> Option<Duration> {
    if !is_call(head) {
        return None;
    }
    head.values(TIMEOUT).next().and_then(read_timeout)
}

/// `TimeoutValue TimeoutUnit`: at most eight digits, and one of `HMSmun`.
fn read_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// What a call came to, where the head of its answer says so already ("Trailers-Only").
#[must_use]
pub fn status(fields: &Fields<'_>) -> Option<u8> {
    let digits = fields.values(STATUS).next().filter(|value| value.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The status of gRPC for an answer of ours with this status of HTTP and this reason. What clients may
/// try again is `UNAVAILABLE`.
#[must_use]
pub fn status_of(status: u16, reason: &str) -> u8 {
    match (status, reason) {
        (504, "timeout") => 4,            // DEADLINE_EXCEEDED
        (400, _) => 3,                    // INVALID_ARGUMENT
        (403, _) => 7,                    // PERMISSION_DENIED
        (404 | 405, _) => 12,             // UNIMPLEMENTED
        (412, _) => 9,                    // FAILED_PRECONDITION
        (413 | 431, _) => 8,              // RESOURCE_EXHAUSTED
        (408 | 502 | 503 | 504, _) => 14, // UNAVAILABLE
        (500 | 508, _) => 13,             // INTERNAL
        _ => 2,                           // UNKNOWN
    }
}

/// A message as `grpc-message` has it.
#[must_use]
pub fn escape(message: &str) -> String {
    utf8_percent_encode(message, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_all_units_and_nothing_else() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("-1S", None),
            ("1 S", None),
            ("1s", None),
        ] {
            assert_eq!(read_timeout(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn messages_are_escaped() {
        assert_eq!(escape("100% of \"é\"\r\n"), "100%25 of \"%C3%A9\"%0D%0A");
    }
}
