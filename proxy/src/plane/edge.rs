//! The edge: how browsers, which cannot send a header, enter an overlay, stay in it and leave it.
//!
//! A preview's host says the overlay in its name. On other hosts a cookie does, which entering by an address
//! (`?overlay=ID`) sets, or the page that a request comes from. Who may not choose an overlay enters with a secret
//! that was shared for it, and for everybody else no overlay exists. All of it is decided by pure functions of a
//! table, a request's head and the time; the cookies are between the browser and the gateway.

mod page;
mod pass;
mod response;
mod round_trip;

use form_urlencoded::parse as parse_query;
use overlane_config::blueprint::OnUnknown;
use overlane_config::browser::{self, By, Choice, Cookie, PARAMETER, Ticket};
use overlane_config::carrier::Keys;
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::preview::{Preview, label};
use overlane_config::table::{Baseline, Environment, Exposure};
use overlane_config::time::UnixMillis;
use overlane_config::url::split_authority;

use super::Gate;
use super::answer::{Answer, More};
use super::standing::{Right, Standing};
use crate::clock;
use crate::h1::Name;
use crate::h1::request::Head;
use crate::metrics::{Event, count};
use crate::snapshot::{Snapshot, Table};
use crate::upstream::Upstream;
use std::cell::OnceCell;
use std::sync::Arc;

pub(super) use page::html;
pub use pass::{Secret, digest};
pub use response::Place;

/// The gateway's own page: which overlay a host's requests are for, and where others are.
const OWN_PAGE: &str = "/.overlane";
/// What a page may load that comes with nothing to load.
const ORIGIN: Name<'_> = Name::of("origin");
const FETCH_MODE: Name<'_> = Name::of("sec-fetch-mode");
const FETCH_SITE: Name<'_> = Name::of("sec-fetch-site");
const FETCH_DEST: Name<'_> = Name::of("sec-fetch-dest");
const ACCEPT: Name<'_> = Name::of("accept");
const ASKED_METHOD: Name<'_> = Name::of("access-control-request-method");
const ASKED_HEADERS: Name<'_> = Name::of("access-control-request-headers");

/// A browser's request at a gateway, and what its response needs.
#[derive(Debug)]
pub struct Visit {
    /// What its host stands for, where it is a preview's.
    preview: Option<Preview>,
    /// Whether the browser reached the gateway over TLS.
    secure: bool,
    /// The authority that it asked.
    authority: Box<str>,
    /// Whether its response is for this browser only: others may be sent elsewhere, or may not come in.
    private: bool,
}

impl Visit {
    /// What its host stands for, where it is a preview's.
    #[must_use]
    pub fn preview(&self) -> Option<&Preview> {
        self.preview.as_ref()
    }
}

/// What became of a request's way in.
#[derive(Debug, Default)]
pub struct Entered {
    /// What a browser's request needs.
    pub visit: Option<Box<Visit>>,
    /// The key that it has by its host, page or cookie.
    pub keys: Option<Keys>,
}

/// Whether the head of a request is that of a browser that goes to a page, and shows what comes.
#[must_use]
pub fn is_navigation(head: &Head<'_>) -> bool {
    match head.values(FETCH_MODE).next() {
        Some(mode) => mode == b"navigate",
        None => {
            let shows = |accept: &[u8]| memchr::memmem::find(accept, b"text/html").is_some();
            matches!(head.method, "GET" | "HEAD") && head.values(ACCEPT).any(shows)
        }
    }
}

/// Lets a request in at a gateway; `keys` is what its carriers said.
///
/// # Errors
/// The answer to give instead: to enter or leave, to go to where the request belongs, or that there is nothing.
pub fn enter(
    snapshot: &Snapshot,
    gate: &Gate,
    head: &Head<'_>,
    standing: &Standing,
    keys: Option<&Keys>,
) -> Result<Entered, Box<Answer>> {
    let Some((arrival, preview)) = Arrival::of(snapshot, gate, head, standing) else {
        return Ok(Entered::default());
    };
    let entered = arrival.enter(gate, preview, keys);
    if arrival.refused.get().is_some() {
        count(Event::UntrustedHeaders);
    }
    entered
}

/// The overlay that a browser's request is for and that its sender may not choose, by no right and no secret.
#[must_use]
pub fn refused(
    snapshot: &Snapshot,
    gate: &Gate,
    head: &Head<'_>,
    standing: &Standing,
    keys: Option<&Keys>,
) -> Option<Keys> {
    let (arrival, preview) = Arrival::of(snapshot, gate, head, standing)?;
    let _ = arrival.enter(gate, preview, keys);
    arrival.refused.into_inner()
}

/// A request that may be a browser's.
struct Arrival<'a> {
    table: &'a Table,
    baseline: &'a Baseline<Arc<Upstream>>,
    head: &'a Head<'a>,
    right: &'a Right,
    secure: bool,
    now: UnixMillis,
    /// What its sender may not choose, where it chose that.
    refused: OnceCell<Keys>,
}

impl<'a> Arrival<'a> {
    /// A request at a gateway that may be a browser's, and the preview that its host stands for.
    fn of(
        snapshot: &'a Snapshot,
        gate: &Gate,
        head: &'a Head<'a>,
        standing: &'a Standing,
    ) -> Option<(Self, Option<Preview>)> {
        if !gate.is_edge() {
            return None;
        }
        let baseline = snapshot.table.baseline(gate.listener.baseline.as_ref())?;
        let preview = baseline.preview(head.authority);
        // Nothing that a browser says: what every other client pays for all this.
        if preview.is_none() && head.query().is_none() && !head.fields.of_browser() && head.path != OWN_PAGE {
            return None;
        }
        let Standing { right, secure, .. } = standing;
        let (table, now, refused) = (&snapshot.table, clock::now(), OnceCell::new());
        Some((Self { table, baseline, head, right, secure: *secure, now, refused }, preview))
    }

    fn enter(
        &self,
        gate: &Gate,
        preview: Option<Preview>,
        keys: Option<&Keys>,
    ) -> Result<Entered, Box<Answer>> {
        match preview {
            Some(preview) => self.at_preview(preview, gate.trust == super::trust::Trust::Any),
            None => self.elsewhere(keys),
        }
    }
}

impl Arrival<'_> {
    /// Whether an id names an environment of this baseline that is served now.
    fn is_live(&self, id: &str) -> bool {
        match self.table.environment(id) {
            Some(Environment::Overlay(overlay)) => {
                overlay.baseline == self.baseline.id && overlay.served_until.is_none_or(|at| at > self.now)
            }
            Some(Environment::Baseline(_)) => id == self.baseline.id.as_str(),
            Some(Environment::Refused(_)) | None => false,
        }
    }

    /// Whether one of these secrets was shared for an environment, and still counts.
    fn opens<'s>(&self, id: &str, secrets: impl IntoIterator<Item = &'s str>) -> bool {
        let Some(Environment::Overlay(overlay)) = self.table.environment(id) else { return false };
        !overlay.shares.is_empty()
            && secrets.into_iter().any(|secret| pass::opens(&overlay.shares, secret, self.now))
    }

    /// Whether the request may be for an environment, as its sender is or with one of these secrets.
    fn may<'s>(&self, id: &str, secrets: impl IntoIterator<Item = &'s str>) -> bool {
        let may = self.right.may_choose(id) || self.opens(id, secrets);
        if !may && let Some(keys) = keys(id) {
            // The first that is refused is what it is about.
            let _ = self.refused.set(keys);
        }
        may
    }

    fn visit(&self, preview: Option<Preview>, private: bool) -> Box<Visit> {
        Box::new(Visit { preview, secure: self.secure, authority: self.head.authority.into(), private })
    }

    fn at_preview(&self, preview: Preview, open: bool) -> Result<Entered, Box<Answer>> {
        let id = preview.environment();
        if let Some(secret) =
            self.ticket().filter(|ticket| ticket.environment == id).and_then(|own| own.secret)
            && self.opens(id, [secret])
        {
            let cookie = self.set_cookie(Cookie::Pass(id), secret, self.shared_domain());
            return Err(self.moved("entered", self.cleaned(), [cookie]));
        }
        let passes: Vec<_> = Cookie::Pass(id).values(&self.head.fields, self.secure).collect();
        if !self.may(id, passes) {
            return Err(self.announced(id).unwrap_or_else(|| self.nothing_here()));
        }
        if !self.is_live(id) {
            return Err(self.not_found(id));
        }
        let private = !(open && self.right.is_any());
        Ok(Entered { keys: keys(id), visit: Some(self.visit(Some(preview), private)) })
    }

    /// The answer to a preflight that cannot show its pass, since preflights carry no cookies: a page of the same
    /// environment may ask, and what it asks then shows its pass. Nothing of it goes upstream.
    fn announced(&self, id: &str) -> Option<Box<Answer>> {
        let method = self.head.values(ASKED_METHOD).next().filter(|_| self.head.method == "OPTIONS")?;
        let page = browser::page(self.baseline, &self.head.fields)?;
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).ok();
        let origin = text(self.head.values(ORIGIN).next()?).filter(|_| page.environment() == id)?;
        let mut fields = vec![
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Allow-Credentials", "true".to_owned()),
            ("Access-Control-Allow-Methods", text(method)?),
            ("Access-Control-Max-Age", "0".to_owned()),
        ];
        let headers = self.head.values(ASKED_HEADERS).next().and_then(text);
        fields.extend(headers.map(|headers| ("Access-Control-Allow-Headers", headers)));
        Some(Answer::plain(204, "", "preflight", "").with(More { fields, ..More::default() }).into())
    }

    /// On a host that is no preview's.
    fn elsewhere(&self, keys_of_carriers: Option<&Keys>) -> Result<Entered, Box<Answer>> {
        let navigates = is_navigation(self.head);
        if self.head.path == OWN_PAGE && matches!(self.head.method, "GET" | "HEAD") {
            return Err(self.own_page(keys_of_carriers));
        }
        if navigates {
            self.enter_or_leave()?;
            self.come_back()?;
        }
        let visit = |private| Some(self.visit(None, private));
        if keys_of_carriers.is_some() {
            return Ok(Entered { keys: None, visit: visit(true) });
        }
        let Some(choice) = browser::choose(self.baseline, &self.head.fields, self.secure) else {
            return Ok(Entered { keys: None, visit: visit(false) });
        };
        let id = &*choice.environment;
        let passes: Vec<_> = Cookie::Pass(id).values(&self.head.fields, self.secure).collect();
        if !self.may(id, choice.secret.into_iter().chain(passes)) {
            return Ok(Entered { keys: None, visit: visit(false) });
        }
        match (self.is_live(id), choice.by) {
            (true, By::Page) if navigates => self.follow(&choice)?,
            (false, By::Cookie) if navigates && self.baseline.on_unknown == OnUnknown::Baseline => {
                return Err(self.gone(id));
            }
            _ => {}
        }
        Ok(Entered { keys: keys(id), visit: visit(true) })
    }

    /// Sends a browser that follows a link from a preview to where that service is previewed: what the page there
    /// loads would not say any more to which overlay it belongs.
    fn follow(&self, choice: &Choice<'_>) -> Result<(), Box<Answer>> {
        if !matches!(self.head.method, "GET" | "HEAD") {
            return Ok(());
        }
        let (host, _) = split_authority(self.head.authority).unwrap_or_default();
        let Some(exposure) = self.exposure(&choice.environment, host, self.head.path) else { return Ok(()) };
        let target = label_of(Some(&exposure.service), &choice.environment);
        match target.and_then(|label| self.preview_origin(&label)) {
            Some(origin) => Err(self.moved("followed", origin + &self.target(), [])),
            None => Ok(()),
        }
    }

    /// What a host and path that are no preview's lead to in an environment.
    fn exposure(&self, id: &str, host: &str, path: &str) -> Option<&Exposure> {
        exposure_at(self.table, self.baseline, id, host, path)
    }

    /// Where a label is under the baseline's domain, as this browser reaches the gateway.
    fn preview_origin(&self, label: &str) -> Option<String> {
        preview_origin(self.baseline, self.secure, self.head.authority, label)
    }

    fn parameter(&self) -> Option<String> {
        let mut pairs = parse_query(self.head.query()?.as_bytes());
        pairs.find(|(name, _)| name == PARAMETER).map(|(_, value)| value.into_owned())
    }

    /// The ticket that a preview's address has, as it is written: it needs no decoding.
    fn ticket(&self) -> Option<Ticket<'_>> {
        if !matches!(self.head.method, "GET" | "HEAD") {
            return None;
        }
        let mut pairs = self.head.query()?.split('&');
        pairs.find_map(|pair| pair.strip_prefix(PARAMETER)?.strip_prefix('=')).and_then(Ticket::read)
    }

    /// Enters the overlay that an address names, or leaves.
    fn enter_or_leave(&self) -> Result<(), Box<Answer>> {
        let Some(text) = self.parameter().filter(|_| matches!(self.head.method, "GET" | "HEAD")) else {
            return Ok(());
        };
        if text.is_empty() {
            // Nobody else's page takes a browser out of its overlay: what it sees next would be the baseline.
            return match self.head.values(FETCH_SITE).next() {
                Some(b"cross-site") => Ok(()),
                _ => Err(self.moved("left", self.cleaned(), [self.forget(Cookie::Choice, None)])),
            };
        }
        let Some(ticket) = Ticket::read(&text) else { return Ok(()) };
        let id = ticket.environment;
        if !self.may(id, ticket.secret) {
            return Err(self.nothing_here());
        }
        if !self.is_live(id) {
            return Err(self.not_found(id));
        }
        Err(self.moved("entered", self.cleaned(), [self.set_cookie(Cookie::Choice, &text, None)]))
    }

    /// Path and query as they were asked.
    fn target(&self) -> String {
        let query = self.head.query().map_or_else(String::new, |query| format!("?{query}"));
        format!("{}{query}", self.head.path)
    }

    /// Path and query without our parameter.
    fn cleaned(&self) -> String {
        let others = self.head.query().unwrap_or_default().split('&').filter(|pair| {
            !pair.is_empty()
                && pair.strip_prefix(PARAMETER).is_none_or(|rest| !rest.is_empty() && !rest.starts_with('='))
        });
        let others: Vec<_> = others.collect();
        // Two slashes at the start would be another host.
        let path = format!("/{}", self.head.path.trim_start_matches(['/', '\\']));
        if others.is_empty() { path } else { format!("{path}?{}", others.join("&")) }
    }

    /// Sends the browser elsewhere.
    fn moved<const N: usize>(&self, reason: &'static str, to: String, cookies: [String; N]) -> Box<Answer> {
        let answer = Answer::plain(307, "", reason, format!("go to {to}"));
        let mut fields = vec![("Location", to), ("Referrer-Policy", "no-referrer".to_owned())];
        fields.extend(cookies.map(|cookie| ("Set-Cookie", cookie)));
        answer.with(More { fields, ..More::default() }).into()
    }

    /// The domain of a pass for all previews; none where browsers take no cookies for it.
    fn shared_domain(&self) -> Option<&str> {
        let previews = &self.baseline.previews;
        (!previews.is_local()).then(|| previews.domain())
    }

    fn set_cookie(&self, cookie: Cookie<'_>, value: &str, domain: Option<&str>) -> String {
        // Shown in the frame of another site, a page has its cookies only so (CHIPS).
        let framed = self.secure
            && self.head.values(FETCH_DEST).any(|dest| dest == b"iframe")
            && self.head.values(FETCH_SITE).any(|site| site == b"cross-site");
        let site = match cookie {
            _ if framed => "SameSite=None; Partitioned",
            // It stands for a network that is trusted: who comes from another site, as after logging in there, has it too.
            Cookie::Pass(_) if self.secure => "SameSite=None",
            _ => "SameSite=Lax",
        };
        self.cookie(cookie, value, domain, site)
    }

    fn forget(&self, cookie: Cookie<'_>, domain: Option<&str>) -> String {
        self.cookie(cookie, "", domain, "SameSite=Lax; Max-Age=0")
    }

    fn cookie(&self, cookie: Cookie<'_>, value: &str, domain: Option<&str>, more: &str) -> String {
        write_cookie(cookie, value, self.secure, domain, more)
    }
}

fn write_cookie(cookie: Cookie<'_>, value: &str, secure: bool, domain: Option<&str>, more: &str) -> String {
    let domain = domain.map_or_else(String::new, |domain| format!("; Domain={domain}"));
    let tls = if secure { "; Secure" } else { "" };
    format!("{}={value}; Path=/{domain}; HttpOnly{tls}; {more}", cookie.name(secure))
}

fn keys(id: &str) -> Option<Keys> {
    id.parse().ok().map(|id: EnvironmentId| Keys::one(&id))
}

fn label_of(service: Option<&ServiceName>, id: &str) -> Option<String> {
    label(service, &id.parse().ok()?).ok()
}

/// Where a label is under a baseline's domain, as a browser that asked `authority` reaches the gateway.
fn preview_origin<U>(baseline: &Baseline<U>, secure: bool, authority: &str, label: &str) -> Option<String> {
    let (_, port) = split_authority(authority).ok()?;
    let scheme = if secure { "https" } else { "http" };
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    Some(format!("{scheme}://{label}.{}{port}", baseline.previews.domain()))
}

/// What a host and path that are no preview's lead to in an environment.
fn exposure_at<'t>(
    table: &'t Table,
    baseline: &'t Baseline<Arc<Upstream>>,
    id: &str,
    host: &str,
    path: &str,
) -> Option<&'t Exposure> {
    let own = match table.environment(id) {
        Some(Environment::Overlay(overlay)) => &*overlay.exposures,
        _ => &[],
    };
    let all = own.iter().chain(&*baseline.exposures);
    let matching = all.filter_map(|exposure| Some((exposure.specificity(host, path.as_bytes())?, exposure)));
    // The first of equals.
    matching.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, exposure)| exposure)
}
