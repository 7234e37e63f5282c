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

/// Where a response is decided.
pub struct Place<'a> {
    /// The table.
    pub table: &'a Table,
    /// The listener's baseline.
    pub baseline: &'a Baseline<Arc<Upstream>>,
}

impl Visit {
    /// Whether a field of the response is replaced by [`Visit::write`].
    #[must_use]
    pub fn replaces(&self, name: Name<'_>) -> bool {
        name.is(&SET_COOKIE) || (self.preview.is_some() && name.is(&LOCATION))
    }

    /// Appends the lines that this response has for a browser, each with its line end; `fields` are those that
    /// came from upstream.
    pub fn write(
        &self,
        place: &Place<'_>,
        status: u16,
        fields: &(impl FieldLines + ?Sized),
        out: &mut Vec<u8>,
    ) {
        for cookie in fields.lines(SET_COOKIE.text()) {
            let name = cookie.split(|byte| matches!(byte, b'=' | b';')).next().unwrap_or_default();
            // An application cannot put its visitors into another overlay.
            if !is_our_cookie(name.trim_ascii()) {
                match self.preview {
                    Some(_) => line(out, "Set-Cookie", host_only(cookie)),
                    None => line(out, "Set-Cookie", cookie),
                }
            }
        }
        if let Some(preview) = &self.preview {
            for location in fields.lines(LOCATION.text()) {
                let text = std::str::from_utf8(location).ok();
                let kept = text.and_then(|text| self.kept_here(place, preview, text));
                line(out, "Location", kept.as_deref().map_or(location, str::as_bytes));
                let leaves = text.filter(|_| (300..400).contains(&status));
                if let Some(cookie) = leaves.and_then(|to| round_trip::leave(self, place, preview, to)) {
                    line(out, "Set-Cookie", cookie);
                }
            }
        }
        if self.private {
            line(out, "Cache-Control", "private");
        }
    }

    /// A redirect to a host of the baseline's, where the same service is previewed.
    fn kept_here(&self, place: &Place<'_>, preview: &Preview, to: &str) -> Option<String> {
        let (authority, rest) = absolute(to)?;
        let (host, _) = split_authority(authority).ok()?;
        let path = rest.split(['?', '#']).next().filter(|path| !path.is_empty()).unwrap_or("/");
        let exposure = super::exposure_at(place.table, place.baseline, preview.environment(), host, path)
            .filter(|exposure| matches!(exposure.hosts, Hosts::One(_)))?;
        let label = label_of(Some(&exposure.service), preview.environment())?;
        Some(preview_origin(place.baseline, self.secure, &self.authority, &label)? + rest)
    }
}

/// The authority of an address, and what follows it; `None` where it has none.
pub(super) fn absolute(address: &str) -> Option<(&str, &str)> {
    let (scheme, after) = address.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    Some(after.split_at(end))
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
            ("//a/b", None),
            ("ftp://a/", None),
        ] {
            assert_eq!(absolute(address), expected, "{address}");
        }
    }
}
