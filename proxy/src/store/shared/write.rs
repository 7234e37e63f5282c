//! One command's view of a store that several machines share: a listing, or what is around a change where the store is followed here,
//! and writes that hold only if it is still so.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{About, Content, FileChange};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::{Commit, CommitError, Committed, Fault, Listing, Revision, Shared, Write};
use crate::control::Control;
use crate::pauses::Pauses;
use crate::store::mirror::{Everything, Kept, Mirror, States};
use crate::store::shared::follow::name_of;

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
    followed: Option<Followed>,
    run: Run,
    revision: Option<Revision>,
    revisions: States,
    /// The state after what was last written.
    written: Option<Revision>,
}

/// What a follower knows of a store, and what that means.
#[derive(Clone)]
pub struct Followed {
    /// The entries.
    pub mirror: Arc<Mirror>,
    /// What they mean, a moment later.
    pub control: Arc<Control>,
}

/// How long it is waited until what is known of the entries is taken in. Then everything is looked at.
const TAKEN_IN: Duration = Duration::from_secs(2);

impl Followed {
    /// The part by which a change is judged, whose paths are entries' names, the states of its entries, and a state of the store
    /// in which they were in them, no older than what is known now and what was `written`: what else was written since may not be in
    /// it. None where that cannot be told apart in time. Not to be called on a thread that serves others.
    ///
    /// # Errors
    /// The store cannot be read: what is known may be old.
    pub(crate) async fn around(
        &self,
        about: &About,
        written: Option<&Revision>,
    ) -> Result<Option<Part>, Fault> {
        let mut in_force = self.in_force(written, TAKEN_IN)?;
        while let Some(revision) = in_force.next().await {
            if let Some(part) = self.part(about, revision) {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    /// The states that are in force from when what is known now is, and what was `written`, for so long at most.
    ///
    /// # Errors
    /// The store cannot be read: what is known may be old.
    pub(crate) fn in_force(&self, written: Option<&Revision>, patience: Duration) -> Result<InForce, Fault> {
        if !self.mirror.is_current() {
            return Err(Fault(format!("the store {} cannot be read at present", self.mirror.prefix())));
        }
        let known = self.mirror.revision();
        // A hub that began anew counts anew.
        let comes = |written: &&Revision| known.as_ref().is_none_or(|known| known.is_counted_like(written));
        let after = written.filter(comes).cloned().into_iter().chain(known.clone()).collect();
        let mut states = self.control.revisions();
        states.mark_changed();
        Ok(InForce { states, after, until: Instant::now() + patience })
    }

    /// The part by which a change is judged where this state is in force, or a later one; none where other texts are known than those
    /// that are in force. Waits while changes are taken in.
    pub(crate) fn part(&self, about: &About, revision: Revision) -> Option<Part> {
        let store = Path::new(self.mirror.prefix());
        let paths = about.paths.iter().map(|name| store.join(name).display().to_string()).collect();
        let shown = About { paths, ..about.clone() };
        let mut files = self.control.lineages(|lineages| lineages.around(&shown));
        // Others were given to this process beside its store.
        files.retain(|file| Path::new(&*file.path).parent() == Some(store));
        let revisions = self.mirror.states_of(&files, &about.paths)?;
        Some(Part { files, revision, revisions })
    }
}

/// States of a store as they come into force.
pub(crate) struct InForce {
    states: watch::Receiver<Option<Revision>>,
    /// Not before all of these.
    after: Vec<Revision>,
    until: Instant,
}

impl InForce {
    /// The one that is in force, or the next one; none where it does not come in time.
    pub(crate) async fn next(&mut self) -> Option<Revision> {
        while let Ok(Ok(())) = timeout_at(self.until, self.states.changed()).await {
            let now = self.states.borrow_and_update().clone();
            let reached = |now: &Revision| self.after.iter().all(|after| now.is_at_least(after));
            if let Some(now) = now.filter(reached) {
                return Some(now);
            }
        }
        None
    }
}

/// A part of a store.
pub(crate) struct Part {
    files: Vec<FileChange>,
    revision: Revision,
    revisions: States,
}

impl Part {
    /// It as entries.
    pub(crate) fn into_entries(self) -> Everything {
        let entry = |file: &FileChange| {
            let name = name_of(&file.path);
            let (Content::Text(source) | Content::Parsed(source, _)) = &file.content else { return None };
            let kept = Kept { source: source.clone(), revision: self.revisions.get(name)?.clone() };
            Some((name.into(), kept))
        };
        Everything { entries: self.files.iter().filter_map(entry).collect(), revision: self.revision }
    }
}

impl Listed {
    /// A store that is asked for one command. Not to be called on a runtime.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn new(store: Arc<dyn Shared>) -> io::Result<Self> {
        let run = Run::Own(Builder::new_current_thread().enable_all().build()?);
        Ok(Self { store, followed: None, run, revision: None, revisions: States::default(), written: None })
    }

    /// The same where a follower knows the store: it is not listed again. Who comes too late for it is told so when
    /// it writes. The store's connections live on this runtime: not to be called there, but where it may be waited for.
    #[must_use]
    pub fn followed(store: Arc<dyn Shared>, followed: Followed, runtime: Handle) -> Self {
        let run = Run::Of(runtime);
        Self {
            store,
            followed: Some(followed),
            run,
            revision: None,
            revisions: States::default(),
            written: None,
        }
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
        if let Some(Followed { mirror, .. }) = &self.followed {
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
        Ok(self.take(listing))
    }

    /// Takes in what was listed.
    fn take(&mut self, listing: Listing) -> Vec<FileChange> {
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
        changes
    }

    /// The part by which a change is judged, whose paths are entries' names; none where neither a follower nor the store can tell it.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn around(&mut self, about: &About) -> Result<Option<Vec<FileChange>>, Fault> {
        let written = self.written.as_ref();
        if let Some(followed) = &self.followed {
            let part = self.wait(followed.around(about, written))?;
            return Ok(part.map(|part| {
                (self.revision, self.revisions) = (Some(part.revision), part.revisions);
                part.files
            }));
        }
        let part = self.wait(told_around(&*self.store, about, written))?;
        Ok(part.map(|part| self.take(part)))
    }

    /// Whether an entry is in a state, as far as is known, also of what was not looked at.
    #[must_use]
    pub fn is_in(&self, name: &str, state: &Revision) -> bool {
        match (self.revisions.get(name), &self.followed) {
            (Some(known), _) => known == state,
            (None, Some(Followed { mirror, .. })) => mirror.revision_of(name).as_ref() == Some(state),
            (None, None) => false,
        }
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
        self.written = Some(committed.revision.clone());
        Ok(committed.revision)
    }
}

/// What the store says to be around a change, once it knows what was written there.
async fn told_around(
    store: &dyn Shared,
    about: &About,
    written: Option<&Revision>,
) -> Result<Option<Listing>, Fault> {
    let (until, mut pauses) = (Instant::now() + TAKEN_IN, Pauses::new(PAUSE, TAKEN_IN));
    loop {
        let Some(part) = store.around(about).await? else { return Ok(None) };
        // A hub that began anew counts anew.
        let comes = |written: &Revision| part.revision.is_counted_like(written);
        if written.is_none_or(|written| part.revision.is_at_least(written) || !comes(written)) {
            return Ok(Some(part));
        }
        if Instant::now() > until {
            return Ok(None);
        }
        tokio::time::sleep(pauses.next()).await;
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
