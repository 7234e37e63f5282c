//! W3C tracestate (<https://www.w3.org/TR/trace-context-1/#tracestate-header>): read only.
//!
//! It belongs to tracing systems, and must not change while `traceparent` stays; so nobody here writes
//! it. Its values have no encoding and hold no comma: a member names one id.

use super::trace::TraceId;
use super::{Form, InvalidKey, Keys};

/// The most members (section 3.3.1.1); with more the list is not valid, and says nothing.
const MAX_MEMBERS: usize = 32;

/// The keys in the member `name`; the first such member counts. There are none where `traceparent` is
/// not there once, and right: then `tracestate` is not to be parsed (section 4.3).
///
/// # Errors
/// The member is there and names no valid id.
pub fn read<'l>(
    mut traceparent: impl Iterator<Item = &'l [u8]>,
    lines: impl Iterator<Item = &'l [u8]> + Clone,
    name: &str,
    form: Form,
) -> Result<Option<Keys>, InvalidKey> {
    let Some(value) = lines.clone().flat_map(members).find_map(|member| value_of(member, name)) else {
        return Ok(None);
    };
    let (Some(parent), None) = (traceparent.next(), traceparent.next()) else {
        return Ok(None);
    };
    let traced = TraceId::read([("traceparent", parent)]).is_some();
    if !traced || lines.flat_map(members).nth(MAX_MEMBERS).is_some() {
        return Ok(None);
    }
    form.parse([value])
}

/// Whether the member `name` is there.
pub(super) fn has<'l>(lines: impl Iterator<Item = &'l [u8]>, name: &str) -> bool {
    lines.flat_map(members).any(|member| value_of(member, name).is_some())
}

/// Whether this can be the key of a member (section 3.3.1.3.1).
pub(super) fn is_key(text: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    first && text.len() <= 256 && text.bytes().all(rest)
}

fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

fn value_of<'m>(member: &'m [u8], name: &str) -> Option<&'m [u8]> {
    member.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn bytes<'l>(lines: &'l [&'l str]) -> impl Iterator<Item = &'l [u8]> + Clone {
        lines.iter().map(|line| line.as_bytes())
    }

    fn check(parents: &[&str], lines: &[&str], expected: Result<Option<&str>, ()>) {
        let read = read(bytes(parents), bytes(lines), "sd-sandbox", Form::List);
        let shown = read.as_ref().map(|keys| keys.as_ref().map(Keys::as_str)).map_err(|_| ());
        assert_eq!(shown, expected, "{parents:?} {lines:?}");
    }

    #[test]
    fn the_first_member_with_exactly_this_key_counts() {
        check(&[PARENT], &["a=1,sd-sandbox=alice , sd-sandbox=bob"], Ok(Some("alice")));
        check(&[PARENT], &["a=1", "sd-sandbox=alice"], Ok(Some("alice")));
        check(&[PARENT], &["x-sd-sandbox=alice,sd-sandboxes=bob,sd-sandbox"], Ok(None));
        check(&[PARENT], &["sd-sandbox="], Ok(None));
        check(&[PARENT], &["sd-sandbox=Alice"], Err(()));
        check(&[PARENT], &["sd-sandbox=%61"], Err(()));
    }

    #[test]
    fn it_says_nothing_without_a_traceparent_that_is_right() {
        for parents in [&[][..], &["nonsense"], &[PARENT, PARENT]] {
            check(parents, &["sd-sandbox=alice"], Ok(None));
        }
    }

    #[test]
    fn more_than_32_members_say_nothing() {
        let most = "a=1,".repeat(31) + "sd-sandbox=alice";
        check(&[PARENT], &[&most], Ok(Some("alice")));
        check(&[PARENT], &[&most, "b=2"], Ok(None));
    }
}
