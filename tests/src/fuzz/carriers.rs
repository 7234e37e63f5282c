//! Carriers: what is written is read again, and what is not ours stays byte for byte.

use std::sync::OnceLock;

use overlane_config::carrier::trace::{self, TraceId};
use overlane_config::carrier::{Carriers, Keys, MAX_KEYS, PRESETS, Place, Seen, baggage, cookie};
use overlane_config::name::EnvironmentId;

/// The baseline's own header.
const OWN: &str = "x-overlay-id";
/// What a propagator keeps of `baggage` at least (W3C Baggage, section 3.3.2).
const KEPT: (usize, usize) = (64, 8192);

/// The first byte says which carriers there are; the lines after it are the fields of a head.
///
/// # Panics
/// Where a rule is broken.
pub fn check(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    let carriers = &choices()[usize::from(*choice) % choices().len()];
    let fields: Vec<(&str, &[u8])> = rest.split(|byte| *byte == b'\n').filter_map(field).collect();
    check_keys(carriers, &fields);
    check_baggage(&fields);
    check_cookies(&fields);
    if let Some(id) = TraceId::read(fields.iter().copied()) {
        let digits = trace::digits(id.get());
        assert_eq!(TraceId::read([("b3", &digits[..])]), Some(id), "an id is its digits");
    }
}

/// The default, every preset by itself, and all of them at once.
fn choices() -> &'static [Carriers] {
    static CHOICES: OnceLock<Vec<Carriers>> = OnceLock::new();
    CHOICES.get_or_init(|| {
        let names = PRESETS.iter().map(|preset| vec![preset.name.to_owned()]);
        let all = names.clone().flatten().chain(
            ["header", "header:x-env", "baggage", "baggage:env", "tracestate:env", "cookie:env"]
                .map(str::to_owned),
        );
        let lists = names.chain([all.collect()]);
        let parsed = lists.map(|list| {
            let written: Vec<_> = list
                .iter()
                .filter(|name| !name.starts_with("tracestate:") && !name.starts_with("cookie:"))
                .cloned()
                .collect();
            Carriers::parse(Some(&list), Some(&written)).expect("carriers")
        });
        [Carriers::default()].into_iter().chain(parsed).collect()
    })
}

fn field(line: &[u8]) -> Option<(&str, &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((std::str::from_utf8(&line[..colon]).ok()?, line[colon + 1..].trim_ascii()))
}

fn check_keys(carriers: &Carriers, fields: &[(&str, &[u8])]) {
    let mut seen = Vec::new();
    let read = carriers.read(OWN, fields, |_, what| match what {
        Seen::Key(keys) | Seen::Contradicts(keys) => seen.push(keys.clone()),
        Seen::Same | Seen::Invalid(_) => {}
    });
    let Ok(arrived) = read else {
        assert!(
            fields.iter().any(|(name, _)| name.eq_ignore_ascii_case(OWN)),
            "only our own header is refused"
        );
        return;
    };
    assert_eq!(arrived.keys.as_ref(), seen.first());
    assert_eq!(arrived.contradicted, seen.iter().any(|keys| *keys != seen[0]));
    assert!(seen.is_empty() || carriers.any(OWN, fields), "a key is there, and nothing that carries it");
    for keys in &seen {
        check_key(carriers, keys);
    }
}

/// Ids are valid, few and different, and every carrier gives back what was written.
fn check_key(carriers: &Carriers, keys: &Keys) {
    let ids: Vec<&str> = keys.iter().collect();
    assert!((1..=MAX_KEYS).contains(&ids.len()));
    assert_eq!(ids.join(", "), keys.as_str());
    for (at, id) in ids.iter().enumerate() {
        assert!(id.parse::<EnvironmentId>().is_ok() && !ids[..at].contains(id), "{keys:?}");
    }
    for carrier in carriers.written() {
        let mut value = Vec::new();
        carrier.write(keys, &mut value);
        assert!(value.iter().all(|byte| (b' '..=b'~').contains(byte)), "a field's value");
        let name = match carrier.place() {
            Place::Own => OWN,
            Place::Header(name) => name.as_str(),
            Place::Baggage(_) => "baggage",
            Place::Tracestate(_) | Place::Cookie(_) => panic!("{carrier} is only read"),
        };
        let read = carrier.read(OWN, &[(name, &value[..])][..]);
        assert_eq!(read.as_ref().map(Option::as_ref), Ok(Some(keys)), "{carrier}");
    }
}

fn values<'f>(fields: &[(&'f str, &'f [u8])], wanted: &str) -> Vec<&'f [u8]> {
    fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value).collect()
}

/// The items of lists, without white space, that are not ours; told by the simplest code there is.
fn foreign<'l>(lines: &[&'l [u8]], separator: u8, ours: &str) -> Vec<&'l [u8]> {
    let mut items = Vec::new();
    for line in lines {
        for item in line.split(|byte| *byte == separator) {
            let item = item.trim_ascii();
            let name = item.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
            let is_ours = item.contains(&b'=') && name == ours.as_bytes();
            if !item.is_empty() && !is_ours {
                items.push(item);
            }
        }
    }
    items
}

fn check_baggage(fields: &[(&str, &[u8])]) {
    let lines = values(fields, "baggage");
    let own = b"overlay-id=alice";
    let rewritten = baggage::rewrite(lines.iter().copied(), |key| key == b"overlay-id", own).expect("ours");
    let foreign = foreign(&lines, b',', "overlay-id");
    let kept: Vec<_> = rewritten.split(|byte| *byte == b',').collect();
    assert_eq!(kept.last(), Some(&&own[..]), "ours is the last");
    let (members, bytes) = KEPT;
    assert!(rewritten.len() <= bytes && kept.len() <= members);
    let length = foreign.iter().map(|member| member.len() + 1).sum::<usize>() + own.len();
    let kept = &kept[..kept.len() - 1];
    if foreign.len() < members && length <= bytes {
        assert_eq!(kept, foreign, "every foreign member, byte for byte and in order");
    } else {
        let mut rest = foreign.iter();
        assert!(kept.iter().all(|member| rest.any(|own| own == member)), "whole members, in order");
    }
}

fn check_cookies(fields: &[(&str, &[u8])]) {
    let lines = values(fields, "cookie");
    let left = cookie::without(lines.iter().copied(), |name| name == b"overlay");
    let foreign = foreign(&lines, b';', "overlay");
    let expected = (!foreign.is_empty()).then(|| foreign.join(&b"; "[..]));
    assert_eq!(left, expected, "every other cookie, byte for byte and in order");
}
