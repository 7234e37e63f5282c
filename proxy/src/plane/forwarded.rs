//! For whom a load balancer asks: `X-Forwarded-For`, `-Proto` and `-Host`, and `Forwarded` (RFC 7239).
//!
//! Anybody can write these headers, and who passes a request on appends to them: they are read from the right, as
//! far as each entry was written by a hop that is trusted (docs/decisions/0032-trusted-hops.md).

use std::net::IpAddr;
use std::str::FromStr;

use arrayvec::ArrayVec;
use ipnet::IpNet;
use overlane_config::route::MAX_HOPS;
use overlane_config::url::split_authority;

use super::exchange::line;
use crate::h1::Name;
use crate::h1::request::Head;

const FOR: Name<'_> = Name::of("x-forwarded-for");
const PROTO: Name<'_> = Name::of("x-forwarded-proto");
const HOST: Name<'_> = Name::of("x-forwarded-host");
const FORWARDED: Name<'_> = Name::of("forwarded");
/// What else such headers say of a client, whoever writes them: only of a trusted hop they travel on.
const OTHERS: [Name<'_>; 6] = [
    Name::of("x-forwarded-port"),
    Name::of("x-forwarded-prefix"),
    Name::of("x-forwarded-scheme"),
    Name::of("x-forwarded-server"),
    Name::of("x-forwarded-ssl"),
    Name::of("x-real-ip"),
];
/// The most entries that are looked at: more hops than that are a loop.
const MOST: usize = MAX_HOPS as usize;

/// Who is believed in what it says of its clients, and how that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// The networks of the hops.
    pub hops: Vec<IpNet>,
    /// What they write, and what is written here.
    pub dialect: Dialect,
}

/// How a request says for whom it is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// `X-Forwarded-For`, `-Proto`, `-Host`.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Rfc7239,
    /// Both.
    Both,
}

impl Dialect {
    fn has_x(self) -> bool {
        self != Self::Rfc7239
    }

    fn has_rfc(self) -> bool {
        self != Self::XForwarded
    }
}

/// What trusted hops say of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Who sent it to the first of them; `None` where nobody says, or not in a way that can be believed.
    pub client: Option<IpAddr>,
    /// The hops between the client and the one whose connection it is, in its order.
    pub hops: Vec<IpAddr>,
    /// Whether its client sent it encrypted.
    pub secure: Option<bool>,
    /// The authority that its client asked.
    pub host: Option<Box<str>>,
}

impl Forwarding {
    /// Whether the peer at this address is believed.
    #[must_use]
    pub fn believes(&self, address: IpAddr) -> bool {
        self.hops.iter().any(|network| network.contains(&address.to_canonical()))
    }

    /// What the head of a request from a hop that is believed says. Where both dialects are spoken, and do not
    /// agree about the client, nobody knows who it is.
    #[must_use]
    pub fn read(&self, head: &Head<'_>) -> Said {
        let x = || self.of_entries(&x_entries(head));
        let rfc = || self.of_entries(&rfc_entries(head));
        match self.dialect {
            Dialect::XForwarded => x().unwrap_or_default(),
            Dialect::Rfc7239 => rfc().unwrap_or_default(),
            Dialect::Both => match (x(), rfc()) {
                (Some(x), Some(rfc)) if (x.client, &x.hops) != (rfc.client, &rfc.hops) => Said::default(),
                (Some(x), Some(rfc)) => {
                    Said { secure: rfc.secure.or(x.secure), host: rfc.host.or(x.host), ..x }
                }
                (one, other) => one.or(other).unwrap_or_default(),
            },
        }
    }

    /// What entries say, the last one first; `None` where there are none.
    fn of_entries(&self, entries: &[Entry<'_>]) -> Option<Said> {
        let mut said = Said::default();
        let mut last = entries.first()?;
        for entry in entries {
            last = entry;
            match entry.node {
                Some(address) if self.believes(address) => said.hops.push(address),
                client => {
                    said.client = client;
                    break;
                }
            }
        }
        // All are hops: the first of them asked for itself. More than there may be, and nobody knows.
        if said.hops.len() == entries.len() && entries.len() < MOST {
            said.client = said.hops.pop();
        }
        match said.client {
            Some(_) => said.hops.reverse(),
            None => said.hops.clear(),
        }
        said.secure = last.proto.and_then(scheme);
        said.host = last.host.as_deref().filter(|host| split_authority(host).is_ok()).map(Box::from);
        Some(said)
    }

    /// Whether a gateway replaces, or removes, this field of a request; `believed` where it comes from a trusted hop.
    #[must_use]
    pub fn removes(name: Name<'_>, believed: bool) -> bool {
        [FOR, PROTO, HOST, FORWARDED].iter().any(|own| name.is(own))
            || (!believed && OTHERS.iter().any(|other| name.is(other)))
    }

    /// Appends the lines that say for whom a gateway asks: `client`, and each hop after it, the last of them its peer.
    pub fn write(&self, client: &str, hops: &[IpAddr], secure: bool, host: &str, out: &mut Vec<u8>) {
        let scheme = if secure { "https" } else { "http" };
        if self.dialect.has_x() {
            out.extend_from_slice(b"X-Forwarded-For: ");
            out.extend_from_slice(client.as_bytes());
            hops.iter().for_each(|hop| add(out, format_args!(", {hop}")));
            out.extend_from_slice(b"\r\n");
            line(out, "X-Forwarded-Proto", scheme);
            if !host.is_empty() {
                line(out, "X-Forwarded-Host", host);
            }
        }
        if self.dialect.has_rfc() {
            out.extend_from_slice(b"Forwarded: for=");
            add_node(out, client);
            if !host.is_empty() {
                add(out, format_args!(";host=\"{host}\""));
            }
            add(out, format_args!(";proto={scheme}"));
            for hop in hops {
                out.extend_from_slice(b", for=");
                add_node(out, &hop.to_string());
            }
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn add(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = std::io::Write::write_fmt(out, text);
}

/// An address as RFC 7239 has it (section 6).
fn add_node(out: &mut Vec<u8>, address: &str) {
    match address.contains(':') {
        true => add(out, format_args!("\"[{address}]\"")),
        false => out.extend_from_slice(address.as_bytes()),
    }
}

/// What one hop said of whom it got a request from.
#[derive(Debug, Default)]
struct Entry<'h> {
    /// Its address; `None` where it is hidden, or malformed.
    node: Option<IpAddr>,
    proto: Option<&'h [u8]>,
    host: Option<Box<str>>,
}

type Entries<'h> = ArrayVec<Entry<'h>, MOST>;

/// The members of a list that stands on several lines, the last one first; empty ones are none (RFC 9110, 5.6.1).
fn members_from_right<'h>(head: &Head<'h>, name: Name<'_>) -> impl Iterator<Item = &'h [u8]> {
    let lines: ArrayVec<&[u8], { crate::h1::MAX_FIELDS }> = head.values(name).collect();
    let members = |line: &'h [u8]| line.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    lines.into_iter().rev().flat_map(members).filter(|member| !member.is_empty())
}

/// What `X-Forwarded-*` say, the last entry first. A hop need not write all three: where there are fewer schemes or
/// hosts than addresses, the first one is the client's.
fn x_entries<'h>(head: &Head<'h>) -> Entries<'h> {
    let mut entries = Entries::new();
    let (mut protos, mut hosts) = (members_from_right(head, PROTO), members_from_right(head, HOST));
    let (mut proto, mut host) = (None, None);
    for member in members_from_right(head, FOR).take(MOST) {
        proto = protos.next().or(proto);
        host = hosts.next().or(host);
        let text = host.and_then(|host| std::str::from_utf8(host).ok());
        entries.push(Entry { node: node(member), proto, host: text.map(Box::from) });
    }
    if entries.is_empty() && (head.values(PROTO).next().is_some() || head.values(HOST).next().is_some()) {
        let host = hosts.next().and_then(|host| std::str::from_utf8(host).ok()).map(Box::from);
        entries.push(Entry { node: None, proto: protos.next(), host });
    }
    entries
}

/// What `Forwarded` says, the last element first. What stands on a line before something malformed is not looked at.
fn rfc_entries<'h>(head: &Head<'h>) -> Entries<'h> {
    let lines: ArrayVec<&[u8], { crate::h1::MAX_FIELDS }> = head.values(FORWARDED).collect();
    let mut entries = Entries::new();
    for line in lines.into_iter().rev() {
        let mut elements = Vec::new();
        let right = read_line(line, |element| elements.push(element));
        if right.is_none() {
            // A quote that somebody opened could have swallowed what a hop appended.
            let _ = entries.try_push(Entry::default());
            return entries;
        }
        for element in elements.into_iter().rev() {
            if entries.try_push(element).is_err() {
                return entries;
            }
        }
    }
    entries
}

/// Reads a line of `Forwarded`: `for=…;proto=…;host=…, for=…`; `None` where it is malformed.
fn read_line<'h>(mut rest: &'h [u8], mut found: impl FnMut(Entry<'h>)) -> Option<()> {
    loop {
        rest = skip(rest);
        if rest.is_empty() {
            return Some(());
        }
        if let [b',', after @ ..] = rest {
            rest = after;
            continue;
        }
        let mut element = Entry::default();
        let mut seen = 0_u8;
        loop {
            let (name, value, after) = pair(rest)?;
            let bit = match name {
                name if name.eq_ignore_ascii_case(b"for") => {
                    element.node = node(&value.text());
                    1
                }
                name if name.eq_ignore_ascii_case(b"proto") => {
                    element.proto = Some(value.raw);
                    2
                }
                name if name.eq_ignore_ascii_case(b"host") => {
                    element.host = String::from_utf8(value.text().into_owned()).ok().map(Into::into);
                    4
                }
                _ => 0,
            };
            // Each is there once (section 4).
            if seen & bit != 0 {
                return None;
            }
            seen |= bit;
            rest = skip(after);
            match rest {
                [] => {
                    found(element);
                    return Some(());
                }
                [b',', after @ ..] => {
                    found(element);
                    rest = after;
                    break;
                }
                [b';', after @ ..] => rest = skip(after),
                _ => return None,
            }
        }
    }
}

/// A value: a token, or what stands between quotes.
struct Value<'h> {
    raw: &'h [u8],
    escaped: bool,
}

impl<'h> Value<'h> {
    fn text(&self) -> std::borrow::Cow<'h, [u8]> {
        if !self.escaped {
            return self.raw.into();
        }
        let mut bytes = self.raw.iter();
        let mut text = Vec::new();
        while let Some(byte) = bytes.next() {
            text.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
        }
        text.into()
    }
}

/// A name, its value, and what comes after both.
fn pair(bytes: &[u8]) -> Option<(&[u8], Value<'_>, &[u8])> {
    let name = bytes.iter().take_while(|byte| is_token(**byte)).count();
    let (name, rest) = bytes.split_at(name);
    let [b'=', rest @ ..] = rest else { return None };
    if name.is_empty() {
        return None;
    }
    if let [b'"', quoted @ ..] = rest {
        let (mut at, mut escaped) = (0, false);
        loop {
            match quoted.get(at)? {
                b'"' => return Some((name, Value { raw: &quoted[..at], escaped }, &quoted[at + 1..])),
                b'\\' => {
                    escaped = true;
                    at += 2;
                }
                _ => at += 1,
            }
        }
    }
    // Addresses with a port, and IPv6, need quotes; many leave them out.
    let value = rest.iter().take_while(|byte| is_token(**byte) || b":[]".contains(byte)).count();
    let (value, rest) = rest.split_at(value);
    (!value.is_empty()).then_some((name, Value { raw: value, escaped: false }, rest))
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn skip(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii_start()
}

/// An address, with or without a port, IPv6 with or without brackets; `None` for what is hidden (`unknown`, `_name`)
/// or malformed.
fn node(bytes: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    if let Ok(address) = IpAddr::from_str(text) {
        return Some(address.to_canonical());
    }
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (address.parse::<std::net::Ipv6Addr>().ok()?.into(), port)
        }
        None => {
            let colon = text.find(':')?;
            (text[..colon].parse::<std::net::Ipv4Addr>().ok()?.into(), &text[colon..])
        }
    };
    let is_port = |port: &str| {
        let digits = (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
        // An obfuscated port (RFC 7239, section 6.3).
        digits || port.strip_prefix('_').is_some_and(|name| !name.is_empty() && name.bytes().all(is_token))
    };
    let right = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    right.then(|| IpAddr::to_canonical(&address))
}

fn scheme(text: &[u8]) -> Option<bool> {
    match () {
        () if text.eq_ignore_ascii_case(b"https") || text.eq_ignore_ascii_case(b"wss") => Some(true),
        () if text.eq_ignore_ascii_case(b"http") || text.eq_ignore_ascii_case(b"ws") => Some(false),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h1::request;

    fn forwarding(dialect: Dialect) -> Forwarding {
        let hops = ["10.0.0.0/8", "2001:db8:ffff::/48"].map(|hop| hop.parse().expect("network"));
        Forwarding { hops: hops.into(), dialect }
    }

    fn read(dialect: Dialect, fields: &str) -> Said {
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
        request::parse(head.as_bytes(), |head| forwarding(dialect).read(head)).expect("right").expect("whole")
    }

    fn check(dialect: Dialect, fields: &str, client: Option<&str>, hops: &[&str]) {
        let said = read(dialect, fields);
        let shown: Vec<_> = said.hops.iter().map(ToString::to_string).collect();
        let told = said.client.map(|client| client.to_string());
        assert_eq!(
            (told.as_deref(), &shown[..]),
            (client, &hops.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>()[..]),
            "{fields}"
        );
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_no_trusted_hop() {
        for (value, client, hops) in [
            ("192.0.2.7", Some("192.0.2.7"), &[][..]),
            ("1.1.1.1, 192.0.2.7", Some("192.0.2.7"), &[]),
            ("10.9.9.9, 192.0.2.7", Some("192.0.2.7"), &[]),
            ("192.0.2.7, 10.0.0.2, 10.0.0.3", Some("192.0.2.7"), &["10.0.0.2", "10.0.0.3"]),
            ("1.1.1.1,192.0.2.7\r\nX-Forwarded-For: 10.0.0.2", Some("192.0.2.7"), &["10.0.0.2"]),
            ("10.0.0.1, 10.0.0.2", Some("10.0.0.1"), &["10.0.0.2"]),
            ("192.0.2.7:4711", Some("192.0.2.7"), &[]),
            ("2001:db8::7", Some("2001:db8::7"), &[]),
            ("[2001:db8::7]", Some("2001:db8::7"), &[]),
            ("[2001:db8::7]:80, 2001:db8:ffff::1", Some("2001:db8::7"), &["2001:db8:ffff::1"]),
            ("::ffff:192.0.2.7, ::ffff:10.0.0.2", Some("192.0.2.7"), &["10.0.0.2"]),
            (", 192.0.2.7 ,, 10.0.0.2 ,", Some("192.0.2.7"), &["10.0.0.2"]),
            ("192.0.2.7, unknown", None, &[]),
            ("192.0.2.7, unknown, 10.0.0.2", None, &[]),
            ("10.0.0.1, 300.1.1.1", None, &[]),
            ("192.0.2.7:, 10.0.0.2", None, &[]),
            ("192.0.2.7:123456", None, &[]),
            ("[::1", None, &[]),
            ("[192.0.2.7]", None, &[]),
            ("0300.0.2.7", None, &[]),
            ("fe80::1%eth0", None, &[]),
            ("\"192.0.2.7\"", None, &[]),
            ("\u{e4}", None, &[]),
            ("", None, &[]),
        ] {
            check(Dialect::XForwarded, &format!("X-Forwarded-For: {value}"), client, hops);
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_has_it() {
        for (value, client, hops) in [
            ("for=192.0.2.7", Some("192.0.2.7"), &[][..]),
            ("For=\"192.0.2.7:80\";Proto=https;by=_x", Some("192.0.2.7"), &[]),
            ("for=1.1.1.1, for=192.0.2.7;host=a, for=10.0.0.2", Some("192.0.2.7"), &["10.0.0.2"]),
            ("for=\"[2001:db8::7]:_port\" , for=\"\\1\\0.0.0.2\"", Some("2001:db8::7"), &["10.0.0.2"]),
            ("for=[2001:db8::7]:80", Some("2001:db8::7"), &[]),
            ("for=192.0.2.7,\r\nForwarded: ,for=10.0.0.2,", Some("192.0.2.7"), &["10.0.0.2"]),
            ("for=192.0.2.7, for=unknown", None, &[]),
            ("for=192.0.2.7, for=_secret", None, &[]),
            ("for=192.0.2.7, by=10.0.0.2", None, &[]),
            ("for=192.0.2.7;for=10.0.0.2", None, &[]),
            // What somebody opened, a hop that appends closes or leaves open.
            ("for=10.0.0.1;by=\", for=192.0.2.7", None, &[]),
            ("for=10.0.0.1;by=\", for=\"[2001:db8::7]:80\"", None, &[]),
            ("for=10.0.0.1;by=\"\\, for=192.0.2.7", None, &[]),
            ("for=192.0.2.7;", None, &[]),
            ("for = 192.0.2.7", None, &[]),
            ("192.0.2.7", None, &[]),
            ("for=", None, &[]),
            ("", None, &[]),
        ] {
            check(Dialect::Rfc7239, &format!("Forwarded: {value}"), client, hops);
        }
    }

    #[test]
    fn only_the_dialect_that_hops_speak_is_believed_and_contradictions_are_not() {
        let both = "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.8";
        check(Dialect::XForwarded, both, Some("192.0.2.7"), &[]);
        check(Dialect::Rfc7239, both, Some("192.0.2.8"), &[]);
        check(Dialect::Both, both, None, &[]);
        check(Dialect::Both, "X-Forwarded-For: 192.0.2.7", Some("192.0.2.7"), &[]);
        check(Dialect::Both, "Forwarded: for=192.0.2.7", Some("192.0.2.7"), &[]);
        check(
            Dialect::Both,
            "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.7",
            Some("192.0.2.7"),
            &[],
        );
        check(Dialect::Both, "X-Forwarded-For: 192.0.2.7\r\nForwarded: nonsense", None, &[]);
    }

    #[test]
    fn more_hops_than_there_may_be_and_ten_thousand_entries_name_nobody() {
        let hops = vec!["10.0.0.1"; 10_000].join(",");
        check(Dialect::XForwarded, &format!("X-Forwarded-For: {hops}"), None, &[]);
        check(Dialect::XForwarded, &format!("X-Forwarded-For: {hops}, 192.0.2.7"), Some("192.0.2.7"), &[]);
        let hops = vec!["for=10.0.0.1"; 10_000].join(",");
        check(Dialect::Rfc7239, &format!("Forwarded: {hops}"), None, &[]);
        check(Dialect::Rfc7239, &format!("Forwarded: {hops}, for=192.0.2.7"), Some("192.0.2.7"), &[]);
    }

    #[test]
    fn scheme_and_host_are_those_that_the_client_asked() {
        for (dialect, fields, secure, host) in [
            (
                Dialect::XForwarded,
                "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: HTTPS\r\nX-Forwarded-Host: a:80",
                Some(true),
                Some("a:80"),
            ),
            (
                Dialect::XForwarded,
                "X-Forwarded-For: 192.0.2.7, 10.0.0.2\r\nX-Forwarded-Proto: https, http\r\nX-Forwarded-Host: a",
                Some(true),
                Some("a"),
            ),
            // What is left of the client, strangers wrote.
            (
                Dialect::XForwarded,
                "X-Forwarded-For: 1.1.1.1, 192.0.2.7\r\nX-Forwarded-Proto: https, http\r\nX-Forwarded-Host: evil, a",
                Some(false),
                Some("a"),
            ),
            (
                Dialect::XForwarded,
                "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: a b",
                None,
                None,
            ),
            (Dialect::XForwarded, "X-Forwarded-Proto: https", Some(true), None),
            (
                Dialect::Rfc7239,
                "Forwarded: for=1.1.1.1;proto=https;host=evil, for=192.0.2.7;proto=http;host=\"a:80\", for=10.0.0.2;proto=https",
                Some(false),
                Some("a:80"),
            ),
            (Dialect::Rfc7239, "Forwarded: for=192.0.2.7;host=\"a\\\"\"", None, None),
        ] {
            let said = read(dialect, fields);
            assert_eq!((said.secure, said.host.as_deref()), (secure, host), "{fields}");
        }
    }

    #[test]
    fn what_is_written_is_read_again_by_the_next_gateway() {
        let hops: Vec<IpAddr> =
            ["10.0.0.2", "2001:db8:ffff::1"].map(|hop| hop.parse().expect("address")).into();
        for dialect in [Dialect::XForwarded, Dialect::Rfc7239, Dialect::Both] {
            for client in ["192.0.2.7", "2001:db8::7"] {
                let mut out = Vec::new();
                forwarding(dialect).write(client, &hops, true, "a:80", &mut out);
                let text = String::from_utf8(out).expect("text");
                let said = read(dialect, text.trim_end());
                let expected = Said {
                    client: client.parse().ok(),
                    hops: hops.clone(),
                    secure: Some(true),
                    host: Some("a:80".into()),
                };
                assert_eq!(said, expected, "{text}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(line in "[ -~]{0,80}") {
            for dialect in [Dialect::XForwarded, Dialect::Rfc7239, Dialect::Both] {
                for name in ["X-Forwarded-For", "Forwarded", "X-Forwarded-Host"] {
                    read(dialect, &format!("{name}: {line}"));
                }
            }
        }

        /// Whatever strangers send, who appends to it is believed, or nobody is.
        #[test]
        fn nothing_that_comes_before_what_a_hop_appends_names_another_client(before in "[ -~]{0,60}") {
            let name = |dialect, text: &str| read(dialect, text).client.map(|client| client.to_string());
            let x = name(Dialect::XForwarded, &format!("X-Forwarded-For: {before}, 192.0.2.7"));
            proptest::prop_assert_eq!(x.as_deref(), Some("192.0.2.7"));
            for appended in ["for=192.0.2.7", "for=\"192.0.2.7:80\";proto=https"] {
                let rfc = name(Dialect::Rfc7239, &format!("Forwarded: {before}, {appended}"));
                proptest::prop_assert!(rfc.is_none() || rfc.as_deref() == Some("192.0.2.7"));
                let rfc = name(Dialect::Rfc7239, &format!("Forwarded: {before}\r\nForwarded: {appended}"));
                proptest::prop_assert_eq!(rfc.as_deref(), Some("192.0.2.7"));
            }
        }
    }
}
