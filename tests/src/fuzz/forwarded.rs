//! For whom hops say that they ask: whatever a client writes before what a hop appends, the client is who the hop says, or
//! nobody; and what we write is read as it was meant.

use std::net::IpAddr;

use overlane::h1::request;
use overlane::plane::forwarded::{Dialect, Forwarding, Said};

const DIALECTS: [Dialect; 3] = [Dialect::XForwarded, Dialect::Rfc7239, Dialect::Both];
/// A client, which is no hop.
const CLIENT: &str = "203.0.113.9";

fn forwarding(dialect: Dialect) -> Forwarding {
    let networks = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network"));
    Forwarding { hops: networks.into(), dialect }
}

/// The lines of the input are fields of a request; those that no request has are left out.
///
/// # Panics
/// Where a rule is broken.
pub fn check(input: &[u8]) {
    let lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end).collect();
    let lines: Vec<_> = lines.into_iter().filter(|line| is_field(line)).take(40).collect();
    for dialect in DIALECTS {
        let forwarding = forwarding(dialect);
        let Some(said) = read(&forwarding, &lines) else { continue };
        assert!(said.client.is_some() || said.hops.is_empty(), "hops of nobody: {said:?}");
        assert!(said.hops.iter().all(|hop| forwarding.believes(*hop)), "{said:?}");
        check_written(&forwarding, &said);
        check_appended(dialect, &lines);
    }
}

/// Whether this is a field of these headers, and may stand in a head.
fn is_field(line: &[u8]) -> bool {
    let ours = [&b"x-forwarded-for:"[..], b"x-forwarded-proto:", b"x-forwarded-host:", b"forwarded:"];
    ours.iter().any(|name| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
}

/// What is said in a head with these fields; `None` where it is none.
fn read(forwarding: &Forwarding, lines: &[&[u8]]) -> Option<Said> {
    let head = [&[&b"GET / HTTP/1.1\r\nHost: web"[..]], lines, &[b"", b""]].concat().join(&b"\r\n"[..]);
    request::parse(&head, |head| forwarding.read(head)).ok()?
}

/// What is written of whom a request is for is read so by the next one.
fn check_written(forwarding: &Forwarding, said: &Said) {
    let Some(client) = said.client.filter(|client| !forwarding.believes(*client)) else { return };
    // The last hop is the peer, whose connection tells who it is.
    let peer: IpAddr = "10.9.9.9".parse().expect("an address");
    let hops: Vec<_> = said.hops.iter().copied().chain([peer]).collect();
    let host = said.host.as_deref().unwrap_or_default();
    let mut out = Vec::new();
    forwarding.write(&client.to_string(), &hops, said.secure == Some(true), host, &mut out);
    let lines: Vec<&[u8]> = out
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_end)
        .filter(|line| !line.is_empty())
        .collect();
    let again = read(forwarding, &lines).expect("what is written is a head");
    // More than may be looked at is nobody's.
    if again.client.is_some() {
        assert_eq!((again.client, again.hops), (Some(client), hops));
        assert_eq!(again.secure, Some(said.secure == Some(true)));
        assert_eq!(again.host.as_deref().unwrap_or_default(), host);
    } else {
        assert!(hops.len() >= 16, "{} hops are not too many", hops.len());
    }
}

/// A hop appends whom it got the request from: to the last line, as most do, or as a line of its own.
fn check_appended(dialect: Dialect, lines: &[&[u8]]) {
    let forwarding = forwarding(dialect);
    let is_x = |line: &&[u8]| line[..1].eq_ignore_ascii_case(b"x");
    let mut appended: Vec<Vec<u8>> = Vec::new();
    // What a hop replaces and does not append to.
    appended.extend(
        lines
            .iter()
            .filter(|line| !is_x(line) || line[..15].eq_ignore_ascii_case(b"x-forwarded-for"))
            .map(|line| line.to_vec()),
    );
    for on_own_line in [true, false] {
        let mut fields = appended.clone();
        for (name, member) in
            [("x-forwarded-for:", CLIENT.to_owned()), ("forwarded:", format!("for={CLIENT}"))]
        {
            let last = fields.iter_mut().rev().find(|line| {
                line.len() >= name.len() && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
            });
            match last.filter(|_| !on_own_line) {
                Some(line) => line.extend_from_slice(format!(", {member}").as_bytes()),
                None => fields.push(format!("{name} {member}").into_bytes()),
            }
        }
        let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
        let Some(said) = read(&forwarding, &fields) else { continue };
        let client: IpAddr = CLIENT.parse().expect("an address");
        if on_own_line {
            assert_eq!((said.client, &said.hops[..]), (Some(client), &[][..]), "{dialect:?}");
        } else {
            assert!(said.client.is_none_or(|said| said == client) && said.hops.is_empty(), "{said:?}");
        }
    }
}
