//! Stores made of text, for the tests of this crate.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::sync::Arc;

use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Applied, Content, FileChange, Lineages, Rules, Standing};
use overlane_config::name::EnvironmentId;
use overlane_config::table::RoutingTable;
use overlane_config::time::UnixMillis;

/// The time at which everything happens.
pub const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// The baseline and the overlay of design.md, byte for byte.
pub const STAGING: &str = include_str!("../blueprints/staging.yaml");
pub const ALICE: &str = include_str!("../blueprints/alice-payments.yaml");

pub fn id(id: &str) -> EnvironmentId {
    id.parse().unwrap()
}

/// A file with this text, last modified [`NOW`].
pub fn file(path: &str, text: impl Into<String>) -> FileChange {
    let path: Arc<str> = path.into();
    let source = Source::new(path.clone(), text.into(), Some(NOW));
    FileChange { path, content: Content::Text(Arc::new(source)) }
}

/// The file of one environment, by the store's convention.
pub fn environment(blueprint: impl Into<String>) -> FileChange {
    let blueprint = blueprint.into();
    let id = blueprint.lines().next().and_then(|line| line.strip_prefix("name: ")).unwrap().to_owned();
    file(&format!("{id}.yaml"), blueprint)
}

pub fn gone(path: &str) -> FileChange {
    FileChange { path: path.into(), content: Content::Gone }
}

pub fn unreadable(path: &str) -> FileChange {
    FileChange { path: path.into(), content: Content::Unreadable("permission denied".to_owned()) }
}

/// A baseline `base` with the services `a` and `b`.
pub fn base() -> FileChange {
    environment(
        "name: base\nrouting: {mode: baseline}\nservices: [{name: a, url: http://a}, {name: b, url: http://b}]\n",
    )
}

/// An overlay that owns the service `a`.
pub fn overlay(id: &str, parent: &str) -> FileChange {
    environment(overlay_text(id, parent))
}

pub fn overlay_text(id: &str, parent: &str) -> String {
    format!(
        "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: a, url: http://{id}}}]\n"
    )
}

/// Lineages and the table compiled of them, from batch to batch.
#[derive(Default)]
pub struct Store {
    pub lineages: Lineages,
    pub table: RoutingTable<()>,
}

impl Store {
    pub fn with(rules: Rules, changes: impl Into<Vec<FileChange>>) -> Self {
        let mut store = Self { lineages: Lineages::new(rules), ..Self::default() };
        store.apply(changes);
        store
    }

    pub fn of(changes: impl Into<Vec<FileChange>>) -> Self {
        Self::with(Rules::default(), changes)
    }

    pub fn apply(&mut self, changes: impl Into<Vec<FileChange>>) -> Applied {
        let applied = self.lineages.apply(changes.into());
        self.table = self.table.compile(&self.lineages, &applied.changed, |_, _, _| ());
        applied
    }

    /// The lineage of a resolved environment, `alice → base`, or why it is refused, or `absent`.
    pub fn lineage(&self, of: &str) -> String {
        match self.lineages.standing(&id(of)) {
            None => "absent".to_owned(),
            Some(Standing::Refused(why)) => {
                format!("refused: {}", why.first().map_or("", |why| &why.message))
            }
            Some(Standing::Resolved(resolved)) => match &resolved.parent {
                None => of.to_owned(),
                Some(parent) => format!("{of} → {}", self.lineage(parent.as_str())),
            },
        }
    }

    /// The first address of a service of a resolved environment.
    pub fn url(&self, environment: &str, service: &str) -> String {
        let resolved = self.lineages.standing(&id(environment)).and_then(Standing::resolved).unwrap();
        let at = resolved.blueprint.services.iter().position(|own| own.name.value.as_str() == service);
        resolved.urls[at.unwrap()].first().map_or_else(|| "pending".to_owned(), ToString::to_string)
    }

    /// Every problem of an environment, as one line each.
    pub fn problems(&self, of: &str) -> Vec<String> {
        self.lineages.problems(&id(of)).iter().map(|problem| problem.message.clone()).collect()
    }
}
