//! Following a store while the process runs: events, quiet, requests, and a periodic check.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use overlane_config::lineage::FileChange;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::StoreAddress;
use super::read::{DirReader, QUIET, Scan, Settled};
use super::watch::{Bell, DirWatch};
use crate::admin::ReloadRequest;
use crate::control::{Control, Report, Trigger};

/// A store that is followed.
pub struct Follower {
    reader: DirReader,
    bell: Arc<Bell>,
    watch: Option<DirWatch>,
    resync: Duration,
}

impl Follower {
    /// Watches a store. Where the system has no watch left, that is logged, and the periodic check
    /// is all there is.
    #[must_use]
    pub fn new(store: &StoreAddress, resync: Duration) -> Self {
        let bell = Arc::new(Bell::default());
        // An absolute path: the events' paths are compared with it.
        let path = std::path::absolute(store.path()).unwrap_or_else(|_| store.path().to_owned());
        let watch = DirWatch::new(&path, &bell).inspect_err(|error| {
            tracing::warn!(%error, store = %store, "no file events: changes are seen every {resync:?} only");
        });
        Self { reader: DirReader::new(store.path()), bell, watch: watch.ok(), resync }
    }

    /// Reads the whole store at once, as at the start.
    pub fn read_everything(&mut self) -> (Vec<FileChange>, Option<String>) {
        let scan = self.scan(&Settled::all());
        (scan.changes, scan.problem)
    }

    fn scan(&mut self, settled: &Settled) -> Scan {
        if let Some(watch) = &mut self.watch
            && let Err(error) = watch.follow_replacement()
        {
            tracing::warn!(%error, "the store's directory is not watched any more: changes are seen by the periodic check");
        }
        self.reader.scan(settled, SystemTime::now())
    }
}

/// Follows a store until nobody can ask for a reload any more.
pub async fn follow(
    mut follower: Follower,
    mut requests: mpsc::Receiver<ReloadRequest>,
    control: Arc<Control>,
) {
    let bell = follower.bell.clone();
    let mut next = Instant::now() + follower.resync;
    loop {
        let (settled, request) = tokio::select! {
            () = bell.rung() => {
                let told = bell.take();
                if told.unsettled {
                    next = next.min(Instant::now() + QUIET);
                }
                if told.settled == Settled::default() {
                    continue;
                }
                (told.settled, None)
            }
            () = sleep_until(next) => (Settled::default(), None),
            request = requests.recv() => match request {
                Some(request) => (Settled::all(), Some(request)),
                None => return,
            },
        };
        let everything = !settled.names_files();
        let control = control.clone();
        let look = move || {
            let scan = follower.scan(&settled);
            let trigger = request.as_ref().map_or(Trigger::Change, |(trigger, _)| *trigger);
            let again_in = scan.again_in.unwrap_or(follower.resync).min(follower.resync);
            let report = take_in(scan, trigger, &control, request.is_some());
            if let Some(((_, reply), report)) = request.zip(report) {
                // Whoever asked may have gone away.
                let _ = reply.send(report);
            }
            (follower, again_in)
        };
        // Files may be slow (a network, a spun-down disk): not on a thread that serves the control side.
        match tokio::task::spawn_blocking(look).await {
            Ok((back, again_in)) => {
                follower = back;
                if everything {
                    next = Instant::now() + again_in;
                }
            }
            Err(error) => return tracing::error!(%error, "the store is not followed any more"),
        }
    }
}

fn take_in(scan: Scan, trigger: Trigger, control: &Control, asked: bool) -> Option<Report> {
    control.published().collect();
    control.store_problem(scan.problem);
    (asked || !scan.changes.is_empty()).then(|| control.apply(scan.changes, trigger))
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
        if deaf {
            follower.watch = None;
        }
        let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
        let (changes, _) = follower.read_everything();
        control.apply(changes, Trigger::Start);
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
