//! Lineages: what the blueprints of all files mean together.
//!
//! [`Lineages`] keeps what every file says and what stands: each environment is [`Standing::Resolved`],
//! so that every name exists, its lineage ends at a baseline and has no cycle, or it is refused for
//! stated reasons. [`Lineages::apply`] takes changed files and costs what they and the descendants
//! of their environments cost.

mod around;
mod resolve;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::blueprint::{
    self, AttachedUrl, Attachment, Blueprint, Document, OnUnavailable, OnUnknown, Parsed, Share,
};
use crate::diagnostic::{Diagnostic, Source};
use crate::name::{EnvironmentId, HeaderName, ServiceName};
use crate::preview::Previews;
use crate::time::UnixMillis;
use crate::url::Url;

use resolve::Suggestions;

pub use around::About;
pub use resolve::is_off_limits;

/// The greatest depth of a lineage: ancestors of an overlay, the baseline included.
pub const MAX_DEPTH: usize = 16;

/// How many reasons are kept of why an id was never good.
const MAX_REASONS: usize = 10;

type Map<K, V> = HashMap<K, V, RandomState>;
type Set<K> = HashSet<K, RandomState>;

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

impl FileChange {
    /// The same, with its text parsed.
    #[must_use]
    pub fn parsed(&self) -> Self {
        let content = match &self.content {
            Content::Text(source) => Content::Parsed(source.clone(), Box::new(blueprint::parse(source))),
            other => other.clone(),
        };
        Self { path: self.path.clone(), content }
    }
}

/// The content of a file.
#[derive(Debug, Clone)]
pub enum Content {
    /// It was read.
    Text(Arc<Source>),
    /// It was read and parsed: most of the work, which does not depend on any other file.
    Parsed(Arc<Source>, Box<Parsed>),
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
    pub before: HashMap<EnvironmentId, Standing, RandomState>,
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
    /// Where the previews are of the baseline at the end of the lineage.
    pub previews: Arc<Previews>,
    /// The links that were given to somebody.
    pub shares: Box<[Share]>,
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
    /// The places of `blueprint.services` in order of their names.
    by_name: Box<[u32]>,
}

impl Resolved {
    /// Whether the environment itself owns `service`.
    fn owns(&self, service: &str) -> bool {
        let services = &self.blueprint.services;
        let name = |at: &u32| services[*at as usize].name.value.as_str();
        self.by_name.binary_search_by(|at| name(at).cmp(service)).is_ok()
    }
}

/// All files, and where every environment stands. See the module's documentation.
#[derive(Debug, Default)]
pub struct Lineages {
    rules: Rules,
    files: Map<Arc<str>, File>,
    entries: Map<EnvironmentId, Entry>,
    /// Who names whom as parent, whether that parent exists or not.
    children: Map<EnvironmentId, Set<EnvironmentId>>,
    attachments: Map<EnvironmentId, Vec<Arc<Attachment>>>,
    /// Attached addresses that are used until then.
    leases: BTreeSet<Lease>,
    /// Those that have lapsed: for good, until their record says another time.
    lapsed: BTreeSet<Lease>,
    /// The files that name an id in documents that were never good.
    broken: Map<EnvironmentId, BTreeSet<Arc<str>>>,
    /// The files that have [`File::overruled`] documents.
    overruled: BTreeSet<Arc<str>>,
}

/// Until when the address is used that is attached to a service of an environment.
type Lease = (UnixMillis, EnvironmentId, ServiceName);

/// What is in force of a file.
#[derive(Debug, Default)]
struct File {
    documents: Vec<Document>,
    /// Ids that the file names in documents that were never good.
    broken: Vec<EnvironmentId>,
    /// What is right in a bad text, where an older text is in force instead.
    overruled: Vec<Document>,
    /// What is wrong with the text as it was last read.
    diagnostics: Vec<Diagnostic>,
    /// The text as it was last read; `None` where it never could be.
    text: Option<Arc<Source>>,
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

/// One [`Lineages::apply`] at work.
struct Settling {
    /// Where those stood that are settled anew.
    before: Map<EnvironmentId, Standing>,
    /// Those that are not settled yet.
    open: Set<EnvironmentId>,
    /// Whose claims cannot be used, and why; what was last good is tried for them.
    failed: Map<EnvironmentId, Vec<Diagnostic>>,
    names: Suggestions,
}

impl File {
    /// The leases of its attachments.
    fn leases(&self) -> impl Iterator<Item = Lease> {
        let leases = |document: &Document| match document {
            Document::Attachment(attachment) => attachment.leases().collect(),
            Document::Blueprint(_) => Vec::new(),
        };
        self.documents.iter().flat_map(leases)
    }
}

impl Attachment {
    /// Until when its addresses are used, those that have an end.
    fn leases(&self) -> impl Iterator<Item = Lease> {
        let lease = |attached: &AttachedUrl| {
            Some((attached.expires_at?, self.environment.value.clone(), attached.service.value.clone()))
        };
        self.services.iter().filter_map(lease)
    }

    /// Whether another one differs from it only in when the leases of its addresses end.
    fn differs_in_leases(&self, other: &Self) -> bool {
        let place = |attached: &AttachedUrl| {
            (attached.service.value.clone(), attached.url.value.clone(), attached.expires_at.is_some())
        };
        let share = |share: &Share| (share.id.value.clone(), share.hash, share.expires_at);
        self.environment.value == other.environment.value
            && self.expires_at == other.expires_at
            && self.services.iter().map(place).eq(other.services.iter().map(place))
            && self.shares.iter().map(share).eq(other.shares.iter().map(share))
    }
}

/// Whether a file was only written anew so that leases in it last longer: then nothing is routed otherwise.
fn is_renewal(before: &File, after: &File) -> bool {
    let attachments = match (&before.documents[..], &after.documents[..]) {
        ([Document::Attachment(before)], [Document::Attachment(after)]) => before.differs_in_leases(after),
        _ => false,
    };
    attachments && [before, after].iter().all(|file| file.broken.is_empty() && file.diagnostics.is_empty())
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

    /// The overlays that live from their last use: until when, and for how long after each; in no order.
    pub fn renewed(&self) -> impl Iterator<Item = (&EnvironmentId, UnixMillis, Duration)> {
        self.entries.iter().filter_map(|(id, entry)| {
            let blueprint = &entry.standing.as_ref()?.resolved()?.blueprint;
            let ttl = blueprint.renewed_for()?;
            Some((id, self.expiry(blueprint)?, ttl))
        })
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
        let mut children: Vec<_> = self.children.get(id).into_iter().flatten().collect();
        children.sort();
        children.into_iter()
    }

    /// Whether anything inherits from `id`, or may: what a text with errors means by what it mentions is not known, whatever is in force
    /// instead of it. Looks at all files.
    #[must_use]
    pub fn may_be_needed(&self, id: &EnvironmentId) -> bool {
        let mentions = |file: &File| {
            file.diagnostics.iter().any(Diagnostic::is_error)
                && file.text.as_ref().is_some_and(|source| source.text.contains(id.as_str()))
        };
        self.children.contains_key(id) || self.files.values().any(mentions)
    }

    /// The attachments of `id`, in order of their files.
    #[must_use]
    pub fn attachments(&self, id: &EnvironmentId) -> &[Arc<Attachment>] {
        self.attachments.get(id).map_or(&[], Vec::as_slice)
    }

    /// The services that previews of `id` lead to, each with the path that is exposed: those of `id` and of its ancestors,
    /// the nearest's first.
    #[must_use]
    pub fn exposed(&self, id: &EnvironmentId) -> Vec<(&ServiceName, &str)> {
        let mut all: Vec<(&ServiceName, &str)> = Vec::new();
        let mut next = self.standing(id).and_then(Standing::resolved);
        while let Some(resolved) = next {
            let exposed = resolved.blueprint.services.iter().filter(|service| service.expose);
            for service in exposed {
                let path = service.path.as_ref().map_or("/", |path| &*path.value);
                if all.iter().all(|(known, _)| **known != service.name.value) {
                    all.push((&service.name.value, path));
                }
            }
            next = resolved.parent.as_ref().and_then(|parent| self.standing(parent)?.resolved());
        }
        all
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
        // An error anywhere in the file freezes the whole of it.
        let of_it = in_file.filter(|diagnostic| {
            diagnostic.is_error() || diagnostic.environment.as_ref().is_none_or(|of| of == id)
        });
        entry.problems.iter().chain(of_it).cloned().collect()
    }

    /// Everything that is wrong: by file, then by environment.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut ids: Vec<_> = self.entries.iter().collect();
        ids.sort_by_key(|(id, _)| *id);
        let of_environments = ids.into_iter().flat_map(|(_, entry)| &entry.problems);
        let files: BTreeMap<_, _> = self.files.iter().collect();
        files.into_values().flat_map(|file| &file.diagnostics).chain(of_environments).cloned().collect()
    }

    /// The texts from which all stands again as it does now, when they are taken in one list after the other:
    /// first what is in force, then what else was last read.
    #[must_use]
    pub fn texts(&self) -> Vec<Vec<Arc<Source>>> {
        let mut lists: Vec<Vec<Arc<Source>>> = Vec::new();
        let files: BTreeMap<_, _> = self.files.iter().collect();
        for (path, file) in files {
            let in_force = self.texts_in_force(path, file);
            // What stands by one claim to an id must be there before another claim comes.
            let others_from = in_force.len().max(1);
            let documents = file.documents.iter().map(Document::source);
            let mut others: Vec<&Arc<Source>> = Vec::new();
            for source in documents.chain(&file.text) {
                let is = |known: &Arc<Source>| Arc::ptr_eq(known, source);
                if !in_force.iter().any(is) && !others.iter().any(|other| is(other)) {
                    others.push(source);
                }
            }
            if others.is_empty()
                && !in_force.last().zip(file.text.as_ref()).is_none_or(|(a, b)| Arc::ptr_eq(a, b))
            {
                others.extend(&file.text);
            }
            let others =
                others.into_iter().cloned().enumerate().map(|(at, source)| (others_from + at, source));
            let all: Vec<_> = in_force.iter().cloned().enumerate().chain(others).collect();
            for (at, source) in all {
                lists.resize_with(lists.len().max(at + 1), Vec::new);
                lists[at].push(source);
            }
        }
        lists
    }

    /// The texts of a file by which environments and attachments stand: more than one where documents of
    /// the file stand by different versions of it. In order of their time.
    fn texts_in_force(&self, path: &Arc<str>, file: &File) -> Vec<Arc<Source>> {
        let of = |document: &Document| match document {
            Document::Blueprint(blueprint) => {
                let good = &self.standing(&blueprint.id.value)?.resolved()?.blueprint.source;
                (good.path == *path).then(|| good.clone())
            }
            Document::Attachment(attachment) => Some(attachment.source.clone()),
        };
        let mut texts: Vec<_> = file.documents.iter().filter_map(of).collect();
        texts.sort_by_key(|source| (source.modified, Arc::as_ptr(source)));
        texts.dedup_by(|a, b| Arc::ptr_eq(a, b));
        texts
    }

    /// Takes in changed files. Costs what the changes and the descendants of their environments cost.
    pub fn apply(&mut self, changes: Vec<FileChange>) -> Applied {
        self.apply_at(changes, UnixMillis(0))
    }

    /// The same, and ends the leases of attached addresses that are over: those are not used any more, even when the
    /// clock goes back, until their record says another time.
    pub fn apply_at(&mut self, changes: Vec<FileChange>, now: UnixMillis) -> Applied {
        let mut applied = Applied::default();
        let mut touched = Vec::new();
        let mut doubtful = Vec::new();
        for change in changes {
            doubtful.extend(self.replace_file(change, &mut touched, &mut applied.diagnostics));
        }
        while self.next_lapse().is_some_and(|at| at <= now)
            && let Some(lease) = self.leases.pop_first()
        {
            touched.push(lease.1.clone());
            self.lapsed.insert(lease);
        }
        let open = self.with_descendants(&mut touched);
        applied.changed = touched.into_iter().collect();
        let (before, failed) = (Map::default(), Map::default());
        let mut settling = Settling { before, open, failed, names: Suggestions::default() };
        for id in &applied.changed {
            if let Some(entry) = self.entries.get_mut(id) {
                settling.before.extend(entry.standing.take().map(|standing| (id.clone(), standing)));
                entry.problems.clear();
            }
        }
        for id in &applied.changed {
            self.settle(id, &mut settling);
        }
        let Settling { before, mut names, .. } = settling;
        for id in &applied.changed {
            self.relink(id, before.get(id));
            applied
                .diagnostics
                .extend(self.entries.get(id).into_iter().flat_map(|entry| &entry.problems).cloned());
        }
        for blueprint in doubtful {
            self.look_further(&blueprint, &mut names, &mut applied.diagnostics);
        }
        applied.before = before;
        applied
    }

    /// When the next lease of an attached address is over.
    #[must_use]
    pub fn next_lapse(&self) -> Option<UnixMillis> {
        self.leases.first().map(|(at, ..)| *at)
    }

    /// Whether an attached address is not used any more.
    fn has_lapsed(&self, environment: &EnvironmentId, attached: &AttachedUrl) -> bool {
        let lapsed = |at| self.lapsed.contains(&(at, environment.clone(), attached.service.value.clone()));
        !self.lapsed.is_empty() && attached.expires_at.is_some_and(lapsed)
    }

    /// Looks for mistakes of meaning in a blueprint that has others already, so that all are told at once.
    fn look_further(
        &mut self,
        blueprint: &Arc<Blueprint>,
        names: &mut Suggestions,
        diagnostics: &mut Vec<Diagnostic>,
    ) {
        let mut found = Vec::new();
        self.resolve(blueprint, names, &mut found);
        diagnostics.extend(found.iter().cloned());
        if let Some(file) = self.files.get_mut(&blueprint.source.path) {
            file.diagnostics.extend(found);
        }
    }

    /// Returns the blueprints of the file in which only more mistakes are to be looked for.
    fn replace_file(
        &mut self,
        change: FileChange,
        touched: &mut Vec<EnvironmentId>,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Vec<Arc<Blueprint>> {
        let before = self.files.remove(&change.path);
        self.overruled.remove(&change.path);
        let untouched = touched.len();
        self.withdraw(&change.path, before.as_ref(), touched);
        let before = before.unwrap_or_default();
        let (after, doubtful) = match change.content {
            Content::Gone => {
                for lease in before.leases() {
                    self.lapsed.remove(&lease);
                }
                return Vec::new();
            }
            Content::Unreadable(why) => {
                let error =
                    Diagnostic::file(&change.path, why).hint("what was last read from it stays in force");
                let broken = never_good(&change.path, &before.documents, before.broken.clone());
                let (documents, text) = (before.documents.clone(), before.text.clone());
                let overruled = before.overruled.clone();
                (File { documents, broken, overruled, diagnostics: vec![error], text }, Vec::new())
            }
            Content::Text(source) => {
                let parsed = blueprint::parse(&source);
                in_force(&change.path, source, parsed, &before)
            }
            Content::Parsed(source, parsed) => in_force(&change.path, source, *parsed, &before),
        };
        diagnostics.extend(after.diagnostics.iter().cloned());
        self.enter(&change.path, &after, touched);
        if is_renewal(&before, &after) && !before.leases().any(|lease| self.lapsed.contains(&lease)) {
            touched.truncate(untouched);
        }
        let kept: Vec<_> = after.leases().collect();
        for over in before.leases().filter(|lease| !kept.contains(lease)) {
            self.lapsed.remove(&over);
        }
        if !after.overruled.is_empty() {
            self.overruled.insert(change.path.clone());
        }
        self.files.insert(change.path, after);
        doubtful
    }

    /// Takes the claims of a file back.
    fn withdraw(&mut self, path: &Arc<str>, file: Option<&File>, touched: &mut Vec<EnvironmentId>) {
        let Some(file) = file else { return };
        for id in &file.broken {
            touched.push(id.clone());
            if let Some(files) = self.broken.get_mut(id) {
                files.remove(path);
                if files.is_empty() {
                    self.broken.remove(id);
                }
            }
        }
        for document in &file.documents {
            match document {
                Document::Blueprint(blueprint) => {
                    let id = &blueprint.id.value;
                    touched.push(id.clone());
                    if let Some(entry) = self.entries.get_mut(id) {
                        entry.claims.retain(|claim| !Arc::ptr_eq(claim, blueprint));
                    }
                    // Where another claim, or what is in force, names it too, `relink` says so again.
                    if let Some(parent) = blueprint.parent() {
                        self.unlink(&parent.value, id);
                    }
                }
                Document::Attachment(attachment) => {
                    let id = &attachment.environment.value;
                    touched.push(id.clone());
                    for lease in attachment.leases() {
                        self.leases.remove(&lease);
                    }
                    if let Some(of_it) = self.attachments.get_mut(id) {
                        of_it.retain(|known| !Arc::ptr_eq(known, attachment));
                    }
                }
            }
        }
    }

    fn enter(&mut self, path: &Arc<str>, file: &File, touched: &mut Vec<EnvironmentId>) {
        for id in &file.broken {
            touched.push(id.clone());
            self.broken.entry(id.clone()).or_default().insert(path.clone());
            self.entries.entry(id.clone()).or_default();
        }
        for document in &file.documents {
            match document {
                Document::Blueprint(blueprint) => {
                    let id = &blueprint.id.value;
                    touched.push(id.clone());
                    self.entries.entry(id.clone()).or_default().claims.push(blueprint.clone());
                    if let Some(parent) = blueprint.parent() {
                        self.children.entry(parent.value.clone()).or_default().insert(id.clone());
                    }
                }
                Document::Attachment(attachment) => {
                    let id = &attachment.environment.value;
                    touched.push(id.clone());
                    let lapsed = &self.lapsed;
                    self.leases.extend(attachment.leases().filter(|lease| !lapsed.contains(lease)));
                    let of_it = self.attachments.entry(id.clone()).or_default();
                    of_it.push(attachment.clone());
                    of_it.sort_by(|a, b| a.source.path.cmp(&b.source.path));
                }
            }
        }
    }

    /// Adds all descendants to `touched`, and returns it as a set.
    fn with_descendants(&self, touched: &mut Vec<EnvironmentId>) -> Set<EnvironmentId> {
        let mut all: Set<_> = touched.iter().cloned().collect();
        let mut at = 0;
        while let Some(id) = touched.get(at) {
            let children = self.children.get(id).into_iter().flatten();
            let new: Vec<_> = children.filter(|child| !all.contains(*child)).cloned().collect();
            all.extend(new.iter().cloned());
            touched.extend(new);
            at += 1;
        }
        all
    }

    /// Brings the children index and the entries in line with what stands now.
    fn relink(&mut self, id: &EnvironmentId, before: Option<&Standing>) {
        let Self { entries, children, .. } = self;
        for parent in entries.get(id).into_iter().flat_map(Entry::parents) {
            match children.get_mut(parent) {
                Some(children) if children.contains(id) => {}
                Some(children) => {
                    children.insert(id.clone());
                }
                None => {
                    children.insert(parent.clone(), Set::from_iter([id.clone()]));
                }
            }
        }
        let now = |parent: &EnvironmentId| {
            self.entries.get(id).is_some_and(|entry| entry.parents().any(|now| now == parent))
        };
        let old = before.and_then(Standing::resolved).and_then(|resolved| resolved.parent.as_ref());
        if let Some(parent) = old.filter(|parent| !now(parent)) {
            self.unlink(parent, id);
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

    /// Settles `id` after the ancestors that it waits for. A chain of them can be longer than a stack is
    /// deep, so the path is a list, in which each waits for the next.
    fn settle(&mut self, id: &EnvironmentId, settling: &mut Settling) {
        // Most wait for nobody, and need no path.
        if !settling.open.contains(id)
            || self.settle_one(id, settling).is_none() && !settling.open.contains(id)
        {
            return;
        }
        let mut path = vec![id.clone()];
        let mut places = Map::from_iter([(id.clone(), 0)]);
        while let Some(id) = path.last() {
            let waits_for = match settling.open.contains(id) {
                true => self.settle_one(id, settling),
                false => None,
            };
            match waits_for {
                None if settling.open.contains(id) => {}
                None => {
                    places.remove(id);
                    path.pop();
                }
                Some(parent) => match places.get(&parent) {
                    None => {
                        places.insert(parent.clone(), path.len());
                        path.push(parent);
                    }
                    Some(from) => {
                        self.break_cycle(&path[*from..], settling);
                        for id in path.drain(from + 1..) {
                            places.remove(&id);
                        }
                    }
                },
            }
        }
    }

    /// Nobody in a cycle is settled by what it claims. Lineages that were in force have no cycle, so at
    /// least one of its members stands there by a claim.
    fn break_cycle(&self, cycle: &[EnvironmentId], settling: &mut Settling) {
        for (at, id) in cycle.iter().enumerate() {
            if !settling.failed.contains_key(id)
                && let Some([only]) = self.entries.get(id).map(|entry| &entry.claims[..])
            {
                settling.failed.insert(id.clone(), vec![in_cycle(only, cycle, at)]);
            }
        }
    }

    /// Settles one environment: by its claim, else by what was last good, else it is refused. Returns the
    /// parent that must be settled first; where the claim turns out unusable, it is to be called again.
    fn settle_one(&mut self, id: &EnvironmentId, settling: &mut Settling) -> Option<EnvironmentId> {
        let claims = self.entries.get(id).map_or(&[][..], |entry| &entry.claims);
        let last_good = settling.before.get(id).and_then(Standing::resolved).map(|good| &good.blueprint);
        let last_good = last_good
            .filter(|good| claims.iter().any(|claim| claim.source.path == good.source.path))
            .cloned();
        let candidate = match claims {
            [] => {
                let why = self.why_broken(id);
                self.finish(id, why, None, settling);
                return None;
            }
            _ if settling.failed.contains_key(id) => last_good.clone(),
            [only] => Some(only.clone()),
            [first, others @ ..] => {
                let duplicates = others.iter().map(|other| duplicate_id(other, first)).collect();
                settling.failed.insert(id.clone(), duplicates);
                return None;
            }
        };
        let parent = candidate.as_ref().and_then(|candidate| candidate.parent());
        if let Some(parent) = parent.filter(|parent| settling.open.contains(&parent.value)) {
            return Some(parent.value.clone());
        }
        let mut problems = Vec::new();
        let resolved = candidate
            .as_ref()
            .and_then(|candidate| self.resolve(candidate, &mut settling.names, &mut problems));
        let failed = settling.failed.remove(id);
        let hopeless = failed.is_some()
            || candidate.zip(last_good).is_none_or(|(candidate, good)| Arc::ptr_eq(&candidate, &good));
        if resolved.is_some() || hopeless {
            self.finish(id, failed.unwrap_or(problems), resolved, settling);
        } else {
            settling.failed.insert(id.clone(), problems);
        }
        None
    }

    fn finish(
        &mut self,
        id: &EnvironmentId,
        problems: Vec<Diagnostic>,
        resolved: Option<Resolved>,
        settling: &mut Settling,
    ) {
        settling.open.remove(id);
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.standing = match resolved {
            Some(resolved) => Some(Standing::Resolved(Box::new(resolved))),
            None if problems.is_empty() => None,
            None => Some(Standing::Refused(problems.clone())),
        };
        if !entry.claims.is_empty() {
            entry.problems = problems;
        }
    }

    /// What is wrong in the files where `id` was never good; some of it, where there is very much.
    fn why_broken(&self, id: &EnvironmentId) -> Vec<Diagnostic> {
        let files = self.broken.get(id).into_iter().flatten().filter_map(|path| self.files.get(path));
        let errors = files.flat_map(|file| &file.diagnostics).filter(|problem| problem.is_error());
        let own = |problem: &&Diagnostic| problem.environment.as_ref().is_none_or(|of| of == id);
        let why: Vec<_> = errors.clone().filter(own).take(MAX_REASONS).cloned().collect();
        if why.is_empty() { errors.take(1).cloned().collect() } else { why }
    }
}

/// What is in force after a file was parsed, and what only more mistakes are to be looked for in. A file
/// with errors keeps what was last good of it.
fn in_force(
    path: &Arc<str>,
    source: Arc<Source>,
    parsed: Parsed,
    before: &File,
) -> (File, Vec<Arc<Blueprint>>) {
    let text = Some(source);
    if !parsed.diagnostics.iter().any(Diagnostic::is_error) {
        let Parsed { documents, diagnostics, .. } = parsed;
        return (File { documents, diagnostics, text, ..File::default() }, Vec::new());
    }
    let known: Set<_> = before.documents.iter().map(Document::environment).collect();
    let (overruled, new): (Vec<_>, Vec<_>) =
        parsed.documents.into_iter().partition(|document| known.contains(document.environment()));
    let documents: Vec<_> = before.documents.iter().cloned().chain(new).collect();
    let broken = never_good(path, &documents, parsed.broken);
    (File { documents, broken, overruled, diagnostics: parsed.diagnostics, text }, parsed.doubtful)
}

/// The ids that a bad file makes unavailable: those it names, or the one that its name promises.
fn never_good(path: &Arc<str>, in_force: &[Document], mut broken: Vec<EnvironmentId>) -> Vec<EnvironmentId> {
    if !broken.is_empty() {
        let blueprints = in_force.iter().filter(|document| matches!(document, Document::Blueprint(_)));
        let good: Set<_> = blueprints.map(Document::environment).collect();
        broken.retain(|id| !good.contains(id));
    }
    if broken.is_empty() && in_force.is_empty() {
        let stem = std::path::Path::new(&**path).file_stem().and_then(|stem| stem.to_str());
        broken.extend(stem.and_then(|stem| stem.parse::<EnvironmentId>().ok()));
    }
    broken
}

/// Says that the member at `at` of a cycle, each member of which names the next as parent, is in it.
fn in_cycle(blueprint: &Arc<Blueprint>, cycle: &[EnvironmentId], at: usize) -> Diagnostic {
    let id = &blueprint.id.value;
    let shown = if cycle.len() > MAX_DEPTH { 4 } else { cycle.len() };
    let mut names: Vec<_> = cycle.iter().cycle().skip(at).take(shown).map(EnvironmentId::as_str).collect();
    names.extend((shown < cycle.len()).then_some("…"));
    names.push(id.as_str());
    let span = blueprint.parent().map_or(blueprint.id.span, |parent| parent.span);
    Diagnostic::error(&blueprint.source, span, format!("the lineage is a cycle: {}", names.join(" → ")))
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
