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

use std::cell::OnceCell;
use std::sync::Arc;

use overlane_config::browser::{self, By, Cookie, PARAMETER, Ticket};
use overlane_config::carrier::Keys;
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::preview::{Host, Preview, label};
use overlane_config::table::{Baseline, Environment, Exposure};
use overlane_config::time::UnixMillis;
use overlane_config::url::split_authority;

use super::Gate;
use super::answer::{Answer, More};
use super::standing::{Right, Standing};
use super::trust::Trust;
use crate::clock;
use crate::h1::Name;
use crate::h1::request::Head;
use crate::metrics::{Event, count};
use crate::snapshot::{Snapshot, Table};
use crate::upstream::Upstream;

pub(super) use page::html;
pub use pass::{Secret, digest};
pub use response::{Place, cookies, replaces};

/// The gateway's own page: which overlay a host's requests are for, and where others are.
const OWN_PAGE: &str = "/.overlane";
/// Said beside [`PARAMETER`] once the cookie was set, so that a browser that takes none is told.
const SET: &str = "overlay-set";
const ORIGIN: Name<'_> = Name::of("origin");
const FETCH_MODE: Name<'_> = Name::of("sec-fetch-mode");
const FETCH_SITE: Name<'_> = Name::of("sec-fetch-site");
const FETCH_DEST: Name<'_> = Name::of("sec-fetch-dest");
const HTML: &[u8] = b"text/html";
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
    /// Whether a browser goes to a page, and shows what comes.
    navigates: bool,
    /// Whether its host, page or cookie says the key.
    says: bool,
    /// Whether a secret lets it in that was shared for its overlay.
    let_in: bool,
    /// Whether its response is for this browser only: others may not come in.
    private: bool,
}

impl Visit {
    /// What its host stands for, where it is a preview's.
    #[must_use]
    pub fn preview(&self) -> Option<&Preview> {
        self.preview.as_ref()
    }

    /// Whether its host, page or cookie says the key.
    #[must_use]
    pub fn says(&self) -> bool {
        self.says
    }

    /// Whether a secret lets it in that was shared for its overlay.
    #[must_use]
    pub fn let_in(&self) -> bool {
        self.let_in
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
            // Told by its length, where it is `*/*`.
            let shows =
                |accept: &[u8]| accept.len() >= HTML.len() && memchr::memmem::find(accept, HTML).is_some();
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
    let Some((arrival, host)) = Arrival::of(snapshot, gate, head, standing) else {
        return Ok(Entered::default());
    };
    let entered = arrival.enter(gate, host, keys);
    if arrival.refused.get().is_some() {
        count(Event::UntrustedHeaders);
    }
    entered
}

/// What a refusal of the key that a browser says has besides: where to go from here.
pub fn told(
    answer: Answer,
    snapshot: &Snapshot,
    gate: &Gate,
    head: &Head<'_>,
    standing: &Standing,
) -> Answer {
    match (&answer.more, Arrival::of(snapshot, gate, head, standing)) {
        (None, Some((arrival, _))) => arrival.with_links(answer),
        // It says already where to go.
        _ => answer,
    }
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
    let (arrival, host) = Arrival::of(snapshot, gate, head, standing)?;
    let _ = arrival.enter(gate, host, keys);
    arrival.refused.into_inner()
}

/// A request that may be a browser's.
struct Arrival<'a> {
    table: &'a Table,
    baseline: &'a Baseline<Arc<Upstream>>,
    head: &'a Head<'a>,
    right: &'a Right,
    secure: bool,
    navigates: bool,
    now: UnixMillis,
    /// What its sender may not choose, where it chose that.
    refused: OnceCell<Keys>,
}

impl<'a> Arrival<'a> {
    /// A request at a gateway that may be a browser's, and what its host stands for.
    fn of(
        snapshot: &'a Snapshot,
        gate: &Gate,
        head: &'a Head<'a>,
        standing: &'a Standing,
    ) -> Option<(Self, Host)> {
        if !gate.is_edge() {
            return None;
        }
        let baseline = snapshot.table.baseline(gate.listener.baseline.as_ref())?;
        let host = baseline.stands_for(head.authority);
        // Nothing that a browser says: what every other client pays for all this.
        if host == Host::Other && head.query().is_none() && !head.fields.of_browser() && head.path != OWN_PAGE
        {
            return None;
        }
        let (table, right, refused) = (&snapshot.table, &standing.right, OnceCell::new());
        // What ends TLS before us need not say so.
        let secure = standing.secure || (host != Host::Other && baseline.previews.are_secure());
        let (navigates, now) = (is_navigation(head), clock::now());
        Some((Self { table, baseline, head, right, secure, navigates, now, refused }, host))
    }

    fn enter(&self, gate: &Gate, host: Host, keys: Option<&Keys>) -> Result<Entered, Box<Answer>> {
        match host {
            Host::Preview(preview) => self.at_preview(preview, gate.trust == Trust::Any),
            Host::Nothing => Err(self.no_preview()),
            Host::Other => self.elsewhere(keys),
        }
    }

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

    /// Whether the request may be for an environment as its sender is (`Some(false)`), or with one of these secrets
    /// (`Some(true)`).
    fn may<'s>(&self, id: &str, secrets: impl IntoIterator<Item = &'s str>) -> Option<bool> {
        match self.right.may_choose(id) {
            true => Some(false),
            false if self.opens(id, secrets) => Some(true),
            false => {
                // The first that is refused is what it is about.
                keys(id).into_iter().for_each(|keys| drop(self.refused.set(keys)));
                None
            }
        }
    }

    fn visit(&self, preview: Option<Preview>) -> Visit {
        Visit {
            preview,
            secure: self.secure,
            authority: self.head.authority.into(),
            navigates: self.navigates,
            says: false,
            let_in: false,
            private: false,
        }
    }

    fn entered(&self, preview: Option<Preview>, id: &str, let_in: bool, private: bool) -> Entered {
        let visit = Visit { says: true, let_in, private, ..self.visit(preview) };
        Entered { keys: keys(id), visit: Some(Box::new(visit)) }
    }

    fn at_preview(&self, preview: Preview, open: bool) -> Result<Entered, Box<Answer>> {
        let id = preview.environment();
        let ticket =
            self.parameter(PARAMETER).and_then(Ticket::read).filter(|ticket| ticket.environment == id);
        if let Some(secret) =
            ticket.and_then(|ticket| ticket.secret).filter(|secret| self.opens(id, [*secret]))
        {
            let cookie = self.set_cookie(Cookie::Pass(id), secret, self.shared_domain());
            return Err(self.moved("entered", self.cleaned(), [cookie]));
        }
        match self.may(id, Cookie::Pass(id).values(&self.head.fields, self.secure)) {
            Some(let_in) => Ok(self.entered(Some(preview), id, let_in, !(open && self.right.is_any()))),
            None => Err(self.announced(id).unwrap_or_else(|| self.nothing_here())),
        }
    }

    /// The answer to a preflight that cannot show its pass, since preflights carry no cookies: a page of the same
    /// environment may ask, and what it asks then shows its pass. Nothing of it goes upstream.
    fn announced(&self, id: &str) -> Option<Box<Answer>> {
        let method = self.head.values(ASKED_METHOD).next().filter(|_| self.head.method == "OPTIONS")?;
        let page = browser::page(self.baseline, self.head.authority, &self.head.fields)?;
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
        if self.navigates {
            self.enter_or_leave()?;
            self.come_back()?;
        }
        if self.head.path == OWN_PAGE && matches!(self.head.method, "GET" | "HEAD") {
            return Err(self.own_page(keys_of_carriers));
        }
        let nobody = || Entered { keys: None, visit: Some(Box::new(self.visit(None))) };
        if keys_of_carriers.is_some() {
            return Ok(nobody());
        }
        let choice = browser::choose(self.baseline, self.head.authority, &self.head.fields, self.secure);
        let Some(choice) = choice.filter(|choice| choice.by != By::Page || self.is_page_of_ours()) else {
            self.entered_in_the_clear()?;
            return Ok(nobody());
        };
        let id = &*choice.environment;
        let passes = Cookie::Pass(id).values(&self.head.fields, self.secure);
        let may = self.may(id, choice.secret.into_iter().chain(passes));
        if choice.by == By::Page && self.navigates {
            self.follow(id, may.is_some())?;
        }
        let Some(let_in) = may else {
            // Not the baseline: whoever was let in and is not any more would take it for the overlay.
            return Err(self.nothing_here());
        };
        Ok(self.entered(None, id, let_in, true))
    }

    /// Whether the page that a request comes from is a preview's: a bare label can be another program's host, below
    /// the same domain.
    fn is_page_of_ours(&self) -> bool {
        let page = browser::page(self.baseline, self.head.authority, &self.head.fields);
        page.is_some_and(|page| {
            page.service().is_some() || self.table.environment(page.environment()).is_some()
        })
    }

    /// A browser that entered without TLS and came on to it has a cookie that does not count here.
    fn entered_in_the_clear(&self) -> Result<(), Box<Answer>> {
        if !self.navigates || !self.secure {
            return Ok(());
        }
        match Cookie::Choice.values(&self.head.fields, false).find_map(Ticket::read) {
            Some(ticket) => Err(self.enter_again(ticket.environment)),
            None => Ok(()),
        }
    }

    /// Sends a browser that follows a link from a preview to where that service is previewed: what the page there
    /// loads would not say any more to which overlay it belongs. Who it lets in is said there; who may not be in the
    /// overlay learns nothing of it here.
    fn follow(&self, id: &str, may: bool) -> Result<(), Box<Answer>> {
        let (host, _) = split_authority(self.head.authority).unwrap_or_default();
        let of = if may { id } else { self.baseline.id.as_str() };
        let exposure = exposure_at(self.table, self.baseline, of, host, self.head.path);
        match exposure.and_then(|exposure| label_of(Some(&exposure.service), id)) {
            Some(label) => Err(self.moved("followed", self.preview_origin(&label) + &self.target(), [])),
            None => Ok(()),
        }
    }

    /// Where a label is under the baseline's domain, as this browser reaches the gateway.
    fn preview_origin(&self, label: &str) -> String {
        preview_origin(self.baseline, self.secure, self.head.authority, label)
    }

    /// The value of a parameter of ours, as it is written.
    fn parameter(&self, name: &str) -> Option<&str> {
        let asks = matches!(self.head.method, "GET" | "HEAD");
        self.head.query().filter(|_| asks)?.split('&').find_map(|pair| parameter(pair, name))
    }

    /// Enters the overlay that an address names, or leaves.
    fn enter_or_leave(&self) -> Result<(), Box<Answer>> {
        let Some(text) = self.parameter(PARAMETER) else { return Ok(()) };
        let site = self.head.values(FETCH_SITE).next();
        // Without TLS browsers do not say.
        let by_itself = matches!(site, None | Some(b"none" | b"same-origin"));
        let current = Cookie::Choice.values(&self.head.fields, self.secure).find_map(Ticket::read);
        if text.is_empty() || text == self.baseline.id.as_str() {
            // Nobody else's page takes a browser out of its overlay: what it sees next would be the baseline.
            return match current {
                Some(current) if !by_itself => Err(self.ask_to_leave(current.environment)),
                _ => Err(self.moved("left", self.cleaned(), self.forget_choice())),
            };
        }
        let Some(ticket) = Ticket::read(text) else { return Err(self.no_overlay(text)) };
        let id = ticket.environment;
        if self.may(id, ticket.secret).is_none() {
            return Err(self.nothing_here());
        }
        if !self.is_live(id) {
            return Err(self.no_overlay(id));
        }
        match current {
            Some(current) if current == ticket => Err(self.moved("entered", self.cleaned(), [])),
            Some(current) if current.environment != id && !by_itself => {
                Err(self.enter_another(current, text))
            }
            _ if self.parameter(SET).is_some() => Err(self.no_cookies()),
            _ => {
                let again = self.target() + "&" + SET + "=1";
                Err(self.moved("entered", again, [self.set_cookie(Cookie::Choice, text, None)]))
            }
        }
    }

    /// Path and query as they were asked.
    fn target(&self) -> String {
        let query = self.head.query().map_or_else(String::new, |query| format!("?{query}"));
        format!("{}{query}", self.path())
    }

    /// Path and query without our parameters.
    fn cleaned(&self) -> String {
        let ours = |pair: &str| [PARAMETER, SET].into_iter().any(|name| parameter(pair, name).is_some());
        let pairs = self.head.query().unwrap_or_default().split('&');
        let others: Vec<_> = pairs.filter(|pair| !pair.is_empty() && !ours(pair)).collect();
        let path = self.path();
        if others.is_empty() { path } else { format!("{path}?{}", others.join("&")) }
    }

    /// The path: two slashes at its start would be another host.
    fn path(&self) -> String {
        format!("/{}", self.head.path.trim_start_matches(['/', '\\']))
    }

    /// Sends the browser elsewhere.
    fn moved(
        &self,
        reason: &'static str,
        to: String,
        cookies: impl IntoIterator<Item = String>,
    ) -> Box<Answer> {
        let answer = Answer::plain(307, "", reason, format!("go to {to}"));
        let mut fields = vec![("Location", to), ("Referrer-Policy", "no-referrer".to_owned())];
        fields.extend(cookies.into_iter().map(|cookie| ("Set-Cookie", cookie)));
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
        let site = match self.secure {
            true if framed => "SameSite=None; Partitioned",
            // It stands for a network: who comes from another site, as after logging in there, has it, too.
            true => "SameSite=None",
            false => "SameSite=Lax",
        };
        self.cookie(cookie, value, domain, site)
    }

    /// Takes back the choice, however it was made.
    fn forget_choice(&self) -> Vec<String> {
        let ended = |secure: bool, site: &str| {
            write_cookie(Cookie::Choice, "", secure, None, &format!("{site}; Max-Age=0"))
        };
        let mut all = vec![ended(false, "SameSite=Lax")];
        if self.secure {
            all.extend([ended(true, "SameSite=None"), ended(true, "SameSite=None; Partitioned")]);
        }
        all
    }

    fn cookie(&self, cookie: Cookie<'_>, value: &str, domain: Option<&str>, more: &str) -> String {
        write_cookie(cookie, value, self.secure, domain, more)
    }
}

/// What a pair of a query says of the parameter `name`.
fn parameter<'q>(pair: &'q str, name: &str) -> Option<&'q str> {
    let rest = pair.strip_prefix(name)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('=') }
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

/// Where a label is under a baseline's domain, as a browser that asked `authority` reaches the gateway: on a laptop at
/// the port that it asked, else where the baseline says.
fn preview_origin<U>(baseline: &Baseline<U>, secure: bool, authority: &str, label: &str) -> String {
    if !baseline.previews.is_local() {
        return baseline.previews.origin(label);
    }
    let port = split_authority(authority).ok().and_then(|(_, port)| port);
    let scheme = if secure { "https" } else { "http" };
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    format!("{scheme}://{label}.{}{port}", baseline.previews.domain())
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
