//! One suite over each kind of store that needs nothing else: a directory, one in memory, and one in memory that is followed here.

use std::fs;
use std::path::Path;

use overlane_config::name::ServiceName;
use overlane_config::url::Url;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::admin::ReloadRequest;
use crate::control::Control;
use crate::names::Names;
use crate::store::shared::follow::{SharedFollower, follow};
use crate::store::shared::memory::Memory;
use crate::store::shared::write::Followed;

const BASELINE: &str =
    "name: staging\nrouting: {mode: baseline}\nservices:\n  - name: web\n    url: http://127.0.0.1:1\n";
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn source(text: &str) -> Arc<Source> {
    Arc::new(Source::new("input.yaml".into(), text.to_owned(), None))
}

fn overlay(id: &str, parent: &str) -> String {
    format!(
        "# of {id}\nname: {id}\nrouting:\n  mode: overlay # sparse\n  baselineId: {parent}\nservices:\n  - name: web\n"
    )
}

/// A store for tests; each command opens it anew.
enum Tried {
    Directory(tempfile::TempDir),
    Memory(Memory),
    Followed(Memory, Box<Follower>),
}

/// Who follows a store.
struct Follower {
    followed: Followed,
    runtime: Runtime,
    /// It follows as long as this is there.
    _reloads: mpsc::Sender<ReloadRequest>,
}

impl Follower {
    fn of(memory: &Memory) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("runtime");
        let follower = SharedFollower::new(Arc::new(memory.clone()));
        let control = Arc::new(Control::new(rules(), Arc::default(), Names::none()));
        let followed = Followed { mirror: follower.mirror().clone(), control: control.clone() };
        let (reloads, asked) = mpsc::channel(1);
        runtime.spawn(follow(follower, asked, control));
        Self { followed, runtime, _reloads: reloads }
    }

    /// Opens the store once all is known here that is written there.
    fn open(&self, memory: &Memory) -> OpenStore {
        let written = memory.revision();
        let mut known = self.followed.control.revisions();
        let known = known.wait_for(|known| known.as_ref().is_some_and(|known| known.is_at_least(&written)));
        self.runtime
            .block_on(async { timeout(Duration::from_secs(60), known).await.map(drop) })
            .expect("known");
        let runtime = self.runtime.handle().clone();
        OpenStore::part(Listed::followed(Arc::new(memory.clone()), self.followed.clone(), runtime))
    }
}

impl Tried {
    fn directory() -> Self {
        let tried = Self::Directory(tempfile::tempdir().expect("folder"));
        tried.put(BASELINE, &Put::default()).expect("baseline");
        tried
    }

    fn followed() -> Self {
        let memory = Memory::new();
        let follower = Follower::of(&memory);
        let tried = Self::Followed(memory, Box::new(follower));
        tried.put(BASELINE, &Put::default()).expect("baseline");
        tried
    }

    /// One of each kind, with a baseline in it.
    fn each() -> [Self; 3] {
        let memory = Self::Memory(Memory::new());
        memory.put(BASELINE, &Put::default()).expect("baseline");
        [Self::directory(), memory, Self::followed()]
    }

    fn path(&self) -> &Path {
        match self {
            Self::Directory(folder) => folder.path(),
            Self::Memory(_) | Self::Followed(..) => unreachable!("it is in memory"),
        }
    }

    /// Opened to be written to: nobody else can meanwhile, where it is a directory.
    fn open(&self) -> OpenStore {
        match self {
            Self::Directory(folder) => {
                OpenStore::write(&StoreAddress::directory(folder.path())).expect("open")
            }
            Self::Memory(_) => self.read(),
            Self::Followed(memory, follower) => follower.open(memory),
        }
    }

    /// All that is in it.
    fn read(&self) -> OpenStore {
        match self {
            Self::Directory(folder) => OpenStore::read(&StoreAddress::directory(folder.path())),
            Self::Memory(memory) | Self::Followed(memory, _) => {
                listed(Arc::new(memory.clone())).and_then(OpenStore::shared)
            }
        }
        .expect("open")
    }

    fn put(&self, text: &str, put: &Put) -> Result<Outcome, WriteError> {
        let written = self.open().put(&source(text), put, NOW)?;
        Ok(written.environments[0].1)
    }

    /// Calls an entry otherwise, as another one would.
    fn rename(&self, from: &str, to: &str) {
        match self {
            Self::Directory(folder) => {
                fs::rename(folder.path().join(from), folder.path().join(to)).expect("rename");
            }
            Self::Memory(memory) | Self::Followed(memory, _) => {
                let text = memory.text(from);
                memory.put(to, text.as_deref());
                memory.put(from, None);
            }
        }
    }

    /// What is written of an environment.
    fn text(&self, of: &str) -> Option<String> {
        Some(self.read().lineages().claims(&id(of)).next()?.source.text.to_string())
    }
}

fn id(text: &str) -> EnvironmentId {
    text.parse().expect("id")
}

#[test]
fn apply_creates_configures_and_leaves_alone() {
    for store in Tried::each() {
        let put = |text: &str, put: &Put| store.put(text, put);
        assert_eq!(put(&overlay("a", "staging"), &Put::default()).expect("new"), Outcome::Created);
        assert_eq!(put(&overlay("a", "staging"), &Put::default()).expect("same"), Outcome::Unchanged);
        let more = overlay("a", "staging") + "    expose: true\n";
        assert_eq!(put(&more, &Put::default()).expect("other"), Outcome::Configured);
        assert_eq!(store.text("a").expect("there"), more);
        let create = Put { create: true, ..Put::default() };
        assert!(matches!(put(&more, &create), Err(WriteError::Exists(_))));
    }
}

#[test]
fn what_would_be_wrong_is_not_written() {
    for store in Tried::each() {
        let invalid = |text: &str| {
            assert!(matches!(store.put(text, &Put::default()), Err(WriteError::Invalid(_))));
        };
        invalid(&overlay("a", "stagin"));
        invalid("name: [");
        let other = Put { parent: Some(id("production")), ..Put::default() };
        let refused = store.put(&overlay("a", "staging"), &other);
        assert!(matches!(refused, Err(WriteError::OtherParent { .. })));
        let dry = Put { dry_run: true, ..Put::default() };
        assert_eq!(store.put(&overlay("a", "staging"), &dry).expect("dry"), Outcome::Created);
        assert_eq!(store.text("a"), None);
    }
}

#[test]
fn what_is_written_carries_an_absolute_expiry_and_keeps_its_comments() {
    for store in Tried::each() {
        let ttl = |seconds| Put { ttl: Some(Duration::from_secs(seconds)), ..Put::default() };
        store.put(&overlay("a", "staging"), &ttl(3600)).expect("written");
        let expected =
            overlay("a", "staging").replace("  mode:", "  expiresAt: \"2027-01-15T09:00:00Z\"\n  mode:");
        let text = store.text("a").expect("there");
        assert_eq!(text, expected);
        store.put(&text, &ttl(7200)).expect("again");
        assert_eq!(store.text("a").expect("there"), expected.replace("09:00", "10:00"));
    }
}

#[test]
fn deleting_a_baseline_with_overlays_names_them() {
    for store in Tried::each() {
        store.put(&overlay("a", "staging"), &Put::default()).expect("a");
        store.put(&overlay("b", "a"), &Put::default()).expect("b");
        let mut open = store.open();
        assert!(
            matches!(open.delete(&id("staging"), None, false), Err(WriteError::HasChildren(_, names)) if names == [id("a")])
        );
        assert!(matches!(open.delete(&id("a"), None, false), Err(WriteError::HasChildren(..))));
        for name in ["b", "a", "staging"] {
            open.delete(&id(name), None, false).expect(name);
        }
        assert!(matches!(open.delete(&id("a"), None, false), Err(WriteError::NotFound(_))));
        drop(open);
        assert!(store.read().lineages().is_empty());
    }
}

#[test]
fn what_is_written_only_in_one_state_is_not_in_another() {
    for store in Tried::each() {
        store.put(&overlay("a", "staging"), &Put::default()).expect("a");
        let first = store.read().revision(&id("a"));
        let only = Put { only: first.clone(), ..Put::default() };
        let more = overlay("a", "staging") + "    expose: true\n";
        assert_eq!(store.put(&more, &only).expect("as it was"), Outcome::Configured);
        let second = store.read().revision(&id("a"));
        let refused = store.put(&overlay("a", "staging"), &only);
        assert!(matches!(refused, Err(WriteError::Changed(_, now)) if now == second));
        let mut open = store.open();
        assert!(matches!(open.delete(&id("a"), first.as_ref(), false), Err(WriteError::Changed(..))));
        open.delete(&id("a"), second.as_ref(), false).expect("as it is");
        drop(open);
        assert!(matches!(store.put(&more, &only), Err(WriteError::Changed(_, None))));
    }
}

#[test]
fn attachments_are_records_of_their_own_and_survive_apply() {
    for store in Tried::each() {
        store.put(&overlay("a", "staging"), &Put::default()).expect("a");
        let web: ServiceName = "web".parse().expect("name");
        let url: Url = "http://127.0.0.1:9".parse().expect("url");
        let attach = |service: &ServiceName, url| store.open().attach(&id("a"), service, url, false);
        assert_eq!(attach(&web, Some(&url)).expect("attach"), Outcome::Created);
        assert_eq!(attach(&web, Some(&url)).expect("again"), Outcome::Unchanged);
        store.put(&(overlay("a", "staging") + "    expose: true\n"), &Put::default()).expect("apply");
        let open = store.read();
        let resolved = open.lineages().standing(&id("a")).and_then(|standing| standing.resolved());
        assert_eq!(resolved.expect("a").urls[0][0], url);
        drop(open);
        let other = "ledger".parse().expect("name");
        assert!(matches!(attach(&other, Some(&url)), Err(WriteError::NotFound(_))));
        assert_eq!(attach(&web, None).expect("detach"), Outcome::Deleted);
        assert!(matches!(attach(&web, None), Err(WriteError::NotFound(_))));
        attach(&web, Some(&url)).expect("attach");
        store.open().delete(&id("a"), None, false).expect("delete");
        store.put(&overlay("a", "staging"), &Put::default()).expect("a");
        assert!(store.read().lineages().attachments(&id("a")).is_empty());
    }
}

#[test]
fn a_file_with_several_documents_is_read_and_never_edited() {
    let store = Tried::directory();
    let many = format!("{}---\n{}", overlay("a", "staging"), overlay("b", "staging"));
    fs::write(store.path().join("many.yaml"), many).expect("file");
    let more = overlay("a", "staging") + "    expose: true\n";
    assert!(matches!(store.put(&more, &Put::default()), Err(WriteError::Shared(..))));
    assert!(matches!(store.open().delete(&id("a"), None, false), Err(WriteError::Shared(..))));
}

#[test]
fn two_writers_at_once_lose_nothing() {
    for store in Tried::each() {
        let services: String = (0..16).map(|n| format!("  - name: s{n}\n")).collect();
        let many = overlay("a", "staging").replace("  - name: web\n", &services);
        store.put(&many, &Put::default()).expect("a");
        thread::scope(|scope| {
            for n in 0..16 {
                let store = &store;
                scope.spawn(move || {
                    let service: ServiceName = format!("s{n}").parse().expect("name");
                    let url: Url = format!("http://127.0.0.1:{}", 1000 + n).parse().expect("url");
                    store.open().attach(&id("a"), &service, Some(&url), false).expect("attach");
                });
            }
        });
        assert_eq!(store.read().lineages().attachments(&id("a"))[0].services.len(), 16);
    }
}

#[test]
fn whoever_becomes_a_child_while_its_parent_is_deleted_is_no_orphan() {
    let memory = Memory::new();
    let store = Tried::Memory(memory.clone());
    store.put(BASELINE, &Put::default()).expect("baseline");
    store.put(&overlay("a", "staging"), &Put::default()).expect("a");
    let mut open = store.open();
    store.put(&overlay("b", "a"), &Put::default()).expect("b");
    assert!(matches!(open.delete(&id("a"), None, false), Err(WriteError::HasChildren(..))));
    let mut open = store.open();
    store.open().delete(&id("b"), None, false).expect("b");
    store.open().delete(&id("a"), None, false).expect("a");
    let refused = open.put(&source(&overlay("c", "a")), &Put::default(), NOW);
    assert!(matches!(refused, Err(WriteError::Invalid(_))));
}

#[test]
fn what_others_are_in_is_not_overwritten_and_nothing_is_written_twice() {
    for store in Tried::each() {
        // Whose id is not its name.
        let text = BASELINE.replace("mode: baseline", "mode: baseline, baselineId: production");
        store.put(&text.replace("name: staging", "name: production"), &Put::default()).expect("production");
        store.rename("production.yaml", "other.yaml");
        let refused = store.put(&overlay("other", "staging"), &Put::default());
        assert!(
            matches!(&refused, Err(WriteError::Invalid(why)) if why[0].message.contains("production")),
            "{refused:?}"
        );
        assert!(store.text("production").is_some());
        let twice = format!("{}---\n{}", overlay("a", "staging"), overlay("a", "staging"));
        assert!(matches!(store.put(&twice, &Put::default()), Err(WriteError::Invalid(_))));
        assert_eq!(store.text("a"), None);
    }
}

#[test]
fn a_new_overlay_in_one_file_with_its_baseline_is_no_orphan_when_that_is_deleted_meanwhile() {
    let memory = Memory::new();
    let store = Tried::Memory(memory.clone());
    store.put(BASELINE, &Put::default()).expect("baseline");
    let mut open = store.open();
    memory.put("staging.yaml", None);
    let both = format!("{BASELINE}---\n{}", overlay("a", "staging"));
    open.put(&source(&both), &Put::default(), NOW).expect("both");
    assert!(store.text("staging").is_some(), "it is written anew, and not taken for what it was");
}

#[test]
fn two_who_move_environments_below_each_other_make_no_cycle() {
    let store = Tried::Memory(Memory::new());
    store.put(BASELINE, &Put::default()).expect("baseline");
    for (name, parent) in [("a", "staging"), ("top", "staging"), ("b", "top")] {
        store.put(&overlay(name, parent), &Put::default()).expect(name);
    }
    // It sees `b` below `top` below `staging`, and writes after `top` came below `a`.
    let mut open = store.open();
    store.put(&overlay("top", "a"), &Put::default()).expect("top");
    let refused = open.put(&source(&overlay("a", "b")), &Put::default(), NOW);
    assert!(matches!(refused, Err(WriteError::Invalid(_))), "{refused:?}");
}

#[test]
fn a_store_that_is_away_is_said_to_be() {
    let memory = Memory::new();
    let mut open = Tried::Memory(memory.clone()).open();
    memory.away(true);
    let refused = open.put(&source(BASELINE), &Put::default(), NOW);
    assert!(matches!(refused, Err(WriteError::Store(fault)) if fault.0.contains("away")));
}

#[test]
fn a_write_whose_answer_is_lost_is_looked_for_and_done_once() {
    let create = Put { create: true, ..Put::default() };
    // The last one is lost first; each after it was written, or instead.
    for lost in [vec![true], vec![false], vec![true, false], vec![false, true], vec![true, true]] {
        let memory = Memory::new();
        let store = Tried::Memory(memory.clone());
        store.put(BASELINE, &Put::default()).expect("baseline");
        let mut open = store.open();
        memory.lose(lost.clone());
        let written = open.put(&source(&overlay("a", "staging")), &create, NOW).expect("created");
        assert_eq!(written.environments[0].1, Outcome::Created, "{lost:?}");
        assert!(store.text("a").is_some());
        memory.lose(lost.clone());
        open.delete(&id("a"), None, false).expect("deleted");
        assert_eq!(store.text("a"), None, "{lost:?}");
        // Whoever came meanwhile may have come before or after it.
        memory.lose(vec![false]);
        memory.put("a.yaml", Some(&overlay("a", "staging")));
        let other = format!("{}# of somebody else\n", overlay("a", "staging"));
        let refused = open.put(&source(&other), &create, NOW);
        assert!(matches!(refused, Err(WriteError::Unsure(_))), "{refused:?}");
    }
    let memory = Memory::new();
    memory.lose(vec![false; 9]);
    let unsure = Tried::Memory(memory).put(BASELINE, &create);
    assert!(matches!(unsure, Err(WriteError::Unsure(_))), "{unsure:?}");
}

#[test]
fn an_attached_address_is_renewed_and_released_by_who_attached_it_and_by_nobody_else() {
    let (service, url): (ServiceName, Url) =
        ("web".parse().expect("name"), "http://h:1".parse().expect("url"));
    let other: Url = "http://h:2".parse().expect("url");
    let until = UnixMillis(clock::now().0 / 1000 * 1000).after(Duration::from_secs(3600));
    for tried in Tried::each().map(Arc::new) {
        tried.put(&overlay("alice", "staging"), &Put::default()).expect("overlay");
        let opened = tried.clone();
        // Where it is shared, a view that is kept while others write.
        let mut own = Reopened::by(move || Ok(opened.open()));
        let lease = || {
            let open = tried.read();
            let records = open.lineages().attachments(&id("alice"));
            records.iter().flat_map(|record| record.services.clone()).next().map(|one| one.expires_at)
        };
        let mut with =
            |write: &dyn Fn(&mut OpenStore) -> Result<bool, WriteError>| own.with(write).expect("written");
        assert!(!with(&|open| open.renew(&id("alice"), &service, &url, &url, until)));
        with(&|open| open.lease(&id("alice"), &service, &url, until, false).map(|_| true));
        assert_eq!(lease(), Some(Some(until)));
        let later = until.after(Duration::from_secs(60));
        assert!(with(&|open| open.renew(&id("alice"), &service, &url, &url, later)));
        assert_eq!(lease(), Some(Some(later)));
        // Somebody else attaches another one meanwhile.
        tried.open().attach(&id("alice"), &service, Some(&other), false).expect("attached");
        assert!(!with(&|open| open.renew(&id("alice"), &service, &url, &url, later)));
        assert!(!with(&|open| open.release(&id("alice"), &service, &url)));
        assert_eq!(lease(), Some(None));
        assert!(with(&|open| open.release(&id("alice"), &service, &other)));
        assert_eq!(lease(), None);
    }
}

#[test]
fn a_directory_that_is_written_to_again_is_left_to_others_in_between_and_only_what_changed_is_taken_in() {
    let tried = Tried::directory();
    tried.put(&overlay("alice", "staging"), &Put::default()).expect("overlay");
    let source = |open: &mut OpenStore, id: &str| {
        let known = open.lineages().claims(&id.parse().expect("id")).next();
        Ok(known.map(|known| known.source.clone()))
    };
    let mut own = Reopened::new(StoreAddress::directory(tried.path()));
    let before = own.with(|open| source(open, "staging")).expect("read").expect("there");
    // Somebody else can write: it is not locked.
    tried.put(&overlay("bob", "staging"), &Put::default()).expect("overlay");
    tried.open().delete(&id("alice"), None, false).expect("deleted");
    assert!(own.with(|open| source(open, "bob")).expect("read").is_some());
    assert!(own.with(|open| source(open, "alice")).expect("read").is_none());
    let after = own.with(|open| source(open, "staging")).expect("read").expect("there");
    assert!(Arc::ptr_eq(&before, &after), "it is another copy");
}

#[test]
fn an_overlay_is_extended_but_never_shortened_and_where_it_is_used_only_while_it_lives() {
    let over = UnixMillis(NOW.0).after(Duration::from_secs(3600));
    let (later, latest) = (over.after(Duration::from_secs(60)), over.after(Duration::from_secs(120)));
    for tried in Tried::each() {
        let put = Put { ttl: Some(Duration::from_secs(3600)), ..Put::default() };
        tried.put(&overlay("alice", "staging"), &put).expect("overlay");
        let extend = |until, used| tried.open().extend(&id("alice"), until, used, false).expect("there");
        assert_eq!(extend(NOW, None), (Outcome::Unchanged, over));
        assert_eq!(extend(later, Some(over)), (Outcome::Unchanged, over), "it has expired");
        assert_eq!(extend(later, Some(NOW)), (Outcome::Configured, later));
        assert_eq!(extend(over, None), (Outcome::Unchanged, later));
        assert_eq!(extend(latest, Some(over)), (Outcome::Configured, latest));
        tried.put(&overlay("alice", "staging").replace("sparse", "the same"), &Put::default()).expect("put");
        tried.put(&overlay("alice", "staging"), &put).expect("put");
        assert_eq!(extend(NOW, None), (Outcome::Unchanged, over), "`--ttl` says how long from now on");
        tried.put(&overlay("bob", "staging"), &Put::default()).expect("overlay");
        let refused = tried.open().extend(&id("bob"), later, None, false);
        assert!(matches!(refused, Err(WriteError::NeverExpires(_))), "{refused:?}");
    }
}

#[test]
fn where_a_store_is_followed_a_write_is_judged_as_by_all_of_it_and_nothing_is_listed() {
    let tried = Tried::followed();
    let Tried::Followed(memory, _) = &tried else { unreachable!("it is followed") };
    for (name, parent) in [("a", "staging"), ("b", "a"), ("c", "b")] {
        tried.put(&overlay(name, parent), &Put::default()).expect(name);
    }
    let listings = memory.listings();
    let refused = |text: &str| match tried.put(text, &Put::default()) {
        Err(WriteError::Invalid(why)) => (why[0].message.clone(), why[0].hint.clone().unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refused(&overlay("d", "stagin")),
        ("unknown parent `stagin`".into(), "did you mean `staging`?".into())
    );
    assert_eq!(refused(&overlay("a", "c")).0, "the lineage is a cycle: a → c → b → a");
    assert!(matches!(tried.open().delete(&id("b"), None, false), Err(WriteError::HasChildren(..))));
    // A bad text stands here by what was last good; who starts anew does not know that.
    memory.put("b.yaml", Some(&overlay("b", "a").replace("name: web", "nam: web")));
    assert_eq!(refused(&overlay("d", "b")).0, "the parent `b` cannot be used");
    assert!(matches!(tried.open().delete(&id("b"), None, false), Err(WriteError::NotFound(_))));
    tried.put(&overlay("b", "a"), &Put::default()).expect("mended");
    assert_eq!(memory.listings(), listings);
}

#[test]
fn who_had_to_read_all_once_reads_a_part_the_next_time() {
    let memory = Memory::new();
    memory.put("staging.yaml", Some(BASELINE));
    let mut open = OpenStore::part(Listed::new(Arc::new(memory.clone())).expect("runtime"));
    let mut put = |text: &str| open.put(&source(text), &Put::default(), NOW).map(drop);
    put(&overlay("alice", "staging")).expect("new");
    put(&overlay("bob", "staging")).expect("all is known");
    assert_eq!(memory.listings(), 1);
    memory.tells();
    memory.put("bob.yaml", Some(&overlay("bob", "alice")));
    put(&overlay("bob", "staging")).expect("looked at anew");
    put(&overlay("carol", "bob")).expect("looked at");
    assert_eq!(memory.listings(), 1);
}
