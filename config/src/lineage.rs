//! Lineages: what the blueprints of all files mean together.
//!
//! [`Lineages`] keeps what every file says and what stands: each environment is [`Standing::Resolved`],
//! so that every name exists, its lineage ends at a baseline and has no cycle, or it is refused for
//! stated reasons. [`Lineages::apply`] takes changed files and costs what they and the descendants
//! of their environments cost.

mod resolve;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::blueprint::{self, Attachment, Blueprint, Document, OnUnavailable, OnUnknown};
use crate::diagnostic::{Diagnostic, Source};
use crate::name::{EnvironmentId, HeaderName};
use crate::time::UnixMillis;
use crate::url::Url;

pub use resolve::is_link_local;

/// The greatest depth of a lineage: ancestors of an overlay, the baseline included.
pub const MAX_DEPTH: usize = 16;

/// How long a request waits for an upstream where no blueprint says.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(2);

/// What this installation allows in blueprints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// The directories below which `unix:` sockets may be; none by default.
    pub unix_under: Vec<String>,
}

/// What happens when an upstream is unavailable: the policy of the key's environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Fail, or try the next owner in the lineage.
    pub on_unavailable: OnUnavailable,
    /// How long a request waits for an upstream to become available.
    pub hold_for: Duration,
}

/// What became of one file.
#[derive(Debug, Clone)]
pub struct FileChange {
    /// The path as it is shown.
    pub path: Arc<str>,
    /// Its new content.
    pub content: Content,
}

/// The content of a file.
#[derive(Debug, Clone)]
pub enum Content {
    /// It was read.
    Text(Arc<Source>),
    /// It is not there any more: its environments go.
    Gone,
    /// It is there and cannot be used (permissions, size, not UTF-8): its environments freeze.
    Unreadable(String),
}

/// What [`Lineages::apply`] did.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Every environment whose standing may have changed, with all descendants.
    pub changed: BTreeSet<EnvironmentId>,
    /// What is wrong now in the files and environments concerned.
    pub diagnostics: Vec<Diagnostic>,
    /// Where the changed environments stood before; what is not here was not there.
    pub before: HashMap<EnvironmentId, Standing>,
}

/// Where an environment stands.
#[derive(Debug, Clone)]
pub enum Standing {
    /// It is routed to.
    Resolved(Box<Resolved>),
    /// It cannot be, for these reasons.
    Refused(Vec<Diagnostic>),
}

/// An environment whose every reference is known to be right.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The blueprint in force: after a bad edit, the last good one.
    pub blueprint: Arc<Blueprint>,
    /// The parent; `None` for a baseline.
    pub parent: Option<EnvironmentId>,
    /// The baseline at the end of the lineage; a baseline's own id.
    pub baseline: EnvironmentId,
    /// How many ancestors there are; 0 for a baseline.
    pub depth: usize,
    /// The header that carries the key.
    pub header: HeaderName,
    /// Whether the key goes upstream.
    pub propagate: bool,
    /// What happens to a key that nobody knows.
    pub on_unknown: OnUnknown,
    /// What happens when an upstream is unavailable.
    pub policy: Policy,
    /// When it, or the first of its ancestors, expires.
    pub expires_at: Option<UnixMillis>,
    /// The addresses of `blueprint.services`, in the same order; none while pending.
    pub urls: Vec<Arc<[Url]>>,
}

/// All files, and where every environment stands. See the module's documentation.
#[derive(Debug, Default)]
pub struct Lineages {
    rules: Rules,
    files: BTreeMap<Arc<str>, File>,
    entries: HashMap<EnvironmentId, Entry>,
    /// Who names whom as parent, whether that parent exists or not.
    children: HashMap<EnvironmentId, BTreeSet<EnvironmentId>>,
    attachments: HashMap<EnvironmentId, Vec<Arc<Attachment>>>,
}

/// What is in force of a file.
#[derive(Debug, Default)]
struct File {
    documents: Vec<Document>,
    /// Ids that the file names in documents that were never good.
    broken: Vec<EnvironmentId>,
    /// What is wrong with the text as it was last read.
    diagnostics: Vec<Diagnostic>,
}

/// What is known of an id.
#[derive(Debug, Default)]
struct Entry {
    /// The blueprints that have this id; more than one is a mistake.
    claims: Vec<Arc<Blueprint>>,
    /// `None` only while [`Lineages::apply`] works, or when the id is just about to go.
    standing: Option<Standing>,
    /// What is wrong with the claims; the last good blueprint may be in force all the same.
    problems: Vec<Diagnostic>,
}

impl Entry {
    /// The parents that the claims and the blueprint in force name.
    fn parents(&self) -> impl Iterator<Item = &EnvironmentId> {
        let claimed =
            self.claims.iter().filter_map(|blueprint| blueprint.parent()).map(|parent| &parent.value);
        claimed.chain(
            self.standing
                .iter()
                .filter_map(Standing::resolved)
                .filter_map(|resolved| resolved.parent.as_ref()),
        )
    }
}

impl Standing {
    /// The resolved environment, if it is one.
    #[must_use]
    pub fn resolved(&self) -> Option<&Resolved> {
        match self {
            Self::Resolved(resolved) => Some(resolved),
            Self::Refused(_) => None,
        }
    }

    /// How many ancestors it has; 0 for what is refused.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.resolved().map_or(0, |resolved| resolved.depth)
    }
}

impl Lineages {
    /// No files yet, under these rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Where `id` stands; `None` where no blueprint has it.
    #[must_use]
    pub fn standing(&self, id: &EnvironmentId) -> Option<&Standing> {
        self.entries.get(id)?.standing.as_ref()
    }

    /// All environments, in order of their ids.
    pub fn standings(&self) -> impl Iterator<Item = (&EnvironmentId, &Standing)> {
        let mut all: Vec<_> =
            self.entries.iter().filter_map(|(id, entry)| Some((id, entry.standing.as_ref()?))).collect();
        all.sort_by_key(|(id, _)| *id);
        all.into_iter()
    }

    /// How many environments there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no environment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The environments whose parent is `id`, in order.
    pub fn children(&self, id: &EnvironmentId) -> impl Iterator<Item = &EnvironmentId> {
        self.children.get(id).into_iter().flatten()
    }

    /// The attachments of `id`, in order of their files.
    #[must_use]
    pub fn attachments(&self, id: &EnvironmentId) -> &[Arc<Attachment>] {
        self.attachments.get(id).map_or(&[], Vec::as_slice)
    }

    /// The files that claim `id`.
    pub fn claims(&self, id: &EnvironmentId) -> impl Iterator<Item = &Arc<Blueprint>> {
        self.entries.get(id).into_iter().flat_map(|entry| &entry.claims)
    }

    /// What is wrong with `id`: with its blueprint as it was last read, and with that file.
    #[must_use]
    pub fn problems(&self, id: &EnvironmentId) -> Vec<Diagnostic> {
        let Some(entry) = self.entries.get(id) else {
            return Vec::new();
        };
        let in_file = entry
            .claims
            .iter()
            .filter_map(|claim| self.files.get(&claim.source.path))
            .flat_map(|file| &file.diagnostics);
        let of_it = in_file.filter(|diagnostic| diagnostic.environment.as_ref().is_none_or(|of| of == id));
        entry.problems.iter().chain(of_it).cloned().collect()
    }

    /// Everything that is wrong: by file, then by environment.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut ids: Vec<_> = self.entries.iter().collect();
        ids.sort_by_key(|(id, _)| *id);
        let of_environments = ids.into_iter().flat_map(|(_, entry)| &entry.problems);
        self.files.values().flat_map(|file| &file.diagnostics).chain(of_environments).cloned().collect()
    }

    /// Takes in changed files. Costs what the changes and the descendants of their environments cost.
    pub fn apply(&mut self, changes: Vec<FileChange>) -> Applied {
        let mut applied = Applied::default();
        let mut touched = BTreeSet::new();
        let mut doubtful = Vec::new();
        for change in changes {
            doubtful.extend(self.replace_file(change, &mut touched, &mut applied.diagnostics));
        }
        applied.changed = self.with_descendants(touched);
        let mut before = HashMap::new();
        for id in &applied.changed {
            if let Some(entry) = self.entries.get_mut(id) {
                before.extend(entry.standing.take().map(|standing| (id.clone(), standing)));
                entry.problems.clear();
            }
        }
        for id in &applied.changed {
            self.settle(id, &before, &mut HashSet::new());
        }
        for id in &applied.changed {
            self.relink(id, before.get(id));
            applied
                .diagnostics
                .extend(self.entries.get(id).into_iter().flat_map(|entry| &entry.problems).cloned());
        }
        for blueprint in doubtful {
            self.look_further(&blueprint, &mut applied.diagnostics);
        }
        applied.before = before;
        applied
    }

    /// Looks for mistakes of meaning in a blueprint that has others already, so that all are told at once.
    fn look_further(&mut self, blueprint: &Arc<Blueprint>, diagnostics: &mut Vec<Diagnostic>) {
        let mut found = Vec::new();
        self.resolve(blueprint, &mut found);
        diagnostics.extend(found.iter().cloned());
        if let Some(file) = self.files.get_mut(&blueprint.source.path) {
            file.diagnostics.extend(found);
        }
    }

    /// Returns the blueprints of the file in which only more mistakes are to be looked for.
    fn replace_file(
        &mut self,
        change: FileChange,
        touched: &mut BTreeSet<EnvironmentId>,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Vec<Arc<Blueprint>> {
        let before = self.files.remove(&change.path);
        self.withdraw(before.as_ref(), touched);
        let before = before.unwrap_or_default();
        let (after, doubtful) = match change.content {
            Content::Gone => return Vec::new(),
            Content::Unreadable(why) => {
                let error =
                    Diagnostic::file(&change.path, why).hint("what was last read from it stays in force");
                let broken = never_good(&change.path, &before.documents, before.broken);
                (File { diagnostics: vec![error], broken, documents: before.documents }, Vec::new())
            }
            Content::Text(source) => read(&change.path, &source, &before),
        };
        diagnostics.extend(after.diagnostics.iter().cloned());
        self.enter(&after, touched);
        self.files.insert(change.path, after);
        doubtful
    }

    /// Takes the claims of a file back.
    fn withdraw(&mut self, file: Option<&File>, touched: &mut BTreeSet<EnvironmentId>) {
        let Some(file) = file else { return };
        touched.extend(file.broken.iter().cloned());
        for document in &file.documents {
            match document {
                Document::Blueprint(blueprint) => {
                    let id = &blueprint.id.value;
                    touched.insert(id.clone());
                    if let Some(entry) = self.entries.get_mut(id) {
                        entry.claims.retain(|claim| !Arc::ptr_eq(claim, blueprint));
                    }
                    if let Some(parent) = blueprint.parent() {
                        // `relink` puts it back where something in force still says so.
                        self.unlink(&parent.value, id);
                    }
                }
                Document::Attachment(attachment) => {
                    let id = &attachment.environment.value;
                    touched.insert(id.clone());
                    if let Some(of_it) = self.attachments.get_mut(id) {
                        of_it.retain(|known| !Arc::ptr_eq(known, attachment));
                    }
                }
            }
        }
    }

    fn enter(&mut self, file: &File, touched: &mut BTreeSet<EnvironmentId>) {
        for id in &file.broken {
            touched.insert(id.clone());
            self.entries.entry(id.clone()).or_default();
        }
        for document in &file.documents {
            match document {
                Document::Blueprint(blueprint) => {
                    let id = &blueprint.id.value;
                    touched.insert(id.clone());
                    self.entries.entry(id.clone()).or_default().claims.push(blueprint.clone());
                    if let Some(parent) = blueprint.parent() {
                        self.children.entry(parent.value.clone()).or_default().insert(id.clone());
                    }
                }
                Document::Attachment(attachment) => {
                    let id = &attachment.environment.value;
                    touched.insert(id.clone());
                    let of_it = self.attachments.entry(id.clone()).or_default();
                    of_it.push(attachment.clone());
                    of_it.sort_by(|a, b| a.source.path.cmp(&b.source.path));
                }
            }
        }
    }

    fn with_descendants(&self, touched: BTreeSet<EnvironmentId>) -> BTreeSet<EnvironmentId> {
        let mut all = touched.clone();
        let mut ahead: Vec<_> = touched.into_iter().collect();
        while let Some(id) = ahead.pop() {
            for child in self.children(&id) {
                if all.insert(child.clone()) {
                    ahead.push(child.clone());
                }
            }
        }
        all
    }

    /// Brings the children index and the entries in line with what stands now.
    fn relink(&mut self, id: &EnvironmentId, before: Option<&Standing>) {
        let now: HashSet<EnvironmentId> =
            self.entries.get(id).into_iter().flat_map(Entry::parents).cloned().collect();
        let old = before.and_then(Standing::resolved).and_then(|resolved| resolved.parent.clone());
        for parent in old.into_iter().filter(|parent| !now.contains(parent)) {
            self.unlink(&parent, id);
        }
        for parent in now {
            self.children.entry(parent).or_default().insert(id.clone());
        }
        if self.entries.get(id).is_some_and(|entry| entry.standing.is_none()) {
            self.entries.remove(id);
        }
        if self.attachments.get(id).is_some_and(Vec::is_empty) {
            self.attachments.remove(id);
        }
    }

    fn unlink(&mut self, parent: &EnvironmentId, child: &EnvironmentId) {
        if let Some(children) = self.children.get_mut(parent) {
            children.remove(child);
            if children.is_empty() {
                self.children.remove(parent);
            }
        }
    }

    /// Settles `id` after its unsettled ancestors, from the top down; a chain can be longer than a
    /// stack is deep.
    fn settle(
        &mut self,
        id: &EnvironmentId,
        before: &HashMap<EnvironmentId, Standing>,
        seen: &mut HashSet<EnvironmentId>,
    ) {
        let mut chain: Vec<EnvironmentId> = Vec::new();
        let mut next = Some(id.clone());
        let mut cycle = 0..0;
        while let Some(id) = next {
            let Some(entry) = self.entries.get(&id).filter(|entry| entry.standing.is_none()) else {
                break;
            };
            if !seen.insert(id.clone()) {
                // Otherwise it is one that a caller up the stack is settling.
                if let Some(at) = chain.iter().position(|known| *known == id) {
                    cycle = at..chain.len();
                }
                break;
            }
            next = entry.claims.first().and_then(|claim| claim.parent()).map(|parent| parent.value.clone());
            chain.push(id);
        }
        for at in (0..chain.len()).rev() {
            // What an environment below had to fall back to may be settled by now.
            if self.standing(&chain[at]).is_some() {
                continue;
            }
            let within = if cycle.contains(&at) { &chain[cycle.clone()] } else { &[] };
            self.settle_one(&chain[at], within, before, seen);
        }
    }

    /// Settles one environment whose claimed parent is settled: by its claim, else by what was last
    /// good, else it is refused.
    fn settle_one(
        &mut self,
        id: &EnvironmentId,
        cycle: &[EnvironmentId],
        before: &HashMap<EnvironmentId, Standing>,
        seen: &mut HashSet<EnvironmentId>,
    ) {
        let Some(entry) = self.entries.get(id) else {
            return;
        };
        let claims = entry.claims.clone();
        let broken = || {
            self.files
                .values()
                .filter(|file| file.broken.contains(id))
                .flat_map(|file| &file.diagnostics)
                .filter(|d| d.is_error())
        };
        let mut problems: Vec<Diagnostic> = Vec::new();
        let mut standing = None;
        match &claims[..] {
            [] => {
                standing = Some(broken().cloned().collect::<Vec<_>>())
                    .filter(|why| !why.is_empty())
                    .map(Standing::Refused);
            }
            [only] if cycle.is_empty() => {
                standing =
                    self.resolve(only, &mut problems).map(|resolved| Standing::Resolved(Box::new(resolved)));
            }
            [only] => problems.push(in_cycle(only, cycle)),
            [first, others @ ..] => problems.extend(others.iter().map(|other| duplicate_id(other, first))),
        }
        let last_good = before.get(id).and_then(Standing::resolved).map(|resolved| &resolved.blueprint);
        if standing.is_none() && !claims.is_empty() {
            let still_claimed =
                last_good.filter(|good| claims.iter().any(|claim| claim.source.path == good.source.path));
            standing = Some(match still_claimed.and_then(|good| self.last_good(good, before, seen)) {
                Some(resolved) => Standing::Resolved(Box::new(resolved)),
                None => Standing::Refused(problems.clone()),
            });
        }
        if let Some(entry) = self.entries.get_mut(id) {
            entry.standing = standing;
            entry.problems = problems;
        }
    }

    /// The blueprint that was last in force, if it still resolves.
    fn last_good(
        &mut self,
        blueprint: &Arc<Blueprint>,
        before: &HashMap<EnvironmentId, Standing>,
        seen: &mut HashSet<EnvironmentId>,
    ) -> Option<Resolved> {
        if let Some(parent) = blueprint.parent().map(|parent| parent.value.clone())
            && self.entries.get(&parent).is_some_and(|entry| entry.standing.is_none())
        {
            // A parent whose new claim leads back here keeps what it had: two that fall back to what
            // was good cannot form a cycle, since that was none.
            if seen.contains(&parent) {
                self.settle_one(&parent, &[], before, seen);
            } else {
                self.settle(&parent, before, seen);
            }
        }
        self.resolve(blueprint, &mut Vec::new())
    }
}

/// What is in force after `source` was read, and what only more mistakes are to be looked for in. A file
/// with errors keeps what was last good of it.
fn read(path: &Arc<str>, source: &Arc<Source>, before: &File) -> (File, Vec<Arc<Blueprint>>) {
    let parsed = blueprint::parse(source);
    if !parsed.diagnostics.iter().any(Diagnostic::is_error) {
        let good = File { documents: parsed.documents, broken: Vec::new(), diagnostics: parsed.diagnostics };
        return (good, Vec::new());
    }
    let known = |id: &EnvironmentId| before.documents.iter().any(|document| document.environment() == id);
    let new = parsed.documents.into_iter().filter(|document| !known(document.environment()));
    let documents: Vec<_> = before.documents.iter().cloned().chain(new).collect();
    let broken = never_good(path, &documents, parsed.broken);
    (File { documents, broken, diagnostics: parsed.diagnostics }, parsed.doubtful)
}

/// The ids that a bad file makes unavailable: those it names, or the one that its name promises.
fn never_good(path: &Arc<str>, in_force: &[Document], mut broken: Vec<EnvironmentId>) -> Vec<EnvironmentId> {
    let blueprint = |id: &EnvironmentId, document: &Document| matches!(document, Document::Blueprint(known) if known.id.value == *id);
    broken.retain(|id| !in_force.iter().any(|document| blueprint(id, document)));
    if broken.is_empty() && in_force.is_empty() {
        let stem = std::path::Path::new(&**path).file_stem().and_then(|stem| stem.to_str());
        broken.extend(stem.and_then(|stem| stem.parse::<EnvironmentId>().ok()));
    }
    broken
}

fn in_cycle(blueprint: &Arc<Blueprint>, cycle: &[EnvironmentId]) -> Diagnostic {
    let id = &blueprint.id.value;
    let from = cycle.iter().position(|member| member == id).unwrap_or_default();
    let names: Vec<_> = cycle[from..].iter().chain(&cycle[..=from]).map(EnvironmentId::as_str).collect();
    let span = blueprint.parent().map_or(blueprint.id.span, |parent| parent.span);
    let shown = if names.len() > MAX_DEPTH {
        format!("{} → … → {id}", names[..4].join(" → "))
    } else {
        names.join(" → ")
    };
    Diagnostic::error(&blueprint.source, span, format!("the lineage is a cycle: {shown}"))
        .of(id)
        .hint("one of them must have a baseline as parent")
}

fn duplicate_id(duplicate: &Arc<Blueprint>, first: &Arc<Blueprint>) -> Diagnostic {
    let id = &duplicate.id.value;
    Diagnostic::error(
        &duplicate.source,
        duplicate.id.span,
        format!("duplicate id `{id}`: it is already at {}", first.declared()),
    )
    .of(id)
    .hint("baselines and overlays share one namespace; give one of them another id")
}
