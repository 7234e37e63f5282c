//! W3C baggage (<https://www.w3.org/TR/baggage/>): the key is the member `overlay-id`.
//!
//! Foreign members stay byte for byte, properties included, and one line leaves: several SDKs read
//! only one. Several ids are joined by `%2C`, since a member's value cannot hold a comma.

use std::borrow::Cow;

use super::{InvalidKey, Keys};

/// The member that carries the key.
pub const MEMBER: &str = "overlay-id";

/// What a propagator must keep (section 3.3.2): members over all lines.
const MAX_MEMBERS: usize = 64;
/// What a propagator must keep (section 3.3.2): bytes over all lines.
const MAX_BYTES: usize = 8192;

/// The keys in the member `overlay-id` of the lines of `baggage`; the first such member counts.
///
/// # Errors
/// The member is there and names no valid id. It is then left to travel untouched.
pub fn read<'l>(lines: impl IntoIterator<Item = &'l [u8]>) -> Result<Option<Keys>, InvalidKey> {
    match lines.into_iter().flat_map(members).find_map(ours) {
        None => Ok(None),
        Some(value) => Keys::parse([&*percent_decoded(value)]),
    }
}

/// The one line that leaves: foreign members byte for byte and in order, ours replaced by `keys`
/// (at the end), or dropped where `keys` is `None`. `None` where nothing is left.
///
/// Beyond 64 members or 8,192 bytes, whole foreign members are dropped from the end; ours never is.
#[must_use]
pub fn rewrite<'l>(lines: impl IntoIterator<Item = &'l [u8]>, keys: Option<&Keys>) -> Option<Vec<u8>> {
    let mut own = Vec::new();
    if let Some(keys) = keys {
        write_own(keys, &mut own);
    }
    let room = MAX_BYTES - if own.is_empty() { 0 } else { own.len() + 1 };
    let most = MAX_MEMBERS - usize::from(keys.is_some());
    let mut line = Vec::new();
    for member in foreign(lines).take(most) {
        if line.len() + 1 + member.len() > room {
            continue;
        }
        if !line.is_empty() {
            line.push(b',');
        }
        line.extend_from_slice(member);
    }
    if !own.is_empty() && !line.is_empty() {
        line.push(b',');
    }
    line.append(&mut own);
    (!line.is_empty()).then_some(line)
}

/// Appends our own member to `out`.
pub fn write_own(keys: &Keys, out: &mut Vec<u8>) {
    out.extend_from_slice(MEMBER.as_bytes());
    for (number, id) in keys.iter().enumerate() {
        out.extend_from_slice(if number == 0 { b"=" } else { b"%2C" });
        out.extend_from_slice(id.as_bytes());
    }
}

/// The members that are not ours.
pub fn foreign<'l>(lines: impl IntoIterator<Item = &'l [u8]>) -> impl Iterator<Item = &'l [u8]> {
    lines.into_iter().flat_map(members).filter(|member| ours(member).is_none())
}

/// The list members of one line, without surrounding white space; empty ones are skipped.
fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// The value of `member` if it is ours: key and value are split at the first `=`, properties follow `;`.
fn ours(member: &[u8]) -> Option<&[u8]> {
    let equals = member.iter().position(|b| *b == b'=')?;
    let (key, value) = (&member[..equals], &member[equals + 1..]);
    let value = value.split(|b| *b == b';').next().unwrap_or_default();
    (key.trim_ascii() == MEMBER.as_bytes()).then(|| value.trim_ascii())
}

fn percent_decoded(value: &[u8]) -> Cow<'_, [u8]> {
    if !value.contains(&b'%') {
        return Cow::Borrowed(value);
    }
    let hex = |b: u8| (b as char).to_digit(16);
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [first, tail @ ..] = rest {
        (decoded, rest) = match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                let byte = hex(*high).unwrap_or(0) * 16 + hex(*low).unwrap_or(0);
                decoded.push(u8::try_from(byte).unwrap_or_default());
                (decoded, after)
            }
            _ => {
                decoded.push(*first);
                (decoded, tail)
            }
        };
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes<'l>(lines: &'l [&str]) -> impl Iterator<Item = &'l [u8]> {
        lines.iter().map(|line| line.as_bytes())
    }

    #[test]
    fn our_member_is_found_by_its_exact_key() {
        for (lines, expected) in [
            (&["overlay-id=alice"][..], Ok(Some("alice"))),
            (&["a=1, overlay-id = alice ;p=1,b=2"], Ok(Some("alice"))),
            (&["a=1", "overlay-id=a%2Cb"], Ok(Some("a, b"))),
            (&["overlay-id=%61"], Ok(Some("a"))),
            (&["x-overlay-id=a", "Overlay-Id=a", "n=overlay-id=a"], Ok(None)),
            (&["overlay-id="], Ok(None)),
            (&["overlay-id=A"], Err(())),
            (&["overlay-id=%zz"], Err(())),
        ] {
            let read = read(bytes(lines));
            let shown = read.as_ref().map(|keys| keys.as_ref().map(Keys::as_str)).map_err(|_| ());
            assert_eq!(shown, expected, "{lines:?}");
        }
    }

    #[test]
    fn foreign_members_stay_byte_for_byte_and_one_line_leaves() {
        let keys = Keys::parse([&b"a,b"[..]]).unwrap().unwrap();
        for (lines, keys, expected) in [
            (
                &[" x=%20a;p , y==z", "overlay-id=old", "q"][..],
                Some(&keys),
                Some("x=%20a;p,y==z,q,overlay-id=a%2Cb"),
            ),
            (&["overlay-id=old, x=1"], None, Some("x=1")),
            (&["overlay-id=old"], None, None),
            (&[], Some(&keys), Some("overlay-id=a%2Cb")),
        ] {
            assert_eq!(rewrite(bytes(lines), keys).as_deref(), expected.map(str::as_bytes), "{lines:?}");
        }
    }

    #[test]
    fn beyond_the_limits_foreign_members_go_whole_and_ours_stays() {
        let keys = Keys::parse([&b"a"[..]]).unwrap().unwrap();
        let many: Vec<String> = (0..100).map(|n| format!("k{n}={}", "v".repeat(200))).collect();
        let line = rewrite([many.join(",").as_bytes()], Some(&keys)).unwrap();
        assert!(line.len() <= MAX_BYTES && line.ends_with(b",overlay-id=a"));
        let few: Vec<String> = (0..100).map(|n| format!("k{n}=v")).collect();
        let line = rewrite([few.join(",").as_bytes()], Some(&keys)).unwrap();
        assert_eq!(members(&line).count(), MAX_MEMBERS);
    }

    proptest! {
        #[test]
        fn whatever_is_rewritten_is_read_again(lines in prop::collection::vec("[ -~]{0,60}", 0..4), id in "[a-z0-9]{1,63}") {
            let keys = Keys::parse([id.as_bytes()]).unwrap().unwrap();
            let line = rewrite(lines.iter().map(String::as_bytes), Some(&keys)).unwrap();
            prop_assert_eq!(read([&line[..]]).unwrap(), Some(keys));
        }
    }
}
