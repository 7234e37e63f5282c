//! Somebody else is asked whether a request may choose its overlay: by the `forward-auth` convention of Traefik and
//! nginx, over HTTP.
//!
//! It is asked only where a gateway's client chooses an overlay to which nothing else gives it the right, and only
//! such requests wait for it. Whatever goes wrong, the answer is no.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::fast::RandomState;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use overlane_config::carrier::{Keys, Seen};
use overlane_config::name::HeaderName;
use overlane_config::url::{Scheme, Url};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::answer::{Answer, More};
use super::bearer::AUTHORIZATION;
use super::edge::{self, is_navigation};
use super::exchange::line;
use super::standing::{Right, Standing};
use super::{Gate, Plane};
use crate::h1::Name;
use crate::h1::request::Head;
use crate::metrics::{Event, count};

const COOKIE: Name<'_> = Name::of("cookie");

/// How many grants a worker remembers.
const REMEMBERED: usize = 1024;
/// The largest answer that is handed on, in bytes of its body.
const LARGEST_BODY: usize = 64 * 1024;
/// What of an answer is handed on to a browser.
const HANDED_ON: [header::HeaderName; 6] = [
    header::CACHE_CONTROL,
    header::CONTENT_TYPE,
    header::LOCATION,
    header::SET_COOKIE,
    header::VARY,
    header::WWW_AUTHENTICATE,
];

/// Whom to ask, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorizer {
    /// Where it listens.
    pub place: Url,
    /// What is asked there: a path, and a query.
    pub target: String,
    /// How long an answer may take, with the connection.
    pub timeout: Duration,
    /// Fields of the request that it gets besides those of the convention.
    pub copy_headers: Vec<HeaderName>,
    /// For how long a grant holds for the same question.
    pub keep: Duration,
    /// The most questions of a worker at once.
    pub at_once: u32,
}

impl FromStr for Authorizer {
    type Err = String;

    /// Reads `http://host[:port]/path?query`; the rest is by default.
    fn from_str(text: &str) -> Result<Self, String> {
        let after = text.find("://").map_or(0, |at| at + 3);
        let end = text[after..].find(['/', '?']).map_or(text.len(), |at| after + at);
        let (place, target) = text.split_at(end);
        let place: Url = place.parse()?;
        if place.scheme != Scheme::Http {
            return Err("only `http://` is spoken with it: put it on this machine, or beside it".to_owned());
        }
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) || target.contains('#') {
            return Err("its path is no path of a url".to_owned());
        }
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self {
            place,
            target,
            timeout: Duration::from_secs(2),
            copy_headers: Vec::new(),
            keep: Duration::from_secs(5),
            at_once: 64,
        })
    }
}

/// What is asked about a request.
#[derive(Debug, Clone)]
pub struct Question {
    /// The overlays that it chooses, which are granted or not.
    keys: Keys,
    /// The fields of the question: all that its answer may depend on.
    fields: Box<[u8]>,
    /// Whether a browser goes to a page: it can show an answer, or follow it.
    navigates: bool,
}

/// What comes of a question.
#[derive(Debug)]
pub enum Verdict {
    /// These may be chosen as well.
    Granted(Right),
    /// The choice does not count.
    Refused,
    /// The client is to have this answer.
    Answered(Answer),
}

/// What a request chooses, be it by a carrier or as browsers do, and may not.
fn refused(plane: &Plane, gate: &Gate, standing: &Standing, head: &Head<'_>) -> Option<Keys> {
    let snapshot = plane.published.load();
    let baseline = snapshot.table.baseline(gate.listener.baseline.as_ref())?;
    let mut contradicted = false;
    let read = plane.carriers.read(baseline.header.as_str(), &head.fields, |_, seen| {
        contradicted |= matches!(seen, Seen::Contradicts(_));
    });
    match read.ok()?.keys {
        Some(_) if contradicted => None,
        Some(keys) if !standing.right.may_choose_all(&keys) => Some(keys),
        keys => edge::refused(&snapshot, gate, head, standing, keys.as_ref()),
    }
}

thread_local! {
    /// What was granted, and until when.
    static GRANTED: RefCell<HashMap<Box<[u8]>, Instant, RandomState>> = RefCell::default();
    /// Questions without an answer yet.
    static ASKING: Cell<u32> = const { Cell::new(0) };
    /// Whether the last question came to nothing: that is said once.
    static FAILING: Cell<bool> = const { Cell::new(false) };
}

/// One of the questions that a worker asks at once.
struct Seat;

impl Seat {
    fn take(most: u32) -> Option<Self> {
        ASKING.with(|asking| {
            (asking.get() < most).then(|| {
                asking.set(asking.get() + 1);
                Self
            })
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        ASKING.with(|asking| asking.set(asking.get() - 1));
    }
}

impl Authorizer {
    /// What to ask about a request; nothing where its sender may choose what it chooses, or chooses nothing.
    #[must_use]
    pub fn question(
        &self,
        plane: &Plane,
        gate: &Gate,
        standing: &Standing,
        head: &Head<'_>,
    ) -> Option<Question> {
        if standing.right.is_any() || !gate.is_edge() {
            return None;
        }
        let keys = refused(plane, gate, standing, head)?;
        let fields = self.fields(standing, head, &keys).into();
        Some(Question { keys, fields, navigates: head.method != "HEAD" && is_navigation(head) })
    }

    fn fields(&self, standing: &Standing, head: &Head<'_>, keys: &Keys) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        let host = standing.passed.as_ref().and_then(|passed| passed.host.as_deref());
        line(&mut out, "X-Forwarded-Method", head.method);
        line(&mut out, "X-Forwarded-Proto", if standing.secure { "https" } else { "http" });
        line(&mut out, "X-Forwarded-Host", host.unwrap_or(head.authority));
        let query = head.query().map_or_else(String::new, |query| format!("?{query}"));
        line(&mut out, "X-Forwarded-Uri", format!("{}{query}", head.path));
        line(&mut out, "X-Forwarded-For", standing.text.as_bytes());
        line(&mut out, "X-Overlay-Id", keys.as_str());
        let cookies: Vec<_> = head.values(COOKIE).collect();
        if !cookies.is_empty() {
            line(&mut out, "Cookie", cookies.join(&b"; "[..]));
        }
        if standing.bearer.as_ref().is_none_or(|bearer| !bearer.in_authorization) {
            head.values(AUTHORIZATION).for_each(|value| line(&mut out, "Authorization", value));
        }
        for name in &self.copy_headers {
            head.values(Name::of(name.as_str())).for_each(|value| line(&mut out, name.as_str(), value));
        }
        out
    }

    /// The right that this worker was given for the same question a moment ago.
    #[must_use]
    pub fn remembered(&self, question: &Question) -> Option<Right> {
        GRANTED.with_borrow_mut(|granted| match granted.get(&question.fields) {
            Some(until) if *until > Instant::now() => Some(right(&question.keys)),
            Some(_) => {
                granted.remove(&question.fields);
                None
            }
            None => None,
        })
    }

    /// Asks.
    pub async fn ask(&self, question: Question) -> Verdict {
        let Some(_seat) = Seat::take(self.at_once) else {
            count(Event::AuthorizerBusy);
            return Verdict::Refused;
        };
        let asked = timeout(self.timeout, self.exchange(&question)).await;
        let answer =
            asked.map_err(|_| format!("no answer within {:?}", self.timeout)).and_then(|answer| answer);
        let failed = answer.is_err();
        let before = FAILING.replace(failed);
        let (status, headers, body) = match answer {
            Ok(answer) => answer,
            Err(why) => {
                count(Event::AuthorizerFailed);
                if !before {
                    tracing::warn!(authorizer = %self.place, %why, "the authorizer does not answer: nobody gets a right by it");
                }
                return Verdict::Refused;
            }
        };
        if before {
            tracing::info!(authorizer = %self.place, "the authorizer answers again");
        }
        if status.is_success() {
            count(Event::AuthorizerGranted);
            self.remember(&question);
            return Verdict::Granted(right(&question.keys));
        }
        count(Event::AuthorizerRefused);
        let asks = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        let leads = status.is_redirection() && headers.contains_key(header::LOCATION);
        if question.navigates && (asks || leads) {
            count(Event::UntrustedHeaders);
            return Verdict::Answered(handed_on(status, &headers, &body));
        }
        Verdict::Refused
    }

    fn remember(&self, question: &Question) {
        if self.keep.is_zero() {
            return;
        }
        GRANTED.with_borrow_mut(|granted| {
            if granted.len() >= REMEMBERED {
                granted.clear();
            }
            granted.insert(question.fields.clone(), Instant::now() + self.keep);
        });
    }

    async fn exchange(&self, question: &Question) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let authority = self.place.authority();
        let stream = TcpStream::connect(&*authority).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let mut request = http::Request::get(&self.target).header(header::HOST, &authority);
        for field in question.fields.split(|byte| *byte == b'\n') {
            let Some(colon) = memchr::memchr(b':', field) else { continue };
            request = request.header(&field[..colon], field[colon + 1..].trim_ascii());
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let answered = async {
            let (head, body) =
                sender.send_request(request).await.map_err(|error| error.to_string())?.into_parts();
            if head.status.is_success() {
                return Ok((head.status, head.headers, Bytes::new()));
            }
            let body = Limited::new(body, LARGEST_BODY).collect().await.map_err(|error| error.to_string())?;
            Ok((head.status, head.headers, body.to_bytes()))
        };
        let answered = answered.await;
        connection.abort();
        answered
    }
}

fn right(keys: &Keys) -> Right {
    Right::These(keys.iter().filter_map(|id| id.parse().ok()).collect())
}

fn handed_on(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    let phrase = status.canonical_reason().unwrap_or("Refused");
    let mut raw = format!("HTTP/1.1 {} {phrase}\r\n", status.as_u16()).into_bytes();
    for name in HANDED_ON {
        headers.get_all(&name).iter().for_each(|value| line(&mut raw, name.as_str(), value.as_bytes()));
    }
    line(&mut raw, "Content-Length", body.len().to_string());
    raw.extend_from_slice(b"Connection: close\r\n\r\n");
    raw.extend_from_slice(body);
    let answer = Answer::plain(status.as_u16(), "", "untrusted", "the authorizer answers");
    answer.with(More { whole: Some(raw.into()), ..More::default() })
}
