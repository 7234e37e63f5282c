//! Round trips through another host, as OAuth and OpenID Connect make them: a preview sends its browser to whoever
//! it logs in at, and that one sends it back to the only address that it knows, which is the baseline's.
//!
//! What such a trip carries along is `state` (RFC 6749, section 4.1.1): nobody else knows it, and it comes back
//! as it went. So a cookie says, for that `state` and to this browser alone, from which preview it left.

use form_urlencoded::parse as parse_query;
use overlane_config::browser::{Cookie, returns};
use overlane_config::preview::Preview;
use overlane_config::url::split_authority;

use super::pass::digest;
use super::response::{Place, absolute};
use super::{Arrival, Visit, exposure_at, label_of, write_cookie};
use crate::plane::answer::Answer;

/// For how many seconds somebody may take to log in.
const SECONDS: u32 = 15 * 60;

/// The `state` in a query, as cookies are called after it.
fn state(query: &str) -> Option<String> {
    let (_, state) = parse_query(query.as_bytes()).find(|(name, _)| name == "state")?;
    Some(digest(&state)[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The domain for which a cookie can be set that both hosts get: of at least two labels.
fn shared_domain<'h>(one: &'h str, other: &str) -> Option<&'h str> {
    let same =
        one.rsplit('.').zip(other.rsplit('.')).take_while(|(own, other)| own.eq_ignore_ascii_case(other));
    let length: usize = same.clone().map(|(label, _)| label.len() + 1).sum();
    (same.count() >= 2).then(|| &one[one.len() + 1 - length..])
}

/// The cookie for a browser that is sent `to` another host, from where it comes back to one of the baseline's.
pub(super) fn leave(visit: &Visit, place: &Place<'_>, preview: &Preview, to: &str) -> Option<String> {
    let (_, rest) = absolute(to)?;
    let (_, query) = rest.split_once('?')?;
    let query = query.split('#').next()?;
    let (_, back) = parse_query(query.as_bytes()).find(|(name, _)| name == "redirect_uri")?;
    let (authority, path) = absolute(&back)?;
    let (back, _) = split_authority(authority).ok()?;
    let path = path.split(['?', '#']).next().filter(|path| !path.is_empty()).unwrap_or("/");
    let exposure = exposure_at(place.table, place.baseline, preview.environment(), back, path)?;
    let (own, _) = split_authority(&visit.authority).ok()?;
    let label = label_of(Some(&exposure.service), preview.environment())?;
    let domain = shared_domain(own, back)?;
    // It may come back as a form that another site posts.
    let site = if visit.secure { "SameSite=None" } else { "SameSite=Lax" };
    let more = format!("{site}; Max-Age={SECONDS}");
    Some(write_cookie(Cookie::Return(&state(query)?), &label, visit.secure, Some(domain), &more))
}

impl Arrival<'_> {
    /// Sends a browser on that comes back from a round trip, to the preview that it left.
    pub(super) fn come_back(&self) -> Result<(), Box<Answer>> {
        let mut known = returns(&self.head.fields, self.secure);
        let found = match self.head.query().and_then(state) {
            Some(state) => known.find(|(own, _)| *own == state),
            // It says so in the form that it posts: told where there is only one.
            None if self.head.method == "POST" => known.next().filter(|_| known.next().is_none()),
            None => None,
        };
        let Some((state, label)) = found else { return Ok(()) };
        let previews = &self.baseline.previews;
        let Some(preview) = previews.read(&format!("{label}.{}", previews.domain())) else { return Ok(()) };
        let (Some(origin), true) = (self.preview_origin(label), self.is_live(preview.environment())) else {
            return Ok(());
        };
        let (host, _) = split_authority(self.head.authority).unwrap_or_default();
        let domain = shared_domain(previews.domain(), host);
        let forget = self.forget(Cookie::Return(state), domain);
        Err(self.moved("returned", origin + &self.target(), [forget]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_share_a_domain_of_at_least_two_labels() {
        for (one, other, expected) in [
            ("web--a.preview.example.com", "shop.staging.example.com", Some("example.com")),
            ("web--a.example.com", "EXAMPLE.com", Some("example.com")),
            ("a.b.example.com", "b.example.com", Some("b.example.com")),
            ("a.com", "b.com", None),
            ("web--a.localhost", "localhost", None),
            ("a.example.com", "a.example.org", None),
        ] {
            assert_eq!(shared_domain(one, other), expected, "{one} {other}");
        }
    }

    #[test]
    fn a_state_is_told_by_its_value_however_it_is_encoded() {
        assert_eq!(state("a=1&state=x%2By"), state("state=x%2by&b"));
        assert_ne!(state("state=x"), state("state=y"));
        assert_eq!(state("a=state"), None);
    }
}
