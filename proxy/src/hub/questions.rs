//! What a hub asks those who report to it: their decisions, and their sums. Each of them holds a request open, whose answer
//! is the questions as they come, a line of JSON for each; what it finds it sends in requests of its own. Nobody has to be
//! reachable, and who does not answer in time is named.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::Hub;
use super::fleet::{MOST, NAME};
use super::wire::LINES;
use crate::admin::problem;
use crate::decisions::{Decision, Filter, Found};
use crate::plane::drain::{Drain, Stage};
use crate::stats::Counted;

/// Where a proxy is asked: `?id=ITS NAME`.
pub const QUESTIONS: &str = "/hub/v1/questions";
/// Where it answers.
pub const ANSWERS: &str = "/hub/v1/answers";
/// The largest answer, in bytes.
pub(super) const ANSWER_BYTES: usize = 8 << 20;
/// How long answers are waited for.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long a stream of questions is silent at most: a third of what those who listen bear.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The most lines that wait for a proxy that does not read them: all questions that can be open, and that they are over,
/// and some more.
const WAITING: usize = 4 * OPEN;
/// The most questions that are open at once.
const OPEN: usize = 64;
/// The most answers that nobody has read yet, of one question; and the most decisions in them, of one that lasts.
const UNREAD: usize = 1024;
const UNREAD_DECISIONS: usize = 5000;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// The newest decisions that fit.
    Decisions {
        /// Which.
        filter: Filter,
        /// How many at most.
        limit: usize,
    },
    /// All decisions about the requests that one of these ids names.
    Of(BTreeSet<String>),
    /// The ways that requests took.
    Flows,
    /// Decisions as they are taken, until the question is over.
    Tap {
        /// Which.
        filter: Filter,
        /// How many a second at most.
        most: u32,
    },
    /// The question of this number is over.
    Over,
}

/// A line of the stream of questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// By which it is answered; 0 is none, and only a sign of life.
    pub number: u64,
    /// What is asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ask: Option<Ask>,
}

/// What a proxy found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Told {
    /// The newest decisions that fit.
    Decisions(Found),
    /// All decisions about some requests.
    Of(Vec<Decision>),
    /// The ways that requests took, and what was added to them.
    Flows(Counted),
    /// What was decided since it told the last time, and how many more it left out for the rate, or could not read in time.
    Tap {
        /// Oldest first.
        decisions: Vec<Decision>,
        /// For the rate.
        over: u64,
        /// For being too slow.
        overrun: u64,
    },
    /// It keeps no decisions.
    Nothing,
}

impl Told {
    /// How many decisions a tap tells in it.
    fn decisions(&self) -> usize {
        match self {
            Self::Tap { decisions, .. } => decisions.len(),
            _ => 0,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Who answers.
    pub id: String,
    /// Which question.
    pub number: u64,
    /// What it found.
    pub told: Told,
}

/// Who listens for questions, and the stream by which it does.
struct Listener {
    stream: u64,
    lines: mpsc::Sender<Bytes>,
}

impl Listener {
    /// False where it does not read what it is told. It is forgotten then, so that its stream ends: when it listens again, it is
    /// asked whatever is still open.
    fn is_told(&self, line: &Bytes) -> bool {
        self.lines.try_send(line.clone()).is_ok()
    }
}

/// What came of a question that lasts and was not taken yet.
#[derive(Debug, Default)]
struct Unread {
    decisions: AtomicUsize,
    /// Decisions that came faster than they are read, and are gone.
    dropped: AtomicU64,
}

/// A question that is open.
struct Open {
    answers: mpsc::Sender<Answer>,
    unread: Arc<Unread>,
    /// The line of one that lasts: who comes later is asked as well.
    lasting: Option<Bytes>,
}

#[derive(Default)]
struct Known {
    listeners: BTreeMap<String, Listener>,
    open: BTreeMap<u64, Open>,
}

/// The questions of a hub.
#[derive(Default)]
pub struct Questions {
    known: Mutex<Known>,
    numbers: AtomicU64,
}

impl std::fmt::Debug for Questions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Questions").finish_non_exhaustive()
    }
}

/// What came of a question.
#[derive(Debug, Default)]
pub struct Answered {
    /// How many answered.
    pub count: usize,
    /// Who was asked and did not answer in time.
    pub silent: Vec<String>,
}

/// So many questions are open that no more may be.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany;

impl Questions {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Relaxed) + 1
    }

    /// Opens a question to all who listen; who they are, and where their answers come.
    fn open(self: &Arc<Self>, ask: Ask, lasting: bool) -> Result<(Asking, Vec<String>), TooMany> {
        let number = self.number();
        let line = line(number, Some(ask));
        let (answers, told) = mpsc::channel(UNREAD);
        let mut known = self.known();
        if known.open.len() >= OPEN {
            return Err(TooMany);
        }
        let unread = Arc::<Unread>::default();
        let lasts = lasting.then(|| line.clone());
        known.open.insert(number, Open { answers, unread: unread.clone(), lasting: lasts });
        let mut asked = Vec::new();
        known.listeners.retain(|name, listener| {
            asked.push(name.clone());
            listener.is_told(&line)
        });
        drop(known);
        Ok((Asking { questions: self.clone(), number, told, unread, lasting }, asked))
    }

    /// Asks all who listen, and waits for their answers. What is found is taken in as it comes: together it may be more than
    /// there is memory for.
    ///
    /// # Errors
    /// So many are open already.
    pub async fn ask(self: &Arc<Self>, ask: Ask, mut take: impl FnMut(Told)) -> Result<Answered, TooMany> {
        let (mut asking, asked) = self.open(ask, false)?;
        let mut waiting: BTreeSet<_> = asked.into_iter().collect();
        let (mut answered, until) = (Answered::default(), Instant::now() + PATIENCE);
        while !waiting.is_empty() {
            let Ok(Some(Answer { id, told, .. })) = timeout_at(until, asking.told.recv()).await else {
                break;
            };
            if waiting.remove(&id) {
                answered.count += 1;
                take(told);
            }
        }
        answered.silent = waiting.into_iter().collect();
        Ok(answered)
    }

    /// Asks for decisions as they are taken, until what is returned is dropped.
    ///
    /// # Errors
    /// So many are open already.
    pub fn tap(self: &Arc<Self>, filter: Filter, most: u32) -> Result<Asking, TooMany> {
        self.open(Ask::Tap { filter, most }, true).map(|(asking, _)| asking)
    }

    /// Leaves an answer where its question waits; false where that has too many, nothing where it is over.
    fn take_in(&self, answer: Answer) -> Option<bool> {
        let known = self.known();
        let Open { answers, unread, .. } = known.open.get(&answer.number)?;
        let decisions = answer.told.decisions();
        let room = unread.decisions.load(Relaxed) + decisions <= UNREAD_DECISIONS;
        let taken = room && answers.try_send(answer).is_ok();
        match taken {
            true => drop(unread.decisions.fetch_add(decisions, Relaxed)),
            false => drop(unread.dropped.fetch_add(decisions as u64, Relaxed)),
        }
        Some(taken)
    }

    /// Who listens.
    #[must_use]
    pub fn listeners(&self) -> BTreeSet<String> {
        self.known().listeners.keys().cloned().collect()
    }
}

/// A question that is open for as long as this lives.
#[derive(Debug)]
pub struct Asking {
    questions: Arc<Questions>,
    number: u64,
    told: mpsc::Receiver<Answer>,
    unread: Arc<Unread>,
    lasting: bool,
}

impl Asking {
    /// What was told and not taken yet.
    pub fn told(&mut self) -> Option<Told> {
        let told = self.told.try_recv().ok()?.told;
        self.unread.decisions.fetch_sub(told.decisions(), Relaxed);
        Some(told)
    }

    /// How many decisions came faster than they were taken, since this was asked the last time.
    pub fn dropped(&mut self) -> u64 {
        self.unread.dropped.swap(0, Relaxed)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut known = self.questions.known();
        known.open.remove(&self.number);
        if self.lasting {
            let over = line(self.number, Some(Ask::Over));
            known.listeners.retain(|_, listener| listener.is_told(&over));
        }
    }
}

fn line(number: u64, ask: Option<Ask>) -> Bytes {
    // Strings and numbers can always be written.
    let mut line = serde_json::to_vec(&Question { number, ask }).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Who {
    id: String,
}

/// A proxy's place among those who listen; it goes with its stream.
struct Place {
    questions: Arc<Questions>,
    name: String,
    stream: u64,
    lines: mpsc::Receiver<Bytes>,
    drain: Drain,
}

impl Place {
    fn take(questions: &Arc<Questions>, name: String, drain: Drain) -> Option<Self> {
        let (sender, lines) = mpsc::channel(WAITING);
        let stream = questions.number();
        let mut known = questions.known();
        if known.listeners.len() >= MOST && !known.listeners.contains_key(&name) {
            return None;
        }
        for lasting in known.open.values().filter_map(|open| open.lasting.clone()) {
            let _ = sender.try_send(lasting);
        }
        known.listeners.insert(name.clone(), Listener { stream, lines: sender });
        drop(known);
        Some(Self { questions: questions.clone(), name, stream, lines, drain })
    }

    /// The next line; nothing when the process ends, or the proxy listens elsewhere.
    async fn next(&mut self) -> Option<Bytes> {
        tokio::select! {
            () = self.drain.reached(Stage::Draining) => None,
            told = timeout(HEARTBEAT, self.lines.recv()) => match told {
                Ok(line) => line,
                Err(_) => Some(line(0, None)),
            },
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut known = self.questions.known();
        if known.listeners.get(&self.name).is_some_and(|listener| listener.stream == self.stream) {
            known.listeners.remove(&self.name);
        }
    }
}

pub(super) async fn listen(State(hub): State<Hub>, Query(Who { id }): Query<Who>) -> Response {
    if id.is_empty() || id.len() > NAME {
        return problem(StatusCode::BAD_REQUEST, "a proxy has a name of 1 to 256 bytes");
    }
    let Some(place) = Place::take(&hub.fleet.questions, id, hub.drain.clone()) else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "too many proxies listen at this hub");
    };
    let lines = stream::unfold(place, async |mut place| {
        let line = place.next().await?;
        Some((Ok::<_, std::io::Error>(line), place))
    });
    ([(header::CONTENT_TYPE, LINES), (header::CACHE_CONTROL, "no-store")], Body::from_stream(lines))
        .into_response()
}

pub(super) async fn hear(State(hub): State<Hub>, body: Bytes) -> Response {
    let answer: Answer = match serde_json::from_slice(&body) {
        Ok(answer) => answer,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match hub.fleet.questions.take_in(answer) {
        None => problem(StatusCode::GONE, "nobody waits for this any more"),
        Some(true) => StatusCode::NO_CONTENT.into_response(),
        Some(false) => problem(StatusCode::TOO_MANY_REQUESTS, "answers come faster than they are read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(number: u64, decisions: usize) -> Answer {
        let decisions = vec![Decision::default(); decisions];
        Answer { id: "a".to_owned(), number, told: Told::Tap { decisions, over: 0, overrun: 0 } }
    }

    #[test]
    fn who_does_not_read_its_questions_listens_anew_and_is_asked_what_is_still_open() {
        let questions = Arc::new(Questions::default());
        let place = || Place::take(&questions, "a".to_owned(), Drain::default()).expect("room");
        let mut deaf = place();
        let open = questions.tap(Filter::default(), 10).expect("room");
        for _ in 0..WAITING {
            drop(questions.tap(Filter::default(), 10));
        }
        assert!(questions.listeners().is_empty());
        while deaf.lines.try_recv().is_ok() {}
        assert_eq!(deaf.lines.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        let mut again = place();
        drop(deaf);
        assert_eq!(questions.listeners().len(), 1, "the old stream takes nothing from the new one");
        let line: Question =
            serde_json::from_slice(&again.lines.try_recv().expect("a line")).expect("a question");
        assert_eq!(line.number, open.number);
    }

    #[test]
    fn what_nobody_reads_is_bounded_and_counted_and_questions_are_as_well() {
        let questions = Arc::new(Questions::default());
        let mut asking = questions.tap(Filter::default(), 10).expect("room");
        let number = asking.number;
        assert_eq!(questions.take_in(tap(number, UNREAD_DECISIONS - 1)), Some(true));
        assert_eq!(questions.take_in(tap(number, 2)), Some(false));
        assert_eq!(questions.take_in(tap(number, 1)), Some(true));
        assert_eq!((asking.dropped(), asking.dropped()), (2, 0));
        assert_eq!([asking.told(), asking.told()].map(|told| told.is_some()), [true, true]);
        assert_eq!(questions.take_in(tap(number, 2)), Some(true), "there is room again");
        let more: Vec<_> = (1..OPEN).map(|_| questions.tap(Filter::default(), 10).expect("room")).collect();
        assert_eq!(questions.tap(Filter::default(), 10).err(), Some(TooMany));
        drop((asking, more));
        assert_eq!(questions.take_in(tap(number, 1)), None);
        assert!(questions.tap(Filter::default(), 10).is_ok());
    }
}
