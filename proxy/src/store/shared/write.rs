//! One command's view of a store that several machines share: a listing, and writes that hold only if it is still so.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use tokio::runtime::{Builder, Handle, Runtime};

use super::{Commit, CommitError, Committed, Fault, Listing, Revision, Shared, Write};
use crate::pauses::Pauses;
use crate::store::mirror::{Kept, Mirror};

/// Where the store is asked from: the calling thread waits for it.
enum Run {
    Own(Runtime),
    /// The runtime on which the store's connections live.
    Of(Handle),
}

/// A store and what is known of it.
pub struct Listed {
    store: Arc<dyn Shared>,
    /// What a follower knows of it, which is looked at instead.
    mirror: Option<Arc<Mirror>>,
    run: Run,
    revision: Option<Revision>,
    revisions: HashMap<String, Revision, RandomState>,
}

impl Listed {
    /// A store that is asked for one command. Not to be called on a runtime.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn new(store: Arc<dyn Shared>) -> io::Result<Self> {
        let run = Run::Own(Builder::new_current_thread().enable_all().build()?);
        Ok(Self { store, mirror: None, run, revision: None, revisions: HashMap::default() })
    }

    /// A store whose connections live on this runtime. Not to be called there, but where it may be waited for.
    #[must_use]
    pub fn on(store: Arc<dyn Shared>, runtime: Handle) -> Self {
        Self { store, mirror: None, run: Run::Of(runtime), revision: None, revisions: HashMap::default() }
    }

    /// The same where a follower knows the store: it is not listed again. Who comes too late for it is told so when
    /// it writes.
    #[must_use]
    pub fn mirrored(store: Arc<dyn Shared>, mirror: Arc<Mirror>, runtime: Handle) -> Self {
        Self { mirror: Some(mirror), ..Self::on(store, runtime) }
    }

    fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        match &self.run {
            Run::Own(runtime) => runtime.block_on(answer),
            Run::Of(runtime) => runtime.block_on(answer),
        }
    }

    /// Where it is; entries are shown as `{address}/{name}`.
    #[must_use]
    pub fn address(&self) -> String {
        self.store.address()
    }

    /// All that is in it.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn list(&mut self) -> Result<Vec<FileChange>, Fault> {
        if let Some(mirror) = &self.mirror {
            let all = mirror.everything().ok_or_else(|| not_read(mirror.prefix()))?;
            self.revision = Some(all.revision);
            self.revisions.clear();
            let mut change = |(name, kept): (Arc<str>, Kept)| {
                self.revisions.insert(name.to_string(), kept.revision);
                FileChange { path: kept.source.path.clone(), content: Content::Text(kept.source) }
            };
            return Ok(all.entries.into_iter().map(&mut change).collect());
        }
        let listing = self.wait(self.store.list())?;
        let prefix = self.address();
        self.revision = Some(listing.revision);
        self.revisions.clear();
        let mut changes = Vec::with_capacity(listing.entries.len());
        for entry in listing.entries {
            let path: Arc<str> = format!("{prefix}/{}", entry.name).into();
            let source = Arc::new(Source::new(path.clone(), entry.text, entry.modified));
            changes.push(FileChange { path, content: Content::Text(source) });
            self.revisions.insert(entry.name, entry.revision);
        }
        Ok(changes)
    }

    /// The state of an entry, as it is known.
    #[must_use]
    pub fn revision(&self, name: &str) -> Option<&Revision> {
        self.revisions.get(name)
    }

    /// The state of the store, as it is known.
    #[must_use]
    pub fn whole_revision(&self) -> Option<&Revision> {
        self.revision.as_ref()
    }

    /// Writes what somebody else has a condition for.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn pass_on(&self, commit: &Commit) -> Result<Committed, CommitError> {
        self.wait(self.store.commit(commit))
    }

    /// Writes these entries, or takes those away that have no text: all or nothing, provided that they and the
    /// `unchanged` ones are as they were listed, and, where it is to be `alone`, all others too.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn commit(
        &mut self,
        edits: &[(String, Option<String>)],
        unchanged: &[String],
        alone: bool,
    ) -> Result<Revision, CommitError> {
        let known = |name: &String| Some((name.clone(), self.revisions.get(name)?.clone()));
        let write = |(name, text): &(String, Option<String>)| Write {
            name: name.clone(),
            known: self.revisions.get(name).cloned(),
            text: text.clone(),
        };
        let commit = Commit {
            writes: edits.iter().map(write).collect(),
            unchanged: unchanged.iter().filter_map(known).collect(),
            alone_since: self.revision.clone().filter(|_| alone),
        };
        let committed = match self.wait(self.store.commit(&commit)) {
            Err(CommitError::Unsure(why)) => self.wait(settle(&*self.store, &commit, why))?,
            known => known?,
        };
        for (write, revision) in commit.writes.into_iter().zip(committed.entries) {
            match revision {
                Some(revision) => self.revisions.insert(write.name, revision),
                None => self.revisions.remove(&write.name),
            };
        }
        if alone {
            self.revision = Some(committed.revision.clone());
        }
        Ok(committed.revision)
    }
}

/// How often a write whose answer was lost is looked for.
const LOOKS: u32 = 4;
/// How long it waits before the second look, at most.
const PAUSE: Duration = Duration::from_millis(200);
/// And before any.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What became of a write whose answer was lost. It is sent again: on the same conditions it holds once at most, and where
/// somebody came before, it may have been this one itself.
async fn settle(store: &dyn Shared, commit: &Commit, mut why: Fault) -> Result<Committed, CommitError> {
    let mut pauses = Pauses::new(PAUSE, LONGEST_PAUSE);
    for _ in 0..LOOKS {
        tokio::time::sleep(pauses.next()).await;
        why = match store.commit(commit).await {
            Ok(committed) => return Ok(committed),
            Err(CommitError::Unsure(why) | CommitError::Fault(why)) => why,
            Err(CommitError::Conflict) => match store.list().await {
                Ok(listing) => return found(commit, listing, why),
                Err(why) => why,
            },
        };
    }
    Err(CommitError::Unsure(why))
}

/// What a store that refuses a commit says of an earlier attempt whose answer was lost, for which there is `why`.
fn found(commit: &Commit, listing: Listing, why: Fault) -> Result<Committed, CommitError> {
    let Listing { entries, revision } = listing;
    let kept: HashMap<_, _, RandomState> =
        entries.into_iter().map(|entry| (entry.name, (entry.text, entry.revision))).collect();
    let written = |write: &Write| match (&write.text, kept.get(&write.name)) {
        (None, None) => Some(None),
        (Some(text), Some((kept, revision))) if text == kept => Some(Some(revision.clone())),
        _ => None,
    };
    let untouched =
        |write: &Write| kept.get(&write.name).map(|(_, revision)| revision) == write.known.as_ref();
    match commit.writes.iter().map(written).collect() {
        Some(entries) => Ok(Committed { entries, revision }),
        // Nor will it be written any more: its conditions do not come back.
        None if commit.writes.iter().all(untouched) => Err(CommitError::Conflict),
        // It may have been there before somebody else wrote.
        None => Err(CommitError::Unsure(why)),
    }
}

/// Nothing is known of a store.
#[must_use]
pub fn not_read(store: &str) -> Fault {
    Fault(format!("the store {store} could not be read yet"))
}
