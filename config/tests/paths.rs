//! Where a gateway leads a path, by whoever it is read: against a naive model of readers.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::{NOW, Store, environment};
use overlane_config::route::{Decision, Listener, Request, Role, Tried, Untraced, decide};
use proptest::prelude::*;

/// The prefixes of the host `x`, and the services that they lead to; at `y` all paths lead to one.
const EXPOSED: [(&str, &str); 4] =
    [("/public", "open"), ("/public/deep", "deep"), ("/private/", "shut"), ("/.x", "dotted")];

fn store() -> Store {
    let services = EXPOSED
        .iter()
        .map(|(path, service)| format!("{{name: {service}, url: 'http://a', hosts: [x], path: {path}}}"))
        .chain(["{name: all, url: 'http://a', hosts: [y]}".to_owned()]);
    let services = services.collect::<Vec<_>>().join(", ");
    let mut store = Store::default();
    store.apply([environment(format!("name: base\nrouting: {{mode: baseline}}\nservices: [{services}]\n"))]);
    store
}

/// The service, or the status and the word of the refusal.
fn led(store: &Store, authority: &str, path: &str) -> String {
    let listener = Listener { role: Role::Gateway, baseline: None };
    let request = Request {
        authority,
        path,
        keys: None,
        untrusted: false,
        hop: None,
        require: "",
        preview: None,
        by_browser: false,
    };
    match decide(&store.table, &listener, &request, NOW, &Tried::default(), &mut Untraced) {
        Decision::Serve(served) => served.service.to_string(),
        Decision::Refuse(refusal) => format!("{} {}", refusal.problem.status(), refusal.problem.as_str()),
        Decision::PassThrough(_) => "passed through".to_owned(),
    }
}

/// The longest prefix at `x` that ends where a segment does.
fn naively_led(path: &str) -> Option<&'static str> {
    let below =
        |prefix: &str| path == prefix || path.starts_with(&format!("{}/", prefix.trim_end_matches('/')));
    let fits =
        |(prefix, _): &&(&str, _)| below(prefix) && (!prefix.ends_with('/') || path.starts_with(prefix));
    EXPOSED.iter().filter(fits).max_by_key(|(prefix, _)| prefix.len()).map(|(_, service)| *service)
}

/// The readers, on texts in which each character is a byte; written without a thought for their cost.
mod readers {
    fn escapes(path: &str, digits: usize, mark: &str, decode: impl Fn(u32) -> Option<char>) -> String {
        let mut pieces = path.split('%');
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let code = piece.strip_prefix(mark).or(piece.strip_prefix(&mark.to_uppercase()));
            let code = code
                .and_then(|code| code.get(..digits))
                .filter(|code| code.chars().all(|c| c.is_ascii_hexdigit()));
            match code.and_then(|code| decode(u32::from_str_radix(code, 16).unwrap())) {
                Some(c) => out.extend([c].into_iter().chain(piece.chars().skip(mark.len() + digits))),
                None => out.push_str(&format!("%{piece}")),
            }
        }
        out
    }

    pub(crate) fn unreserved(path: &str) -> String {
        escapes(path, 2, "", |code| {
            char::from_u32(code).filter(|c| c.is_ascii_alphanumeric() || "-._~".contains(*c))
        })
    }

    fn decoded(path: &str) -> String {
        escapes(path, 2, "", char::from_u32)
    }

    fn windows(path: &str) -> String {
        escapes(path, 4, "u", |code| match code {
            0..=0x7f => char::from_u32(code),
            0x2044 | 0x2215 | 0xff0f => Some('/'),
            0x2216 | 0xff3c => Some('\\'),
            0xff0e => Some('.'),
            _ => None,
        })
    }

    fn overlong(path: &str) -> String {
        let mut path = path.to_owned();
        for code in 0..128u32 {
            let (high, low) = (code >> 6, 0x80 | (code & 0x3f));
            for form in
                [vec![0xc0 | high, low], vec![0xe0, 0x80 | high, low], vec![0xf0, 0x80, 0x80 | high, low]]
            {
                let form: String = form.into_iter().map(|byte| char::from_u32(byte).unwrap()).collect();
                path = path.replace(&form, &char::from_u32(code).unwrap().to_string());
            }
        }
        path
    }

    fn backslashes(path: &str) -> String {
        path.replace('\\', "/")
    }

    fn parameters(path: &str) -> String {
        path.split('/')
            .map(|segment| segment.split_once(';').map_or(segment, |(name, _)| name))
            .collect::<Vec<_>>()
            .join("/")
    }

    fn merged(path: &str) -> String {
        let mut path = path.to_owned();
        while path.contains("//") {
            path = path.replace("//", "/");
        }
        path
    }

    fn printed(path: &str) -> String {
        path.replace(|c: char| c < ' ' || c == '\x7f', "")
    }

    fn cut(path: &str) -> String {
        path[..path.find(['\0', '?', '#']).unwrap_or(path.len())].to_owned()
    }

    /// RFC 3986, section 5.2.4, step by step.
    pub(crate) fn dots(path: &str) -> String {
        let (mut input, mut output) = (path.to_owned(), String::new());
        while !input.is_empty() {
            if input.starts_with("/./") {
                input.replace_range(..3, "/");
            } else if input == "/." {
                input.replace_range(.., "/");
            } else if input.starts_with("/../") || input == "/.." {
                input.replace_range(..if input == "/.." { 3 } else { 4 }, "/");
                output.truncate(output.rfind('/').unwrap_or(0));
            } else {
                let end = input[1..].find('/').map_or(input.len(), |end| end + 1);
                output.extend(input.drain(..end));
            }
        }
        output
    }

    pub(crate) const ALL: [fn(&str) -> String; 10] =
        [unreserved, decoded, windows, overlong, backslashes, parameters, merged, printed, cut, dots];
}

/// All that readers, in any order and again and again, make of a path.
fn readings(path: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut new = vec![path.to_owned()];
    while let Some(path) = new.pop() {
        if all.insert(path.clone()) {
            new.extend(readers::ALL.iter().map(|read| read(&path)));
        }
    }
    all
}

fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "/",
        "/",
        "/",
        "/public",
        "/private",
        "/private/",
        "/deep",
        "deep",
        "/.x",
        "x",
        "..",
        "..",
        ".",
        "%2e",
        "%2E",
        "%2f",
        "%2F",
        "%5c",
        "\\",
        "%252f",
        "%25",
        "%2",
        "%",
        "2f",
        ";",
        ";a=b",
        "%3b",
        "%00",
        "%09",
        "%3f",
        "%23",
        "%c0%af",
        "%c0%ae",
        "%e0%80%af",
        "%u002f",
        "%uff0f",
        "//",
        "%70ublic",
        "%c3%a4",
        "%20",
        ":",
        "@",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_path_leads_where_all_its_readers_are_led_or_nowhere(pieces in prop::collection::vec(piece(), 0..8)) {
        let store = store();
        let path = format!("/{}", pieces.concat());
        let readings = readings(&path);
        let wanted = naively_led(&readers::dots(&readers::unreserved(&path)));
        let decided = led(&store, "x", &path);
        let agree = readings.iter().all(|reading| naively_led(reading) == wanted);
        match wanted {
            _ if !agree => prop_assert_eq!(decided, "400 malformed"),
            // There are more ways to read it than are looked at.
            _ if readings.len() > 64 => prop_assert!(decided == "400 malformed"),
            Some(service) => prop_assert_eq!(decided, service),
            None => prop_assert_eq!(decided, "404 no-route"),
        }
        prop_assert_eq!(led(&store, "y", &path), "all");
    }
}

#[test]
fn what_is_not_exposed_is_reached_by_no_spelling_of_it() {
    let store = store();
    for (path, expected) in include_str!("paths.txt").lines().filter_map(|line| line.split_once("  ")) {
        assert_eq!(led(&store, "x", path.trim()), expected.trim(), "{path}");
        assert_eq!(led(&store, "y", path.trim()), "all", "where no path matters, none is refused: {path}");
    }
}

#[test]
fn a_path_that_is_read_in_many_ways_is_short() {
    let store = store();
    let long = "x".repeat(3000);
    assert_eq!(led(&store, "x", &format!("/public/{long}")), "open");
    assert_eq!(led(&store, "x", &format!("/public/%2f{long}")), "400 malformed");
    assert_eq!(led(&store, "y", &format!("/public/%2f{long}")), "all");
}
