//! What a response to a browser says otherwise than its application did.

use overlane_config::browser::is_our_cookie;
use overlane_config::carrier::FieldLines;
use overlane_config::preview::Preview;
use overlane_config::table::{Baseline, Hosts};
use overlane_config::url::split_authority;

use super::{Visit, label_of, preview_origin, round_trip};
use crate::h1::Name;
use crate::plane::exchange::line;
use crate::snapshot::Table;
use crate::upstream::Upstream;
use std::sync::Arc;

const LOCATION: Name<'_> = Name::of("location");
const SET_COOKIE: Name<'_> = Name::of("set-cookie");
const REFERRER_POLICY: Name<'_> = Name::of("referrer-policy");

/// Where a response is decided.
pub struct Place<'a> {
    /// The table.
    pub table: &'a Table,
    /// The listener's baseline.
    pub baseline: &'a Baseline<Arc<Upstream>>,
}

/// Whether a field of a gateway's response is replaced by what [`cookies`] and [`Visit::write`] append.
#[must_use]
pub fn replaces(visit: Option<&Visit>, name: Name<'_>) -> bool {
    let at_preview = || visit.is_some_and(|visit| visit.preview.is_some());
    name.is(&SET_COOKIE) || ((name.is(&LOCATION) || name.is(&REFERRER_POLICY)) && at_preview())
}

/// Appends an application's cookies: it cannot put its visitors into another overlay, and at a preview they are that
/// host's own.
pub fn cookies(visit: Option<&Visit>, fields: &(impl FieldLines + ?Sized), out: &mut Vec<u8>) {
    for cookie in fields.lines(SET_COOKIE.text()) {
        // Without a name, browsers take the value for it.
        let mut parts = cookie.split(|byte| matches!(byte, b'=' | b';')).map(<[u8]>::trim_ascii);
        if parts.find(|part| !part.is_empty()).is_some_and(is_our_cookie) {
            continue;
        }
        match visit.and_then(|visit| visit.preview.as_ref()) {
            Some(_) => line(out, "Set-Cookie", host_only(cookie)),
            None => line(out, "Set-Cookie", cookie),
        }
    }
}

impl Visit {
    /// Whether its response is for this browser only.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// Appends what a preview's response says otherwise, each line with its end; `fields` are those that came from
    /// upstream. Without a `place`, where it goes on for long already, they stay as they came.
    pub fn write(
        &self,
        place: Option<&Place<'_>>,
        status: u16,
        fields: &(impl FieldLines + ?Sized),
        out: &mut Vec<u8>,
    ) {
        let Some(preview) = &self.preview else { return };
        for policy in fields.lines(REFERRER_POLICY.text()) {
            // What the page loads says by its referrer where it belongs.
            let hides =
                [&b"no-referrer"[..], b"same-origin"].iter().any(|own| policy.eq_ignore_ascii_case(own));
            line(out, "Referrer-Policy", if hides { b"strict-origin" } else { policy });
        }
        for location in fields.lines(LOCATION.text()) {
            let to = std::str::from_utf8(location).ok().and_then(|to| Some((to, place?)));
            let kept = to.and_then(|(to, place)| self.kept_here(place, preview, to));
            line(out, "Location", kept.as_deref().map_or(location, str::as_bytes));
            let leaves = to.filter(|_| self.navigates && kept.is_none() && (300..400).contains(&status));
            if let Some(cookie) = leaves.and_then(|(to, place)| round_trip::leave(self, place, preview, to)) {
                line(out, "Set-Cookie", cookie);
            }
        }
    }

    /// A redirect to a host of the baseline's, where the same service is previewed.
    fn kept_here(&self, place: &Place<'_>, preview: &Preview, to: &str) -> Option<String> {
        let (authority, rest) = absolute(to)?;
        let (host, _) = split_authority(authority).ok()?;
        let path = path_of(rest);
        let exposure = super::exposure_at(place.table, place.baseline, preview.environment(), host, path)
            .filter(|exposure| matches!(exposure.hosts, Hosts::One(_)))?;
        let label = label_of(Some(&exposure.service), preview.environment())?;
        Some(preview_origin(place.baseline, self.secure, &self.authority, &label) + rest)
    }
}

/// The authority of an address, and what follows it; `None` where it has none.
pub(super) fn absolute(address: &str) -> Option<(&str, &str)> {
    let after = match address.strip_prefix("//") {
        Some(after) => after,
        None => {
            let (scheme, after) = address.split_once("://")?;
            let http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
            http.then_some(after)?
        }
    };
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    Some(after.split_at(end))
}

/// The path of what follows an authority.
pub(super) fn path_of(rest: &str) -> &str {
    rest.split(['?', '#']).next().filter(|path| !path.is_empty()).unwrap_or("/")
}

/// A cookie without its `Domain`: at a preview's host the application's is either refused by the browser or shared
/// with the baseline and with every other overlay.
fn host_only(cookie: &[u8]) -> Vec<u8> {
    let attributes = cookie.split(|byte| *byte == b';');
    let is_domain = |attribute: &[u8]| {
        let name = attribute.split(|byte| *byte == b'=').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"domain")
    };
    // The first is the cookie itself, whatever its name.
    let kept = attributes.enumerate().filter(|(at, attribute)| *at == 0 || !is_domain(attribute));
    kept.map(|(_, attribute)| attribute).collect::<Vec<_>>().join(&b';')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_loses_its_domain_and_nothing_else() {
        for (cookie, expected) in [
            ("a=1; Domain=example.com; Path=/", "a=1; Path=/"),
            ("domain=1; DOMAIN = .example.com;Secure", "domain=1;Secure"),
            ("a=\"x; y\"; Path=/", "a=\"x; y\"; Path=/"),
            ("a", "a"),
            ("", ""),
        ] {
            assert_eq!(host_only(cookie.as_bytes()), expected.as_bytes(), "{cookie}");
        }
    }

    #[test]
    fn only_an_address_with_an_authority_leads_elsewhere() {
        for (address, expected) in [
            ("https://a.b:1/c?d", Some(("a.b:1", "/c?d"))),
            ("HTTP://a", Some(("a", ""))),
            ("http://a?x://y", Some(("a", "?x://y"))),
            ("/a?b=http://c", None),
            ("//a/b", Some(("a", "/b"))),
            ("ftp://a/", None),
        ] {
            assert_eq!(absolute(address), expected, "{address}");
        }
    }
}
