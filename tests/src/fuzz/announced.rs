//! Headers of the PROXY protocol: read alike by a reader that splits lines and counts bytes as the specification has it
//! (haproxy/doc/proxy-protocol.txt, sections 2.1 and 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use overlane::plane::announced::{Announced, Read, read};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads the bytes as the start of a connection.
///
/// # Panics
/// Where a rule is broken.
pub fn check(bytes: &[u8]) {
    let found = read(bytes);
    let more = [bytes, b"GET / HTTP/1.1\r\n\r\n"].concat();
    match found {
        Read::Malformed => assert_eq!(read(&more), found, "what is malformed stays so"),
        Read::Partial => assert!(bytes.len() < 16 + 4096, "no header is so long"),
        Read::Whole(announced, length) => {
            assert_eq!(read(&more), found, "what follows changes nothing");
            for end in 0..length {
                assert_eq!(read(&bytes[..end]), Read::Partial, "after {end} bytes");
            }
            assert_eq!(naive(&bytes[..length]), Some(announced));
        }
    }
}

/// Whom a whole header names.
fn naive(header: &[u8]) -> Option<Announced> {
    match header.strip_prefix(SIGNATURE) {
        Some(rest) => naive_v2(rest),
        // What else is on the line is ignored, whatever it is.
        None if header.starts_with(b"PROXY UNKNOWN") => Some(Announced::Itself),
        None => naive_v1(std::str::from_utf8(header).ok()?.strip_suffix("\r\n")?),
    }
}

fn naive_v1(line: &str) -> Option<Announced> {
    let words: Vec<_> = line.split(' ').collect();
    let source = match words[..] {
        ["PROXY", family, source, destination, from, to] => {
            from.parse::<u16>().ok()?;
            to.parse::<u16>().ok()?;
            let (source, destination): (IpAddr, IpAddr) = (source.parse().ok()?, destination.parse().ok()?);
            let four = family == "TCP4";
            (four || family == "TCP6").then_some(())?;
            (source.is_ipv4() == four && destination.is_ipv4() == four).then_some(source)?
        }
        _ => return None,
    };
    Some(Announced::Client(source))
}

fn naive_v2(rest: &[u8]) -> Option<Announced> {
    let (&[version_and_command, family, high, low], body) = rest.split_first_chunk::<4>()?;
    (body.len() == usize::from(high) << 8 | usize::from(low)).then_some(())?;
    match (version_and_command, family >> 4) {
        (0x20, _) => Some(Announced::Itself),
        (0x21, 1) => Some(Announced::Client(Ipv4Addr::from(*body.first_chunk::<4>()?).into())),
        (0x21, 2) => Some(Announced::Client(Ipv6Addr::from(*body.first_chunk::<16>()?).into())),
        (0x21, 0 | 3) => Some(Announced::Itself),
        _ => None,
    }
}
