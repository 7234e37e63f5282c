//! Following a store while the process runs: events, quiet, requests, and a periodic check.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlane_config::lineage::{Content, FileChange};
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use super::read::{DirReader, QUIET, Scan, Survey};
use super::watch::{Bell, DirWatch, Told};
use crate::admin::ReloadRequest;
use crate::clock::Moment;
use crate::control::{Control, Report, Trigger};
use crate::panics;
use crate::store::cache::KeptText;
use crate::store::mirror::Mirror;

/// A store that is followed.
pub struct Follower {
    reader: DirReader,
    bell: Arc<Bell>,
    watch: Watching,
    resync: Duration,
    /// The look at everything that is under way.
    survey: Option<Survey>,
    /// What is known of the store, where others ask for it.
    mirror: Option<Arc<Mirror>>,
}

/// Whether events come.
enum Watching {
    /// They do.
    Heard(DirWatch),
    /// The system has no watch left, for example: changes are seen by the periodic check.
    Not,
    /// They are not asked for.
    #[cfg(test)]
    Deaf,
}

/// What to look at.
#[derive(Debug)]
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

impl Look {
    fn is_at_everything(&self) -> bool {
        matches!(self, Self::Survey | Self::Everything)
    }
}

impl Follower {
    /// A store of which nothing was read yet.
    #[must_use]
    pub fn new(directory: &Path, resync: Duration) -> Self {
        let (reader, bell) = (DirReader::new(directory), Arc::default());
        Self { reader, bell, watch: Watching::Not, resync, survey: None, mirror: None }
    }

    /// The same, and what it knows is kept in `mirror` as well.
    #[must_use]
    pub fn mirrored(mut self, mirror: Arc<Mirror>) -> Self {
        self.mirror = Some(mirror);
        self
    }

    fn note(&self, changes: &[FileChange]) {
        self.mirror.iter().for_each(|mirror| mirror.take_files(changes));
    }

    /// What a look found, for others who ask. Where the listing failed, what was read is true all the same, and is not
    /// read again.
    fn note_scan(&self, scan: &Scan) {
        if scan.problem.is_none() || !scan.changes.is_empty() {
            self.note(&scan.changes);
        }
        self.mirror.iter().for_each(|mirror| mirror.note_current(scan.problem.is_none()));
    }

    /// Takes in what another process last read of the store. Returns it as changes, to be applied one list
    /// after the other before what [`Follower::read_everything`] finds to be different.
    pub fn remember(&mut self, lists: Vec<Vec<KeptText>>) -> Vec<Vec<FileChange>> {
        let mut change = |KeptText { name, text, modified }| {
            let source = self.reader.remember(OsStr::new(&name), text, modified);
            FileChange { path: source.path.clone(), content: Content::Text(source) }
        };
        let lists: Vec<Vec<_>> =
            lists.into_iter().map(|list| list.into_iter().map(&mut change).collect()).collect();
        lists.iter().for_each(|list| self.note(list));
        lists
    }

    /// Reads the whole store at once, and watches it from then on. What changes between the two is seen
    /// by the look at everything with which [`follow`] begins; to watch first would cost more, since our
    /// own opening of each file is an event too.
    pub fn read_everything(&mut self) -> (Vec<FileChange>, Option<String>) {
        let scan = self.look(&Look::Everything, Moment::now());
        match self.start_watching() {
            Ok(watch) => self.watch = Watching::Heard(watch),
            Err(error) => {
                let (store, resync) = (self.reader.path().display(), self.resync);
                tracing::warn!(%error, %store, "no file events: changes are seen every {resync:?} only");
            }
        }
        self.note_scan(&scan);
        (scan.changes, scan.problem)
    }

    fn start_watching(&self) -> notify::Result<DirWatch> {
        // An absolute path: the events' paths are compared with it.
        let path = self.reader.path();
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        DirWatch::new(&path, &self.bell)
    }

    /// Watches what is not watched: a directory that took the place of another one, or, where the system
    /// had no watch left, the store.
    fn keep_watching(&mut self) {
        let (store, resync) = (self.reader.path().display(), self.resync);
        match &mut self.watch {
            Watching::Heard(watch) => {
                if let Err(error) = watch.follow_replacement() {
                    tracing::warn!(%error, %store, "no file events any more: changes are seen every {resync:?} only");
                    self.watch = Watching::Not;
                }
            }
            Watching::Not => {
                if let Ok(watch) = self.start_watching() {
                    tracing::info!(%store, "file events come again");
                    self.watch = Watching::Heard(watch);
                }
            }
            #[cfg(test)]
            Watching::Deaf => {}
        }
    }

    fn look(&mut self, look: &Look, now: Moment) -> Scan {
        match look {
            Look::Settled(names) => self.reader.read_files(names, true, now),
            Look::Unsettled(names) => self.reader.read_files(names, false, now),
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

/// When to look at what, by a clock that is told.
struct Plan {
    resync: Duration,
    /// Files that may be quiet then.
    unsettled: BTreeSet<OsString>,
    unsettled_at: Instant,
    /// The next step of the look at everything.
    survey_at: Instant,
}

impl Plan {
    /// Begins with a look at everything.
    fn new(resync: Duration, now: Instant) -> Self {
        Self { resync, unsettled: BTreeSet::new(), unsettled_at: now, survey_at: now }
    }

    /// Takes in what was told; gives what is worth a look now.
    fn hear(&mut self, told: Told, now: Instant) -> Option<Look> {
        if told.unsettled.all {
            self.survey_at = self.survey_at.min(now + QUIET);
        }
        // The first look is at once: how long a file stays the same counts from there. What is written to
        // without a pause is then looked at when it is due, however often that is told.
        let new = told.unsettled.names.into_iter().filter(|name| !self.unsettled.contains(name)).collect();
        self.again(new, Duration::ZERO, now);
        match told.settled {
            settled if settled.all => Some(Look::Everything),
            settled if settled.names.is_empty() => None,
            settled => Some(Look::Settled(settled.names)),
        }
    }

    fn again(&mut self, names: BTreeSet<OsString>, wait: Duration, now: Instant) {
        if names.is_empty() {
            return;
        }
        let at = now + wait;
        self.unsettled_at = if self.unsettled.is_empty() { at } else { self.unsettled_at.min(at) };
        self.unsettled.extend(names);
    }

    /// When something is worth a look though nothing is told.
    fn next(&self) -> Instant {
        if self.unsettled.is_empty() { self.survey_at } else { self.survey_at.min(self.unsettled_at) }
    }

    /// What is worth a look at [`Plan::next`].
    fn due(&mut self) -> Look {
        if self.unsettled.is_empty() || self.survey_at < self.unsettled_at {
            return Look::Survey;
        }
        Look::Unsettled(std::mem::take(&mut self.unsettled))
    }

    /// Takes in what a look left to do; `midway` where a look at everything has more steps.
    fn looked(&mut self, look: &Look, scan: &mut Scan, midway: bool, now: Instant) {
        let wait = scan.again_in.unwrap_or(QUIET);
        self.again(std::mem::take(&mut scan.again), wait, now);
        if look.is_at_everything() {
            // What it finds is in force within `resync`: events apart, a file has to be the same for a while.
            let pause = self.resync.saturating_sub(2 * QUIET).max(self.resync / 2);
            self.survey_at = if midway { now } else { now + pause };
        }
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
    let mut plan = Plan::new(follower.resync, Instant::now());
    loop {
        let (look, request) = tokio::select! {
            biased;
            () = bell.rung() => match plan.hear(bell.take(), Instant::now()) {
                Some(look) => (look, None),
                None => continue,
            },
            request = requests.recv() => match request {
                Some(request) => (Look::Everything, Some(request)),
                None => return,
            },
            () = sleep_until(plan.next().into()) => (plan.due(), None),
        };
        let control = control.clone();
        let look = move || {
            if follower.survey.is_none() && !matches!(look, Look::Unsettled(_)) {
                follower.keep_watching();
            }
            let mut scan = follower.look(&look, Moment::now());
            let midway = follower.survey.is_some();
            plan.looked(&look, &mut scan, midway, Instant::now());
            let trigger = request.as_ref().map_or(Trigger::Change, |(trigger, _)| *trigger);
            follower.note_scan(&scan);
            let report = take_in(scan, trigger, &control, request.is_some());
            if let Some(mirror) = &follower.mirror {
                control.at_revision(mirror.revision());
            }
            if let Some(((_, reply), report)) = request.zip(report) {
                // Whoever asked may have gone away.
                let _ = reply.send(report);
            }
            (follower, plan)
        };
        // Files may be slow (a network, a spun-down disk): not on a thread that serves the control side.
        match tokio::task::spawn_blocking(look).await {
            Ok(back) => (follower, plan) = back,
            Err(ended) => return panics::pass_on(ended),
        }
    }
}

fn take_in(scan: Scan, trigger: Trigger, control: &Control, asked: bool) -> Option<Report> {
    control.store_problem(scan.problem.clone());
    let mut report = (asked || !scan.changes.is_empty()).then(|| control.apply(&scan.changes, trigger))?;
    report.problems.extend(scan.problem);
    Some(report)
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;
    use crate::snapshot::Published;
    use overlane_config::lineage::Rules;
    use overlane_config::name::EnvironmentId;
    use std::fs::{self, File};
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
        let mut follower = Follower::new(folder.path(), resync);
        let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
        let (changes, _) = follower.read_everything();
        if deaf {
            follower.watch = Watching::Deaf;
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

    /// A baseline whose web is on `port`.
    fn baseline(port: u16) -> String {
        format!(
            "name: staging\nrouting: {{mode: baseline}}\nservices: [{{name: web, url: 'http://127.0.0.1:{port}'}}]\n"
        )
    }

    async fn until_port(control: &Control, port: u16) {
        let published = control.published();
        let mut generations = published.generations();
        let stands = generations.wait_for(|_| port_of(published) == Some(port));
        let stood = tokio::time::timeout(Duration::from_secs(10), stands).await;
        assert!(stood.is_ok(), "instead of {port} {:?}: {:?}", port_of(published), control.problems());
    }

    fn port_of(published: &Published) -> Option<u16> {
        let snapshot = published.load();
        Some(snapshot.table.own_routes(&"staging".parse().expect("id")).next()?.urls[0].port)
    }

    fn put(folder: &Path, bytes: impl AsRef<[u8]>) {
        fs::write(folder.join(".next"), bytes).expect("write");
        fs::rename(folder.join(".next"), folder.join("staging.yaml")).expect("rename");
    }

    #[tokio::test]
    async fn however_a_file_is_changed_that_is_seen_without_the_periodic_check() {
        let parent = tempfile::tempdir().expect("folder");
        let store = parent.path().join("store");
        fs::create_dir(&store).expect("store");
        put(&store, baseline(1));
        let mut follower = Follower::new(&store, NEVER);
        let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
        control.apply(&follower.read_everything().0, Trigger::Start);
        let (_open, receiver) = mpsc::channel(1);
        tokio::spawn(follow(follower, receiver, control.clone()));
        let file = store.join("staging.yaml");
        put(&store, baseline(2));
        until_port(&control, 2).await;
        fs::write(&file, baseline(3)).expect("in place");
        until_port(&control, 3).await;
        fs::remove_file(&file).expect("delete");
        fs::write(&file, baseline(4)).expect("create");
        until_port(&control, 4).await;
        let swap = |name: &str, port| {
            fs::create_dir(parent.path().join(name)).expect("next");
            put(&parent.path().join(name), baseline(port));
            let _ = fs::rename(&store, parent.path().join(format!("{name}-old")));
            fs::rename(parent.path().join(name), &store).expect("swap");
        };
        swap("next", 5);
        until_port(&control, 5).await;
        // The new directory is followed as the old one was.
        fs::write(&file, baseline(6)).expect("in place");
        until_port(&control, 6).await;
        // As kubelets update a mounted ConfigMap.
        let data = |name: &str, port| {
            fs::create_dir(store.join(name)).expect("data");
            put(&store.join(name), baseline(port));
            std::os::unix::fs::symlink(name, store.join("..data_tmp")).expect("link");
            fs::rename(store.join("..data_tmp"), store.join("..data")).expect("swap");
        };
        data("..1", 7);
        std::os::unix::fs::symlink("..data/staging.yaml", store.join(".link")).expect("link");
        fs::rename(store.join(".link"), &file).expect("link");
        until_port(&control, 7).await;
        data("..2", 8);
        until_port(&control, 8).await;
        // A directory that was away, and none in its place.
        fs::rename(&store, parent.path().join("away")).expect("away");
        swap("back", 9);
        until_port(&control, 9).await;
    }

    #[tokio::test]
    async fn what_cannot_be_read_leaves_what_was_last_good_and_the_next_good_file_is_taken() {
        let Followed { folder, control, requests: _open } = followed(NEVER, false);
        let quadratic =
            format!("name: staging\na: &a [{}]\nb: [{}]\n", "x,".repeat(30_000), "*a,".repeat(20_000));
        let bad: [(&str, Vec<u8>); 7] = [
            ("empty", Vec::new()),
            ("duplicate", baseline(1).replace("name: web", "name: web, name: api").into_bytes()),
            ("alias", quadratic.into_bytes()),
            ("nested", b"[".repeat(200_000)),
            ("not UTF-8", [b"name: ", &b"\xff"[..]].concat()),
            ("cut off", baseline(1)[..60].into()),
            ("binary", vec![0; 4096]),
        ];
        let mut port = 1;
        put(folder.path(), baseline(port));
        until_port(&control, port).await;
        let mut refused = async |how: &str| {
            let generation = control.published().load().generation;
            let mut generations = control.published().generations();
            let looked = generations.wait_for(|now| *now > generation);
            tokio::time::timeout(Duration::from_secs(10), looked).await.expect("in time").expect("published");
            assert!(!control.problems().is_empty(), "{how}");
            assert_eq!(port_of(control.published()), Some(port), "{how}");
            port += 1;
            put(folder.path(), baseline(port));
            until_port(&control, port).await;
            assert_eq!(control.problems(), Vec::<String>::new(), "{how}");
        };
        for (how, bytes) in bad {
            put(folder.path(), bytes);
            refused(how).await;
        }
        let large = File::create(folder.path().join(".next")).expect("file");
        large.set_len(64 << 20).expect("sparse");
        fs::rename(folder.path().join(".next"), folder.path().join("staging.yaml")).expect("rename");
        refused("64 MB").await;
        // The system's own errors, for root as well: EIO, EACCES, and nothing behind the link.
        for to in ["/proc/self/mem", "/proc/sys/vm/drop_caches", "nowhere"] {
            std::os::unix::fs::symlink(to, folder.path().join(".next")).expect("link");
            fs::rename(folder.path().join(".next"), folder.path().join("staging.yaml")).expect("rename");
            refused(to).await;
        }
    }

    #[tokio::test]
    async fn what_changes_between_reading_and_following_is_seen() {
        let folder = tempfile::tempdir().expect("folder");
        let mut follower = Follower::new(folder.path(), NEVER);
        let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
        control.apply(&follower.read_everything().0, Trigger::Start);
        follower.watch = Watching::Deaf;
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
