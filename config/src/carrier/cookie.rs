//! Cookies (RFC 6265): read only, since they are between a browser and its server.
//!
//! HTTP/2 splits `cookie` into several lines: they are one list. A value may be in double quotes, and
//! is percent-decoded, as scripts in pages encode it (`encodeURIComponent`).

use super::{Form, InvalidKey, Keys, percent};

/// The keys in the cookie `name`; the first one counts, as a browser sends that of the longest path first.
///
/// # Errors
/// The cookie is there and names no valid id.
pub fn read<'l>(
    lines: impl IntoIterator<Item = &'l [u8]>,
    name: &str,
    form: Form,
) -> Result<Option<Keys>, InvalidKey> {
    let mut cookies = lines.into_iter().flat_map(pairs).filter_map(split);
    match cookies.find(|(own, _)| *own == name.as_bytes()) {
        None => Ok(None),
        Some((_, value)) => form.parse([&*percent::decoded(unquoted(value))]),
    }
}

/// Whether there is a cookie whose name is one of `ours`.
pub fn any<'l>(lines: impl IntoIterator<Item = &'l [u8]>, ours: impl Fn(&[u8]) -> bool) -> bool {
    lines.into_iter().flat_map(pairs).filter_map(split).any(|(name, _)| ours(name))
}

/// One line with the cookies whose name is not one of `ours`, byte for byte and in order. `None` where
/// nothing is left.
#[must_use]
pub fn without<'l>(
    lines: impl IntoIterator<Item = &'l [u8]>,
    ours: impl Fn(&[u8]) -> bool,
) -> Option<Vec<u8>> {
    let pairs = lines.into_iter().flat_map(pairs);
    let left: Vec<_> = pairs.filter(|pair| split(pair).is_none_or(|(name, _)| !ours(name))).collect();
    (!left.is_empty()).then(|| left.join(&b"; "[..]))
}

/// The names and values of all cookies.
pub(crate) fn pairs_of<'l>(
    lines: impl IntoIterator<Item = &'l [u8]>,
) -> impl Iterator<Item = (&'l [u8], &'l [u8])> {
    lines.into_iter().flat_map(pairs).filter_map(split)
}

fn pairs(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
}

fn split(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some((pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii()))
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_exact_name_on_one_line_or_several() {
        for (lines, expected) in [
            (&["overlay=alice"][..], Ok(Some("alice"))),
            (&["a=1; overlay=alice; b=2"], Ok(Some("alice"))),
            (&["a=1", "overlay=\"alice\"", "b=2"], Ok(Some("alice"))),
            (&["overlay=a%2Cb"], Ok(Some("a, b"))),
            (&["overlay=alice; overlay=bob"], Ok(Some("alice"))),
            (&["Overlay=alice; xoverlay=alice; overlay"], Ok(None)),
            (&["overlay="], Ok(None)),
            (&["overlay=Alice"], Err(())),
            (&["overlay=\"alice"], Err(())),
        ] {
            let read = read(lines.iter().map(|line| line.as_bytes()), "overlay", Form::List);
            let shown = read.as_ref().map(|keys| keys.as_ref().map(Keys::as_str)).map_err(|_| ());
            assert_eq!(shown, expected, "{lines:?}");
        }
    }

    #[test]
    fn the_other_cookies_stay_byte_for_byte() {
        for (lines, expected) in [
            (&["a=1; overlay=x; b=\"2 3\""][..], Some("a=1; b=\"2 3\"")),
            (&["a=1", "overlay=x", "flag"], Some("a=1; flag")),
            (&["overlay=x; overlay=y"], None),
        ] {
            let left = without(lines.iter().map(|line| line.as_bytes()), |name| name == b"overlay");
            assert_eq!(left.as_deref(), expected.map(str::as_bytes), "{lines:?}");
        }
    }
}
