//! W3C baggage (<https://www.w3.org/TR/baggage/>): the key is the member `overlay-id`, or a foreign one.
//!
//! Foreign members stay byte for byte, properties included, and one line leaves: several SDKs read
//! only one. Several ids are joined by `%2C`, since a member's value cannot hold a comma.

use super::{Form, InvalidKey, Keys, percent};

/// The member that carries the key.
pub const MEMBER: &str = "overlay-id";

/// What a propagator must keep (section 3.3.2): members over all lines.
const MAX_MEMBERS: usize = 64;
/// What a propagator must keep (section 3.3.2): bytes over all lines.
const MAX_BYTES: usize = 8192;

/// The keys in the member `name` of the lines of `baggage`; the first such member counts.
///
/// # Errors
/// The member is there and names no valid id.
pub fn read<'l>(
    lines: impl IntoIterator<Item = &'l [u8]>,
    name: &str,
    form: Form,
) -> Result<Option<Keys>, InvalidKey> {
    match lines.into_iter().flat_map(members).find_map(|member| value_of(member, name)) {
        None => Ok(None),
        Some(value) => form.parse([&*percent::decoded(value)]),
    }
}

/// The one line that leaves: the members that are not `ours` byte for byte and in order, and `own`
/// behind them. `None` where nothing is left.
///
/// Beyond 64 members or 8,192 bytes, whole foreign members are dropped from the end; ours never is.
#[must_use]
pub fn rewrite<'l>(
    lines: impl IntoIterator<Item = &'l [u8]>,
    ours: impl Fn(&[u8]) -> bool,
    own: &[u8],
) -> Option<Vec<u8>> {
    let room = MAX_BYTES.saturating_sub(if own.is_empty() { 0 } else { own.len() + 1 });
    let most = MAX_MEMBERS.saturating_sub(members(own).count());
    let mut line = Vec::new();
    for member in foreign(lines, ours).take(most) {
        if line.len() + usize::from(!line.is_empty()) + member.len() > room {
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
    line.extend_from_slice(own);
    (!line.is_empty()).then_some(line)
}

/// Appends the member `name` with this key to `out`.
pub fn write(name: &str, form: Form, keys: &Keys, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.push(b'=');
    form.write(keys, "%2C", |part| out.extend_from_slice(part.as_bytes()));
}

/// The members whose key is not one of `ours`.
pub fn foreign<'l>(
    lines: impl IntoIterator<Item = &'l [u8]>,
    ours: impl Fn(&[u8]) -> bool,
) -> impl Iterator<Item = &'l [u8]> {
    lines.into_iter().flat_map(members).filter(move |member| key_of(member).is_none_or(|key| !ours(key)))
}

/// Whether there is a member whose key is one of `ours`.
pub fn any<'l>(lines: impl IntoIterator<Item = &'l [u8]>, ours: impl Fn(&[u8]) -> bool) -> bool {
    lines.into_iter().flat_map(members).filter_map(key_of).any(ours)
}

/// The list members of one line, without surrounding white space; empty ones are skipped.
fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// The key of a member: what is before the first `=`.
fn key_of(member: &[u8]) -> Option<&[u8]> {
    split(member).map(|(key, _)| key)
}

/// The value of `member` if this is its key; properties follow `;`.
fn value_of<'m>(member: &'m [u8], name: &str) -> Option<&'m [u8]> {
    let (key, value) = split(member)?;
    let value = value.split(|b| *b == b';').next().unwrap_or_default();
    (key == name.as_bytes()).then(|| value.trim_ascii())
}

/// Key and value are split at the first `=`.
fn split(member: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = member.iter().position(|b| *b == b'=')?;
    Some((member[..equals].trim_ascii(), &member[equals + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes<'l>(lines: &'l [&str]) -> impl Iterator<Item = &'l [u8]> {
        lines.iter().map(|line| line.as_bytes())
    }

    fn is_ours(key: &[u8]) -> bool {
        key == MEMBER.as_bytes()
    }

    fn rewritten(lines: &[&str], keys: Option<&Keys>) -> Option<Vec<u8>> {
        let mut own = Vec::new();
        if let Some(keys) = keys {
            write(MEMBER, Form::List, keys, &mut own);
        }
        rewrite(bytes(lines), is_ours, &own)
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
            let read = read(bytes(lines), MEMBER, Form::List);
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
            assert_eq!(rewritten(lines, keys).as_deref(), expected.map(str::as_bytes), "{lines:?}");
        }
    }

    #[test]
    fn beyond_the_limits_foreign_members_go_whole_and_ours_stays() {
        let keys = Keys::parse([&b"a"[..]]).unwrap().unwrap();
        let many: Vec<String> = (0..100).map(|n| format!("k{n}={}", "v".repeat(200))).collect();
        let line = rewritten(&[&many.join(",")], Some(&keys)).unwrap();
        assert!(line.len() <= MAX_BYTES && line.ends_with(b",overlay-id=a"));
        let few: Vec<String> = (0..100).map(|n| format!("k{n}=v")).collect();
        let line = rewritten(&[&few.join(",")], Some(&keys)).unwrap();
        assert_eq!(members(&line).count(), MAX_MEMBERS);
    }

    proptest! {
        #[test]
        fn whatever_is_rewritten_is_read_again(lines in prop::collection::vec("[ -~]{0,60}", 0..4), id in "[a-z0-9]{1,63}") {
            let keys = Keys::parse([id.as_bytes()]).unwrap().unwrap();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let line = rewritten(&lines, Some(&keys)).unwrap();
            prop_assert_eq!(read([&line[..]], MEMBER, Form::List).unwrap(), Some(keys));
        }
    }
}
