//! Round trips through another host, as OAuth and OpenID Connect make them: a preview sends its browser to whoever
//! it logs in at, and that one sends it back to the only address that it knows, which is the baseline's.
//!
//! What such a trip carries along is `state` (RFC 6749, section 4.1.1): nobody else knows it, and it comes back
//! as it went. So a cookie says, for that `state` and to this browser alone, from which preview it left and where it is to
//! come back to.

use form_urlencoded::parse as parse_query;
use overlane_config::blueprint::hex;
use overlane_config::browser::{Cookie, returns};
use overlane_config::preview::{Preview, Previews};
use overlane_config::url::split_authority;

use super::pass::digest;
use super::response::{Place, absolute, path_of};
use super::{Arrival, FETCH_SITE, Visit, exposure_at, label_of, write_cookie};
use crate::plane::answer::Answer;

/// For how many seconds somebody may take to log in.
const SECONDS: u32 = 15 * 60;
/// After the place, where it comes back as a form.
const FORM: &str = ".form";

/// The `state` in a query, as cookies are called after it.
fn state(query: &str) -> Option<String> {
    let (_, state) = parse_query(query.as_bytes()).find(|(name, _)| name == "state")?;
    Some(hex(&digest(&state)[..8]))
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
    let path = path_of(path);
    let exposure = exposure_at(place.table, place.baseline, preview.environment(), back, path)?;
    let (own, _) = split_authority(&visit.authority).ok()?;
    let label = label_of(Some(&exposure.service), preview.environment())?;
    let domain = shared_domain(own, back)?;
    let by_form =
        parse_query(query.as_bytes()).any(|(name, value)| name == "response_mode" && value == "form_post");
    let value = format!("{label}.{}{}", place_of(back, path), if by_form { FORM } else { "" });
    // It may come back as a form that another site posts.
    let site = if visit.secure { "SameSite=None" } else { "SameSite=Lax" };
    let more = format!("{site}; Max-Age={SECONDS}");
    Some(write_cookie(Cookie::Return(&state(query)?), &value, visit.secure, Some(domain), &more))
}

/// The host and path to which a trip comes back, as the cookie has them.
fn place_of(host: &str, path: &str) -> String {
    hex(&digest(&format!("{}{path}", host.to_ascii_lowercase()))[..8])
}

impl Arrival<'_> {
    /// Sends a browser on that comes back from a round trip, to the preview that it left. Whether that is there, and
    /// whom it lets in, is said there.
    pub(super) fn come_back(&self) -> Result<(), Box<Answer>> {
        let (host, _) = split_authority(self.head.authority).unwrap_or_default();
        let here = place_of(host, self.head.path);
        let to = |value: &'_ str| -> Option<(String, bool)> {
            let (label, rest) = value.split_once('.')?;
            let by_form = rest.strip_suffix(FORM);
            (by_form.unwrap_or(rest) == here).then(|| (label.to_owned(), by_form.is_some()))
        };
        let (state, label) = match self.head.query().and_then(state) {
            Some(state) => {
                let known = Cookie::Return(&state).values(&self.head.fields, self.secure).find_map(to);
                let Some((label, _)) = known else { return Ok(()) };
                (state, label)
            }
            // It says so in the form that another site posts: told where there is only one.
            None if self.head.method == "POST"
                && self.head.values(FETCH_SITE).any(|site| site == b"cross-site") =>
            {
                let known = returns(&self.head.fields, self.secure);
                let mut forms = known.filter_map(|(state, value)| Some((state, to(value)?)));
                let Some((state, (label, true))) = forms.find(|(_, (_, by_form))| *by_form) else {
                    return Ok(());
                };
                if forms.any(|(_, (other, by_form))| by_form && other != label) {
                    return Ok(());
                }
                (state.to_owned(), label)
            }
            None => return Ok(()),
        };
        if Previews::preview(&label).is_none() {
            return Ok(());
        }
        let domain = shared_domain(self.baseline.previews.domain(), host);
        let forget = self.cookie(Cookie::Return(&state), "", domain, "SameSite=Lax; Max-Age=0");
        Err(self.moved("returned", self.preview_origin(&label) + &self.target(), [forget]))
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
