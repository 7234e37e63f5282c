//! Decisions, over HTTP: those that are kept, those that are taken now, those of one request, and their sums.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use super::Api;
use crate::admin::problem;
use crate::clock;
use crate::decisions::story::{self, Story};
use crate::decisions::{Cursor, Filter, Statuses};
use crate::hub::questions::{Answered, Ask, Asking, Told};
use crate::metrics;
use crate::plane::drain::Stage;
use crate::stats::{Counted, Flows, Stats};

/// How many decisions are told where it is not said.
const LIMIT: usize = 100;
/// The most that are told at once.
const MOST: usize = 10_000;
/// The same at a hub, of all who report to it.
const MOST_JOINED: usize = 2000;
/// The most rounds in which a hub asks for more of a request, by the ids of what was found.
const ROUNDS: usize = 3;
/// The most ids by which it asks in a round.
const IDS: usize = 16;
/// The most decisions about a request that it takes from one proxy.
const HOPS: usize = 1000;
/// The most proxies that are named in a sentence.
const NAMED: usize = 10;
/// How many decisions a second a tap tells where it is not said, and at most.
const RPS: u32 = 100;
const MOST_RPS: u32 = 10_000;
/// How often a tap looks for new decisions.
const LOOK: Duration = Duration::from_millis(100);
/// How often it says that it missed some.
const SAY: Duration = Duration::from_secs(1);
/// How long a tap is silent at most.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Which decisions are asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Asked {
    trace: Option<String>,
    request: Option<String>,
    overlay: Option<String>,
    service: Option<String>,
    status: Option<Statuses>,
    path: Option<String>,
    role: Option<AskedRole>,
    limit: Option<usize>,
    max_rps: Option<u32>,
}

/// The role of a listener, as a query names it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AskedRole {
    Gateway,
    Redirect,
    Inbound,
    Outbound,
}

impl AskedRole {
    fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Redirect => "redirect",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Asked {
    fn filter(self) -> Filter {
        let Self { trace, request, overlay, service, status, path, role, .. } = self;
        let role = role.map(|role| role.as_str().to_owned());
        Filter { trace, request, overlay, service, status, path, role }
    }
}

type Answer = Result<Response, Box<Response>>;

fn no(status: StatusCode, why: &str) -> Box<Response> {
    Box::new(problem(status, why))
}

fn answer(answer: Answer) -> Response {
    answer.unwrap_or_else(|refused| *refused)
}

fn asked(query: Result<Query<Asked>, QueryRejection>) -> Result<Asked, Box<Response>> {
    query.map(|Query(asked)| asked).map_err(|why| Box::new(malformed(&why)))
}

/// What is wrong with a query, in the words of whoever read its values.
fn malformed(why: &QueryRejection) -> Response {
    let text = why.body_text();
    let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
    problem(StatusCode::BAD_REQUEST, &format!("the query: {text}"))
}

/// Whether there is anything to look at.
fn expect_kept(api: &Api) -> Result<(), Box<Response>> {
    match api.admin.decisions.are_kept() || api.fleet.is_some() {
        true => Ok(()),
        false => Err(no(StatusCode::CONFLICT, "no decisions are kept here: its settings say `decisions: 0`")),
    }
}

/// The most decisions that are told at once.
pub(super) fn most(api: &Api) -> usize {
    if api.fleet.is_some() { MOST_JOINED } else { MOST }
}

pub(super) async fn list(State(api): State<Api>, query: Result<Query<Asked>, QueryRejection>) -> Response {
    answer(newest(&api, query).await)
}

async fn newest(api: &Api, query: Result<Query<Asked>, QueryRejection>) -> Answer {
    let asked = asked(query)?;
    expect_kept(api)?;
    if asked.max_rps.is_some() {
        return Err(no(StatusCode::BAD_REQUEST, "`maxRps` is of /api/v1/tap; here `limit` says how many"));
    }
    let most = most(api);
    let limit = asked.limit.unwrap_or(LIMIT);
    if !(1..=most).contains(&limit) {
        return Err(no(StatusCode::BAD_REQUEST, &format!("`limit` is 1 to {most}")));
    }
    let (decisions, filter) = (api.admin.decisions.clone(), asked.filter());
    let ask = Ask::Decisions { filter: filter.clone(), limit };
    let mut found = aside(move || decisions.newest(&filter, limit)).await;
    let joined = joined(api, ask, |told| {
        if let Told::Decisions(theirs) = told {
            found.missed += theirs.missed;
            found.decisions.extend(theirs.decisions);
            found.decisions.sort_by(|a, b| b.order().cmp(&a.order()));
            found.decisions.truncate(limit);
        }
    });
    found.silent = joined.await?.silent;
    Ok(axum::Json(found).into_response())
}

/// Asks the others: at a hub all who report to it, else nobody.
async fn joined(api: &Api, ask: Ask, take: impl FnMut(Told)) -> Result<Answered, Box<Response>> {
    let Some(fleet) = &api.fleet else { return Ok(Answered::default()) };
    let listening = fleet.questions.listeners();
    let mut answered = fleet.questions.ask(ask, take).await.map_err(|_| too_many())?;
    // Who reports, and is of a version that cannot be asked, does not answer either.
    let reporting = fleet.instances(Instant::now()).into_iter().map(|instance| instance.id);
    answered.silent.extend(reporting.filter(|id| !listening.contains(id) && *id != *api.admin.instance));
    Ok(answered)
}

fn too_many() -> Box<Response> {
    no(
        StatusCode::SERVICE_UNAVAILABLE,
        "so many questions are open at this hub that no more may be: ask again",
    )
}

/// Looks through all that is kept on a thread of its own: nothing else waits for it.
pub(crate) async fn aside<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(look).await {
        Ok(found) => found,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}

pub(super) async fn why(State(api): State<Api>, Path(id): Path<String>) -> Response {
    answer(story(&api, id).await)
}

async fn story(api: &Api, id: String) -> Answer {
    expect_kept(api)?;
    let (mut hops, mut silent) = (Vec::new(), BTreeSet::new());
    let (mut known, mut next) = (BTreeSet::new(), BTreeSet::from([id.clone()]));
    // What one proxy knows by an id that another one told is asked for again.
    for _ in 0..ROUNDS {
        let (decisions, ids) = (api.admin.decisions.clone(), next.clone());
        hops.extend(aside(move || decisions.of(&ids)).await);
        let joined = joined(api, Ask::Of(next.clone()), |told| {
            if let Told::Of(theirs) = told {
                hops.extend(theirs.into_iter().take(HOPS));
                hops.truncate(MOST);
            }
        });
        silent.extend(joined.await?.silent);
        known.append(&mut next);
        next = story::ids(&hops).difference(&known).take(IDS).cloned().collect();
        if api.fleet.is_none() || next.is_empty() {
            break;
        }
    }
    if hops.is_empty() {
        return Err(no(StatusCode::NOT_FOUND, &unknown(api, &id, &silent)));
    }
    let mut story = Story::of(id, hops);
    if !silent.is_empty() {
        story.findings.push(format!("hops may be missing: {}", did_not_answer(&silent)));
    }
    Ok(axum::Json(story).into_response())
}

fn did_not_answer(silent: &BTreeSet<String>) -> String {
    let names: Vec<_> = silent.iter().map(String::as_str).take(NAMED).collect();
    let more = silent.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more} did not answer", names.join(", "))
}

fn unknown(api: &Api, id: &str, silent: &BTreeSet<String>) -> String {
    let decisions = &api.admin.decisions;
    let id: String = id.chars().take(80).flat_map(char::escape_debug).collect();
    let kept = match &api.fleet {
        Some(fleet) => {
            let asked = fleet.questions.listeners().len();
            let silent =
                if silent.is_empty() { String::new() } else { format!("; {}", did_not_answer(silent)) };
            format!(
                "{asked} proxies and this one were asked, each of which keeps its last decisions only{silent}"
            )
        }
        None => {
            let since = decisions.since();
            let since = since.map_or_else(
                || "it has decided nothing yet".to_owned(),
                |since| format!("its oldest is of {since}"),
            );
            format!("this proxy keeps its last {} decisions, and {since}", decisions.kept())
        }
    };
    format!(
        "nothing here knows `{id}`: {kept}; an id is a trace's, a request's (x-request-id), or a hop's of x-overlay-route"
    )
}

/// Whether the ways are wanted of which the sums are made: who sums up several proxies needs them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Summed {
    #[serde(default)]
    flows: bool,
}

pub(super) async fn stats(State(api): State<Api>, query: Result<Query<Summed>, QueryRejection>) -> Response {
    let Query(Summed { flows }) = match query {
        Ok(summed) => summed,
        Err(why) => return malformed(&why),
    };
    let mut ways = Flows::of(metrics::gather(&api.admin.doors).await.counted());
    let joined = joined(&api, Ask::Flows, |told| {
        if let Told::Flows(theirs) = told {
            ways.add(theirs);
        }
    });
    let Answered { count, silent } = match joined.await {
        Ok(answered) => answered,
        Err(refused) => return *refused,
    };
    let (at, proxies, counted) = (clock::now().to_string(), 1 + count, ways.into_all());
    match flows {
        true => {
            let Counted { flows, overhead } = counted;
            let told = json!({ "at": at, "proxies": proxies, "silent": silent, "flows": flows, "overhead": overhead });
            axum::Json(told).into_response()
        }
        false => axum::Json(Stats::of(at, proxies, silent, counted)).into_response(),
    }
}

pub(super) async fn tap(State(api): State<Api>, query: Result<Query<Asked>, QueryRejection>) -> Response {
    answer(tapped(&api, query))
}

fn tapped(api: &Api, query: Result<Query<Asked>, QueryRejection>) -> Answer {
    let asked = asked(query)?;
    expect_kept(api)?;
    if asked.limit.is_some() {
        return Err(no(
            StatusCode::BAD_REQUEST,
            "`limit` is of /api/v1/decisions; here `maxRps` says how many a second",
        ));
    }
    let most = asked.max_rps.unwrap_or(RPS);
    if !(1..=MOST_RPS).contains(&most) {
        return Err(no(StatusCode::BAD_REQUEST, &format!("`maxRps` is 1 to {MOST_RPS}")));
    }
    let Ok(seat) = api.admin.taps.clone().try_acquire_owned() else {
        return Err(no(StatusCode::SERVICE_UNAVAILABLE, "as many look already as may: close one of them"));
    };
    let filter = asked.filter();
    let others = match &api.fleet {
        Some(fleet) => Some(fleet.questions.tap(filter.clone(), most).map_err(|_| too_many())?),
        None => None,
    };
    let tap = Tap {
        cursor: api.admin.decisions.end(),
        api: api.clone(),
        filter,
        others,
        allowance: Allowance::of(most, Instant::now()),
        missed: [Missed::default(), Missed::default()],
        begun: false,
        _seat: seat,
    };
    let events = stream::unfold(tap, async |mut tap| {
        let events = tap.next().await?;
        Some((Ok::<_, std::io::Error>(Bytes::from(events)), tap))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// So many a second, and as many at once.
pub(crate) struct Allowance {
    most: u32,
    left: f64,
    counted: Instant,
}

impl Allowance {
    pub(crate) fn of(most: u32, now: Instant) -> Self {
        Self { most, left: f64::from(most), counted: now }
    }

    /// How many may be told now.
    pub(crate) fn now(&mut self, now: Instant) -> usize {
        let since = now.saturating_duration_since(self.counted).as_secs_f64();
        self.left = (self.left + since * f64::from(self.most)).min(f64::from(self.most));
        self.counted = now;
        self.left as usize
    }

    /// So many were told.
    pub(crate) fn take(&mut self, told: usize) {
        self.left -= told as f64;
    }
}

/// What was missed for one reason, and is not said yet.
#[derive(Default)]
struct Missed {
    count: u64,
    said: Option<Instant>,
}

impl Missed {
    /// How many are to be said now.
    fn due(&mut self, now: Instant) -> Option<u64> {
        let soon = self.said.is_some_and(|said| now.saturating_duration_since(said) < SAY);
        if self.count == 0 || soon {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

/// Somebody who looks on. Nothing is queued for it: it holds its place in what is kept for all.
struct Tap {
    api: Api,
    cursor: Cursor,
    filter: Filter,
    /// Those who report to this hub: they decide at their own place what to tell, and only while somebody looks.
    others: Option<Asking>,
    allowance: Allowance,
    /// For the rate, and for being too slow.
    missed: [Missed; 2],
    begun: bool,
    _seat: OwnedSemaphorePermit,
}

impl Tap {
    /// The next events; `None` when the process stops. Called only when the reader took those before.
    async fn next(&mut self) -> Option<String> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(": from now on\n\n".to_owned());
        }
        let silent = Instant::now();
        loop {
            if self.api.admin.drain.stage() >= Stage::Draining {
                return None;
            }
            let now = Instant::now();
            let events = self.events(now);
            if !events.is_empty() {
                return Some(events);
            }
            if now.saturating_duration_since(silent) >= HEARTBEAT {
                return Some(": nothing new\n\n".to_owned());
            }
            tokio::select! {
                () = self.api.admin.drain.reached(Stage::Draining) => return None,
                () = sleep(LOOK) => {}
            }
        }
    }

    fn events(&mut self, now: Instant) -> String {
        let may = self.allowance.now(now);
        let mut followed = self.api.admin.decisions.follow(&mut self.cursor, &self.filter, may);
        followed.overrun += self.others.as_mut().map_or(0, Asking::dropped);
        while let Some(told) = self.others.as_mut().and_then(Asking::told) {
            if let Told::Tap { decisions, over, overrun } = told {
                followed.decisions.extend(decisions);
                (followed.over, followed.overrun) = (followed.over + over, followed.overrun + overrun);
            }
        }
        followed.decisions.sort_by(|a, b| a.order().cmp(&b.order()));
        followed.over += followed.decisions.len().saturating_sub(may) as u64;
        followed.decisions.truncate(may);
        self.allowance.take(followed.decisions.len());
        let mut events = String::new();
        let mut event = |name: &str, what: &dyn Fn() -> serde_json::Result<String>| {
            // Neither maps with other keys than texts nor anything that fails is in it.
            events.push_str(&format!("event: {name}\ndata: {}\n\n", what().unwrap_or_default()));
        };
        for decision in &followed.decisions {
            event("decision", &|| serde_json::to_string(decision));
        }
        let [rate, overrun] = &mut self.missed;
        rate.count += followed.over;
        overrun.count += followed.overrun;
        for (missed, why) in [(rate, "rate"), (overrun, "overrun")] {
            if let Some(count) = missed.due(now) {
                event("missed", &|| serde_json::to_string(&json!({ "missed": count, "why": why })));
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_tells_no_more_than_it_may_and_says_what_it_missed_once_a_second() {
        let begun = Instant::now();
        let at = |millis| begun + Duration::from_millis(millis);
        let mut allowance = Allowance::of(10, begun);
        assert_eq!(allowance.now(begun), 10);
        allowance.take(10);
        assert_eq!([allowance.now(at(50)), allowance.now(at(100)), allowance.now(at(500))], [0, 1, 5]);
        assert_eq!(allowance.now(at(60_000)), 10, "and no more for having been silent");
        let mut missed = Missed { count: 3, said: None };
        assert_eq!(missed.due(at(0)), Some(3));
        missed.count = 2;
        assert_eq!([missed.due(at(999)), missed.due(at(1000)), missed.due(at(3000))], [None, Some(2), None]);
    }
}
