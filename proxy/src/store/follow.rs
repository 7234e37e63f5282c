//! Following a store while the process runs: events, quiet, requests, and a periodic check.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use overlane_config::lineage::FileChange;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::StoreAddress;
use super::read::{DirReader, QUIET, Scan, Survey};
use super::watch::{Bell, DirWatch};
use crate::admin::ReloadRequest;
use crate::control::{Control, Report, Trigger};

/// A store that is followed.
pub struct Follower {
    store: StoreAddress,
    reader: DirReader,
    bell: Arc<Bell>,
    watch: Option<DirWatch>,
    resync: Duration,
    /// The look at everything that is under way.
    survey: Option<Survey>,
}

/// What to look at.
enum Look {
    /// Files that are whole.
    Settled(BTreeSet<OsString>),
    /// Files that may not be.
    Unsettled(BTreeSet<OsString>),
    /// Everything, which is whole, at once.
    Everything,
    /// Everything, the next step.
    Survey,
}

impl Follower {
    /// A store of which nothing was read yet.
    #[must_use]
    pub fn new(store: &StoreAddress, resync: Duration) -> Self {
        let (reader, bell) = (DirReader::new(store.path()), Arc::default());
        Self { store: store.clone(), reader, bell, watch: None, resync, survey: None }
    }

    /// Reads the whole store at once, and watches it from then on. What changes between the two is seen
    /// by the look at everything with which [`follow`] begins; to watch first would cost more, since our
    /// own opening of each file is an event too.
    pub fn read_everything(&mut self) -> (Vec<FileChange>, Option<String>) {
        let scan = self.look(Look::Everything);
        self.watch = self.start_watching();
        (scan.changes, scan.problem)
    }

    /// Where the system has no watch left, that is logged, and the periodic check is all there is.
    fn start_watching(&self) -> Option<DirWatch> {
        let store = &self.store;
        // An absolute path: the events' paths are compared with it.
        let path = std::path::absolute(store.path()).unwrap_or_else(|_| store.path().to_owned());
        let watch = DirWatch::new(&path, &self.bell).inspect_err(|error| {
            let resync = self.resync;
            tracing::warn!(%error, %store, "no file events: changes are seen every {resync:?} only");
        });
        watch.ok()
    }

    fn look(&mut self, look: Look) -> Scan {
        let now = SystemTime::now();
        if self.survey.is_none()
            && let Some(watch) = &mut self.watch
            && let Err(error) = watch.follow_replacement()
        {
            tracing::warn!(%error, "the store's directory is not watched any more: changes are seen by the periodic check");
        }
        match look {
            Look::Settled(names) => self.reader.read_files(&names, true, now),
            Look::Unsettled(names) => self.reader.read_files(&names, false, now),
            Look::Everything => {
                self.survey = None;
                self.reader.read_all(now)
            }
            Look::Survey => {
                let survey = self.survey.take().or_else(|| self.reader.survey());
                let Some(mut survey) = survey else {
                    return self.reader.read_files(&BTreeSet::new(), false, now);
                };
                let (scan, over) = self.reader.step(&mut survey, now);
                self.survey = Some(survey).filter(|_| !over);
                scan
            }
        }
    }
}

/// When to look at what, where no event says that it is whole.
struct Plan {
    resync: Duration,
    /// Files that may be quiet then.
    unsettled: BTreeSet<OsString>,
    unsettled_at: Instant,
    /// The next step of the look at everything.
    survey_at: Instant,
}

impl Plan {
    fn again(&mut self, names: BTreeSet<OsString>, wait: Duration) {
        if names.is_empty() {
            return;
        }
        let at = Instant::now() + wait;
        self.unsettled_at = if self.unsettled.is_empty() { at } else { self.unsettled_at.min(at) };
        self.unsettled.extend(names);
    }

    /// Completes when the time has come for a look.
    async fn due(&mut self) -> Look {
        if self.unsettled.is_empty() || self.survey_at < self.unsettled_at {
            sleep_until(self.survey_at).await;
            return Look::Survey;
        }
        sleep_until(self.unsettled_at).await;
        Look::Unsettled(std::mem::take(&mut self.unsettled))
    }
}

/// Follows a store until nobody can ask for a reload any more. What events name is looked at before
/// anything else, and no other look takes long: the change of one file is seen at once.
pub async fn follow(
    mut follower: Follower,
    mut requests: mpsc::Receiver<ReloadRequest>,
    control: Arc<Control>,
) {
    let bell = follower.bell.clone();
    let resync = follower.resync;
    let (unsettled, now) = (BTreeSet::new(), Instant::now());
    let mut plan = Plan { resync, unsettled, unsettled_at: now, survey_at: now };
    loop {
        let (look, request) = tokio::select! {
            biased;
            () = bell.rung() => {
                let told = bell.take();
                if told.unsettled.all {
                    plan.survey_at = plan.survey_at.min(Instant::now() + QUIET);
                }
                plan.again(told.unsettled.names, QUIET);
                match told.settled {
                    settled if settled.all => (Look::Everything, None),
                    settled if settled.names.is_empty() => continue,
                    settled => (Look::Settled(settled.names), None),
                }
            }
            request = requests.recv() => match request {
                Some(request) => (Look::Everything, Some(request)),
                None => return,
            },
            look = plan.due() => (look, None),
        };
        let surveyed = matches!(look, Look::Survey | Look::Everything);
        let control = control.clone();
        let look = move || {
            let mut scan = follower.look(look);
            let again = std::mem::take(&mut scan.again);
            let again_in = scan.again_in.unwrap_or(QUIET);
            let trigger = request.as_ref().map_or(Trigger::Change, |(trigger, _)| *trigger);
            let report = take_in(scan, trigger, &control, request.is_some());
            if let Some(((_, reply), report)) = request.zip(report) {
                // Whoever asked may have gone away.
                let _ = reply.send(report);
            }
            (follower, again, again_in)
        };
        // Files may be slow (a network, a spun-down disk): not on a thread that serves the control side.
        match tokio::task::spawn_blocking(look).await {
            Ok((back, again, again_in)) => {
                follower = back;
                plan.again(again, again_in);
                if surveyed {
                    let wait = if follower.survey.is_some() { Duration::ZERO } else { plan.resync };
                    plan.survey_at = Instant::now() + wait;
                }
            }
            Err(error) => return tracing::error!(%error, "the store is not followed any more"),
        }
    }
}

fn take_in(scan: Scan, trigger: Trigger, control: &Control, asked: bool) -> Option<Report> {
    control.store_problem(scan.problem);
    (asked || !scan.changes.is_empty()).then(|| control.apply(&scan.changes, trigger))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;
    use crate::snapshot::Published;
    use overlane_config::lineage::Rules;
    use overlane_config::name::EnvironmentId;
    use std::fs;
    use std::path::Path;
    use tokio::sync::oneshot;

    const NEVER: Duration = Duration::from_secs(3600);

    struct Followed {
        folder: tempfile::TempDir,
        control: Arc<Control>,
        requests: mpsc::Sender<ReloadRequest>,
    }

    /// Follows an empty directory; without events where `deaf`.
    fn followed(resync: Duration, deaf: bool) -> Followed {
        let folder = tempfile::tempdir().expect("folder");
        let mut follower = Follower::new(&StoreAddress::directory(folder.path()), resync);
        let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
        let (changes, _) = follower.read_everything();
        if deaf {
            follower.watch = None;
        }
        control.apply(&changes, Trigger::Start);
        let (requests, receiver) = mpsc::channel(1);
        tokio::spawn(follow(follower, receiver, control.clone()));
        Followed { folder, control, requests }
    }

    fn write(folder: &Path, id: &str) {
        let text = format!(
            "name: {id}\nrouting: {{mode: baseline}}\nservices: [{{name: web, url: \"http://127.0.0.1:1\"}}]\n"
        );
        fs::write(folder.join(format!("{id}.yaml")), text).expect("write");
    }

    /// Waits until `id` is there, or is not.
    async fn until(published: &Published, id: &str, there: bool) {
        let mut generations = published.generations();
        let id: EnvironmentId = id.parse().expect("id");
        let stands =
            generations.wait_for(|_| published.load().table.environment(id.as_str()).is_some() == there);
        tokio::time::timeout(Duration::from_secs(10), stands).await.expect("in time").expect("published");
    }

    #[tokio::test]
    async fn a_finished_write_and_a_delete_are_seen_without_the_periodic_check() {
        let Followed { folder, control, requests: _open } = followed(NEVER, false);
        write(folder.path(), "staging");
        until(control.published(), "staging", true).await;
        fs::remove_file(folder.path().join("staging.yaml")).expect("delete");
        until(control.published(), "staging", false).await;
        // The look with which following begins is long over.
        write(folder.path(), "later");
        until(control.published(), "later", true).await;
    }

    #[tokio::test]
    async fn what_changes_between_reading_and_following_is_seen() {
        let folder = tempfile::tempdir().expect("folder");
        let mut follower = Follower::new(&StoreAddress::directory(folder.path()), NEVER);
        let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
        control.apply(&follower.read_everything().0, Trigger::Start);
        follower.watch = None;
        write(folder.path(), "staging");
        let (_open, receiver) = mpsc::channel(1);
        tokio::spawn(follow(follower, receiver, control.clone()));
        until(control.published(), "staging", true).await;
    }

    #[tokio::test]
    async fn without_file_events_the_periodic_check_sees_changes() {
        let Followed { folder, control, requests: _open } = followed(Duration::from_millis(10), true);
        write(folder.path(), "staging");
        until(control.published(), "staging", true).await;
    }

    #[tokio::test]
    async fn a_reload_reads_at_once_and_answers_with_what_changed() {
        let Followed { folder, control, requests } = followed(NEVER, true);
        write(folder.path(), "staging");
        let (reply, report) = oneshot::channel();
        requests.send((Trigger::Request, reply)).await.expect("follows");
        let report = report.await.expect("answers");
        assert!(report.generation >= 2 && report.changes.len() == 1, "{report:?}");
        assert!(control.published().load().table.environment("staging").is_some());
    }
}
