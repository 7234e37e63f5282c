//! Lines as they are written: in each format, with nothing in them that ends a line or moves a terminal's cursor.

use std::borrow::Cow;
use std::cell::RefCell;
use std::time::Duration;

use overlane_config::time::UnixMillis;

use super::{Format, Line};
use crate::clock::nanos;

/// The longest path in a line, in bytes.
const MAX_PATH: usize = 2048;
/// The longest of any other text that a client chooses, in bytes.
const MAX_TEXT: usize = 512;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Appends a line with its end.
pub(super) fn append(line: &Line<&str>, format: Format, out: &mut Vec<u8>) {
    match format {
        Format::Json => json(line, out),
        Format::Common => common(line, false, out),
        Format::Combined => common(line, true, out),
    }
    out.push(b'\n');
}

/// Whether it must not be in a line as it is: JSON allows more than logs and terminals bear.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    let separates = matches!(c, '\u{2028}' | '\u{2029}');
    let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || separates || reorders
}

/// An object whose keys are OpenTelemetry's conventions, where there are any.
fn json(line: &Line<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"timestamp":""#);
    with_second(line.timestamp, |second| out.extend_from_slice(second.iso.as_bytes()));
    out.push(b'"');
    member(br#","overlane.role":""#, Some(line.role), out);
    member(br#","http.request.method":""#, Some(line.method), out);
    member(br#","server.address":""#, Some(line.authority), out);
    member(br#","url.path":""#, Some(line.path), out);
    member(
        br#","network.protocol.version":""#,
        Some(line.version).filter(|version| !version.is_empty()),
        out,
    );
    out.extend_from_slice(br#","http.response.status_code":"#);
    number(line.status.into(), 1, out);
    out.extend_from_slice(br#","http.response.body.size":"#);
    number(line.bytes, 1, out);
    member(br#","client.address":""#, Some(line.client), out);
    member(br#","overlane.client_identity":""#, line.client_identity, out);
    member(br#","overlane.token":""#, line.token, out);
    out.extend_from_slice(br#","duration_s":"#);
    seconds(line.took, out);
    // As numbers are in JSON.
    while out.ends_with(b"0") && !out.ends_with(b".0") {
        out.pop();
    }
    member(br#","upstream.address":""#, line.upstream, out);
    member(br#","overlane.service":""#, line.service, out);
    member(br#","overlane.overlay":""#, line.overlay, out);
    member(br#","overlane.environment":""#, line.environment, out);
    member(br#","overlane.via":""#, line.via, out);
    member(br#","overlane.reason":""#, line.reason, out);
    member(br#","overlane.request_id":""#, line.request_id, out);
    member(br#","trace_id":""#, line.trace_id, out);
    out.extend_from_slice(br#","overlane.generation":"#);
    number(line.generation, 1, out);
    out.push(b'}');
}

/// A text of the object, after its key and its first quote; nothing where there is none.
fn member(before: &[u8], text: Option<&str>, out: &mut Vec<u8>) {
    let Some(text) = text else { return };
    out.extend_from_slice(before);
    match is_plain(text, &TEXT) {
        true => out.extend_from_slice(text.as_bytes()),
        false => escape(text, out),
    }
    out.push(b'"');
}

/// As JSON has it, and with nothing hidden.
#[cold]
fn escape(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            // What is hidden is below U+10000.
            hidden if is_hidden(hidden) => {
                let digit = |shift: u32| HEX[(u32::from(hidden) >> shift & 0xf) as usize];
                out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
            }
            shown => out.extend_from_slice(shown.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// `client - identity [time] "request line" status bytes`, then the client's words on itself if `combined`, and the
/// route as `name=value`.
fn common(line: &Line<&str>, combined: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(line.client.as_bytes());
    out.extend_from_slice(b" - ");
    word(line.client_identity, out);
    out.extend_from_slice(b" [");
    with_second(line.timestamp, |second| out.extend_from_slice(second.common.as_bytes()));
    out.extend_from_slice(b"] \"");
    request(line, out);
    out.extend_from_slice(b"\" ");
    number(line.status.into(), 3, out);
    out.push(b' ');
    match line.bytes {
        0 => out.push(b'-'),
        bytes => number(bytes, 1, out),
    }
    if combined {
        for said in [line.referer, line.agent] {
            out.extend_from_slice(b" \"");
            visible(said.unwrap_or("-"), false, out);
            out.push(b'"');
        }
    }
    let route: [(&str, Option<&str>); 11] = [
        (" role=", Some(line.role)),
        (" host=", Some(line.authority)),
        (" service=", line.service),
        (" overlay=", line.overlay),
        (" env=", line.environment),
        (" via=", line.via),
        (" reason=", line.reason),
        (" token=", line.token),
        (" upstream=", line.upstream),
        (" request_id=", line.request_id),
        (" trace_id=", line.trace_id),
    ];
    for (name, value) in route {
        out.extend_from_slice(name.as_bytes());
        word(value, out);
    }
    out.extend_from_slice(b" took=");
    seconds(line.took, out);
}

/// The request line, as far as it is known.
fn request(line: &Line<&str>, out: &mut Vec<u8>) {
    if line.method.is_empty() {
        return out.push(b'-');
    }
    out.extend_from_slice(line.method.as_bytes());
    out.push(b' ');
    visible(line.path, false, out);
    out.extend_from_slice(b" HTTP/");
    out.extend_from_slice(if line.version == "2" { b"2.0" } else { line.version.as_bytes() });
}

/// One word for a text that may have several, and `-` for none.
fn word(text: Option<&str>, out: &mut Vec<u8>) {
    match text {
        None | Some("") => out.push(b'-'),
        Some(text) => visible(text, true, out),
    }
}

/// As Apache and nginx do: what is no visible ASCII, and what could end the text, as `\xNN`.
fn visible(text: &str, word: bool, out: &mut Vec<u8>) {
    let plain = if word { &WORD } else { &TEXT };
    if is_plain(text, plain) {
        return out.extend_from_slice(text.as_bytes());
    }
    for byte in text.bytes() {
        let digit = |at: u8| HEX[usize::from(at & 0xf)];
        match plain[usize::from(byte)] {
            true => out.push(byte),
            false => out.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte)]),
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The bytes of a text that all formats have as they are: ASCII that neither moves a cursor nor ends a text.
const TEXT: [bool; 256] = plain(b' ');
/// The same of a word.
const WORD: [bool; 256] = plain(b'!');

const fn plain(first: u8) -> [bool; 256] {
    let mut plain = [false; 256];
    let mut byte = first;
    while byte < 0x7f {
        plain[byte as usize] = !matches!(byte, b'"' | b'\\');
        byte += 1;
    }
    plain
}

/// Looked at to the end, whatever is found: most have nothing else.
fn is_plain(text: &str, plain: &[bool; 256]) -> bool {
    text.bytes().fold(true, |all, byte| all & plain[usize::from(byte)])
}

/// A number of at least so many digits, of which there are no more than 20.
fn number(mut value: u64, least: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while value > 0 || at > digits.len() - least {
        at -= 1;
        digits[at] += (value % 10) as u8;
        value /= 10;
    }
    out.extend_from_slice(&digits[at..]);
}

/// Seconds, to the microsecond.
fn seconds(took: Duration, out: &mut Vec<u8>) {
    let micros = nanos(took).saturating_add(500) / 1000;
    number(micros / 1_000_000, 1, out);
    out.push(b'.');
    number(micros % 1_000_000, 6, out);
}

/// A second, as lines say it.
#[derive(Default)]
struct Second {
    of: Option<u64>,
    /// `2026-11-28T16:08:10Z`.
    iso: String,
    /// `28/Nov/2026:16:08:10 +0000`.
    common: String,
}

impl Second {
    fn new(at: UnixMillis) -> Self {
        let iso = at.to_string();
        let part = |from: usize, to: usize| iso.get(from..to).unwrap_or("0");
        let month = part(5, 7).parse::<usize>().ok().and_then(|month| MONTHS.get(month.wrapping_sub(1)));
        let (day, month, year, time) = (part(8, 10), month.unwrap_or(&"-"), part(0, 4), part(11, 19));
        let common = format!("{day}/{month}/{year}:{time} +0000");
        Self { of: Some(at.0 / 1000), iso, common }
    }
}

thread_local! {
    /// That of the line before: most have the same.
    static SECOND: RefCell<Second> = RefCell::default();
}

fn with_second(at: UnixMillis, with: impl FnOnce(&Second)) {
    SECOND.with_borrow_mut(|second| {
        if second.of != Some(at.0 / 1000) {
            *second = Second::new(at);
        }
        with(second);
    });
}

/// A path as it may be logged: without the values of its parameters (`;jsessionid=…`), and without users and
/// passwords of urls in it.
#[must_use]
pub fn loggable_path(path: &str) -> String {
    shortened(path, MAX_PATH)
}

/// All of a path, or as much of it as is to be logged.
fn shortened(path: &str, most: usize) -> String {
    match path.len() <= most {
        true => without_secrets(path),
        false => loggable_part(beginning(path, most)),
    }
}

fn without_secrets(path: &str) -> String {
    // Most have neither parameters nor urls in them.
    if memchr::memchr2(b';', b':', path.as_bytes()).is_none() {
        return path.to_owned();
    }
    let path = without_users(path);
    if !path.contains(';') {
        return path.into_owned();
    }
    let mut out = String::with_capacity(path.len());
    let mut value = false;
    for c in path.chars() {
        if value && matches!(c, ';' | '/') {
            value = false;
        }
        if !value {
            out.push(c);
        }
        // A `=` elsewhere is part of a name.
        if c == '=' && !value && in_parameter(&out) {
            out.push('*');
            value = true;
        }
    }
    out
}

/// The beginning of a path, as it may be logged: a host that is not whole is left out, since what is there of it could be a
/// user's name or password, whose `@` is cut off.
#[must_use]
pub fn loggable_part(path: &str) -> String {
    let open = path.rfind("://").map(|at| at + 3).filter(|at| !path[*at..].contains('/'));
    format!("{}...", without_secrets(&path[..open.unwrap_or(path.len())]))
}

fn in_parameter(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|segment| segment.contains(';'))
}

/// The url that a client says, as it may be logged: as a path is, and without query and fragment.
#[must_use]
pub fn loggable_url(said: &[u8]) -> String {
    let said = said.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    shortened(&String::from_utf8_lossy(said), MAX_TEXT)
}

/// A text that a client chose, as it may be logged.
#[must_use]
pub fn loggable_text(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    match text.len() <= MAX_TEXT {
        true => text.into_owned(),
        false => format!("{}...", beginning(&text, MAX_TEXT)),
    }
}

/// So many bytes of a text that has more, and no part of a character.
fn beginning(text: &str, most: usize) -> &str {
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    &text[..end]
}

/// Without `user:password@` after `://`.
fn without_users(text: &str) -> Cow<'_, str> {
    let Some((before, mut rest)) = text.split_once("://").filter(|(_, rest)| rest.contains('@')) else {
        return Cow::Borrowed(text);
    };
    let mut out = before.to_owned();
    loop {
        let (authority, after) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.rsplit('@').next().unwrap_or_default();
        out.push_str("://");
        out.push_str(host);
        match after.split_once("://") {
            Some((between, next)) => {
                out.push_str(between);
                rest = next;
            }
            None => {
                out.push_str(after);
                return Cow::Owned(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line() -> Line<&'static str> {
        Line {
            timestamp: UnixMillis(1_796_000_123_456),
            role: "gateway",
            method: "GET",
            authority: "shop.example.com:7480",
            path: "/cart",
            version: "1.1",
            status: 200,
            bytes: 17,
            client: "192.0.2.7",
            took: Duration::from_nanos(1_234_499),
            service: Some("web"),
            environment: Some("alice"),
            via: Some("overlay"),
            reason: Some("owned"),
            ..Line::default()
        }
    }

    fn written(line: &Line<&str>, format: Format) -> String {
        let mut out = Vec::new();
        append(line, format, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn the_common_formats_are_those_of_web_servers_with_the_route_after_them() {
        let start = "192.0.2.7 - - [30/Nov/2026:00:55:23 +0000] \"GET /cart HTTP/1.1\" 200 17";
        let route = " role=gateway host=shop.example.com:7480 service=web overlay=- env=alice via=overlay reason=owned \
                     token=- upstream=- request_id=- trace_id=- took=0.001234\n";
        assert_eq!(written(&line(), Format::Common), format!("{start}{route}"));
        let said = Line { referer: Some("http://a/b"), ..line() };
        assert_eq!(written(&said, Format::Combined), format!("{start} \"http://a/b\" \"-\"{route}"));
        let refused = Line::refused("gateway", 400, "malformed", "192.0.2.7");
        let refused = written(&refused, Format::Common);
        assert!(refused.contains("] \"-\" 400 - role=gateway host=- "), "{refused}");
    }

    #[test]
    fn a_line_of_json_has_its_keys_in_their_order_and_only_those_that_apply() {
        let start =
            r#"{"timestamp":"2026-11-30T00:55:23Z","overlane.role":"gateway","http.request.method":"GET","#;
        let host = r#""server.address":"shop.example.com:7480","url.path":"/cart","network.protocol.version":"1.1","#;
        let answer =
            r#""http.response.status_code":200,"http.response.body.size":17,"client.address":"192.0.2.7","#;
        let by = r#""overlane.service":"web","overlane.environment":"alice","overlane.via":"overlay","overlane.reason":"owned","#;
        let end = "\"overlane.generation\":0}\n";
        let json = format!("{start}{host}{answer}\"duration_s\":0.001234,{by}{end}");
        assert_eq!(written(&line(), Format::Json), json);
        let refused =
            Line { timestamp: line().timestamp, ..Line::refused("gateway", 431, "too-large", "::1") };
        let refused = written(&refused, Format::Json);
        let unknown = r#"{"timestamp":"2026-11-30T00:55:23Z","overlane.role":"gateway","http.request.method":"","server.address":"","url.path":"","#;
        let answer = r#""http.response.status_code":431,"http.response.body.size":0,"client.address":"::1","duration_s":0.0,"#;
        assert_eq!(refused, format!("{unknown}{answer}\"overlane.reason\":\"too-large\",{end}"));
        for (took, shown) in
            [(1_500_000_000, "1.5"), (10_000_000, "0.01"), (60_000_000_000, "60.0"), (1499, "0.000001")]
        {
            let line = Line { took: Duration::from_nanos(took), ..line() };
            let line = written(&line, Format::Json);
            assert!(line.contains(&format!("\"duration_s\":{shown},")), "{line}");
        }
    }

    #[test]
    fn each_line_says_its_own_second() {
        for millis in [1_796_000_123_456, 1_796_000_124_000, 1_796_000_123_999] {
            let line = Line { timestamp: UnixMillis(millis), ..line() };
            assert!(written(&line, Format::Json).contains(&UnixMillis(millis).to_string()));
        }
    }

    #[test]
    fn what_is_a_secret_by_custom_is_left_out() {
        for (path, logged) in [
            ("/a/b", "/a/b"),
            ("/a;jsessionid=S3CR3T/b", "/a;jsessionid=*/b"),
            ("/a;x;y=1;z=2=3/b;w=4", "/a;x;y=*;z=*/b;w=*"),
            ("/a=b/c;d/e=f", "/a=b/c;d/e=f"),
            ("/proxy/http://user:pass@host/a", "/proxy/http://host/a"),
            ("/http://u@a/ftp://b:c@d@e/f@g", "/http://a/ftp://e/f@g"),
            ("/@scope/name", "/@scope/name"),
        ] {
            assert_eq!(loggable_path(path), logged);
        }
        for (part, logged) in [
            ("/a/b", "/a/b..."),
            ("/proxy/http://user:pa", "/proxy/http://..."),
            ("/proxy/http://user:p@ss@ho", "/proxy/http://..."),
            ("/proxy/http://host/a;id=S3", "/proxy/http://host/a;id=*..."),
        ] {
            assert_eq!(loggable_part(part), logged);
        }
        assert_eq!(loggable_url(b"https://u:p@shop/a?token=x#y"), "https://shop/a");
        assert_eq!(loggable_url(b"https://shop?token=x"), "https://shop");
        assert_eq!(loggable_path(&"\u{e4}".repeat(2000)).len(), MAX_PATH + 3);
        assert_eq!(loggable_text(&[b'x'; 600]).len(), MAX_TEXT + 3);
    }

    #[test]
    fn where_a_path_is_cut_no_part_of_a_password_is_left() {
        let secret = "http://user:sEcret@host/a;token=sEcret/b";
        for before in MAX_PATH - secret.len() - 1..MAX_PATH {
            let path = format!("/{}{secret}", "x".repeat(before));
            let logged = loggable_path(&path);
            assert!(!logged.contains("sE") && !logged.contains("user"), "{before}: {logged}");
            assert!(logged.len() <= MAX_PATH + 3 && path.starts_with(&logged[..before]));
        }
        for before in MAX_TEXT - secret.len() - 14..MAX_TEXT {
            let logged = loggable_url(format!("https://shop/{}{secret}", "x".repeat(before)).as_bytes());
            assert!(!logged.contains("sE") && !logged.contains("user"), "{before}: {logged}");
        }
    }

    /// Texts of all kinds, and those that are made to end a line or a field.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[\"\\\\\r\n\t\u{0}\u{1b}\u{7f}\u{85}\u{9b}\u{2028}\u{2029}\u{202e}\u{feff} a-c=;/?#@:]{0,30}"
        ]
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_a_line_is_one_line_and_well_formed(
            authority in text(), path in text(), identity in text(), id in text(), agent in text(), referer in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (path, id, referer) = (loggable_path(&path), loggable_text(id.as_bytes()), loggable_url(&referer));
            let agent = loggable_text(agent.as_bytes());
            let line: Line<&str> = Line {
                authority: &*authority,
                path: &path,
                client_identity: Some(&identity),
                request_id: Some(&id),
                referer: Some(&referer),
                agent: Some(&agent),
                ..line()
            };
            let json = written(&line, Format::Json);
            prop_assert!(json.ends_with('\n') && !json.trim_end_matches('\n').contains(is_hidden), "{:?}", json);
            let read: serde_json::Value = serde_json::from_str(&json).expect("an object");
            prop_assert_eq!(&read["url.path"], &*path);
            prop_assert_eq!(&read["server.address"], &*authority);
            prop_assert_eq!(&read["overlane.client_identity"], &*identity);
            prop_assert_eq!(&read["overlane.request_id"], &*id);
            for format in [Format::Common, Format::Combined] {
                let text = written(&line, format);
                let text = text.strip_suffix('\n').expect("an end");
                prop_assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{:?}", text);
                // Only our own quotes are quotes: what is between them is one field, whatever is in it.
                let quoted: Vec<_> = text.split('"').collect();
                prop_assert_eq!(quoted.len(), if format == Format::Combined { 7 } else { 3 });
                let words: Vec<_> = quoted[quoted.len() - 1].trim_start().split(' ').collect();
                let route = if format == Format::Combined { &words[..] } else { &words[2..] };
                prop_assert_eq!(route.len(), 12);
                prop_assert_eq!(quoted[0].split(' ').count(), 6, "{:?}", quoted[0]);
            }
        }
    }
}
