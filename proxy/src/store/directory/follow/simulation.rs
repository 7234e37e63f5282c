//! Following, driven by a clock that is told and by events that are lost, doubled and late, over real files that are
//! written whole, in pieces, badly, taken away, unreadable, and with the whole directory gone or replaced.
//!
//! What holds after every look: no environment is as no file ever said, none goes back, and what was last good
//! stays until its file is taken away. And once all is quiet, everything is as the files say, and nobody spins.
//!
//! `OVERLANE_SEED=N` runs one seed, `OVERLANE_SEEDS=N` the first of them; one that fails is named.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::Rules;
use overlane_config::table::Environment;

use super::super::read::Files;
use super::*;
use crate::names::Names;
use crate::simulation::each_seed;

/// How many seeds; `OVERLANE_SEEDS` asks for more.
const SEEDS: u64 = 8;
const STEPS: usize = 250;
const RESYNC: Duration = Duration::from_secs(5);
const IDS: [&str; 5] = ["base", "alice", "bob", "carol", "dave"];

/// A file and what was done to it.
#[derive(Default)]
struct Model {
    /// The versions that were there whole.
    said: BTreeSet<u16>,
    /// The newest of them that was in force.
    seen: u16,
    /// The newest version of all as it was last taken away.
    gone: u16,
    /// What is there now.
    now: Now,
    /// Pieces that are still to be written to it.
    pieces: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Now {
    #[default]
    Nothing,
    Good(u16),
    /// It cannot be read, or means nothing.
    Bad,
}

/// Where the directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    There,
    /// Not there.
    Away,
    /// An empty one is there in its place, as when a volume is not mounted.
    Covered,
}

struct World {
    rng: Rng,
    folder: tempfile::TempDir,
    place: Place,
    now: Moment,
    files: [Model; IDS.len()],
    version: u16,
    /// What is still to be told, and when; in order.
    events: Vec<(Instant, Told)>,
    follower: Follower,
    plan: Plan,
    control: Arc<Control>,
    looks: usize,
}

fn text(id: &str, version: u16) -> [String; 4] {
    let routing = if id == "base" { "mode: baseline" } else { "mode: overlay, baselineId: base" };
    let service = |name: &str| format!("  - {{name: {name}, url: 'http://127.0.0.1:{version}'}}\n");
    // What ends after any of its pieces can be read, and is another blueprint.
    [format!("name: {id}\nrouting: {{{routing}}}\nservices:\n"), service("a"), service("b"), service("c")]
}

fn followed(store: &Path) -> (Follower, Arc<Control>) {
    let mut follower = Follower::new(store, RESYNC);
    follower.watch = Watching::Deaf;
    (follower, Arc::new(Control::new(Rules::default(), Arc::default(), Names::none())))
}

impl World {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let store = folder.path().join("store");
        fs::create_dir(&store).expect("store");
        let now = Moment::now();
        let (follower, control) = followed(&store);
        let plan = Plan::new(RESYNC, now.steady);
        let (rng, events) = (Rng::with_seed(seed), Vec::new());
        let (files, place) = (Default::default(), Place::There);
        Self { rng, folder, place, now, files, version: 0, events, follower, plan, control, looks: 0 }
    }

    /// Where the files are, wherever the directory is.
    fn real(&self) -> PathBuf {
        self.folder.path().join(if self.place == Place::There { "store" } else { "away" })
    }

    fn path(&self, at: usize) -> PathBuf {
        self.real().join(format!("{}.yaml", IDS[at]))
    }

    /// It is told later, perhaps twice, or not at all.
    fn tell(&mut self, told: Told, order_matters: bool) {
        let times = match self.rng.u8(..10) {
            0 | 1 => 0,
            2 if !order_matters => 2,
            _ => 1,
        };
        let last = self.events.last().map_or(self.now.steady, |(at, _)| *at);
        let late = if self.rng.bool() { 0 } else { self.rng.u64(..300) };
        let at = last.max(self.now.steady + Duration::from_millis(late));
        self.events.extend(std::iter::repeat_n((at, told), times));
    }

    fn tell_file(&mut self, at: usize, whole: bool) {
        if self.place != Place::There {
            return;
        }
        let files = Files { names: [format!("{}.yaml", IDS[at]).into()].into(), all: false };
        let told = match whole {
            true => Told { settled: files, ..Told::default() },
            false => Told { unsettled: files, ..Told::default() },
        };
        self.tell(told, whole);
    }

    fn tell_all(&mut self) {
        let all = Files { names: BTreeSet::new(), all: true };
        self.tell(Told { unsettled: all, ..Told::default() }, false);
    }

    /// Files are dated by the clock of the wall.
    fn date(&self, path: &Path) {
        File::options().append(true).open(path).expect("open").set_modified(self.now.wall).expect("date");
    }

    fn put(&mut self, at: usize, text: &str) {
        let beside = self.real().join(".next");
        fs::write(&beside, text).expect("write");
        self.date(&beside);
        fs::rename(beside, self.path(at)).expect("rename");
        self.tell_file(at, true);
    }

    fn next_version(&mut self) -> u16 {
        self.version += 1;
        self.version
    }

    fn said(&mut self, at: usize, version: u16) {
        self.files[at].now = Now::Good(version);
        self.files[at].said.insert(version);
    }

    /// Somebody does something to a file that nobody is writing to.
    fn touch(&mut self, at: usize) {
        let path = self.path(at);
        match self.rng.u8(..10) {
            0..=2 => {
                let version = self.next_version();
                self.put(at, &text(IDS[at], version).concat());
                self.said(at, version);
            }
            // A late word that the last one was whole would be taken for this one.
            3 | 4 if self.events.is_empty() && self.files[at].now != Now::Bad => {
                let version = self.next_version();
                let [first, others @ ..] = text(IDS[at], version);
                fs::write(&path, first).expect("write");
                self.date(&path);
                self.tell_file(at, false);
                self.files[at].pieces = others.into();
                self.files[at].pieces.reverse();
                self.files[at].now = Now::Good(version);
            }
            5 if self.files[at].now != Now::Nothing => {
                fs::remove_file(&path).expect("delete");
                self.tell_file(at, false);
                self.files[at].now = Now::Nothing;
                self.files[at].gone = self.version;
            }
            6 if self.files[at].now != Now::Nothing => {
                let version = self.next_version();
                fs::remove_file(&path).expect("delete");
                self.tell_file(at, false);
                self.put(at, &text(IDS[at], version).concat());
                self.said(at, version);
            }
            7 => {
                self.put(at, "name: [\n");
                self.files[at].now = Now::Bad;
            }
            8 => {
                // The system's own errors: EIO, EACCES (for root as well), and none behind the link.
                let to = ["/proc/self/mem", "/proc/sys/vm/drop_caches", "nowhere"][self.rng.usize(..3)];
                let beside = self.real().join(".link");
                symlink(to, &beside).expect("link");
                fs::rename(beside, path).expect("rename");
                self.tell_file(at, true);
                self.files[at].now = Now::Bad;
            }
            _ => {}
        }
    }

    /// Writes the next piece; whoever writes does not pause for as long as counts as quiet.
    fn write_on(&mut self, at: usize) {
        let Some(piece) = self.files[at].pieces.pop() else { return };
        let path = self.path(at);
        File::options().append(true).open(&path).expect("open").write_all(piece.as_bytes()).expect("write");
        self.date(&path);
        let over = self.files[at].pieces.is_empty();
        self.tell_file(at, over);
        if let (true, Now::Good(version)) = (over, self.files[at].now) {
            self.said(at, version);
        }
    }

    fn move_directory(&mut self) {
        let (store, away) = (self.folder.path().join("store"), self.folder.path().join("away"));
        match self.place {
            Place::There => {
                fs::rename(&store, &away).expect("away");
                self.place = Place::Away;
                if self.rng.bool() {
                    fs::create_dir(&store).expect("another one");
                    self.place = Place::Covered;
                }
            }
            Place::Away | Place::Covered => {
                if self.place == Place::Covered {
                    fs::remove_dir(&store).expect("empty");
                }
                fs::rename(&away, &store).expect("back");
                self.place = Place::There;
            }
        }
        self.tell_all();
    }

    /// A directory with the same files, and a new version of one of them, takes the place of this one.
    fn swap_directory(&mut self) {
        let (store, next) = (self.folder.path().join("store"), self.folder.path().join("next"));
        fs::create_dir(&next).expect("next");
        for entry in fs::read_dir(&store).expect("list").flatten() {
            fs::rename(entry.path(), next.join(entry.file_name())).expect("move");
        }
        let (at, version) = (self.rng.usize(..IDS.len()), self.next_version());
        let path = next.join(format!("{}.yaml", IDS[at]));
        let _ = fs::remove_file(&path);
        fs::write(&path, text(IDS[at], version).concat()).expect("write");
        self.date(&path);
        self.said(at, version);
        // It is kept, so that no other directory gets its inode.
        let old = self.folder.path().join(format!("old-{version}"));
        fs::rename(&store, old).expect("aside");
        fs::rename(next, store).expect("swap");
        let all = Files { names: BTreeSet::new(), all: true };
        self.tell(Told { settled: all, ..Told::default() }, true);
    }

    /// The process is killed and starts again with what it kept.
    fn restart(&mut self) {
        let kept = |source: Arc<Source>| KeptText {
            name: Path::new(&*source.path).file_name().expect("name").to_string_lossy().into_owned(),
            text: source.text.clone(),
            modified: source.modified,
        };
        let lists = self.control.texts().1;
        let kept = lists.into_iter().map(|list| list.into_iter().map(kept).collect()).collect();
        (self.follower, self.control) = followed(&self.folder.path().join("store"));
        for changes in self.follower.remember(kept) {
            self.control.apply(&changes, Trigger::Cache);
        }
        // As `read_everything` does it, with this clock.
        self.take(&Look::Everything);
        self.plan = Plan::new(RESYNC, self.now.steady);
    }

    fn take(&mut self, look: &Look) {
        let mut scan = self.follower.look(look, self.now);
        let midway = self.follower.survey.is_some();
        self.plan.looked(look, &mut scan, midway, self.now.steady);
        take_in(scan, Trigger::Change, &self.control, false);
        self.looks += 1;
        self.check();
    }

    fn writing(&self) -> bool {
        self.files.iter().any(|file| !file.pieces.is_empty())
    }

    /// What is in force for an id: its version, `None` where there is nothing that serves.
    fn in_force(&self, id: &str) -> Option<u16> {
        let published = self.control.published().load();
        let Some(Environment::Baseline(_) | Environment::Overlay(_)) = published.table.environment(id) else {
            return None;
        };
        let owner = id.parse().expect("id");
        let routes = published.table.own_routes(&owner);
        let versions: Vec<_> = routes.map(|route| route.urls[0].port).collect();
        assert!(versions.len() == 3, "{id} has {} of its 3 services", versions.len());
        assert!(versions.iter().all(|version| *version == versions[0]), "{id} is of several versions");
        Some(versions[0])
    }

    fn check(&mut self) {
        for (at, id) in IDS.into_iter().enumerate() {
            let in_force = self.in_force(id);
            // Without its baseline an overlay is nothing.
            let base_is_there = self.in_force("base").is_some();
            let file = &mut self.files[at];
            match in_force {
                Some(version) => {
                    assert!(
                        file.said.contains(&version),
                        "{id} is of version {version}, which no file had whole"
                    );
                    assert!(version >= file.seen, "{id} went back from {} to {version}", file.seen);
                    file.seen = version;
                }
                None => {
                    let never = file.seen == 0;
                    assert!(
                        never || file.seen <= file.gone || !base_is_there,
                        "{id} is gone: version {} was last good",
                        file.seen
                    );
                }
            }
        }
    }

    /// Time passes, and what is due is done.
    fn pass(&mut self, span: Duration) {
        let until = self.now.steady + span;
        loop {
            let told = self.events.first().map(|(at, _)| *at);
            let next = told.map_or(self.plan.next(), |told| told.min(self.plan.next()));
            if next > until {
                break;
            }
            let passed = next.saturating_duration_since(self.now.steady);
            self.now = self.now + passed;
            let look = match told {
                Some(told) if told <= self.now.steady => {
                    let (_, told) = self.events.remove(0);
                    self.plan.hear(told, self.now.steady)
                }
                _ => Some(self.plan.due()),
            };
            if let Some(look) = look {
                self.take(&look);
            }
        }
        self.now = self.now + until.saturating_duration_since(self.now.steady);
    }

    fn step(&mut self) {
        let quiet = !self.writing();
        match self.rng.u8(..20) {
            0..=9 => {
                let at = self.rng.usize(..IDS.len());
                if self.files[at].pieces.is_empty() {
                    self.touch(at);
                }
            }
            10 | 11 => {
                let span = Duration::from_millis(self.rng.u64(1..3_600_000));
                let wall = self.now.wall;
                self.now.wall = if self.rng.bool() { wall + span } else { wall - span };
            }
            12 if quiet => self.move_directory(),
            // Nobody can tell that a file is whole who was not there when it was begun.
            13 if quiet && self.place == Place::There => self.swap_directory(),
            14 if quiet => self.restart(),
            15 if quiet => self.pass(Duration::from_secs(6)),
            _ => {}
        }
        let pause = Duration::from_millis(self.rng.u64(..QUIET.as_millis() as u64 - 10));
        self.pass(pause);
        for at in 0..IDS.len() {
            self.write_on(at);
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
        }
        while self.writing() {
            (0..IDS.len()).for_each(|at| self.write_on(at));
        }
        if self.place != Place::There {
            self.move_directory();
        }
        // The directory's own files last: an overlay cannot stand without its baseline.
        self.pass(2 * RESYNC + Duration::from_secs(1));
        assert!(!self.control.store_unreadable());
        let base = self.in_force("base");
        for (at, id) in IDS.into_iter().enumerate() {
            match self.files[at].now {
                Now::Good(version) if base.is_some() => assert_eq!(self.in_force(id), Some(version), "{id}"),
                Now::Nothing => assert_eq!(self.in_force(id), None, "{id}"),
                _ => {}
            }
        }
        self.looks = 0;
        self.pass(20 * RESYNC);
        assert!(self.looks <= 3 * 20, "{} looks at nothing", self.looks);
    }
}

#[test]
fn whatever_happens_to_files_events_and_clocks_only_what_files_said_is_in_force() {
    each_seed(SEEDS, |seed| World::new(seed).run());
}
