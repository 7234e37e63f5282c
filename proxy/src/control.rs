//! The control side: files become lineages, lineages become a table, the table is published.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::diff::changes;
use overlane_config::lineage::{Applied, Content, FileChange, Lineages, Rules};
use overlane_config::name::EnvironmentId;
use overlane_config::table::Environment;
use overlane_config::time::UnixMillis;
use tokio::sync::watch;

use crate::clock;
use crate::cores;
use crate::metrics::ControlFigures;
use crate::names::Names;
use crate::panics::{self, contained};
use crate::snapshot::{Published, Table};
use crate::store::shared::Revision;
use crate::upstream::Upstream;

/// How many changed environments a log line names.
const NAMED_IN_LOG: usize = 20;
/// What changes a table without the store.
const EXPIRY: &str = "expiry";
/// How many reloads are remembered.
const REMEMBERED: usize = 50;

/// Why the store was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The process starts.
    Start,
    /// A file changed, or the periodic check saw that it had.
    Change,
    /// SIGHUP.
    Signal,
    /// `POST /api/v1/reload`.
    Request,
    /// The process starts with what it kept of the store.
    Cache,
}

impl Trigger {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Change => "change",
            Self::Signal => "signal",
            Self::Request => "request",
            Self::Cache => "cache",
        }
    }
}

/// What came of a reload, for whoever asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The generation in force afterwards.
    pub generation: u64,
    /// What changed, a word per environment.
    pub changes: Vec<String>,
    /// What is wrong in the files and environments concerned.
    pub problems: Vec<String>,
}

/// A reload, as it is remembered: the first of its changes and of its problems.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reload {
    /// When it was, in RFC 3339.
    pub at: String,
    /// Why the store was read; `expiry` where it was not.
    pub trigger: &'static str,
    /// The generation in force afterwards.
    pub generation: u64,
    /// What changed, a word per environment.
    pub changes: Vec<String>,
    /// What is wrong in the files and environments concerned.
    pub problems: Vec<String>,
}

struct State {
    lineages: Lineages,
    /// The last reloads that changed something, were wrong, or were asked for; the newest first.
    reloads: VecDeque<Reload>,
    reloads_ok: u64,
    reloads_failed: u64,
    last_success: Option<UnixMillis>,
    /// Why the store as a whole cannot be read, if it cannot.
    store_problem: Option<String>,
    /// When the store could last be read as a whole; what a cache says, before it was.
    last_read: Option<UnixMillis>,
    /// Overlays that expire, by when.
    expiring: BTreeSet<(UnixMillis, EnvironmentId)>,
    /// Overlays that have expired, and when they were meant to.
    lapsed: HashMap<EnvironmentId, UnixMillis, RandomState>,
    /// How many of these were removed from the store by this process.
    removed: u64,
}

/// Owner of the lineages; the only one who publishes.
pub struct Control {
    state: Mutex<State>,
    published: Arc<Published>,
    names: Names,
    /// The state of the store that is in force, where it has any.
    revision: watch::Sender<Option<Revision>>,
    /// How often texts were taken in, also those that change nothing that is routed, such as leases that are renewed.
    taken: watch::Sender<u64>,
}

impl Control {
    /// Nothing is published yet.
    #[must_use]
    pub fn new(rules: Rules, published: Arc<Published>, names: Names) -> Self {
        let state = State {
            lineages: Lineages::new(rules),
            reloads: VecDeque::new(),
            reloads_ok: 0,
            reloads_failed: 0,
            last_success: None,
            store_problem: None,
            last_read: None,
            expiring: BTreeSet::new(),
            lapsed: HashMap::default(),
            removed: 0,
        };
        let (revision, taken) = (watch::Sender::new(None), watch::Sender::new(0));
        Self { state: Mutex::new(state), published, names, revision, taken }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where snapshots are published.
    #[must_use]
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// Takes in changed files, publishes what they mean, and logs it.
    pub fn apply(&self, files: &[FileChange], trigger: Trigger) -> Report {
        let any = !files.is_empty();
        let files = cores::map(files, parsed);
        let mut state = self.state();
        let applied = state.lineages.apply_at(files, clock::now());
        let changes: Vec<_> = changes(&state.lineages, &applied).iter().map(ToString::to_string).collect();
        let generation = self.publish(&mut state, &applied);
        if any {
            self.taken.send_modify(|times| *times += 1);
        }
        let failed = applied.diagnostics.iter().any(Diagnostic::is_error);
        if failed {
            state.reloads_failed += 1;
        } else {
            state.reloads_ok += 1;
            state.last_success = Some(clock::now());
        }
        let problems: Vec<_> = applied.diagnostics.iter().map(Diagnostic::short).collect();
        // Leases are renewed all the time.
        if trigger != Trigger::Change || !changes.is_empty() || !problems.is_empty() {
            state.remember(trigger.as_str(), generation, &changes, &problems);
        }
        drop(state);
        log(&changes, &applied.diagnostics, generation, trigger);
        Report { generation, changes, problems }
    }

    fn publish(&self, state: &mut State, applied: &Applied) -> u64 {
        let before = self.published.load_full();
        let lineages = &state.lineages;
        if applied.changed.is_empty() && before.generation > 0 {
            return before.generation;
        }
        let table = before.table.compile(lineages, &applied.changed, |id, _, urls| {
            // A baseline's names are few and always used; an overlay's are resolved when a request asks.
            let eager = lineages.standing(id).is_some_and(|standing| standing.depth() == 0);
            Upstream::new(urls.clone(), &self.names, eager)
        });
        let lost = |id| {
            let kept: Vec<_> = table.own_routes(id).map(|route| Arc::as_ptr(&route.upstream)).collect();
            let before = before.table.own_routes(id).map(|route| route.upstream.clone());
            before.filter(move |upstream| !kept.contains(&Arc::as_ptr(upstream)))
        };
        let lost: Vec<_> = applied.changed.iter().flat_map(lost).collect();
        state.note_expiry(&before.table, &table, &applied.changed);
        let table = table.lapse(applied.changed.iter().filter(|id| state.lapsed.contains_key(*id)));
        drop(before);
        // Whoever sees the new generation may give the address to somebody else at once.
        lost.iter().for_each(|upstream| upstream.retire());
        self.published.publish(table)
    }

    /// Ends the overlays and the leases of attached addresses that have expired, for good: they stay so when the clock goes back, until their
    /// blueprint says another time. To be called now and then, and costs only what has expired.
    pub fn expire(&self, now: UnixMillis) {
        let mut state = self.state();
        if state.lineages.next_lapse().is_some_and(|at| at <= now) {
            let applied = state.lineages.apply_at(Vec::new(), now);
            let changes = changes(&state.lineages, &applied);
            let generation = self.publish(&mut state, &applied);
            let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
            state.remember(EXPIRY, generation, &changes, &[]);
            tracing::info!(generation, changes = named(&changes), "leases of attached addresses lapsed");
        }
        let mut over = Vec::new();
        while state.expiring.first().is_some_and(|(at, _)| *at <= now)
            && let Some((at, id)) = state.expiring.pop_first()
        {
            state.lapsed.insert(id.clone(), at);
            over.push(id);
        }
        if over.is_empty() {
            return;
        }
        let table = self.published.load_full().table.lapse(&over);
        let generation = self.published.publish(table);
        let ended: Vec<_> = over.iter().map(|id| format!("-{id}")).collect();
        state.remember(EXPIRY, generation, &ended, &[]);
        drop(state);
        tracing::info!(generation, overlays = named(&over), "expired");
    }

    /// The overlays that have expired before a time, by themselves or with an ancestor.
    #[must_use]
    pub fn expired(&self, before: UnixMillis) -> BTreeSet<EnvironmentId> {
        let state = self.state();
        let over = state.lapsed.iter().filter(|(_, at)| **at <= before);
        over.map(|(id, _)| id.clone()).collect()
    }

    /// Notes which of them were removed from the store from here.
    pub fn note_removed(&self, overlays: &[EnvironmentId]) {
        if !overlays.is_empty() {
            self.state().removed += overlays.len() as u64;
            tracing::info!(overlays = named(overlays), "removed from the store, since they expired");
        }
    }

    /// Notes that what was just applied is what was kept of the store, as it was then.
    pub fn from_cache(&self, saved: UnixMillis) {
        self.state().last_read = Some(saved);
    }

    /// Notes whether the store as a whole can be read; logs when that changes.
    pub fn store_problem(&self, problem: Option<String>) {
        let mut state = self.state();
        if problem.is_none() {
            state.last_read = Some(clock::now());
        }
        if state.store_problem == problem {
            return;
        }
        match &problem {
            Some(problem) => {
                let of = state.last_read.map(|at| at.to_string());
                tracing::error!(
                    %problem, of,
                    "STALE: the store cannot be read; what was last good stays in force"
                );
            }
            None => tracing::info!("the store can be read again"),
        }
        state.store_problem = problem;
    }

    /// Notes which state of the store is in force.
    pub fn at_revision(&self, revision: Option<Revision>) {
        self.revision.send_if_modified(|known| {
            let changed = *known != revision;
            *known = revision;
            changed
        });
    }

    /// The state of the store that is in force, where its engine has any.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        self.revision.borrow().clone()
    }

    /// A receiver of that state: a level, not an edge.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<Option<Revision>> {
        self.revision.subscribe()
    }

    /// Whether the store as a whole cannot be read, so that what stands may be older than what it says.
    #[must_use]
    pub fn store_unreadable(&self) -> bool {
        self.state().store_problem.is_some()
    }

    /// How often texts were taken in, and those from which what is in force can be made again: see [`Lineages::texts`].
    #[must_use]
    pub fn texts(&self) -> (u64, Vec<Vec<Arc<Source>>>) {
        let state = self.state();
        (*self.taken.borrow(), state.lineages.texts())
    }

    /// A receiver of how often texts were taken in: a level, not an edge.
    #[must_use]
    pub fn taken(&self) -> watch::Receiver<u64> {
        self.taken.subscribe()
    }

    /// What is wrong now: with the store, with files, with environments.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let state = self.state();
        let diagnostics = state.lineages.diagnostics();
        let stale = state.store_problem.iter().map(|problem| match state.last_read {
            Some(at) => format!("STALE: {problem}; what was last good is in force, of {at}"),
            None => problem.clone(),
        });
        stale.chain(diagnostics.iter().map(Diagnostic::short)).collect()
    }

    /// The last reloads that changed something, were wrong, or were asked for; the newest first.
    #[must_use]
    pub fn reloads(&self) -> Vec<Reload> {
        self.state().reloads.iter().cloned().collect()
    }

    /// The control side's part of a scrape.
    #[must_use]
    pub fn figures(&self) -> ControlFigures {
        let snapshot = self.published.load_full();
        let overlays = snapshot.table.environments().filter_map(|(id, environment)| match environment {
            Environment::Overlay(overlay) => Some((id, overlay)),
            _ => None,
        });
        let mut count = 0;
        let mut expires = BTreeMap::new();
        for (id, overlay) in overlays {
            count += 1;
            expires.extend(overlay.expires_at.map(|at| (id.clone(), at.0 as f64 / 1000.0)));
        }
        let state = self.state();
        ControlFigures {
            generation: snapshot.generation,
            overlays: count,
            reloads_ok: state.reloads_ok,
            reloads_failed: state.reloads_failed,
            last_success: state.last_success.map_or(0.0, |at| at.0 as f64 / 1000.0),
            expires: expires.into_iter().collect(),
            stale: state.store_problem.is_some(),
            removed: state.removed,
            panics: panics::count(),
            ..ControlFigures::default()
        }
    }

    /// Runs `with` on the lineages in force.
    pub fn lineages<R>(&self, with: impl FnOnce(&Lineages) -> R) -> R {
        with(&self.state().lineages)
    }
}

impl State {
    fn remember(&mut self, trigger: &'static str, generation: u64, changes: &[String], problems: &[String]) {
        let at = clock::now().to_string();
        let [changes, problems] = [changes, problems].map(firsts);
        self.reloads.truncate(REMEMBERED - 1);
        self.reloads.push_front(Reload { at, trigger, generation, changes, problems });
    }

    /// Keeps in mind when the `changed` overlays of a table expire. One that has expired already lives again
    /// where it is meant to expire at another time.
    fn note_expiry(&mut self, before: &Table, now: &Table, changed: &BTreeSet<EnvironmentId>) {
        let expiry = |table: &Table, id: &EnvironmentId| match table.environment(id.as_str()) {
            Some(Environment::Overlay(overlay)) => overlay.expires_at,
            _ => None,
        };
        for id in changed {
            if let Some(at) = expiry(before, id) {
                self.expiring.remove(&(at, id.clone()));
            }
            match expiry(now, id) {
                Some(at) if self.lapsed.get(id) == Some(&at) => {}
                at => {
                    self.lapsed.remove(id);
                    self.expiring.extend(at.map(|at| (at, id.clone())));
                }
            }
        }
    }
}

/// As many of these as a log line names, and how many more there are.
fn firsts(all: &[String]) -> Vec<String> {
    let more = all.len().saturating_sub(NAMED_IN_LOG);
    let rest = (more > 0).then(|| format!("… and {more} more"));
    all.iter().take(NAMED_IN_LOG).cloned().chain(rest).collect()
}

/// The first of these, and how many more there are.
fn named(all: &[impl std::fmt::Display]) -> String {
    let first = all.iter().take(NAMED_IN_LOG).map(ToString::to_string);
    let mut text = first.collect::<Vec<_>>().join(" ");
    if all.len() > NAMED_IN_LOG {
        text.push_str(&format!(" … and {} more", all.len() - NAMED_IN_LOG));
    }
    text
}

/// A file and what is in it. Where our own code panics over it, that file cannot be used, and all others can.
fn parsed(file: &FileChange) -> FileChange {
    contained(|| file.parsed()).unwrap_or_else(|| {
        let why =
            "reading it made this program panic, which is a mistake of ours: the log says where".to_owned();
        FileChange { path: file.path.clone(), content: Content::Unreadable(why) }
    })
}

fn log(changed: &[String], diagnostics: &[Diagnostic], generation: u64, trigger: Trigger) {
    let changes = if changed.is_empty() { "nothing".to_owned() } else { named(changed) };
    match changed.is_empty() && trigger == Trigger::Change {
        // Leases are renewed all the time.
        true => tracing::debug!(generation, trigger = trigger.as_str(), %changes, "reloaded"),
        false => tracing::info!(generation, trigger = trigger.as_str(), %changes, "reloaded"),
    }
    for diagnostic in diagnostics {
        match diagnostic.is_error() {
            true => tracing::error!(hint = diagnostic.hint, "{}", diagnostic.short()),
            false => tracing::warn!(hint = diagnostic.hint, "{}", diagnostic.short()),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use overlane_config::diagnostic::Source;

    use super::*;

    /// Longer than a test lasts.
    const SOON: std::time::Duration = std::time::Duration::from_secs(3600);

    fn file(name: &str, routing: &str, port: u16) -> FileChange {
        let text = format!(
            "name: {name}\nrouting: {{{routing}}}\nservices: [{{name: web, url: 'http://127.0.0.1:{port}'}}]\n"
        );
        let path: Arc<str> = format!("{name}.yaml").into();
        let source = Source::new(path.clone(), text, None);
        FileChange { path, content: Content::Text(Arc::new(source)) }
    }

    fn expiring(name: &str, at: UnixMillis, port: u16) -> FileChange {
        file(name, &format!("mode: overlay, baselineId: base, expiresAt: '{at}'"), port)
    }

    #[test]
    fn reloads_are_remembered_with_what_changed_and_what_was_wrong() {
        let control = Control::new(Rules::default(), Arc::default(), Names::none());
        let until = UnixMillis(1_900_000_000_000);
        control.apply(&[file("base", "mode: baseline", 1), expiring("alice", until, 2)], Trigger::Start);
        control.apply(&[file("base", "mode: baseline", 1)], Trigger::Change);
        control.apply(&[file("bob", "mode: overlay, baselineId: bas", 3)], Trigger::Change);
        control.expire(until);
        let reloads = control.reloads();
        let told: Vec<_> =
            reloads.iter().map(|one| (one.trigger, one.changes.join(" "), one.problems.len())).collect();
        let said = |trigger, changes: &str, problems| (trigger, changes.to_owned(), problems);
        let bob = told[1].1.clone();
        let expected =
            [said("expiry", "-alice", 0), said("change", &bob, 1), said("start", "+alice +base", 0)];
        assert_eq!(told, expected, "what changes nothing is not remembered");
        (0..2 * REMEMBERED).for_each(|_| drop(control.apply(&[], Trigger::Request)));
        assert_eq!(control.reloads().len(), REMEMBERED);
    }

    #[test]
    fn what_has_expired_does_not_come_back_with_the_clock_but_with_another_time() {
        let control = Control::new(Rules::default(), Arc::default(), Names::none());
        let (one, two) = (UnixMillis(1_900_000_000_000), UnixMillis(1_900_000_001_000));
        let served = |id: &str| match control.published().load().table.environment(id) {
            Some(Environment::Overlay(overlay)) => overlay.served_until,
            other => panic!("{id} is {other:?}"),
        };
        control.apply(
            &[file("base", "mode: baseline", 1), expiring("alice", one, 2), expiring("bob", two, 2)],
            Trigger::Start,
        );
        control.expire(UnixMillis(one.0 - 1));
        assert_eq!((served("alice"), served("bob")), (Some(one), Some(two)));
        control.expire(one);
        let generation = control.published().load().generation;
        control.expire(UnixMillis(1));
        control.expire(one);
        assert_eq!(control.published().load().generation, generation, "nothing is done twice");
        // Another service, the same time; and one that changes with its parent.
        control.apply(&[expiring("alice", one, 3), file("base", "mode: baseline", 4)], Trigger::Change);
        assert_eq!((served("alice"), served("bob")), (Some(UnixMillis(0)), Some(two)));
        assert!(control.figures().expires.iter().any(|(id, until)| id.as_str() == "alice" && *until > 1e9));
        control.apply(&[expiring("alice", two, 3)], Trigger::Change);
        assert_eq!(served("alice"), Some(two));
        control.expire(two);
        control.apply(&[FileChange { path: "alice.yaml".into(), content: Content::Gone }], Trigger::Change);
        control.apply(&[expiring("alice", two, 3)], Trigger::Change);
        assert_eq!((served("alice"), served("bob")), (Some(two), Some(UnixMillis(0))));
    }

    #[test]
    fn a_lease_that_is_over_makes_its_service_pending_and_what_inherits_it_too() {
        let control = Control::new(Rules::default(), Arc::default(), Names::none());
        let record = |until: UnixMillis| {
            let head = "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata: {name: alice}\n";
            let text = format!(
                "{head}spec: {{services: [{{name: web, url: 'http://127.0.0.1:9', expiresAt: '{until}'}}]}}\n"
            );
            let source = Source::new("alice.attached.yaml".into(), text, None);
            FileChange { path: source.path.clone(), content: Content::Text(Arc::new(source)) }
        };
        let overlay = |name: &str, parent: &str, service: &str| {
            let text = format!(
                "name: {name}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: {service}}}]\n"
            );
            let source = Source::new(format!("{name}.yaml").into(), text, None);
            FileChange { path: source.path.clone(), content: Content::Text(Arc::new(source)) }
        };
        let (until, later) = (clock::now().after(SOON), clock::now().after(SOON * 2));
        let files = [
            file("base", "mode: baseline", 1),
            overlay("alice", "base", "web"),
            overlay("child", "alice", "api"),
            record(until),
        ];
        control.apply(&files, Trigger::Start);
        let ports = || {
            ["alice", "child"].map(|id| match control.published().load().table.environment(id) {
                Some(Environment::Overlay(overlay)) => {
                    overlay.owners("web")[0].route.urls.first().map(|url| url.port)
                }
                other => panic!("{id} is {other:?}"),
            })
        };
        let generation = || control.published().load().generation;
        assert_eq!((ports(), generation()), ([Some(9); 2], 1));
        control.apply(&[record(later)], Trigger::Change);
        assert_eq!(generation(), 1, "nothing is routed otherwise");
        control.expire(until);
        assert_eq!((ports(), generation()), ([Some(9); 2], 1), "it was renewed");
        control.expire(later);
        assert_eq!((ports(), generation()), ([None; 2], 2));
        control.expire(until);
        control.apply(&[overlay("alice", "base", "web")], Trigger::Change);
        assert_eq!(ports(), [None; 2], "neither the clock nor another change brings it back");
        control.apply(&[record(later.after(SOON))], Trigger::Change);
        assert_eq!(ports(), [Some(9); 2]);
    }

    #[test]
    fn upstreams_that_no_environment_has_any_more_are_retired_and_others_are_not() {
        let overlay = "mode: overlay, baselineId: base";
        let files = [("base", "mode: baseline"), ("gone", overlay), ("moved", overlay), ("kept", overlay)]
            .map(|(name, routing)| file(name, routing, 1));
        let control = Control::new(Rules::default(), Arc::default(), Names::none());
        control.apply(&files, Trigger::Start);
        let before = control.published().load_full();
        control.apply(
            &[
                FileChange { path: "gone.yaml".into(), content: Content::Gone },
                file("moved", overlay, 2),
                file("kept", &format!("{overlay}, propagate: false"), 1),
            ],
            Trigger::Change,
        );
        let retired = |name: &str| {
            let id = name.parse().expect("id");
            let routes: Vec<_> = before.table.own_routes(&id).collect();
            assert_eq!(routes.len(), 1, "{name}");
            routes[0].upstream.retired().now_or_never().is_some()
        };
        assert_eq!(["base", "gone", "moved", "kept"].map(retired), [false, true, true, false]);
    }
}
