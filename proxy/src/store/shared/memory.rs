//! A store in memory, for tests of what is above all stores: it can be away, forget, and lose its watchers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use overlane_config::lineage::About;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{
    Change, Changes, Commit, CommitError, Committed, Entry, Fault, Listing, Revision, Shared, WatchError,
    Watching,
};

#[derive(Default)]
struct State {
    revision: u64,
    entries: BTreeMap<String, (String, u64)>,
    /// Every change and the revision that it made.
    log: Vec<(u64, Change)>,
    /// Watches from before this one are refused.
    compacted: u64,
    away: bool,
    /// How long a listing takes.
    listing: Duration,
    /// How often all watches were cut.
    cuts: u64,
    listings: u64,
    watches: u64,
    /// The next answers to those who write are lost: whether it was written before.
    lost: Vec<bool>,
    /// Whether it tells what is around a change.
    tells: bool,
}

/// The store; clones are the same one.
#[derive(Clone)]
pub(crate) struct Memory {
    state: Arc<Mutex<State>>,
    told: watch::Sender<()>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), told: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.told.send_replace(());
    }

    /// It cannot be asked from now on, or can again.
    pub(crate) fn away(&self, away: bool) {
        self.told(|state| {
            state.away = away;
            state.cuts += 1;
        });
    }

    /// A listing takes so long from now on.
    pub(crate) fn slow(&self, listing: Duration) {
        self.state().listing = listing;
    }

    /// All who follow are cut off.
    pub(crate) fn cut(&self) {
        self.told(|state| state.cuts += 1);
    }

    /// Only the present is remembered from now on.
    pub(crate) fn compact(&self) {
        self.told(|state| state.compacted = state.revision);
    }

    /// The answers to those who write next are lost, the last one first: each after it was written, or instead.
    pub(crate) fn lose(&self, written: Vec<bool>) {
        self.state().lost = written;
    }

    /// It can tell what is around a change from now on: all of it.
    pub(crate) fn tells(&self) {
        self.state().tells = true;
    }

    /// Writes whatever is there, as another one would.
    pub(crate) fn put(&self, name: &str, text: Option<&str>) {
        self.told(|state| state.write(name, text.map(str::to_owned)));
    }

    /// What it holds under a name.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.state().entries.get(name).map(|(text, _)| text.clone())
    }

    /// The state in which it is.
    pub(crate) fn revision(&self) -> Revision {
        Revision::new(self.state().revision)
    }

    /// How often it was listed.
    pub(crate) fn listings(&self) -> u64 {
        self.state().listings
    }

    /// How often following began.
    pub(crate) fn watches(&self) -> u64 {
        self.state().watches
    }
}

impl State {
    fn write(&mut self, name: &str, text: Option<String>) {
        self.revision += 1;
        let change = match text {
            Some(text) => {
                self.entries.insert(name.to_owned(), (text, self.revision));
                Change::Put(self.entry(name))
            }
            None => {
                self.entries.remove(name);
                Change::Gone(name.to_owned())
            }
        };
        self.log.push((self.revision, change));
    }

    fn entry(&self, name: &str) -> Entry {
        let (text, revision) = self.entries[name].clone();
        Entry { name: name.to_owned(), text, modified: None, revision: Revision::new(revision) }
    }

    fn everything(&self) -> Listing {
        let entries = self.entries.keys().map(|name| self.entry(name)).collect();
        Listing { entries, revision: Revision::new(self.revision) }
    }

    fn known(&self, name: &str) -> Option<Revision> {
        self.entries.get(name).map(|(_, revision)| Revision::new(revision))
    }

    fn reachable(&self) -> Result<(), Fault> {
        if self.away { Err(Fault("the store in memory is away".to_owned())) } else { Ok(()) }
    }
}

/// Who follows.
struct Reader {
    memory: Memory,
    told: watch::Receiver<()>,
    from: u64,
    cuts: u64,
}

impl Reader {
    fn look(&mut self) -> Option<Result<Changes, WatchError>> {
        let state = self.memory.state();
        if state.cuts != self.cuts {
            if self.from < state.compacted {
                return Some(Err(WatchError::Compacted));
            }
            return Some(Err(WatchError::Fault(Fault("the watch was cut".to_owned()))));
        }
        let new = state.log.iter().filter(|(at, _)| *at > self.from);
        let changes: Vec<_> = new.map(|(_, change)| change.clone()).collect();
        self.from = state.revision;
        (!changes.is_empty()).then(|| Ok(Changes { changes, revision: Revision::new(self.from) }))
    }

    async fn next(&mut self) -> Option<Result<Changes, WatchError>> {
        loop {
            self.told.borrow_and_update();
            if let Some(told) = self.look() {
                return Some(told);
            }
            self.told.changed().await.ok()?;
        }
    }
}

#[async_trait]
impl Shared for Memory {
    fn address(&self) -> String {
        "memory:".to_owned()
    }

    async fn list(&self) -> Result<Listing, Fault> {
        let takes = self.state().listing;
        sleep(takes).await;
        let mut state = self.state();
        state.reachable()?;
        state.listings += 1;
        Ok(state.everything())
    }

    async fn around(&self, _about: &About) -> Result<Option<Listing>, Fault> {
        let state = self.state();
        Ok(state.tells.then(|| state.everything()))
    }

    async fn watch(&self, after: &Revision) -> Result<Watching, WatchError> {
        let from: u64 = after.as_str().parse().map_err(|_| WatchError::Compacted)?;
        let mut state = self.state();
        state.reachable()?;
        if from < state.compacted {
            return Err(WatchError::Compacted);
        }
        state.watches += 1;
        let reader = Reader { memory: self.clone(), told: self.told.subscribe(), from, cuts: state.cuts };
        let next = async |mut reader: Reader| Some((reader.next().await?, reader));
        Ok(Box::pin(stream::unfold(reader, next)))
    }

    async fn commit(&self, commit: &Commit) -> Result<Committed, CommitError> {
        let mut state = self.state();
        state.reachable()?;
        let lost = state.lost.pop();
        let unsure = || CommitError::Unsure(Fault("the answer was lost".to_owned()));
        if lost == Some(false) {
            return Err(unsure());
        }
        let alone =
            commit.alone_since.as_ref().is_none_or(|since| since.as_str() == state.revision.to_string());
        let unchanged =
            commit.unchanged.iter().all(|(name, known)| state.known(name).as_ref() == Some(known));
        let known = commit.writes.iter().all(|write| state.known(&write.name) == write.known);
        if !(alone && unchanged && known) {
            return Err(CommitError::Conflict);
        }
        for write in &commit.writes {
            state.write(&write.name, write.text.clone());
        }
        let entries = commit.writes.iter().map(|write| state.known(&write.name)).collect();
        let committed = Committed { revision: Revision::new(state.revision), entries };
        drop(state);
        self.told.send_replace(());
        lost.map_or(Ok(committed), |_| Err(unsure()))
    }
}
