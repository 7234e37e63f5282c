//! What browsers say of the overlay that they are in: they cannot send a header, so the host, the page that a
//! request comes from and a cookie stand for it.

use std::borrow::Cow;

use crate::carrier::{FieldLines, cookie};
use crate::name::is_label;
use crate::preview::{Host, Preview};
use crate::table::Baseline;
use crate::url::split_authority;

/// The parameter by which an address enters an overlay on a host that is no preview's: `?overlay=alice-payments`.
/// Without a value it leaves.
pub const PARAMETER: &str = "overlay";

/// With what the names of all our cookies begin, after [`HOST_PREFIX`] or [`SECURE_PREFIX`].
const COOKIE: &str = "overlane";
/// A cookie that only this very host can set, over TLS only (RFC 6265bis, section 4.1.3.2).
const HOST_PREFIX: &str = "__Host-";
/// A cookie that can only be set over TLS (RFC 6265bis, section 4.1.3.1).
const SECURE_PREFIX: &str = "__Secure-";
/// How many of the cookies of one name are looked at: a sibling's host may have set some of them.
const MOST_COOKIES: usize = 8;

/// One of our cookies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cookie<'c> {
    /// Which overlay this host's requests are for.
    Choice,
    /// What lets in at the previews of an environment.
    Pass(&'c str),
    /// Where a round trip through another host comes back to, by what it carries along.
    Return(&'c str),
}

impl Cookie<'_> {
    /// Its name; `secure` where it is set and sent over TLS only, so that nobody can set it for others.
    #[must_use]
    pub fn name(self, secure: bool) -> String {
        let prefix = match (self, secure) {
            (_, false) => "",
            (Self::Choice, true) => HOST_PREFIX,
            (Self::Pass(_) | Self::Return(_), true) => SECURE_PREFIX,
        };
        match self {
            Self::Choice => format!("{prefix}{COOKIE}"),
            Self::Pass(id) => format!("{prefix}{COOKIE}-pass-{id}"),
            Self::Return(state) => format!("{prefix}{COOKIE}-return-{state}"),
        }
    }

    /// The values of the cookies with its name, as they are written.
    pub fn values<'f, F: FieldLines + ?Sized>(
        self,
        fields: &'f F,
        secure: bool,
    ) -> impl Iterator<Item = &'f str> + use<'f, F> {
        let name = self.name(secure);
        let values = cookie::pairs_of(fields.lines("cookie")).filter(move |(own, _)| *own == name.as_bytes());
        values.filter_map(|(_, value)| std::str::from_utf8(value).ok()).take(MOST_COOKIES)
    }
}

/// The round trips that a browser may come back from: what each carries along, and where it left.
pub fn returns<'f, F: FieldLines + ?Sized>(
    fields: &'f F,
    secure: bool,
) -> impl Iterator<Item = (&'f str, &'f str)> + use<'f, F> {
    let prefix = Cookie::Return("").name(secure);
    cookie::pairs_of(fields.lines("cookie")).filter_map(move |(name, value)| {
        let state = name.strip_prefix(prefix.as_bytes())?;
        Some((std::str::from_utf8(state).ok()?, std::str::from_utf8(value).ok()?))
    })
}

/// Whether a cookie with this name is one of ours: it is between the browser and the gateway, and goes no further.
#[must_use]
pub fn is_our_cookie(name: &[u8]) -> bool {
    let prefixes = [HOST_PREFIX, SECURE_PREFIX];
    let name = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix.as_bytes())).unwrap_or(name);
    name.strip_prefix(COOKIE.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"-"))
}

/// What enters an overlay: its id, and what lets in whoever may not choose it otherwise. As a parameter's and a
/// cookie's value: `alice-payments`, or `alice-payments.SECRET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket<'t> {
    /// The environment.
    pub environment: &'t str,
    /// The secret.
    pub secret: Option<&'t str>,
}

impl<'t> Ticket<'t> {
    /// Reads one; `None` where it names nothing that could be an environment.
    #[must_use]
    pub fn read(text: &'t str) -> Option<Self> {
        let (environment, secret) = match text.split_once('.') {
            Some((environment, secret)) => (environment, Some(secret)),
            None => (text, None),
        };
        let plain = |secret: &str| {
            let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !secret.is_empty() && secret.len() <= 4096 && secret.bytes().all(fine)
        };
        let fine = is_label(environment.as_bytes()) && secret.is_none_or(plain);
        fine.then_some(Self { environment, secret })
    }
}

/// By what a browser's request says for which environment it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Its host is a preview's.
    Host,
    /// The page that it comes from is at a preview's host (`Origin`, `Referer`).
    Page,
    /// The host's cookie.
    Cookie,
}

impl By {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "the host",
            Self::Page => "the page that it comes from",
            Self::Cookie => "the cookie",
        }
    }
}

/// For which environment a browser's request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice<'f> {
    /// By what it says so.
    pub by: By,
    /// The environment's id; it need not be one.
    pub environment: Cow<'f, str>,
    /// The secret that came with it.
    pub secret: Option<&'f str>,
}

/// What a preview's host says.
#[must_use]
pub fn by_host(preview: &Preview) -> Choice<'static> {
    let environment = preview.environment().to_owned().into();
    Choice { by: By::Host, environment, secret: None }
}

/// For which environment a request to a host that is no preview's is, by the page that it comes from, or else by the
/// host's cookie. A page says more: what it loads belongs to it.
pub fn choose<'f, U>(
    baseline: &Baseline<U>,
    authority: &str,
    fields: &'f (impl FieldLines + ?Sized),
    secure: bool,
) -> Option<Choice<'f>> {
    if let Some(page) = page(baseline, authority, fields) {
        let environment = page.environment().to_owned().into();
        return Some(Choice { by: By::Page, environment, secret: None });
    }
    let ticket = Cookie::Choice.values(fields, secure).find_map(Ticket::read)?;
    Some(Choice { by: By::Cookie, environment: ticket.environment.into(), secret: ticket.secret })
}

/// The preview at this gateway that the page of a request to `authority` is at.
pub fn page<U>(
    baseline: &Baseline<U>,
    authority: &str,
    fields: &(impl FieldLines + ?Sized),
) -> Option<Preview> {
    let from = |name| {
        let value = std::str::from_utf8(fields.lines(name).next()?).ok()?;
        let (scheme, after) = value.split_once("://")?;
        let page = after.split(['/', '?', '#']).next()?;
        let preview = baseline.preview(page)?;
        let port = |authority| {
            let standard = if scheme == "https" { 443 } else { 80 };
            Some(split_authority(authority).ok()?.1.unwrap_or(standard))
        };
        // On a laptop, other programs have hosts below `localhost`, at other ports.
        let ours = match baseline.previews.is_local() {
            true => port(authority)?,
            false => baseline.previews.port(),
        };
        (port(page)? == ours).then_some(preview)
    };
    from("origin").or_else(|| from("referer"))
}

impl<U> Baseline<U> {
    /// What an authority stands for: the hosts that services are given are no previews.
    #[must_use]
    pub fn stands_for(&self, authority: &str) -> Host {
        // Most hosts are none: told without looking at all of them.
        let last = |bytes: &[u8]| bytes.last().map(|byte| byte | 0x20);
        let bytes = authority.as_bytes();
        let digits = bytes.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let host = bytes[..bytes.len() - digits].strip_suffix(b":").unwrap_or(bytes);
        let host = host.strip_suffix(b".").unwrap_or(host);
        if last(host) != last(self.previews.domain().as_bytes()) {
            return Host::Other;
        }
        let Ok((host, _)) = split_authority(authority) else { return Host::Other };
        let host = host.strip_suffix('.').unwrap_or(host);
        match self.previews.read(host) {
            Host::Other => Host::Other,
            _ if self.exposures.iter().any(|exposure| exposure.is_at(host)) => Host::Other,
            found => found,
        }
    }

    /// The preview that an authority stands for.
    #[must_use]
    pub fn preview(&self, authority: &str) -> Option<Preview> {
        match self.stands_for(authority) {
            Host::Preview(preview) => Some(preview),
            Host::Nothing | Host::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_cookies_are_told_from_an_applications() {
        for (name, ours) in [
            ("overlane", true),
            ("__Host-overlane", true),
            ("__Secure-overlane-pass-alice", true),
            ("overlane-return-1", true),
            ("overlaned", false),
            ("overlay", false),
            ("__Host-session", false),
            ("__Secure-__Host-overlane", false),
            ("", false),
        ] {
            assert_eq!(is_our_cookie(name.as_bytes()), ours, "{name}");
        }
        for cookie in [Cookie::Choice, Cookie::Pass("alice"), Cookie::Return("0123")] {
            assert!([true, false].into_iter().all(|secure| is_our_cookie(cookie.name(secure).as_bytes())));
        }
    }

    #[test]
    fn a_ticket_is_an_id_and_what_lets_in() {
        for (text, read) in [
            ("alice", Some(("alice", None))),
            ("alice.S3-cr_t", Some(("alice", Some("S3-cr_t")))),
            ("alice.a.b.c", Some(("alice", Some("a.b.c")))),
            ("alice.", None),
            ("Alice", None),
            ("", None),
            ("alice.a b", None),
            ("a--b", None),
        ] {
            let ticket = Ticket::read(text).map(|ticket| (ticket.environment, ticket.secret));
            assert_eq!(ticket, read, "{text}");
        }
    }

    #[test]
    fn over_tls_only_cookies_count_that_nobody_else_could_set() {
        let fields = [("cookie", "overlane=evil; __Host-overlane=alice; overlane-pass-a=x")];
        assert_eq!(Cookie::Choice.values(&fields[..], true).collect::<Vec<_>>(), ["alice"]);
        assert_eq!(Cookie::Choice.values(&fields[..], false).collect::<Vec<_>>(), ["evil"]);
        assert_eq!(Cookie::Pass("a").values(&fields[..], true).count(), 0);
    }
}
