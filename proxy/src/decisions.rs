//! Decisions that can be looked at: each worker keeps the last ones of its requests in a ring of its own, and the control side
//! reads them. Writing takes no lock, allocates nothing and waits for nobody; reading costs the requests nothing.
//!
//! No query, cookie or token is in them: of a request they have what the access log has.

mod filter;
mod note;
mod record;
mod ring;
pub mod story;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use overlane_config::route::Role;
use serde::{Deserialize, Serialize};

pub use filter::{Filter, Statuses};
pub use note::{Decided, Note, Noted, note, write};

use crate::plane::Gate;
use record::Record;
use ring::Ring;

/// How many decisions a process keeps, where it is not told otherwise.
pub const KEPT: usize = 10_000;
/// The most that it may be told to keep: half a gigabyte.
pub const MOST_KEPT: usize = 1_000_000;
/// The most rounds in which more of a request is looked for, by the ids of what was found.
const ROUNDS: usize = 3;
/// The most ids by which it is looked for in a round.
const IDS: usize = 16;
/// By how much the wall's clock may drift before it is read anew, in microseconds.
const DRIFT: u64 = 1000;

/// How a request came by its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyFrom {
    /// It brought it along.
    Arrived,
    /// Its trace gave it back.
    Restored,
    /// It is that of the environment of the sidecar that it came to.
    Stamped,
    /// It has none, and nothing says that it should.
    #[default]
    Absent,
    /// It has none, and is a call that a request with a key may have caused.
    Lost,
    /// The same, but it may be a call of another request.
    Unclear,
    /// Two places of it, or it and its trace, name different keys.
    Contradicting,
    /// Its sender may not name one: it was removed.
    Untrusted,
}

impl KeyFrom {
    /// All of them, in the order in which they are declared.
    pub const ALL: [Self; 8] = [
        Self::Arrived,
        Self::Restored,
        Self::Stamped,
        Self::Absent,
        Self::Lost,
        Self::Unclear,
        Self::Contradicting,
        Self::Untrusted,
    ];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arrived => "arrived",
            Self::Restored => "restored",
            Self::Stamped => "stamped",
            Self::Absent => "absent",
            Self::Lost => "lost",
            Self::Unclear => "unclear",
            Self::Contradicting => "contradicting",
            Self::Untrusted => "untrusted",
        }
    }
}

/// What one proxy decided about one request, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Decision {
    /// When its head was read, as RFC 3339 with microseconds.
    pub at: String,
    /// What the proxy is called.
    pub proxy: String,
    /// `gateway`, `redirect`, `inbound` or `outbound`.
    pub role: String,
    /// The method, of a closed list.
    pub method: String,
    /// The authority that was called.
    pub authority: String,
    /// The path, without query.
    pub path: String,
    /// The key by which it was routed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How it came by that.
    pub key_from: KeyFrom,
    /// The service that was called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The service that the proxy stands beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// The environment that answered, or should have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Whose answer it was, seen from the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Why; where it failed or was refused, why that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The status; 0 where no answer was sent.
    pub status: u16,
    /// From the end of its head to the end of its response, in milliseconds.
    pub duration_ms: f64,
    /// For how long the response's head was waited for, in milliseconds, where the upstream answered; also for the rest of a
    /// body that the client was still sending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_ms: Option<f64>,
    /// The address that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The id of its trace: 32 digits, or 16 where no more are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Its own id, as it goes upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Its name in receipts, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hop: Option<String>,
    /// The hop that made the call, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The generation of the table that decided.
    pub generation: u64,
}

/// Decisions that were looked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The decisions, newest first.
    pub decisions: Vec<Decision>,
    /// How many could not be read, since they were overwritten meanwhile.
    pub missed: u64,
    /// Proxies that were asked and did not answer in time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
}

/// What a proxy says of itself in each of its decisions.
#[derive(Debug)]
struct Place {
    role: &'static str,
    caller: Option<String>,
}

/// The decisions of a process.
#[derive(Debug)]
pub struct Decisions {
    rings: Box<[Arc<Ring>]>,
    /// The moment from which records count.
    base: Instant,
    /// The same on the wall's clock, in microseconds since 1970.
    wall: AtomicU64,
    proxy: Arc<str>,
    places: Box<[Place]>,
}

/// How far a reader has read.
#[derive(Debug, Clone)]
pub struct Cursor(Box<[u64]>);

impl Decisions {
    /// `kept` decisions in all, of so many workers; none are kept where it is 0.
    #[must_use]
    pub fn new(kept: usize, workers: usize, proxy: Arc<str>, gates: &[Arc<Gate>]) -> Arc<Self> {
        let each = kept.div_ceil(workers.max(1));
        let rings = (0..workers).filter(|_| each > 0).map(|_| Arc::new(Ring::of(each))).collect();
        let place = |gate: &Arc<Gate>| {
            let caller = match &gate.listener.role {
                Role::Gateway => None,
                Role::Outbound { service, .. } => service.as_ref(),
                Role::Inbound { service, .. } => Some(service),
            };
            Place { role: gate.role(), caller: caller.map(ToString::to_string) }
        };
        let places = gates.iter().map(place).collect();
        Arc::new(Self { rings, base: Instant::now(), wall: AtomicU64::new(0), proxy, places })
    }

    /// Whether any are kept.
    #[must_use]
    pub fn are_kept(&self) -> bool {
        !self.rings.is_empty()
    }

    /// How many are kept, at most.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.rings.iter().map(|ring| ring.slots()).sum()
    }

    /// From now on the requests of this thread, which is the worker of this number, are written down.
    pub fn take_up(&self, worker: usize) {
        if let Some(ring) = self.rings.get(worker) {
            note::take_up(ring.clone(), self.base);
        }
    }

    /// After all that was decided until now.
    #[must_use]
    pub fn end(&self) -> Cursor {
        Cursor(self.rings.iter().map(|ring| ring.written()).collect())
    }

    /// The newest that fit, at most `limit`. Reads all that are kept.
    #[must_use]
    pub fn newest(&self, filter: &Filter, limit: usize) -> Found {
        let (found, missed) = self.look(|record, role| record.fits(filter, role));
        Found { decisions: self.shown(found, limit), missed, silent: Vec::new() }
    }

    /// All of the requests that one of these ids names, or that an id of theirs does: those of traces, of requests, or of
    /// hops of receipts. Besides, the calls that lost a key while one of these requests was served: whose they are, nobody
    /// can tell.
    #[must_use]
    pub fn of(&self, ids: &BTreeSet<String>) -> Vec<Decision> {
        let (mut found, mut known, mut next) = (Vec::<Record>::new(), BTreeSet::new(), ids.clone());
        for _ in 0..ROUNDS {
            let (new, _) = self.look(|record, _| next.iter().any(|id| record.is_of(id)));
            known.append(&mut next);
            let new = self.shown_records(new);
            next = story::ids(new.iter().map(|(_, decision)| decision));
            next = next.difference(&known).take(IDS).cloned().collect();
            found.extend(new.into_iter().map(|(record, _)| record));
            if next.is_empty() {
                break;
            }
        }
        let served: Vec<_> = found.iter().filter_map(|record| self.served(record)).collect();
        let (lost, _) = self.look(|record, _| served.iter().any(|served| self.is_lost_in(record, served)));
        found.extend(lost);
        found.sort_by_key(|record| (record.started(), record.gate()));
        found.dedup_by_key(|record| (record.started(), record.gate()));
        self.shown(found, usize::MAX)
    }

    /// The service that served a request with a key, and from when until when.
    fn served(&self, record: &Record) -> Option<(&str, u64, u64)> {
        let place = self.places.get(record.gate()).filter(|place| place.role == "inbound")?;
        let ends = record.started().saturating_add(record.took());
        Some((place.caller.as_deref()?, record.started(), ends)).filter(|_| record.has_key())
    }

    fn is_lost_in(&self, record: &Record, (service, begins, ends): &(&str, u64, u64)) -> bool {
        let place = self.places.get(record.gate()).filter(|place| place.role == "outbound");
        record.lost_its_key()
            && (begins..=ends).contains(&&record.started())
            && place.is_some_and(|place| place.caller.as_deref() == Some(service))
    }

    /// When the oldest that is kept was decided; nothing where none is.
    #[must_use]
    pub fn since(&self) -> Option<String> {
        let oldest = |ring: &Arc<Ring>| {
            let (from, to) = (ring.written().saturating_sub(ring.slots()), ring.written());
            (from..to).find_map(|number| ring.read(number)).map(|words| Record::of(words).started())
        };
        let oldest = self.rings.iter().filter_map(oldest).min()?;
        Some(moment(self.wall().saturating_add(oldest / 1000)))
    }

    /// What was decided since the cursor and fits, oldest first, at most `limit`; and how many were overwritten before they
    /// could be read, and how many more than `limit` there were.
    pub fn follow(&self, cursor: &mut Cursor, filter: &Filter, limit: usize) -> Followed {
        let mut followed = Followed::default();
        let mut found = Vec::new();
        for (ring, told) in self.rings.iter().zip(&mut cursor.0) {
            let written = ring.written();
            let from = (*told).max(written.saturating_sub(ring.slots()));
            followed.overrun += from - *told;
            for number in from..written {
                match ring.read(number).map(Record::of) {
                    None => followed.overrun += 1,
                    Some(record) if !record.fits(filter, self.role(&record)) => {}
                    Some(_) if found.len() >= limit => followed.over += 1,
                    Some(record) => found.push(record),
                }
            }
            *told = written;
        }
        followed.decisions = self.shown(found, limit);
        followed.decisions.reverse();
        followed
    }

    fn look(&self, fits: impl Fn(&Record, &str) -> bool) -> (Vec<Record>, u64) {
        let (mut found, mut missed) = (Vec::new(), 0);
        for ring in &self.rings {
            let written = ring.written();
            for number in (written.saturating_sub(ring.slots())..written).rev() {
                match ring.read(number).map(Record::of) {
                    None => missed += 1,
                    Some(record) if fits(&record, self.role(&record)) => found.push(record),
                    Some(_) => {}
                }
            }
        }
        (found, missed)
    }

    fn role(&self, record: &Record) -> &'static str {
        self.places.get(record.gate()).map_or("", |place| place.role)
    }

    /// The newest of them, newest first, as others see them.
    fn shown(&self, mut found: Vec<Record>, limit: usize) -> Vec<Decision> {
        found.sort_by_key(|record| std::cmp::Reverse(record.started()));
        found.truncate(limit);
        self.shown_records(found).into_iter().map(|(_, decision)| decision).collect()
    }

    fn shown_records(&self, found: Vec<Record>) -> Vec<(Record, Decision)> {
        let wall = self.wall();
        let shown = |record: &Record| {
            let place = self.places.get(record.gate());
            Decision {
                at: moment(wall.saturating_add(record.started() / 1000)),
                proxy: self.proxy.to_string(),
                role: place.map_or("", |place| place.role).to_owned(),
                caller: place.and_then(|place| place.caller.clone()),
                ..record.decision()
            }
        };
        found
            .into_iter()
            .map(|record| (shown(&record), record))
            .map(|(decision, record)| (record, decision))
            .collect()
    }

    /// The moment from which records count, on the wall's clock. It stays the same until that clock is set.
    fn wall(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = |span: std::time::Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let now = micros(since).saturating_sub(micros(self.base.elapsed()));
        let told = self.wall.load(Relaxed);
        if now.abs_diff(told) <= DRIFT {
            return told;
        }
        self.wall.store(now, Relaxed);
        now
    }
}

/// What followed on a cursor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Followed {
    /// What fits, oldest first.
    pub decisions: Vec<Decision>,
    /// How many were overwritten before they could be read.
    pub overrun: u64,
    /// How many more fit than were wanted.
    pub over: u64,
}

impl Followed {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.decisions.is_empty() && self.overrun + self.over == 0
    }
}

/// A point in time in microseconds since 1970, as RFC 3339 has it.
fn moment(micros: u64) -> String {
    let at = i64::try_from(micros).ok().and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok());
    at.map_or_else(String::new, |at| format!("{at:.6}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use overlane_config::route::{Reason, Via};

    use super::*;
    use crate::metrics::Method;
    use crate::plane::propagation::Digits;
    use crate::upstream::Address;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn kept(kept: usize) -> Arc<Decisions> {
        let decisions = Decisions::new(kept, 1, "here/1".into(), &[Arc::new(Gate::of_tests())]);
        decisions.take_up(0);
        decisions
    }

    /// What is usual.
    fn decided(upstream: Option<&Address>) -> Decided<'_> {
        Decided {
            started: Instant::now(),
            took: Duration::from_micros(1500),
            upstream_took: Some(Duration::from_micros(1250)),
            gate: 0,
            method: Method::of("POST"),
            status: 200,
            via: Some(Via::Baseline),
            reason: Some(Reason::NotOwned),
            failed: None,
            key_from: KeyFrom::Arrived,
            generation: 7,
            hop: u64::from_le_bytes(*b"gu3hiwph"),
            key: Some("alice-payments"),
            service: Some("web"),
            environment: Some("staging"),
            upstream,
        }
    }

    fn asked(path: &str) -> Noted<'_> {
        let trace = Some(Digits::Whole(TRACE.as_bytes()));
        Noted { authority: "shop.example.com", path, request_id: Some(b"r-1"), trace }
    }

    fn took(path: &str, decided: &Decided<'_>) {
        write(note(|| asked(path)).expect("decisions are kept"), decided);
    }

    #[test]
    fn what_a_worker_writes_is_what_others_read() {
        let decisions = kept(10);
        for upstream in ["127.0.0.1:4001", "[fd00::1]:80", "255.255.255.255:65535"] {
            took("/cart", &decided(Some(&Address::Tcp(upstream.parse().expect("an address")))));
            let found = decisions.newest(&Filter::default(), 1);
            let [decision] = &found.decisions[..] else { panic!("{found:?}") };
            let expected = Decision {
                at: decision.at.clone(),
                proxy: "here/1".to_owned(),
                role: "gateway".to_owned(),
                method: "POST".to_owned(),
                authority: "shop.example.com".to_owned(),
                path: "/cart".to_owned(),
                key: Some("alice-payments".to_owned()),
                key_from: KeyFrom::Arrived,
                service: Some("web".to_owned()),
                environment: Some("staging".to_owned()),
                via: Some("baseline".to_owned()),
                reason: Some("not-owned".to_owned()),
                status: 200,
                duration_ms: 1.5,
                upstream_ms: Some(1.25),
                upstream: Some(upstream.to_owned()),
                trace: Some(TRACE.to_owned()),
                request_id: Some("r-1".to_owned()),
                hop: Some("gu3hiwph".to_owned()),
                generation: 7,
                ..Decision::default()
            };
            assert_eq!(*decision, expected);
            assert!(
                decision.at.ends_with('Z') && decision.at.len() == "2026-11-28T12:00:00.000000Z".len(),
                "{}",
                decision.at
            );
        }
        took(
            "/cart",
            &Decided { failed: Some("timeout"), ..decided(Some(&Address::Unix("/run/web.sock".into()))) },
        );
        let found = decisions.newest(&Filter::default(), 1);
        assert_eq!(found.decisions[0].upstream.as_deref(), Some("unix:/run/web.sock"));
        assert_eq!(found.decisions[0].reason.as_deref(), Some("timeout"));
    }

    #[test]
    fn secrets_in_paths_stay_hidden_also_where_the_path_is_cut() {
        let decisions = kept(10);
        let long = format!("/proxy/{}http://user:secretsecretsecret@host/", "x".repeat(70));
        for path in ["/a;jsessionid=secret/b", "/proxy/http://user:secret@host/", &long] {
            took(path, &decided(None));
            let found = decisions.newest(&Filter::default(), 1);
            assert!(!found.decisions[0].path.contains("secret"), "{}", found.decisions[0].path);
        }
        let text = "\u{e4}".repeat(60);
        took(&text, &decided(None));
        let path = &decisions.newest(&Filter::default(), 1).decisions[0].path;
        assert_eq!(path.strip_suffix("...").map(|path| text.starts_with(path)), Some(true), "{path}");
    }

    #[test]
    fn of_many_the_last_are_kept_and_a_slow_reader_is_told_how_many_it_missed() {
        let decisions = kept(4);
        let (mut cursor, all) = (decisions.end(), Filter::default());
        let paths: Vec<_> = (0..7).map(|number| format!("/{number}")).collect();
        paths.iter().take(2).for_each(|path| took(path, &decided(None)));
        let read =
            |followed: Followed| followed.decisions.into_iter().map(|one| one.path).collect::<Vec<_>>();
        assert_eq!(read(decisions.follow(&mut cursor, &all, 10)), ["/0", "/1"]);
        paths.iter().skip(2).for_each(|path| took(path, &decided(None)));
        let followed = decisions.follow(&mut cursor, &all, 3);
        assert_eq!((followed.overrun, followed.over), (1, 1));
        assert_eq!(read(followed), ["/3", "/4", "/5"]);
        assert_eq!(decisions.follow(&mut cursor, &all, 3), Followed::default());
        let newest: Vec<_> = decisions.newest(&all, 2).decisions.into_iter().map(|one| one.path).collect();
        assert_eq!(newest, ["/6", "/5"]);
    }

    #[test]
    fn decisions_are_found_by_what_they_say_and_by_each_of_their_ids() {
        let decisions = kept(10);
        took("/cart/1", &Decided { status: 503, ..decided(None) });
        took("/pay", &Decided { service: Some("api"), key: None, ..decided(None) });
        let paths = |filter: &str| {
            let pairs: serde_json::Value = form_urlencoded::parse(filter.as_bytes())
                .into_owned()
                .map(|(name, value)| (name, value.into()))
                .collect::<serde_json::Map<_, _>>()
                .into();
            let filter: Filter = serde_json::from_value(pairs).expect("a filter");
            decisions.newest(&filter, 10).decisions.into_iter().map(|one| one.path).collect::<Vec<_>>()
        };
        for (filter, expected) in [
            ("status=5xx", "/cart/1"),
            ("status=200", "/pay"),
            ("overlay=alice-payments", "/cart/1"),
            ("service=api", "/pay"),
            ("path=/cart", "/cart/1"),
        ] {
            assert_eq!(paths(filter), [expected], "{filter}");
        }
        assert_eq!(paths("role=gateway&request=r-1").len(), 2);
        assert_eq!(paths("role=inbound").len() + paths("overlay=alice").len() + paths("request=r-").len(), 0);
        let of = |id: &str| decisions.of(&BTreeSet::from([id.to_owned()])).len();
        for id in [TRACE, &TRACE[16..], "r-1", "gu3hiwph"] {
            assert_eq!(of(id), 2, "{id}");
        }
        assert_eq!(of("") + of("r-2") + of(&TRACE[..16]), 0);
    }

    #[test]
    fn where_none_are_kept_nothing_is_noted() {
        let decisions = Decisions::new(0, 2, "here/1".into(), &[]);
        decisions.take_up(0);
        assert!(!decisions.are_kept() && note(|| asked("/")).is_none());
        assert_eq!(decisions.newest(&Filter::default(), 10), Found::default());
    }
}
