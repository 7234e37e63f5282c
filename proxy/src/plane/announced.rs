//! PROXY protocol, versions 1 and 2 (haproxy/doc/proxy-protocol.txt): who the client of a load balancer is,
//! said by the balancer before anything else.

use std::future::poll_fn;
use std::net::IpAddr;
use std::task::Poll;
use std::time::Instant;

use ppp::{v1, v2};

use super::buffer::Want;
use super::conn::{Client, Conn};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, its line end included.
const LONGEST_V1: usize = 107;
/// The longest header of version 2 that is read: addresses, and room for what balancers add (TLVs).
const LONGEST_V2: usize = 4096;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// Whose connection it is.
    Client(IpAddr),
    /// It is the balancer's own (LOCAL), or nobody knows whose.
    Itself,
}

/// What some bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// A header of so many bytes.
    Whole(Announced, usize),
    /// What may become one.
    Partial,
    /// None, whatever comes.
    Malformed,
}

/// Reads a header, and nothing after it. `None` where there is none, or not in time.
pub async fn announced<S: Client>(conn: &mut Conn<S>, until: Instant) -> Option<Announced> {
    conn.deadline().arm(until);
    poll_fn(|cx| {
        loop {
            match read(conn.ahead().filled()) {
                Read::Whole(announced, length) => {
                    conn.ahead().consume(length);
                    return Poll::Ready(Some(announced));
                }
                Read::Malformed => return Poll::Ready(None),
                Read::Partial => {}
            }
            match conn.poll_fill(cx, Want::Head) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => return conn.deadline().poll(cx).map(|()| None),
            }
        }
    })
    .await
}

/// What the first bytes of a connection are.
#[must_use]
pub fn read(bytes: &[u8]) -> Read {
    if is_start(bytes, SIGNATURE) {
        read_v2(bytes)
    } else if is_start(bytes, b"PROXY ") {
        read_v1(bytes)
    } else {
        Read::Malformed
    }
}

/// Whether what is here begins with `start`, as far as it is here.
fn is_start(bytes: &[u8], start: &[u8]) -> bool {
    let both = bytes.len().min(start.len());
    bytes[..both] == start[..both]
}

fn read_v1(bytes: &[u8]) -> Read {
    let Some(end) = memchr::memmem::find(&bytes[..bytes.len().min(LONGEST_V1)], b"\r\n") else {
        return if bytes.len() < LONGEST_V1 { Read::Partial } else { Read::Malformed };
    };
    let length = end + 2;
    match v1::Header::try_from(&bytes[..length]).map(|header| header.addresses) {
        Ok(v1::Addresses::Tcp4(own)) => Read::Whole(Announced::Client(own.source_address.into()), length),
        Ok(v1::Addresses::Tcp6(own)) => Read::Whole(Announced::Client(own.source_address.into()), length),
        Ok(v1::Addresses::Unknown) => Read::Whole(Announced::Itself, length),
        Err(_) => Read::Malformed,
    }
}

fn read_v2(bytes: &[u8]) -> Read {
    let Some(length) =
        bytes.get(14..16).map(|length| 16 + usize::from(length[0]) * 256 + usize::from(length[1]))
    else {
        return Read::Partial;
    };
    if length > LONGEST_V2 {
        return Read::Malformed;
    }
    let Some(whole) = bytes.get(..length) else {
        return Read::Partial;
    };
    match v2::Header::try_from(whole) {
        Ok(header) if header.command == v2::Command::Local => Read::Whole(Announced::Itself, length),
        Ok(header) => match header.addresses {
            v2::Addresses::IPv4(own) => Read::Whole(Announced::Client(own.source_address.into()), length),
            v2::Addresses::IPv6(own) => Read::Whole(Announced::Client(own.source_address.into()), length),
            v2::Addresses::Unix(_) | v2::Addresses::Unspecified => Read::Whole(Announced::Itself, length),
        },
        Err(_) => Read::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [SIGNATURE, &[0x20 | command, family], &length, rest].concat()
    }

    #[test]
    fn headers_say_who_the_client_is() {
        let client = |address: &str| Announced::Client(address.parse().expect("address"));
        let four = [192, 0, 2, 1, 10, 0, 0, 1, 0x1f, 0x90, 0, 80];
        let with_more = [&four[..], &[0xea, 0, 2, 7, 7]].concat();
        let mut six = [0; 36];
        six[..16].copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\r\n".to_vec(), client("192.0.2.1")),
            (b"PROXY TCP6 2001:db8::1 ::1 8080 80\r\n".to_vec(), client("2001:db8::1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Announced::Itself),
            (b"PROXY UNKNOWN what ever 1 2\r\n".to_vec(), Announced::Itself),
            (v2(1, 0x11, &four), client("192.0.2.1")),
            (v2(1, 0x11, &with_more), client("192.0.2.1")),
            (v2(1, 0x21, &six), client("2001:db8::1")),
            (v2(0, 0x11, &four), Announced::Itself),
            (v2(1, 0, &[]), Announced::Itself),
        ] {
            for end in 0..header.len() {
                assert_eq!(read(&header[..end]), Read::Partial, "{header:?} {end}");
            }
            let more = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&more), Read::Whole(expected, header.len()), "{header:?}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for header in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.300 10.0.0.1 8080 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1\r\n".to_vec(),
            [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(),
            [SIGNATURE, &[0x31, 0x11, 0, 12], &[0; 12]].concat(),
            v2(1, 0x11, &[0; 4]),
            [SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat(),
        ] {
            assert_eq!(read(&header), Read::Malformed, "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(start in 0_usize..3, rest: Vec<u8>) {
            let bytes = [[&b""[..], b"PROXY TCP4 ", SIGNATURE][start], &rest].concat();
            if let Read::Whole(_, length) = read(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
