//! Following a store that several machines share: a listing, then changes, for as long as it can be asked. While it
//! cannot, what was last good stays in force, STALE.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use overlane_config::lineage::FileChange;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Changes, Fault, Listing, Revision, Shared, WatchError, Watching};
use crate::admin::ReloadRequest;
use crate::control::{Control, Report, Trigger};
use crate::panics;
use crate::pauses::Pauses;
use crate::store::cache::KeptText;
use crate::store::mirror::Mirror;

/// A store is never silent for longer; one that is has gone.
pub const SILENCE: Duration = Duration::from_secs(30);
/// A start waits so long for the store where nothing is kept of it, since it would begin with nothing: a large one takes its time, and
/// one that is away is known to be sooner. Nobody is answered meanwhile, so it is less than what probes bear.
const FIRST: Duration = Duration::from_secs(20);
/// And so long where something is, with which it can start.
const FIRST_WITH_CACHE: Duration = Duration::from_secs(1);
/// Between two attempts, at most; the first ones follow sooner.
const RETRY: Duration = Duration::from_secs(5);
/// So many messages of a watch are taken in at once, at most.
const AT_ONCE: usize = 1024;
/// The shortest pause between attempts. Each pause is a random part of what it may be, so that a fleet that lost its
/// store together does not come back together.
const RETRY_AT_FIRST: Duration = Duration::from_millis(200);

/// A store that is followed.
pub struct SharedFollower {
    store: Arc<dyn Shared>,
    /// What is known of it.
    mirror: Arc<Mirror>,
    /// The state from which it is followed; none before the first listing.
    revision: Option<Revision>,
    /// Whether the store does not know that state any more.
    forgotten: bool,
}

impl SharedFollower {
    /// A store of which nothing was read yet.
    #[must_use]
    pub fn new(store: Arc<dyn Shared>) -> Self {
        let mirror = Arc::new(Mirror::new(store.address()));
        Self { store, mirror, revision: None, forgotten: false }
    }

    /// What is known of the store, for others who ask.
    #[must_use]
    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.mirror
    }

    /// The state of it that is known; none before it was read.
    #[must_use]
    pub fn revision(&self) -> Option<&Revision> {
        self.revision.as_ref()
    }

    /// Takes in what another process last read of the store. Returns it as changes, to be applied one list after the
    /// other before what [`SharedFollower::read_everything`] finds to be different.
    pub fn remember(&mut self, lists: Vec<Vec<KeptText>>) -> Vec<Vec<FileChange>> {
        self.mirror.remember(lists)
    }

    /// Lists the whole store, for which a start waits; what is different, or why it could not be asked.
    pub async fn read_everything(&mut self) -> (Vec<FileChange>, Option<String>) {
        let patience = if self.mirror.is_empty() { FIRST } else { FIRST_WITH_CACHE };
        let listed = timeout(patience, self.store.list()).await;
        let silent = |_| Err(Fault(format!("{} does not answer", self.mirror.prefix())));
        match listed.unwrap_or_else(silent).and_then(|listing| self.believed(listing)) {
            Ok(listing) => (self.take_all(listing), None),
            Err(fault) => (Vec::new(), Some(fault.to_string())),
        }
    }

    /// A listing of nothing is not believed where there was something: so does a store look that was set up anew, or
    /// whose prefix is another one. Whoever means it asks for a reload.
    fn believed(&self, listing: Listing) -> Result<Listing, Fault> {
        match listing.entries.is_empty() && !self.mirror.is_empty() {
            false => Ok(listing),
            true => Err(Fault(format!(
                "{} is empty, and was not when it was last read (is it the same store?); a reload takes that as it is",
                self.mirror.prefix()
            ))),
        }
    }

    /// Notes whether the store can be read.
    fn note(&self, control: &Control, problem: Option<String>) {
        self.mirror.note_current(problem.is_none());
        control.store_problem(problem);
    }

    /// Takes in a listing; what is different.
    fn take_all(&mut self, listing: Listing) -> Vec<FileChange> {
        (self.revision, self.forgotten) = (Some(listing.revision.clone()), false);
        let changes = self.mirror.replace(listing);
        // Who is to write by it waits until it is in force.
        self.mirror.note_current(true);
        changes
    }

    /// Takes in what changed.
    fn take_changes(&mut self, changes: Changes) -> Vec<FileChange> {
        self.revision = Some(changes.revision.clone());
        self.mirror.take(changes)
    }

    /// Begins to follow from the state that is known; lists the store first where there is none, or it forgot it.
    async fn begin(&mut self) -> Result<(Watching, Vec<FileChange>), Fault> {
        if let Some(revision) = self.revision.as_ref().filter(|_| !self.forgotten) {
            match self.store.watch(revision).await {
                Ok(watching) => return Ok((watching, Vec::new())),
                Err(WatchError::Compacted) => {}
                Err(WatchError::Fault(fault)) => return Err(fault),
            }
        }
        let listing = self.believed(self.store.list().await?)?;
        let watching = match self.store.watch(&listing.revision).await {
            Ok(watching) => watching,
            Err(WatchError::Fault(fault)) => return Err(fault),
            Err(WatchError::Compacted) => {
                return Err(Fault(format!("{} forgets faster than it can be listed", self.mirror.prefix())));
            }
        };
        Ok((watching, self.take_all(listing)))
    }
}

fn first_pauses() -> Pauses {
    Pauses::new(RETRY_AT_FIRST, RETRY)
}

/// Follows a store until nobody can ask for a reload any more.
pub async fn follow(
    mut follower: SharedFollower,
    mut requests: mpsc::Receiver<ReloadRequest>,
    control: Arc<Control>,
) {
    let mut pauses = first_pauses();
    loop {
        let ended = match follower.begin().await {
            Ok((watching, changes)) => {
                take_in(&control, changes, &follower, Trigger::Change, false).await;
                // What is in force is what the store says only now.
                follower.note(&control, None);
                listen(watching, &mut follower, &mut requests, &control, &mut pauses).await
            }
            Err(fault) => {
                follower.note(&control, Some(fault.to_string()));
                Ended::For(fault)
            }
        };
        let asked = match ended {
            Ended::Over => return,
            Ended::Asked(request) => Some(request),
            Ended::For(fault) => {
                tracing::debug!(%fault, store = %follower.mirror.prefix(), "the store is asked again soon");
                tokio::select! {
                    () = sleep(pauses.next()) => None,
                    request = requests.recv() => match request {
                        Some(request) => Some(request),
                        None => return,
                    },
                }
            }
        };
        if let Some(request) = asked {
            reload(request, &mut follower, &control).await;
        }
    }
}

/// Why listening ended.
enum Ended {
    /// The store cannot be asked, or not from the state that is known.
    For(Fault),
    /// Somebody asked for a reload.
    Asked(ReloadRequest),
    /// Nobody can any more.
    Over,
}

/// Takes in what is told: what comes at once is published at once.
async fn listen(
    watching: Watching,
    follower: &mut SharedFollower,
    requests: &mut mpsc::Receiver<ReloadRequest>,
    control: &Arc<Control>,
    pauses: &mut Pauses,
) -> Ended {
    let mut watching = watching.ready_chunks(AT_ONCE);
    loop {
        let told = tokio::select! {
            told = timeout(SILENCE, watching.next()) => told,
            request = requests.recv() => return request.map_or(Ended::Over, Ended::Asked),
        };
        let told = match told {
            Ok(Some(told)) => told,
            Ok(None) => return Ended::For(Fault("it ended the watch".to_owned())),
            Err(_) => return Ended::For(Fault(format!("silent for {} s", SILENCE.as_secs()))),
        };
        let (mut changes, mut ended) = (Vec::new(), None);
        for told in told {
            match told {
                Ok(told) => {
                    // It works: only now, since what is opened can be cut at once, again and again.
                    *pauses = first_pauses();
                    changes.extend(follower.take_changes(told));
                }
                Err(WatchError::Fault(fault)) => ended = Some(fault),
                Err(WatchError::Compacted) => {
                    // It is in force until the store is listed again.
                    follower.forgotten = true;
                    ended = Some(Fault("it forgot the state that is known".to_owned()));
                }
            }
        }
        take_in(control, changes, follower, Trigger::Change, false).await;
        match ended {
            Some(fault) => return Ended::For(fault),
            // It was read until just now.
            None => follower.note(control, None),
        }
    }
}

/// Lists the store since somebody asked. It is followed from there afterwards: what an older watch would still tell is
/// older.
async fn reload((trigger, reply): ReloadRequest, follower: &mut SharedFollower, control: &Arc<Control>) {
    let (changes, problem) = match follower.store.list().await {
        Ok(listing) => (follower.take_all(listing), None),
        Err(fault) => (Vec::new(), Some(fault.to_string())),
    };
    let mut report = take_in(control, changes, follower, trigger, true).await.unwrap_or_default();
    follower.note(control, problem.clone());
    report.problems.extend(problem);
    // Whoever asked may have gone away.
    let _ = reply.send(report);
}

/// Publishes changes, and notes of which state of the store that is. Not on a thread that serves the control side: a
/// large store takes a moment.
async fn take_in(
    control: &Arc<Control>,
    changes: Vec<FileChange>,
    follower: &SharedFollower,
    trigger: Trigger,
    asked: bool,
) -> Option<Report> {
    let report = if asked || !changes.is_empty() {
        let control = control.clone();
        match tokio::task::spawn_blocking(move || control.apply(&changes, trigger)).await {
            Ok(report) => Some(report),
            Err(ended) => {
                panics::pass_on(ended);
                None
            }
        }
    } else {
        None
    };
    control.at_revision(follower.revision.clone());
    report
}

/// The name of an entry that is shown as `path`.
#[must_use]
pub fn name_of(path: &str) -> &str {
    Path::new(path).file_name().and_then(std::ffi::OsStr::to_str).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use overlane_config::lineage::Rules;
    use tokio::sync::oneshot;

    use super::*;
    use crate::names::Names;
    use crate::store::shared::memory::Memory;

    struct Followed {
        memory: Memory,
        control: Arc<Control>,
        requests: mpsc::Sender<ReloadRequest>,
    }

    fn baseline(port: u16) -> String {
        format!(
            "name: staging\nrouting: {{mode: baseline}}\nservices: [{{name: web, url: 'http://127.0.0.1:{port}'}}]\n"
        )
    }

    impl Followed {
        /// A store with a baseline in it, whose web is on port 1, and a follower.
        async fn new(memory: Memory, kept: Vec<Vec<KeptText>>) -> Self {
            let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
            let mut follower = SharedFollower::new(Arc::new(memory.clone()));
            for changes in follower.remember(kept) {
                control.apply(&changes, Trigger::Cache);
            }
            let (changes, problem) = follower.read_everything().await;
            control.store_problem(problem);
            control.apply(&changes, Trigger::Start);
            let (requests, receiver) = mpsc::channel(1);
            tokio::spawn(follow(follower, receiver, control.clone()));
            Self { memory, control, requests }
        }

        async fn with_baseline() -> Self {
            let memory = Memory::new();
            memory.put("staging.yaml", Some(&baseline(1)));
            Self::new(memory, Vec::new()).await
        }

        fn port(&self) -> Option<u16> {
            let snapshot = self.control.published().load();
            Some(snapshot.table.own_routes(&"staging".parse().expect("id")).next()?.urls[0].port)
        }

        async fn until_port(&self, port: Option<u16>) {
            let mut generations = self.control.published().generations();
            let stands = generations.wait_for(|_| self.port() == port);
            let stood = timeout(Duration::from_secs(60), stands).await;
            assert!(stood.is_ok(), "{:?} instead of {port:?}: {:?}", self.port(), self.control.problems());
        }

        /// Waits until the store is known to be readable, or not; paused time passes meanwhile.
        async fn until_readable(&self, readable: bool) {
            while self.control.store_unreadable() == readable {
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_waits_for_a_listing_that_takes_its_time_and_where_something_is_kept_begins_with_that() {
        let memory = Memory::new();
        memory.put("staging.yaml", Some(&baseline(2)));
        memory.slow(Duration::from_secs(15));
        assert_eq!(Followed::new(memory.clone(), Vec::new()).await.port(), Some(2));
        let kept = KeptText { name: "staging.yaml".to_owned(), text: baseline(1), modified: None };
        let followed = Followed::new(memory, vec![vec![kept]]).await;
        assert_eq!(followed.port(), Some(1));
        followed.until_port(Some(2)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_is_in_force_and_what_goes_is_not() {
        let followed = Followed::with_baseline().await;
        assert_eq!(followed.port(), Some(1));
        for port in 2..10 {
            followed.memory.put("staging.yaml", Some(&baseline(port)));
            followed.until_port(Some(port)).await;
        }
        followed.memory.put("staging.yaml", None);
        followed.until_port(None).await;
        assert_eq!(followed.memory.listings(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_cut_goes_on_where_it_was_and_lists_nothing_again() {
        let followed = Followed::with_baseline().await;
        for port in 2..10 {
            followed.memory.cut();
            followed.memory.put("staging.yaml", Some(&baseline(port)));
            followed.until_port(Some(port)).await;
        }
        assert_eq!(followed.memory.listings(), 1);
        assert!(!followed.control.store_unreadable());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_forgot_is_listed_again_and_what_went_meanwhile_goes() {
        let followed = Followed::with_baseline().await;
        followed.memory.put("other.yaml", Some(&baseline(1).replace("staging", "other")));
        followed.memory.away(true);
        followed.memory.put("staging.yaml", None);
        followed.memory.put("other.yaml", Some(&baseline(7).replace("staging", "other")));
        followed.memory.compact();
        followed.memory.away(false);
        followed.until_port(None).await;
        assert!(followed.control.published().load().table.environment("other").is_some());
        assert_eq!(followed.memory.listings(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_store_that_forgot_is_listed_again_it_is_known_what_is_in_force() {
        let followed = Followed::with_baseline().await;
        let mut revisions = followed.control.revisions();
        revisions.wait_for(Option::is_some).await.expect("known");
        followed.memory.slow(Duration::from_secs(60));
        followed.memory.put("staging.yaml", Some(&baseline(2)));
        followed.memory.compact();
        followed.memory.cut();
        for _ in 0..100 {
            sleep(Duration::from_millis(100)).await;
            assert_eq!((followed.port(), followed.control.revision()), (Some(1), Some(Revision::new(1))));
        }
        followed.until_port(Some(2)).await;
        assert_eq!(followed.memory.listings(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_store_is_away_what_was_last_good_serves_and_is_said_to_be_stale() {
        let followed = Followed::with_baseline().await;
        followed.memory.away(true);
        followed.until_readable(false).await;
        assert!(followed.control.problems()[0].starts_with("STALE"), "{:?}", followed.control.problems());
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(followed.port(), Some(1));
        followed.memory.put("staging.yaml", Some(&baseline(2)));
        followed.memory.away(false);
        followed.until_port(Some(2)).await;
        followed.until_readable(true).await;
        assert_eq!(followed.control.problems(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_without_the_store_serves_what_was_kept_and_then_what_there_is() {
        let memory = Memory::new();
        memory.away(true);
        memory.put("other.yaml", Some(&baseline(3).replace("staging", "other")));
        let kept = KeptText { name: "staging.yaml".to_owned(), text: baseline(1), modified: None };
        let followed = Followed::new(memory, vec![vec![kept]]).await;
        assert_eq!(followed.port(), Some(1));
        assert!(followed.control.store_unreadable());
        followed.memory.away(false);
        followed.until_port(None).await;
        assert!(followed.control.published().load().table.environment("other").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_empty_all_at_once_takes_nothing_away_before_somebody_asks_for_it() {
        let followed = Followed::with_baseline().await;
        followed.memory.away(true);
        followed.memory.put("staging.yaml", None);
        followed.memory.compact();
        followed.memory.away(false);
        followed.until_readable(false).await;
        sleep(Duration::from_secs(60)).await;
        assert_eq!(followed.port(), Some(1));
        assert!(followed.control.problems()[0].contains("is empty"), "{:?}", followed.control.problems());
        let (reply, report) = oneshot::channel();
        followed.requests.send((Trigger::Request, reply)).await.expect("follows");
        assert_eq!(report.await.expect("answers").problems, Vec::<String>::new());
        assert_eq!(followed.port(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_lists_at_once_and_answers_with_what_changed() {
        let followed = Followed::with_baseline().await;
        let reload = async || {
            let (reply, report) = oneshot::channel();
            followed.requests.send((Trigger::Request, reply)).await.expect("follows");
            report.await.expect("answers")
        };
        assert_eq!(reload().await.problems, Vec::<String>::new());
        followed.memory.away(true);
        followed.memory.put("staging.yaml", Some(&baseline(2)));
        assert_eq!(reload().await.problems, ["the store in memory is away"]);
        followed.memory.away(false);
        reload().await;
        assert_eq!(followed.port(), Some(2));
    }
}
