//! What changes in an etcd, as it comes. A stream that is quiet is asked for its progress: one that does not answer has
//! gone, whatever its connection says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connection::{ANSWER, Answers, Connection, Failure, framed};
use super::messages::{DELETE, Event, WatchCreate, WatchProgress, WatchRequest, WatchResponse};
use super::{Keys, Revision};
use crate::store::shared::{Change, Changes, Fault, WatchError, Watching};

const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// A stream is asked for its progress when it was quiet for so long: together with [`ANSWER`] well below
/// [`SILENCE`](crate::store::shared::follow::SILENCE).
const QUIET: Duration = Duration::from_secs(5);

/// Follows the keys from the state after `after`.
pub(super) async fn watch(
    connection: &Arc<Connection>,
    keys: &Keys,
    after: i64,
) -> Result<Watching, WatchError> {
    let mut renewed = false;
    loop {
        match begin(connection, keys, after).await {
            Ok(reader) => return Ok(Box::pin(stream::unfold(Some(reader), Reader::told))),
            Err(failure) if failure.is_of_token() && !renewed => {
                connection.leave(&failure).await;
                renewed = true;
            }
            Err(failure) => return Err(failure.into()),
        }
    }
}

impl From<Failure> for WatchError {
    fn from(failure: Failure) -> Self {
        if failure.is_compacted() { Self::Compacted } else { Self::Fault(failure.fault()) }
    }
}

async fn begin(connection: &Arc<Connection>, keys: &Keys, after: i64) -> Result<Reader, Failure> {
    let (requests, sent) = mpsc::channel(2);
    let create = WatchCreate {
        key: keys.prefix.clone(),
        range_end: keys.end.clone(),
        // The state that is known, whose events are left out: a watch on what is yet to come is not told of progress by
        // etcd from 3.4.38, 3.5.22 and 3.6.2 on (etcd#20229), and on a store that nobody writes to nothing else comes.
        start_revision: after,
        progress_notify: true,
        fragment: true,
    };
    // There is room for two.
    let _ = requests.try_send(framed(&WatchRequest { create: Some(create), progress: None }));
    let (answers, by) = connection.open(WATCH, sent).await?;
    let mut reader = Reader {
        connection: connection.clone(),
        keys: keys.clone(),
        requests,
        answers,
        by,
        after,
        revision: after,
        id: 0,
        events: Vec::new(),
    };
    let created = timeout(ANSWER, reader.answers.next::<WatchResponse>()).await;
    let created = match created.unwrap_or_else(|_| Err(reader.silent())) {
        Ok(Some(created)) => created,
        Ok(None) => return Err(reader.answers.broken("it ended the watch")),
        Err(failure) => {
            connection.leave(&failure).await;
            return Err(failure);
        }
    };
    reader.id = created.watch_id;
    reader.not_canceled(&created)?;
    // It was put back to a backup: what comes next has numbers that were told already.
    if created.header.is_some_and(|header| header.revision < after) {
        return Err(reader.forgotten());
    }
    Ok(reader)
}

/// Who follows.
struct Reader {
    connection: Arc<Connection>,
    keys: Keys,
    requests: mpsc::Sender<Bytes>,
    answers: Answers,
    by: String,
    /// The state from which it follows.
    after: i64,
    /// All changes up to this state were told.
    revision: i64,
    /// Of the watch on its stream.
    id: i64,
    /// Fragments of what happened at once.
    events: Vec<Event>,
}

impl Reader {
    /// What is told next; nothing after an error.
    async fn told(reader: Option<Self>) -> Option<(Result<Changes, WatchError>, Option<Self>)> {
        let mut reader = reader?;
        match reader.next().await {
            Ok(changes) => Some((Ok(changes), Some(reader))),
            Err(failure) => {
                reader.connection.leave(&failure).await;
                Some((Err(failure.into()), None))
            }
        }
    }

    async fn next(&mut self) -> Result<Changes, Failure> {
        loop {
            let mut answer = self.answer().await?;
            self.not_canceled(&answer)?;
            self.events.append(&mut answer.events);
            if answer.fragment {
                continue;
            }
            let mut events = std::mem::take(&mut self.events);
            events.retain(|event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision > self.after));
            let latest = events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).max();
            // Progress that was asked for has another id: etcd before 3.4.25 and 3.5.8 says it too early (etcd#15220).
            let progress = answer.header.filter(|_| answer.watch_id == self.id && !answer.created);
            let told = latest.or(progress.map(|header| header.revision));
            self.revision = told.map_or(self.revision, |told| told.max(self.revision));
            let changes = events.into_iter().filter_map(|event| self.change(&event)).collect();
            return Ok(Changes { changes, revision: Revision::new(self.revision) });
        }
    }

    async fn answer(&mut self) -> Result<WatchResponse, Failure> {
        // Reading can be stopped between messages: what came of one is kept.
        let answer = match timeout(QUIET, self.answers.next()).await {
            Ok(answer) => answer,
            Err(_) => {
                let progress = WatchRequest { create: None, progress: Some(WatchProgress {}) };
                // Where there is no room, two are on their way.
                let _ = self.requests.try_send(framed(&progress));
                timeout(ANSWER, self.answers.next()).await.unwrap_or_else(|_| Err(self.silent()))
            }
        };
        answer?.ok_or_else(|| self.answers.broken("it ended the watch"))
    }

    fn change(&self, event: &Event) -> Option<Change> {
        let kv = event.kv.as_ref()?;
        if event.kind == DELETE {
            return Some(Change::Gone(self.keys.name(&kv.key)?));
        }
        Some(Change::Put(self.keys.entry(kv)?))
    }

    fn not_canceled(&self, answer: &WatchResponse) -> Result<(), Failure> {
        if answer.compact_revision != 0 {
            return Err(self.forgotten());
        }
        if !answer.canceled {
            return Ok(());
        }
        let denied = answer.cancel_reason.contains("permission denied");
        let message = match answer.cancel_reason.as_str() {
            "" => "the watch is canceled".to_owned(),
            reason => reason.to_owned(),
        };
        // Of gRPC: permission denied, unavailable.
        Err(Failure::Refused { code: if denied { 7 } else { 14 }, message, by: self.by.clone() })
    }

    fn forgotten(&self) -> Failure {
        let message = "required revision has been compacted".to_owned();
        // Of gRPC: out of range.
        Failure::Refused { code: 11, message, by: self.by.clone() }
    }

    fn silent(&self) -> Failure {
        Failure::Broken(format!("etcd at {} is silent for {} s", self.by, (QUIET + ANSWER).as_secs()))
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        failure.fault()
    }
}
