//! The store behind a process that serves it to others: what is read comes from what its follower knows, what is
//! written goes to the store itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use overlane_config::diagnostic::Source;
use overlane_config::lineage::About;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::directory::write::Directory;
use super::mirror::{Everything, Mirror, revision_of};
use super::open::{OpenStore, WriteError};
use super::shared::follow::name_of;
use super::shared::write::{Followed, Listed, Part};
use super::shared::{Commit, Committed, Fault, Revision, Shared};
use crate::panics;

/// How long whoever wrote waits until it can be read here as well.
const SEEN: Duration = Duration::from_secs(2);

/// How many write to an engine at once.
const WRITERS: usize = 4;

/// What keeps it.
#[derive(Clone)]
pub enum Keeper {
    /// A directory.
    Directory(PathBuf),
    /// An engine that several machines share.
    Shared(Arc<dyn Shared>),
}

/// The store behind a process, and what is known of it.
#[derive(Clone)]
pub struct Behind {
    keeper: Keeper,
    followed: Followed,
    runtime: Handle,
    /// Who writes waits here, and not on a thread: a directory has one lock, and each write to one is checked against all files.
    turns: Arc<Semaphore>,
}

impl Behind {
    /// A store, what its follower knows of it, and where its connections live.
    #[must_use]
    pub fn new(keeper: Keeper, followed: Followed, runtime: Handle) -> Self {
        let at_once = if matches!(keeper, Keeper::Directory(_)) { 1 } else { WRITERS };
        Self { keeper, followed, runtime, turns: Arc::new(Semaphore::new(at_once)) }
    }

    /// What is known of it.
    #[must_use]
    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.followed.mirror
    }

    /// The state of an environment with this text, to be compared for equality.
    #[must_use]
    pub fn revision_of(&self, source: &Source) -> Option<Revision> {
        match &self.keeper {
            Keeper::Directory(_) => Some(revision_of(&source.text)),
            Keeper::Shared(_) => self.followed.mirror.revision_of(name_of(&source.path)),
        }
    }

    /// The part by which a change is judged, as it is in force here, and no older than what is known when it is asked for; none where
    /// that cannot be told.
    ///
    /// # Errors
    /// Nothing is known yet.
    pub async fn around(&self, about: &About) -> Result<Option<Everything>, Fault> {
        let (followed, runtime, about) = (self.followed.clone(), self.runtime.clone(), about.clone());
        let part = move || {
            let now = followed.mirror.revision();
            runtime.block_on(followed.around(&about, now.as_ref())).map(|part| part.map(Part::into_entries))
        };
        // Where much inherits from what changes, it takes a moment.
        tokio::task::spawn_blocking(part).await.unwrap_or_else(|ended| {
            panics::pass_on(ended);
            Ok(None)
        })
    }

    /// Opens it to be written to; a directory is locked until it is closed. Not to be called on a runtime, but where it
    /// may be waited for.
    ///
    /// # Errors
    /// It cannot be read or locked.
    pub fn open(&self) -> Result<OpenStore, WriteError> {
        match &self.keeper {
            Keeper::Directory(path) => OpenStore::directory(Directory::lock(path)?),
            Keeper::Shared(store) => {
                let (store, followed) = (store.clone(), self.followed.clone());
                Ok(OpenStore::part(Listed::followed(store, followed, self.runtime.clone())))
            }
        }
    }

    /// Opens the store and writes to it when it is this one's turn, on a thread where waiting is no harm. What began is
    /// finished, also where nobody waits for it any more.
    ///
    /// # Errors
    /// It cannot be read or locked, or what `write` says.
    pub async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut OpenStore, &Mirror) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<T, WriteError> {
        // Never closed.
        let turn = self.turns.clone().acquire_owned().await;
        let behind = self.clone();
        let write = move || {
            let _turn = turn;
            write(&mut behind.open()?, behind.mirror())
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => written,
            Err(ended) => {
                panics::pass_on(ended);
                // The process ends.
                Err(WriteError::Busy)
            }
        }
    }

    /// Writes what another process asks for, if it is right; whoever reads here afterwards sees it.
    ///
    /// # Errors
    /// See [`OpenStore::accept`].
    pub async fn commit(&self, commit: Commit) -> Result<Committed, WriteError> {
        let asked = commit.clone();
        let committed = self.write(move |open, mirror| open.accept(&asked, mirror)).await?;
        let written: Vec<_> = commit.writes.into_iter().map(|write| write.name).collect();
        let seen = |mirror: &Mirror| {
            let reached = mirror.revision().is_some_and(|now| now.is_at_least(&committed.revision));
            let same = |(name, revision): (&String, &Option<Revision>)| mirror.revision_of(name) == *revision;
            reached || written.iter().zip(&committed.entries).all(same)
        };
        self.mirror().until(SEEN, seen).await;
        match self.keeper {
            // A directory does not know its states; the mirror counts them.
            Keeper::Directory(_) => Ok(Committed {
                revision: self.mirror().revision().unwrap_or(committed.revision),
                ..committed
            }),
            Keeper::Shared(_) => Ok(committed),
        }
    }
}
