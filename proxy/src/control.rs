//! The control side: files become lineages, lineages become a table, the table is published.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use overlane_config::diagnostic::Diagnostic;
use overlane_config::diff::changes;
use overlane_config::lineage::{Applied, FileChange, Lineages, Rules};
use overlane_config::table::Environment;
use overlane_config::time::UnixMillis;

use crate::clock;
use crate::cores;
use crate::metrics::ControlFigures;
use crate::names::Names;
use crate::snapshot::Published;
use crate::upstream::Upstream;

/// How many changed environments a log line names.
const NAMED_IN_LOG: usize = 20;

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
}

impl Trigger {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Change => "change",
            Self::Signal => "signal",
            Self::Request => "request",
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

struct State {
    lineages: Lineages,
    reloads_ok: u64,
    reloads_failed: u64,
    last_success: Option<UnixMillis>,
    /// Why the store as a whole cannot be read, if it cannot.
    store_problem: Option<String>,
}

/// Owner of the lineages; the only one who publishes.
pub struct Control {
    state: Mutex<State>,
    published: Arc<Published>,
    names: Names,
}

impl Control {
    /// Nothing is published yet.
    #[must_use]
    pub fn new(rules: Rules, published: Arc<Published>, names: Names) -> Self {
        let state = State {
            lineages: Lineages::new(rules),
            reloads_ok: 0,
            reloads_failed: 0,
            last_success: None,
            store_problem: None,
        };
        Self { state: Mutex::new(state), published, names }
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
        let files = cores::map(files, FileChange::parsed);
        let mut state = self.state();
        let applied = state.lineages.apply(files);
        let changes: Vec<_> = changes(&state.lineages, &applied).iter().map(ToString::to_string).collect();
        let generation = self.publish(&state.lineages, &applied);
        let failed = applied.diagnostics.iter().any(Diagnostic::is_error);
        if failed {
            state.reloads_failed += 1;
        } else {
            state.reloads_ok += 1;
            state.last_success = Some(clock::now());
        }
        drop(state);
        log(&changes, &applied.diagnostics, generation, trigger);
        Report { generation, changes, problems: applied.diagnostics.iter().map(Diagnostic::short).collect() }
    }

    fn publish(&self, lineages: &Lineages, applied: &Applied) -> u64 {
        let before = self.published.load_full();
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
        drop(before);
        let generation = self.published.publish(table);
        lost.iter().for_each(|upstream| upstream.retire());
        generation
    }

    /// Notes whether the store as a whole can be read; logs when that changes.
    pub fn store_problem(&self, problem: Option<String>) {
        let mut state = self.state();
        if state.store_problem == problem {
            return;
        }
        match &problem {
            Some(problem) => {
                tracing::error!(%problem, "the store cannot be read; what was last read stays in force");
            }
            None => tracing::info!("the store can be read again"),
        }
        state.store_problem = problem;
    }

    /// What is wrong now: with the store, with files, with environments.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let state = self.state();
        let diagnostics = state.lineages.diagnostics();
        state.store_problem.iter().cloned().chain(diagnostics.iter().map(Diagnostic::short)).collect()
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
            ..ControlFigures::default()
        }
    }

    /// Runs `with` on the lineages in force.
    pub fn lineages<R>(&self, with: impl FnOnce(&Lineages) -> R) -> R {
        with(&self.state().lineages)
    }
}

fn log(changed: &[String], diagnostics: &[Diagnostic], generation: u64, trigger: Trigger) {
    let named = changed.iter().take(NAMED_IN_LOG).map(String::as_str);
    let mut changes = named.collect::<Vec<_>>().join(" ");
    if changed.len() > NAMED_IN_LOG {
        changes.push_str(&format!(" … and {} more", changed.len() - NAMED_IN_LOG));
    }
    if changes.is_empty() {
        changes.push_str("nothing");
    }
    tracing::info!(generation, trigger = trigger.as_str(), %changes, "reloaded");
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
    use overlane_config::lineage::Content;

    use super::*;

    fn file(name: &str, routing: &str, port: u16) -> FileChange {
        let text = format!(
            "name: {name}\nrouting: {{{routing}}}\nservices: [{{name: web, url: 'http://127.0.0.1:{port}'}}]\n"
        );
        let path: Arc<str> = format!("{name}.yaml").into();
        let source = Source::new(path.clone(), text, None);
        FileChange { path, content: Content::Text(Arc::new(source)) }
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
