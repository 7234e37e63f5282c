//! Paths of requests: where one leads must not depend on who reads it (docs/decisions/0029-paths.md).
//!
//! The gateway reads a path as RFC 3986 does, and passes it on as it came. Whoever is behind it may read less into it, and
//! decode nothing, or more: decode slashes, or decode twice; take backslashes for slashes; leave out parameters, empty
//! segments, what follows a NUL. Where such a reader would find itself at another service, or where nothing is exposed,
//! nobody gets the request.

/// The longest path that is read in all ways, in bytes.
const MAX_LENGTH: usize = 2048;
/// The most ways in which a path is read that nobody writes but to attack.
const MAX_READINGS: usize = 64;

/// What somebody reads in a path.
type Reader = fn(&[u8]) -> Vec<u8>;

/// Ways to read a path in which it becomes another one. Applied in any order and as often as they change something, they are
/// what servers and frameworks do.
const READERS: [Reader; 10] = [
    without_dot_segments,
    with_unreserved_characters,
    decoded,
    decoded_as_iis_does,
    without_overlong_forms,
    with_slashes_for_backslashes,
    without_parameters,
    without_empty_segments,
    without_controls,
    up_to_its_end,
];

/// Whether everybody reads the path as it stands: nothing in it is escaped or a parameter, and no segment is empty or means
/// another one.
#[must_use]
pub fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.iter().enumerate().all(|(at, byte)| match byte {
        b'%' | b'\\' | b';' => false,
        b'/' => !matches!(
            &bytes[at + 1..],
            [b'/', ..] | [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..]
        ),
        _ => true,
    })
}

/// Where `path` leads, by whoever it is read: `lead` says where a reading of it does.
///
/// # Errors
/// Its readers are led to different places, or there are too many ways to read it.
pub fn agreed<T: PartialEq>(path: &str, lead: impl Fn(&[u8]) -> T) -> Result<T, Disagreement> {
    if path.len() > MAX_LENGTH {
        return Err(Disagreement);
    }
    let led = lead(&without_dot_segments(&with_unreserved_characters(path.as_bytes())));
    let mut readings = vec![path.as_bytes().to_vec()];
    let mut at = 0;
    while let Some(reading) = readings.get(at) {
        if lead(reading) != led {
            return Err(Disagreement);
        }
        for further in READERS.map(|read| read(reading)) {
            if !readings.contains(&further) {
                readings.push(further);
            }
        }
        if readings.len() > MAX_READINGS {
            return Err(Disagreement);
        }
        at += 1;
    }
    Ok(led)
}

/// Readers of a path are led to different places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disagreement;

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What an escape of such a character means to everybody who decodes anything.
fn with_unreserved_characters(path: &[u8]) -> Vec<u8> {
    decoded_if(path, is_unreserved)
}

fn decoded(path: &[u8]) -> Vec<u8> {
    decoded_if(path, |_| true)
}

/// Percent-encoded bytes decoded, once, if they are `wanted`. What is no escape stays.
fn decoded_if(path: &[u8], wanted: impl Fn(u8) -> bool) -> Vec<u8> {
    replaced(path, |rest| match rest {
        [b'%', high, low, ..] => number(&[*high, *low])
            .and_then(|byte| u8::try_from(byte).ok())
            .filter(|byte| wanted(*byte))
            .map(|byte| (3, byte)),
        _ => None,
    })
}

/// `%uXXXX` decoded where it is ASCII, or what Windows takes for that ("best fit").
fn decoded_as_iis_does(path: &[u8]) -> Vec<u8> {
    replaced(path, |rest| {
        let [b'%', b'u' | b'U', a, b, c, d, ..] = rest else { return None };
        let byte = match number(&[*a, *b, *c, *d])? {
            ascii @ 0..0x80 => u8::try_from(ascii).ok()?,
            0x2044 | 0x2215 | 0xff0f => b'/',
            0x2216 | 0xff3c => b'\\',
            0xff0e => b'.',
            _ => return None,
        };
        Some((6, byte))
    })
}

/// ASCII for what is longer in UTF-8 than it may be (RFC 3629, section 3): old decoders take it.
fn without_overlong_forms(path: &[u8]) -> Vec<u8> {
    let last = |lead: u8, last: u8| (lead & 0x01) << 6 | (last & 0x3f);
    replaced(path, |rest| match *rest {
        [lead @ (0xc0 | 0xc1), end, ..] => Some((2, last(lead, end))),
        [0xe0, lead @ (0x80 | 0x81), end, ..] => Some((3, last(lead, end))),
        [0xf0, 0x80, lead @ (0x80 | 0x81), end, ..] => Some((4, last(lead, end))),
        _ => None,
    })
}

fn with_slashes_for_backslashes(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()
}

/// Without what follows a `;` in each segment, as in servlets.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|byte| *byte == b'/');
    let names = segments.map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or_default());
    names.collect::<Vec<_>>().join(&b'/')
}

fn without_empty_segments(path: &[u8]) -> Vec<u8> {
    let mut out = path.to_vec();
    out.dedup_by(|second, first| *first == b'/' && *second == b'/');
    out
}

/// As browsers' parsers of urls do with tabs and line ends.
fn without_controls(path: &[u8]) -> Vec<u8> {
    path.iter().copied().filter(|byte| !byte.is_ascii_control()).collect()
}

/// Up to what ends a text in C, or a path in a url.
fn up_to_its_end(path: &[u8]) -> Vec<u8> {
    path.split(|byte| matches!(byte, 0 | b'?' | b'#')).next().unwrap_or_default().to_vec()
}

/// RFC 3986, section 5.2.4. What would climb above the root stays there.
fn without_dot_segments(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    // The first one ends with the slash that the path begins with.
    let mut segments = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment == b".." {
            let parent = out.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            out.truncate(parent);
        }
        let dots = matches!(segment, b"." | b"..");
        if !dots || segments.peek().is_none() {
            out.push(b'/');
        }
        if !dots {
            out.extend_from_slice(segment);
        }
    }
    out
}

/// The bytes with each place replaced for which there is something: how many bytes, and by what.
fn replaced(mut rest: &[u8], replacement: impl Fn(&[u8]) -> Option<(usize, u8)>) -> Vec<u8> {
    let mut out = Vec::with_capacity(rest.len());
    while let Some(first) = rest.first() {
        let (length, byte) = replacement(rest).unwrap_or((1, *first));
        out.push(byte);
        rest = &rest[length..];
    }
    out
}

/// The value of hexadecimal digits.
fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| Some(number * 16 + char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &[u8]) -> String {
        path.iter().map(|byte| char::from(*byte)).collect()
    }

    #[test]
    fn dot_segments_are_removed_as_the_standard_has_it() {
        for (path, without) in [
            ("/a/b/c/./../../g", "/a/g"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a//../b", "/a/b"),
            ("/a/...", "/a/..."),
            ("/.a/..b", "/.a/..b"),
            ("/", "/"),
            ("//", "//"),
        ] {
            assert_eq!(text(&without_dot_segments(path.as_bytes())), without, "{path}");
        }
    }

    #[test]
    fn a_path_is_plain_where_nobody_reads_anything_into_it() {
        for path in ["/", "/a", "/a/b/", "/a.b/..c/.d/...", "/.well-known/x", "/a:b@c,d=e", "/ä", "*", ""] {
            assert!(is_plain(path), "{path}");
        }
        for path in ["//", "/a//b", "/.", "/./a", "/..", "/a/../b", "/a/..", "/a%41", "/a\\b", "/a;b", "/%"] {
            assert!(!is_plain(path), "{path}");
        }
    }

    #[test]
    fn each_reader_reads_its_own_into_it() {
        let cases: [(Reader, &str, &str); 12] = [
            (decoded, "/%2e%2E%2f%zz%2", "/../%zz%2"),
            (decoded, "/%252f%%32f", "/%2f%2f"),
            (decoded_as_iis_does, "/%u002e%uFF0f%u00e4%u12", "/./%u00e4%u12"),
            (with_slashes_for_backslashes, "/a\\..\\b", "/a/../b"),
            (without_parameters, "/a;b/..;c=d;e/f", "/a/../f"),
            (without_empty_segments, "//a///b/", "/a/b/"),
            (without_controls, "/.\t./\r\n", "/../"),
            (up_to_its_end, "/a\0/..", "/a"),
            (up_to_its_end, "/a?b#c", "/a"),
            (up_to_its_end, "/a#c?b", "/a"),
            (with_unreserved_characters, "/%61%2E%7e%2f%C3", "/a.~%2f%C3"),
            (without_dot_segments, "/a/../b", "/b"),
        ];
        for (read, path, reading) in cases {
            assert_eq!(text(&read(path.as_bytes())), reading, "{path:?}");
        }
        for overlong in [&b"\xc0\xaf"[..], b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf"] {
            assert_eq!(without_overlong_forms(overlong), b"/");
        }
        assert_eq!(without_overlong_forms(b"\xc1\x9c"), b"\\");
        assert_eq!(without_overlong_forms("ä".as_bytes()), "ä".as_bytes());
    }
}
