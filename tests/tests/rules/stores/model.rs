//! Several writers at once over every store, each a command at a time: there is one order of what they did that explains
//! every answer and what is there in the end, and whoever follows the store comes to the same. So nothing that was
//! acknowledged is lost, nothing is half done, and nobody is left without a parent. Leases are among it: what writers say of the
//! time is theirs, and at a time that followers are told, each ends what the model says is over.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use overlane::clock;
use overlane::control::Control;
use overlane::names::Names;
use overlane::plane::trust::Trust;
use overlane::settings::Settings;
use overlane::store::behind::{Behind, Keeper};
use overlane::store::open::{OpenStore, Outcome, Put, WriteError};
use overlane::store::shared::follow::{SharedFollower, follow};
use overlane::store::shared::write::Followed;
use overlane::store::{Reached, StoreAddress};
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Lineages, Rules};
use overlane_config::name::ServiceName;
use overlane_config::route::Role;
use overlane_config::table::Environment;
use overlane_config::time::UnixMillis;
use overlane_tests::cable::{Cable, Plugged};
use overlane_tests::etcd::Etcd;
use overlane_tests::kubernetes::Kubernetes;
use overlane_tests::stage::{self, Started};
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::hub::{hub_of, open, url};

const WRITERS: usize = 4;
const EACH: usize = 8;
/// Times are in so many parts of what a seed's time is.
const PARTS: usize = 20;
const IDS: [&str; 3] = ["a", "b", "c"];
const FOLLOWERS: usize = 3;

/// A time, in milliseconds. All of these are far from now: no clock but the injected one ends anything.
type Time = u64;
/// Where the time of the first seed begins.
const BEGIN: Time = 4_000_000_000_000;
/// So much later begins that of the next seed.
const SEED: Time = 100_000_000;
/// The ports of addresses that several writers lease, renew and release.
const LEASED: [u16; 2] = [901, 902];

/// What a writer does. Ports and times are unique, but those of [`LEASED`]: they tell who wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Put {
        id: &'static str,
        parent: &'static str,
        port: u16,
        create: bool,
        ends: Option<Time>,
    },
    Delete(&'static str),
    Attach(&'static str, u16, Option<Time>),
    Detach(&'static str),
    Renew(&'static str, u16, Time),
    Release(&'static str, u16),
    Extend {
        id: &'static str,
        until: Time,
        used: Option<Time>,
    },
    /// What expired before that goes.
    Remove(&'static str, Time),
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Done(Outcome),
    Exists,
    NotFound,
    Invalid,
    HasChildren,
    NeverExpires,
}

impl Answer {
    /// Whether something was written.
    fn is_of_a_write(self) -> bool {
        matches!(self, Self::Done(Outcome::Created | Outcome::Configured | Outcome::Deleted))
    }
}

/// An overlay, as the model has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Known {
    parent: String,
    port: u16,
    /// When its blueprint says that it ends, and until when it was extended.
    ends: Option<Time>,
    extended: Option<Time>,
    /// The port of what is attached, and when that ends.
    attached: Option<(u16, Option<Time>)>,
}

impl Known {
    /// Until when it lives by itself; what never ends cannot be extended.
    fn lives(&self) -> Option<Time> {
        self.ends.map(|ends| ends.max(self.extended.unwrap_or(0)))
    }
}

/// What a store holds beside its baseline.
type Model = BTreeMap<String, Known>;

/// One command after the other, as anybody would write it down.
fn act(model: &mut Model, act: &Act) -> Answer {
    match *act {
        Act::Put { id, parent, port, create, ends } => {
            let before = model.get(id).cloned();
            if create && before.is_some() {
                return Answer::Exists;
            }
            let mut ancestor = parent.to_owned();
            while ancestor != "base" {
                match model.get(&ancestor) {
                    Some(known) if ancestor != id => ancestor.clone_from(&known.parent),
                    _ => return Answer::Invalid,
                }
            }
            let attached = before.as_ref().and_then(|known| known.attached);
            // Who says how long it lives from now on takes back by how much it was extended.
            let extended = before.as_ref().and_then(|known| known.extended).filter(|_| ends.is_none());
            let known = Known { parent: parent.to_owned(), port, ends, extended, attached };
            model.insert(id.to_owned(), known);
            Answer::Done(if before.is_some() { Outcome::Configured } else { Outcome::Created })
        }
        Act::Delete(id) if model.values().any(|known| known.parent == id) => Answer::HasChildren,
        Act::Delete(id) => match model.remove(id) {
            Some(_) => Answer::Done(Outcome::Deleted),
            None => Answer::NotFound,
        },
        Act::Remove(id, before) => {
            let inherited = model.values().any(|known| known.parent == id);
            let over = model.get(id).and_then(Known::lives).is_some_and(|lives| lives <= before);
            if over && !inherited {
                model.remove(id);
            }
            Answer::Done(if over && !inherited { Outcome::Deleted } else { Outcome::Unchanged })
        }
        Act::Attach(id, port, until) => match model.get_mut(id) {
            None => Answer::NotFound,
            Some(known) => match known.attached.replace((port, until)) {
                Some(_) => Answer::Done(Outcome::Configured),
                None => Answer::Done(Outcome::Created),
            },
        },
        Act::Detach(id) => match model.get_mut(id).and_then(|known| known.attached.take()) {
            Some(_) => Answer::Done(Outcome::Deleted),
            None => Answer::NotFound,
        },
        Act::Renew(id, port, until) => match model.get_mut(id).and_then(|known| known.attached.as_mut()) {
            Some(attached) if attached.0 == port => {
                attached.1 = Some(until);
                Answer::Done(Outcome::Configured)
            }
            _ => Answer::NotFound,
        },
        Act::Release(id, port) => match model.get_mut(id) {
            Some(known) if known.attached.is_some_and(|(own, _)| own == port) => {
                known.attached = None;
                Answer::Done(Outcome::Deleted)
            }
            _ => Answer::NotFound,
        },
        Act::Extend { id, until, used } => match model.get_mut(id) {
            None => Answer::NotFound,
            Some(known) => match known.lives() {
                None => Answer::NeverExpires,
                Some(lives) if lives >= until || used.is_some_and(|used| lives <= used) => {
                    Answer::Done(Outcome::Unchanged)
                }
                Some(_) => {
                    known.extended = Some(until);
                    Answer::Done(Outcome::Configured)
                }
            },
        },
    }
}

/// The same by what a command does, or who looks after what expired.
fn act_on(open: &mut OpenStore, act: &Act) -> Result<Answer, WriteError> {
    let id = |id: &str| id.parse().unwrap();
    let url = |port: u16| format!("http://127.0.0.1:{port}").parse().unwrap();
    let web: ServiceName = "web".parse().unwrap();
    let if_so = |done: Result<bool, WriteError>, outcome| match done {
        Ok(true) => Ok(outcome),
        Ok(false) => Err(WriteError::NotFound(String::new())),
        Err(error) => Err(error),
    };
    let done = match *act {
        Act::Put { id, parent, port, create, ends } => {
            let text = format!(
                "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: web, url: 'http://127.0.0.1:{port}'}}]\n"
            );
            let source = Arc::new(Source::new(format!("{id}.yaml").into(), text, None));
            let put =
                Put { create, ttl: ends.map(|ends| Duration::from_millis(ends - BEGIN)), ..Put::default() };
            let written = open.put(&source, &put, UnixMillis(BEGIN));
            written.map(|written| written.environments[0].1)
        }
        Act::Delete(name) => open.delete(&id(name), None, false),
        Act::Attach(name, port, None) => open.attach(&id(name), &web, Some(&url(port)), false),
        Act::Attach(name, port, Some(until)) => {
            open.lease(&id(name), &web, &url(port), UnixMillis(until), false)
        }
        Act::Detach(name) => open.attach(&id(name), &web, None, false),
        Act::Renew(name, port, until) => {
            let renewed = open.renew(&id(name), &web, &url(port), &url(port), UnixMillis(until));
            if_so(renewed, Outcome::Configured)
        }
        Act::Release(name, port) => if_so(open.release(&id(name), &web, &url(port)), Outcome::Deleted),
        Act::Remove(name, before) => {
            let removed = open.remove_expired(&id(name), UnixMillis(before), || false);
            removed.map(|removed| if removed { Outcome::Deleted } else { Outcome::Unchanged })
        }
        Act::Extend { id: name, until, used } => {
            open.extend(&id(name), UnixMillis(until), used.map(UnixMillis), false).map(|(outcome, _)| outcome)
        }
    };
    match done {
        Ok(outcome) => Ok(Answer::Done(outcome)),
        Err(WriteError::Exists(_)) => Ok(Answer::Exists),
        Err(WriteError::NotFound(_)) => Ok(Answer::NotFound),
        Err(WriteError::Invalid(_)) => Ok(Answer::Invalid),
        Err(WriteError::HasChildren(..)) => Ok(Answer::HasChildren),
        Err(WriteError::NeverExpires(_)) => Ok(Answer::NeverExpires),
        Err(error) => Err(error),
    }
}

/// What somebody did, when, and what came of it.
#[derive(Debug, Clone)]
struct Done {
    act: Act,
    /// It took effect between these, if at all.
    began: u64,
    ended: u64,
    /// None where the answer was lost: it may have been done, at any time since, or not.
    answer: Option<Answer>,
}

/// Whether this is what somebody may be told. Where an answer was lost, what is gone was deleted, whoever did it.
fn may_be_told(told: &Answer, answer: &Answer) -> bool {
    let gone = [Answer::NotFound, Answer::Done(Outcome::Unchanged)];
    told == answer || *told == Answer::Done(Outcome::Deleted) && gone.contains(answer)
}

/// Whether one order explains it all. `lines` are those who did one thing after the other.
fn explained(lines: &[Vec<Done>], last: &Model) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![(vec![0; lines.len()], Model::from([]))];
    while let Some((at, model)) = open.pop() {
        let next: Vec<_> = lines.iter().zip(&at).map(|(line, at)| line.get(*at)).collect();
        let must = next.iter().flatten().any(|done| done.answer.is_some());
        if !must && model == *last {
            return true;
        }
        // What ended before another began came before it.
        let first_end = next.iter().flatten().map(|done| done.ended).min().unwrap_or(0);
        for (line, done) in next.iter().enumerate() {
            let Some(done) = done.filter(|done| done.began < first_end) else { continue };
            let (mut at, mut model) = (at.clone(), model.clone());
            let answer = act(&mut model, &done.act);
            at[line] += 1;
            if done.answer.as_ref().is_none_or(|told| may_be_told(told, &answer))
                && seen.insert((at.clone(), model.clone()))
            {
                open.push((at, model));
            }
        }
    }
    false
}

/// What a writer does next. `number` is unlike that of any other act of all writers.
fn chosen(random: &mut TestRng, seed: u64, number: usize) -> Act {
    let mut below = |count: usize| random.next_u32() as usize % count;
    let port = u16::try_from(1000 + number).unwrap();
    // In any order, and no two the same.
    let time = |part: usize| {
        let seconds = u64::try_from(part * WRITERS * EACH + number).unwrap();
        BEGIN + seed * SEED + seconds * 1000
    };
    let id = IDS[below(3)];
    match below(15) {
        0..5 => {
            let parent =
                *["base", "a", "b", "c"].iter().filter(|parent| **parent != id).nth(below(3)).unwrap();
            let ends = (below(3) > 0).then(|| time(1 + below(PARTS)));
            Act::Put { id, parent, port, create: below(2) == 0, ends }
        }
        5 | 6 => Act::Delete(id),
        7 => Act::Attach(id, port, None),
        8 => Act::Attach(id, LEASED[below(2)], Some(time(1 + below(PARTS)))),
        9 => Act::Detach(id),
        10 => Act::Renew(id, LEASED[below(2)], time(1 + below(PARTS))),
        11 => Act::Release(id, LEASED[below(2)]),
        12 => Act::Remove(id, time(below(PARTS))),
        _ => {
            let used = (below(2) == 0).then(|| time(below(PARTS)));
            Act::Extend { id, until: time(1 + below(PARTS)), used }
        }
    }
}

/// An overlay as its entries have it.
fn known(lineages: &Lineages, id: &str) -> Option<Known> {
    let id = id.parse().unwrap();
    let blueprint = lineages.claims(&id).next()?;
    let record = lineages.attachments(&id).first();
    let attached = record.and_then(|record| record.services.first());
    Some(Known {
        parent: blueprint.parent()?.value.to_string(),
        port: blueprint.services[0].urls.first()?.port,
        ends: blueprint.expiry().map(|at| at.0),
        extended: record.and_then(|record| record.expires_at).map(|at| at.0),
        attached: attached.map(|one| (one.url.value.port, one.expires_at.map(|at| at.0))),
    })
}

/// What is there, as a new look at it finds it.
fn held(store: &StoreAddress) -> Model {
    let open = OpenStore::read(store).unwrap();
    let all = IDS.iter().filter_map(|id| Some(((*id).to_owned(), known(open.lineages(), id)?)));
    let model = all.collect();
    assert!(open.lineages().diagnostics().iter().all(|found| !found.is_error()), "{model:?}");
    model
}

/// Where a proxy sends requests for an overlay's service.
fn port(running: &Started, id: &str) -> Option<u16> {
    let id = id.parse().unwrap();
    let snapshot = running.control().published().load();
    snapshot.table.own_routes(&id).next().map(|route| route.urls[0].port)
}

/// What a proxy routes by.
fn routed(running: &Started) -> Model {
    let found = |id: &&str| {
        let known = running.control().lineages(|lineages| known(lineages, id))?;
        // What was published is what stands; it may come a moment later.
        let expected = known.attached.map_or(known.port, |(port, _)| port);
        (port(running, id) == Some(expected)).then(|| ((*id).to_owned(), known))
    };
    IDS.iter().filter_map(found).collect()
}

/// Which overlays a proxy serves at a time, and where it sends their requests.
fn served(running: &Started, at: Time) -> BTreeMap<String, u16> {
    running.control().expire(UnixMillis(at));
    let snapshot = running.control().published().load();
    let lives = |id: &&str| match snapshot.table.environment(id) {
        Some(Environment::Overlay(overlay)) => overlay.served_until.is_none_or(|until| until.0 > at),
        _ => false,
    };
    let all = IDS.iter().filter(|id| lives(id));
    all.filter_map(|id| Some(((*id).to_owned(), port(running, id)?))).collect()
}

/// The same, as the model has it: an overlay lives no longer than its ancestors, and an address no longer than its lease.
fn living(model: &Model, at: Time) -> BTreeMap<String, u16> {
    let lives = |id: &str| {
        let mut next = model.get(id);
        while let Some(known) = next {
            if known.lives().is_some_and(|until| until <= at) {
                return false;
            }
            next = model.get(&known.parent);
        }
        true
    };
    let port = |known: &Known| {
        let attached = known.attached.filter(|(_, until)| until.is_none_or(|until| until > at));
        attached.map_or(known.port, |(port, _)| port)
    };
    let all = model.iter().filter(|(id, _)| lives(id));
    all.map(|(id, known)| (id.clone(), port(known))).collect()
}

fn follower(store: &StoreAddress) -> Started {
    let listeners = vec![stage::listener(Role::Gateway, "", None, Trust::Any)];
    let settings = Settings { store: Some(store.clone()), workers: 1, ..Settings::in_process(listeners) };
    stage::start_as(settings, Vec::new())
}

/// How somebody writes.
struct Writer<'w> {
    open: Box<dyn Fn() -> Result<OpenStore, WriteError> + Sync + 'w>,
    /// Whether what it is refused is so at that moment. Who follows a store may be a moment behind.
    is_current: bool,
}

/// By commands, each of which looks at what is there.
fn commands(store: &StoreAddress) -> [Writer<'_>; WRITERS] {
    std::array::from_fn(|_| Writer { open: Box::new(|| OpenStore::change(store)), is_current: true })
}

/// Everybody writes at once, and `meanwhile` happens.
fn interleaved(writers: &[Writer<'_>; WRITERS], seed: u64, meanwhile: impl Fn()) -> Vec<Vec<Done>> {
    let (time, start) = (AtomicU64::new(1), Barrier::new(WRITERS + 1));
    let mut lines = Vec::new();
    thread::scope(|scope| {
        let (time, start) = (&time, &start);
        let writers = writers.iter().enumerate().map(|(writer, by)| {
            scope.spawn(move || {
                let mut bytes = [0; 32];
                bytes[..8].copy_from_slice(&seed.to_le_bytes());
                bytes[8] = u8::try_from(writer).unwrap();
                let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
                let mut line = Vec::new();
                start.wait();
                for number in 0..EACH {
                    let act = chosen(&mut random, seed, writer * EACH + number);
                    let began = time.fetch_add(1, SeqCst);
                    let answer = match (by.open)().and_then(|mut open| act_on(&mut open, &act)) {
                        Ok(answer) if by.is_current || answer.is_of_a_write() => Some(answer),
                        Ok(_) => continue,
                        Err(WriteError::Unsure(_)) => None,
                        // It was not done, and that was said.
                        Err(WriteError::Store(_)) => continue,
                        Err(other) => panic!("{act:?}: {other:?}"),
                    };
                    let ended = time.fetch_add(1, SeqCst);
                    line.push(Done { act, began, ended, answer });
                }
                line
            })
        });
        let writers: Vec<_> = writers.collect();
        start.wait();
        while !writers.iter().all(ScopedJoinHandle::is_finished) {
            meanwhile();
        }
        lines.extend(writers.into_iter().map(|writer| writer.join().unwrap()));
    });
    // What may have been done may be done later: nobody waited for it.
    let lost: Vec<_> =
        lines.iter_mut().flat_map(|line| line.extract_if(.., |done| done.answer.is_none())).collect();
    lines.extend(lost.into_iter().map(|done| vec![Done { ended: u64::MAX, ..done }]));
    lines
}

fn until(what: impl Fn() -> bool, or: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < deadline, "{}", or());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Holds the rule for some seeds.
fn hold(store: &StoreAddress, seeds: u64, meanwhile: impl Fn()) {
    hold_by(&commands(store), store, seeds, meanwhile);
}

fn hold_by(writers: &[Writer<'_>; WRITERS], store: &StoreAddress, seeds: u64, meanwhile: impl Fn()) {
    let seeds = match std::env::var("OVERLANE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..seeds,
    };
    let base = "name: base\nrouting: {mode: baseline}\nservices: [{name: web, expose: true, url: 'http://127.0.0.1:1'}]\n";
    let source = Arc::new(Source::new("base.yaml".into(), base.to_owned(), None));
    OpenStore::write(store).unwrap().put(&source, &Put::default(), clock::now()).unwrap();
    let followers: Vec<_> = (0..FOLLOWERS).map(|_| follower(store)).collect();
    for seed in seeds {
        let lines = interleaved(writers, seed, &meanwhile);
        let last = held(store);
        assert!(
            explained(&lines, &last),
            "OVERLANE_SEED={seed}: no order explains {lines:#?}\nand {last:#?}"
        );
        for follower in &followers {
            until(|| routed(follower) == last, || format!("{:?} instead of {last:?}", routed(follower)));
        }
        let at = BEGIN + seed * SEED + u64::try_from(PARTS / 2 * WRITERS * EACH).unwrap() * 1000;
        for follower in &followers {
            assert_eq!(served(follower, at), living(&last, at), "OVERLANE_SEED={seed}: of {last:#?}");
        }
        // The next ones begin with nothing.
        for _ in IDS {
            for id in IDS {
                let _ = act_on(&mut OpenStore::write(store).unwrap(), &Act::Delete(id));
            }
        }
        assert_eq!(held(store), Model::new());
    }
}

#[test]
fn one_order_explains_all_that_writers_of_a_directory_are_told_and_followers_come_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = StoreAddress::directory(folder.path());
    hold(&store, 8, thread::yield_now);
}

#[test]
fn one_order_explains_all_that_writers_at_a_hub_are_told_and_followers_come_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub_of(folder.path(), open());
    let store = format!("hub:{}", url(&hub)).parse().unwrap();
    hold(&store, 4, thread::yield_now);
}

#[test]
fn one_order_explains_all_that_writers_of_an_etcd_are_told_and_followers_come_to_the_same() {
    let etcd = Etcd::start();
    let store = format!("etcd:{}", etcd.at()).parse().unwrap();
    hold(&store, 8, thread::yield_now);
}

/// A store as it is written to by a process that follows it.
fn behind(store: &StoreAddress, runtime: &Runtime) -> Behind {
    let Ok(Reached::Shared(store)) = store.reach() else { panic!("{store} is not shared") };
    let follower = SharedFollower::new(store.clone());
    let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
    let followed = Followed { mirror: follower.mirror().clone(), control: control.clone() };
    let (reloads, asked) = mpsc::channel(1);
    let follows = control.clone();
    runtime.spawn(async move {
        follow(follower, asked, follows).await;
        drop(reloads);
    });
    until(|| control.revision().is_some(), || "it is not read".to_owned());
    Behind::new(Keeper::Shared(store), followed, runtime.handle().clone())
}

/// Two who each follow the store, and commands.
fn hold_by_followers(store: &StoreAddress, seeds: u64, meanwhile: impl Fn()) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let both = [(); 2].map(|()| behind(store, &runtime));
    let mut writers = commands(store);
    for (writer, by) in writers.iter_mut().zip(&both) {
        *writer = Writer { open: Box::new(|| by.open()), is_current: false };
    }
    hold_by(&writers, store, seeds, meanwhile);
}

#[test]
fn one_order_explains_all_that_processes_that_follow_an_etcd_write_beside_commands() {
    let etcd = Etcd::start();
    let store = format!("etcd:{}", etcd.at()).parse().unwrap();
    hold_by_followers(&store, 8, thread::yield_now);
}

#[test]
fn one_order_explains_all_that_processes_that_follow_a_cluster_write_beside_commands() {
    let cluster = Kubernetes::start();
    let store = cluster.address(None).parse().unwrap();
    hold_by_followers(&store, 4, thread::yield_now);
}

#[test]
fn one_order_explains_all_that_writers_of_a_cluster_are_told_and_followers_come_to_the_same() {
    let cluster = Kubernetes::start();
    // A real API server in its place, where somebody names a kubeconfig that leads to one (tests/peers/cluster.py).
    let real = std::env::var("OVERLANE_CLUSTER").map(|path| format!("kubernetes:?kubeconfig={path}"));
    let store = real.unwrap_or_else(|_| cluster.address(None)).parse().unwrap();
    hold(&store, 4, thread::yield_now);
}

#[test]
fn that_is_so_as_well_where_a_cluster_is_cut_off_and_forgets() {
    let cluster = Kubernetes::start();
    let cable = Cable::to(cluster.at());
    let store = cluster.address(Some(cable.at())).parse().unwrap();
    hold(&store, 2, || {
        for plugged in [Plugged::In, Plugged::In, Plugged::In, Plugged::Out] {
            cable.plug(plugged);
            cluster.forget();
            // So that something is done in between.
            let (asked, began) = (cluster.requests().len(), Instant::now());
            while cluster.requests().len() < asked + 5 && began.elapsed() < Duration::from_millis(10) {
                thread::yield_now();
            }
        }
        cable.plug(Plugged::In);
    });
}

#[test]
fn that_is_so_as_well_where_connections_break_and_states_are_forgotten() {
    let etcd = Etcd::start();
    let cable = Cable::to(etcd.at());
    let store = format!("etcd:{}", cable.at()).parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    hold(&store, 6, || {
        for plugged in [Plugged::In, Plugged::In, Plugged::In, Plugged::Out] {
            cable.plug(plugged);
            runtime.block_on(etcd.compact());
        }
        cable.plug(Plugged::In);
    });
}

#[test]
fn what_no_order_explains_is_seen() {
    let put = |port, began, answer| Done {
        act: Act::Put { id: "a", parent: "base", port, create: true, ends: None },
        began,
        ended: began + 3,
        answer: Some(answer),
    };
    let created = Answer::Done(Outcome::Created);
    let held = |port| {
        let known = Known { parent: "base".to_owned(), port, ends: None, extended: None, attached: None };
        Model::from([("a".to_owned(), known)])
    };
    // Two at once: one is first.
    let both = |second| [vec![put(1, 1, created)], vec![put(2, 2, second)]];
    assert!(explained(&both(Answer::Exists), &held(1)));
    assert!(!explained(&both(Answer::Exists), &held(2)));
    assert!(!explained(&both(created), &held(2)));
    // An acknowledged write is gone.
    assert!(!explained(&both(Answer::Exists), &Model::new()));
    // One after the other: the first is first.
    let after = [vec![put(1, 1, Answer::Exists)], vec![put(2, 9, created)]];
    assert!(!explained(&after, &held(2)));
    // An answer that was lost: both are right.
    let lost = [vec![Done { answer: None, ended: u64::MAX, ..put(1, 1, created) }]];
    assert!(explained(&lost, &held(1)) && explained(&lost, &Model::new()) && !explained(&lost, &held(2)));
}
