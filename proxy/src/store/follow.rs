//! Following a store while the process runs: events, quiet, requests, and a periodic check.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use overlane_config::lineage::FileChange;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::StoreAddress;
use super::read::{DirReader, Scan, Settled};
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
        let scan = self.scan(&Settled { all: true, ..Settled::default() });
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
            () = bell.rung() => (bell.take(), None),
            () = sleep_until(next) => (bell.take(), None),
            request = requests.recv() => match request {
                Some(request) => (Settled { all: true, ..bell.take() }, Some(request)),
                None => return,
            },
        };
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
                next = Instant::now() + again_in;
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
