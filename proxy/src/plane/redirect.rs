//! The listener in the clear beside a gateway that speaks TLS: it sends clients there.
//!
//! Only tokens for authorities of certificates (ACME, RFC 8555, section 8.3) are passed on, as the gateway would.

use overlane_config::url::split_authority;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::answer::{Answer, More};
use crate::h1::request::Head;

/// Where authorities look for tokens.
const CHALLENGES: &str = "/.well-known/acme-challenge/";
/// What a path and a query never hold unescaped (RFC 3986, section 3.3); a `%` is of an escape already.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
/// The port that an `https:` url means.
const HTTPS: u16 = 443;

/// Whether an authority looks for a token. A token is one segment of base64url: what is anything else does not pass by in
/// the clear.
#[must_use]
pub fn is_challenge(path: &str) -> bool {
    let token = path.strip_prefix(CHALLENGES).unwrap_or_default();
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// The answer to a request that came in the clear: the same in TLS, where clients reach the gateway at `port`.
#[must_use]
pub fn to_https(head: &Head<'_>, port: u16) -> Answer {
    let Ok((host, _)) = split_authority(head.authority) else {
        let answer = Answer::plain(400, "http_request_error", "malformed", "the request names no host");
        return Answer { hint: Some("use https://".to_owned()), ..answer };
    };
    let target = match head.absolute {
        true => &head.target["http://".len() + head.authority.len()..],
        false => head.target,
    };
    // `*` is the whole server; in absolute form it is nothing, and so may be a path before a query.
    let (slash, target) = match target {
        "*" => ("/", ""),
        target if target.starts_with('/') => ("", target),
        target => ("/", target),
    };
    let host = host.to_ascii_lowercase();
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let port = if port == HTTPS { String::new() } else { format!(":{port}") };
    let location = format!("https://{host}{port}{slash}{}", utf8_percent_encode(target, ESCAPED));
    // Nothing is wrong, so there is no error; and only the address repeats what was asked.
    let answer = Answer::plain(308, "", "redirect", "this is served by https:// only");
    answer.with(More { fields: vec![("Location", location)], ..More::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h1::request::parse;

    fn location(target: &str, host: &str, port: u16) -> Option<String> {
        let head = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = parse(head.as_bytes(), |head| to_https(head, port)).expect("right").expect("whole");
        let fields = answer.more.map(|more| more.fields).unwrap_or_default();
        fields.into_iter().find(|(name, _)| *name == "Location").map(|(_, location)| location)
    }

    #[test]
    fn a_request_is_sent_to_the_same_host_path_and_query() {
        for (target, host, port, expected) in [
            ("/", "Shop.example.com", 443, "https://shop.example.com/"),
            ("/a/b?c=d&e", "shop:80", 443, "https://shop/a/b?c=d&e"),
            ("/a", "shop:8080", 7443, "https://shop:7443/a"),
            ("/a", "[::1]:80", 7443, "https://[::1]:7443/a"),
            ("/a", "192.0.2.1", 443, "https://192.0.2.1/a"),
            ("//evil.example", "shop", 443, "https://shop//evil.example"),
            ("/%0d%0aSet-Cookie:a=b", "shop", 443, "https://shop/%0d%0aSet-Cookie:a=b"),
            ("/\"<>\\^`{|}\u{e4}", "shop", 443, "https://shop/%22%3C%3E%5C%5E%60%7B%7C%7D%C3%A4"),
            ("http://other:80/a?b", "shop", 443, "https://other/a?b"),
            ("http://other?b", "shop", 443, "https://other/?b"),
            ("http://other", "shop", 443, "https://other/"),
        ] {
            assert_eq!(location(target, host, port).as_deref(), Some(expected), "{target} {host}");
        }
        assert_eq!(location("/", "", 443), None);
    }

    #[test]
    fn only_tokens_pass_in_the_clear() {
        assert!(is_challenge("/.well-known/acme-challenge/evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA"));
        for path in [
            "/.well-known/acme-challenge/",
            "/.well-known/acme-challenge",
            "/.well-known/acme-challenge/a/b",
            "/.well-known/acme-challenge/../admin",
            "/.well-known/acme-challenge/..",
            "/.well-known/acme-challenge/%2e%2e",
            "/.well-known/acme-challenge/a;b",
            "/x/.well-known/acme-challenge/a",
            "/",
        ] {
            assert!(!is_challenge(path), "{path}");
        }
    }
}
