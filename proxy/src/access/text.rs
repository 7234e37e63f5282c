//! Lines as they are written: in each format, with nothing in them that ends a line or moves a terminal's cursor.

use std::borrow::Cow;
use std::fmt::Write;

use overlane_config::time::UnixMillis;
use serde::Serializer;

use super::{Format, Line};

/// The longest path in a line, in bytes.
const MAX_PATH: usize = 2048;
/// The longest of any other text that a client chooses, in bytes.
const MAX_TEXT: usize = 512;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Appends a line with its end.
pub(super) fn append(line: &Line, format: Format, out: &mut Vec<u8>) {
    let text = match format {
        Format::Json => json(line),
        Format::Common | Format::Combined => common(line, format == Format::Combined),
    };
    out.extend_from_slice(text.as_bytes());
    out.push(b'\n');
}

pub(super) fn as_timestamp<S: Serializer>(at: &UnixMillis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

/// Whether it must not be in a line as it is: JSON allows more than logs and terminals bear.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    let separates = matches!(c, '\u{2028}' | '\u{2029}');
    let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || separates || reorders
}

fn json(line: &Line) -> String {
    // Neither maps with other keys than texts nor anything that fails is in it.
    let text = serde_json::to_string(line).unwrap_or_default();
    if !text.contains(is_hidden) {
        return text;
    }
    // They can only be in strings.
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_hidden(c) {
            // Writing to memory does not fail.
            true => drop(write!(escaped, "\\u{:04x}", u32::from(c))),
            false => escaped.push(c),
        }
    }
    escaped
}

/// `client - identity [time] "request line" status bytes`, then the client's words on itself if `combined`, and the
/// route as `name=value`.
fn common(line: &Line, combined: bool) -> String {
    let mut out =
        format!("{} - {} [{}] ", line.client, or_dash(line.client_identity.as_deref()), time(line.timestamp));
    let bytes = if line.bytes == 0 { "-".to_owned() } else { line.bytes.to_string() };
    let request = match line.method {
        "" => "-".to_owned(),
        method => {
            format!("{method} {} HTTP/{}", line.path, if line.version == "2" { "2.0" } else { line.version })
        }
    };
    // Writing to memory does not fail.
    let _ = write!(out, "\"{}\" {:03} {bytes}", escaped(&request, false), line.status);
    if combined {
        for said in [&line.referer, &line.agent] {
            let _ = write!(out, " \"{}\"", escaped(said.as_deref().unwrap_or("-"), false));
        }
    }
    let route: [(&str, Option<&str>); 11] = [
        ("role", Some(line.role)),
        ("host", Some(&line.authority)),
        ("service", line.service.as_deref()),
        ("overlay", line.overlay.as_deref()),
        ("env", line.environment.as_deref()),
        ("via", line.via),
        ("reason", line.reason),
        ("token", line.token),
        ("upstream", line.upstream.as_deref()),
        ("request_id", line.request_id.as_deref()),
        ("trace_id", line.trace_id.as_deref()),
    ];
    for (name, value) in route {
        let _ = write!(out, " {name}={}", or_dash(value));
    }
    let _ = write!(out, " took={:.6}", line.duration_s);
    out
}

/// One word for a text that may have several, and `-` for none.
fn or_dash(text: Option<&str>) -> Cow<'_, str> {
    text.filter(|text| !text.is_empty()).map_or(Cow::Borrowed("-"), |text| escaped(text, true))
}

/// As Apache and nginx do: what is no visible ASCII, and what could end the text, as `\xNN`.
fn escaped(text: &str, word: bool) -> Cow<'_, str> {
    let plain =
        |byte: u8| (byte.is_ascii_graphic() || byte == b' ' && !word) && byte != b'"' && byte != b'\\';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        match plain(byte) {
            true => out.push(char::from(byte)),
            false => drop(write!(out, "\\x{byte:02x}")),
        }
    }
    Cow::Owned(out)
}

/// `28/Nov/2026:16:08:10 +0000`.
fn time(at: UnixMillis) -> String {
    let text = at.to_string();
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or("0");
    let month = part(5, 7).parse::<usize>().ok().and_then(|month| MONTHS.get(month.wrapping_sub(1)));
    format!("{}/{}/{}:{} +0000", part(8, 10), month.unwrap_or(&"-"), part(0, 4), part(11, 19))
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

    fn line() -> Line {
        Line {
            timestamp: UnixMillis(1_796_000_123_456),
            role: "gateway",
            method: "GET",
            authority: "shop.example.com:7480".to_owned(),
            path: "/cart".to_owned(),
            version: "1.1",
            status: 200,
            bytes: 17,
            client: "192.0.2.7".to_owned(),
            duration_s: 0.001_234,
            service: Some("web".to_owned()),
            environment: Some("alice".to_owned()),
            via: Some("overlay"),
            reason: Some("owned"),
            ..Line::default()
        }
    }

    fn written(line: &Line, format: Format) -> String {
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
        let said = Line { referer: Some("http://a/b".to_owned()), ..line() };
        assert_eq!(written(&said, Format::Combined), format!("{start} \"http://a/b\" \"-\"{route}"));
        let refused = Line::refused("gateway", 400, "malformed", [192, 0, 2, 7].into());
        let refused = written(&refused, Format::Common);
        assert!(refused.contains("] \"-\" 400 - role=gateway host=- "), "{refused}");
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
            let line = Line {
                authority: authority.clone(),
                path: loggable_path(&path),
                client_identity: Some(identity.clone()),
                request_id: Some(loggable_text(id.as_bytes())),
                referer: Some(loggable_url(&referer)),
                agent: Some(loggable_text(agent.as_bytes())),
                ..line()
            };
            let json = written(&line, Format::Json);
            prop_assert!(json.ends_with('\n') && !json.trim_end_matches('\n').contains(is_hidden), "{:?}", json);
            let read: serde_json::Value = serde_json::from_str(&json).expect("an object");
            prop_assert_eq!(&read["url.path"], &*line.path);
            prop_assert_eq!(&read["server.address"], &*authority);
            prop_assert_eq!(&read["overlane.client_identity"], &*identity);
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
