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

/// How many look at once for what is around a change.
const LOOKS: usize = 4;
/// How long who asks for that waits until what is known here is in force: less than they wait for an answer.
const IN_FORCE: Duration = Duration::from_secs(10);

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
    /// And who looks, since what is in force is locked while changes are taken in.
    looks: Arc<Semaphore>,
}

impl Behind {
    /// A store, what its follower knows of it, and where its connections live.
    #[must_use]
    pub fn new(keeper: Keeper, followed: Followed, runtime: Handle) -> Self {
        let at_once = if matches!(keeper, Keeper::Directory(_)) { 1 } else { WRITERS };
        let [turns, looks] = [at_once, LOOKS].map(|at_once| Arc::new(Semaphore::new(at_once)));
        Self { keeper, followed, runtime, turns, looks }
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

    /// The part by which a change is judged, as it is in force here, and no older than what is known when it is asked for.
    ///
    /// # Errors
    /// The store cannot be read, or what is known of it is not in force in time.
    pub async fn around(&self, about: &About) -> Result<Everything, Fault> {
        let mut in_force = self.followed.in_force(None, IN_FORCE)?;
        while let Some(revision) = in_force.next().await {
            // Never closed.
            let look = self.looks.clone().acquire_owned().await;
            let (followed, about) = (self.followed.clone(), about.clone());
            let part = move || {
                let _look = look;
                followed.part(&about, revision).map(Part::into_entries)
            };
            // Where much inherits from what changes, it takes a moment.
            match tokio::task::spawn_blocking(part).await {
                Ok(Some(part)) => return Ok(part),
                Ok(None) => {}
                Err(ended) => panics::pass_on(ended),
            }
        }
        Err(Fault("what was written last is not in force here yet: try again".to_owned()))
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

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use overlane_config::name::EnvironmentId;
    use tokio::runtime::Builder;
    use tokio::task::spawn_blocking;

    use super::*;
    use crate::control::{Control, Trigger};
    use crate::names::Names;
    use crate::store::open::{Put, rules};
    use crate::store::shared::memory::Memory;
    use crate::store::shared::{Change, Changes, Entry, Listing};

    const BASELINE: &str =
        "name: staging\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://h'}]\n";

    /// A store that is followed by hand.
    struct ByHand {
        memory: Memory,
        behind: Behind,
    }

    impl ByHand {
        fn new() -> Self {
            let memory = Memory::new();
            let mirror = Arc::new(Mirror::new(memory.address()));
            mirror.replace(Listing { entries: Vec::new(), revision: memory.revision() });
            mirror.note_current(true);
            let control = Arc::new(Control::new(rules(), Arc::default(), Names::none()));
            control.at_revision(Some(memory.revision()));
            let keeper = Keeper::Shared(Arc::new(memory.clone()));
            let behind = Behind::new(keeper, Followed { mirror, control }, Handle::current());
            Self { memory, behind }
        }

        /// Writes the baseline, which is known here then; and in force once what is returned is called.
        fn write_baseline(&self) -> impl FnOnce() + Send + use<> {
            self.memory.put("staging.yaml", Some(BASELINE));
            let revision = self.memory.revision();
            let (name, text) = ("staging.yaml".to_owned(), BASELINE.to_owned());
            let put = Change::Put(Entry { name, text, modified: None, revision: revision.clone() });
            let changes = Changes { changes: vec![put], revision: revision.clone() };
            let (changes, control) =
                (self.behind.mirror().take(changes), self.behind.followed.control.clone());
            move || {
                control.apply(&changes, Trigger::Change);
                control.at_revision(Some(revision));
            }
        }
    }

    fn id() -> EnvironmentId {
        "staging".parse().expect("id")
    }

    fn below_staging() -> About {
        About { named: vec![id()], ..About::default() }
    }

    fn names(part: &Everything) -> Vec<&str> {
        part.entries.iter().map(|(name, _)| &**name).collect()
    }

    #[test]
    fn who_asks_what_is_around_a_change_waits_for_what_is_known_and_holds_up_nobody() {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        runtime.expect("runtime").block_on(async {
            let store = ByHand::new();
            let (take_in, about) = (store.write_baseline(), below_staging());
            let mut asked = pin!(join_all((0..8).map(|_| store.behind.around(&about))));
            assert!(asked.as_mut().now_or_never().is_none(), "it is not in force yet");
            spawn_blocking(take_in).await.expect("taken in");
            for part in asked.await {
                assert_eq!(names(&part.expect("told")), ["staging.yaml"]);
            }
        });
    }

    #[tokio::test]
    async fn who_writes_waits_for_what_is_known_also_where_they_wrote_nothing_before() {
        let store = ByHand::new();
        let (take_in, about) = (store.write_baseline(), below_staging());
        let mut looked = pin!(store.behind.followed.around(&about, None));
        assert!(looked.as_mut().now_or_never().is_none(), "it is not in force yet");
        take_in();
        let part = looked.await.expect("current").expect("told in time");
        assert_eq!(names(&part.into_entries()), ["staging.yaml"]);
    }

    #[tokio::test]
    async fn a_state_of_a_hub_that_is_gone_is_not_waited_for() {
        let store = ByHand::new();
        store.write_baseline()();
        let (about, followed) = (below_staging(), &store.behind.followed);
        for (written, comes) in [(Revision::new("gone.9"), true), (Revision::new(9), false)] {
            let looked = followed.around(&about, Some(&written)).now_or_never();
            assert_eq!(looked.is_some(), comes, "{written:?}");
        }
    }

    #[tokio::test]
    async fn where_the_store_cannot_be_read_nothing_is_said_to_be_unchanged() {
        let store = ByHand::new();
        store.write_baseline()();
        let put = async || {
            let source = Arc::new(Source::new("staging.yaml".into(), BASELINE.to_owned(), None));
            let put = move |open: &mut OpenStore, _: &Mirror| {
                open.put(&source, &Put::default(), crate::clock::now())
            };
            store.behind.write(put).await
        };
        assert_eq!(put().await.expect("as it is").revision, None, "unchanged");
        store.behind.mirror().note_current(false);
        let refused = put().await;
        assert!(matches!(refused, Err(WriteError::Store(_))), "{refused:?}");
        assert!(store.behind.around(&below_staging()).await.is_err());
    }
}
