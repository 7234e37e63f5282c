//! A store that is open for one command: what is written is checked against the whole store first, whatever keeps it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::blueprint::{
    API_VERSION, Attachment, Blueprint, Document, Share, hex, parse, with_expiry,
};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{Content, FileChange, Lineages, Rules};
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::preview::label;
use overlane_config::time::UnixMillis;
use overlane_config::url::Url;

use super::directory::read::is_blueprint;
use super::directory::write::{At, Directory};
use super::mirror::{self, Mirror, revision_of};
use super::shared::follow::name_of;
use super::shared::write::Listed;
use super::shared::{Commit, CommitError, Committed, Fault, Revision, Write};
use super::{Reached, StoreAddress};
use crate::{clock, cores};

/// How often a write is tried where others write at the same time.
const ATTEMPTS: u32 = 20;
/// The longest pause before the second one; later ones may be longer. Each is a random part of that.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest name of an entry, in bytes: that of a file.
const MAX_NAME: usize = 255;
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How the entry of what is attached to an environment ends.
const ATTACHED: &str = ".attached.yaml";

/// What became of an environment or attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Created,
    /// It is different now.
    Configured,
    /// It was like that already.
    Unchanged,
    /// It is gone.
    Deleted,
}

impl Outcome {
    /// The word for people and scripts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}

/// Why nothing was written.
#[derive(Debug)]
pub enum WriteError {
    /// `create`, and it is there.
    Exists(EnvironmentId),
    /// It is not there.
    NotFound(String),
    /// It has errors.
    Invalid(Vec<Diagnostic>),
    /// Others depend on it.
    HasChildren(EnvironmentId, Vec<EnvironmentId>),
    /// It lives in a file with other documents, which is read and never edited.
    Shared(EnvironmentId, Arc<str>),
    /// The flag and the file name different parents.
    OtherParent {
        /// The overlay.
        environment: EnvironmentId,
        /// What the flag says.
        flag: EnvironmentId,
        /// What the file says; `None` for a baseline.
        file: Option<EnvironmentId>,
    },
    /// It is in another state than the one that was to be changed, or gone.
    Changed(EnvironmentId, Option<Revision>),
    /// No entry can be called so.
    NoName(String),
    /// Others write all the time.
    Busy,
    /// What the system says, about a path.
    Io(PathBuf, io::Error),
    /// It cannot be extended, since it lives for ever.
    NeverExpires(EnvironmentId),
    /// The store cannot be asked, or refuses it.
    Store(Fault),
    /// Somebody else came before. Tried again, so that nobody sees this.
    Conflict,
}

impl From<At> for WriteError {
    fn from((path, error): At) -> Self {
        Self::Io(path, error)
    }
}

impl From<Fault> for WriteError {
    fn from(fault: Fault) -> Self {
        Self::Store(fault)
    }
}

impl From<CommitError> for WriteError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict => Self::Conflict,
            CommitError::Fault(fault) => Self::Store(fault),
        }
    }
}

/// What to write, and how.
#[derive(Debug, Clone, Default)]
pub struct Put {
    /// Fail where the environment exists.
    pub create: bool,
    /// Check and report, but write nothing.
    pub dry_run: bool,
    /// How long it lives from now on; the file's own ttl by default.
    pub ttl: Option<Duration>,
    /// The parent that it must have.
    pub parent: Option<EnvironmentId>,
    /// The state in which it must be; see [`OpenStore::revision`].
    pub only: Option<Revision>,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// Each environment and what became of it.
    pub environments: Vec<(Arc<Blueprint>, Outcome)>,
    /// What may not be as it was meant.
    pub warnings: Vec<Diagnostic>,
    /// The state of the store afterwards, where its engine has any and something was written.
    pub revision: Option<Revision>,
}

/// A store that is open, and locked where it is a directory that may be written to.
pub struct OpenStore {
    kept: Kept,
    lineages: Lineages,
}

/// What keeps it.
enum Kept {
    /// And the files that were read, by name.
    Directory(Directory, HashMap<String, Arc<Source>, RandomState>),
    Shared(Box<Listed>),
}

impl Kept {
    fn directory(directory: Directory) -> Self {
        Self::Directory(directory, HashMap::default())
    }

    /// The state of an entry.
    fn revision(&self, name: &str) -> Option<Revision> {
        match self {
            Self::Directory(_, texts) => Some(revision_of(&texts.get(name)?.text)),
            Self::Shared(listed) => listed.revision(name).cloned(),
        }
    }
}

/// A file of a directory that could be read, by name.
fn text(change: &FileChange) -> Option<(String, Arc<Source>)> {
    match &change.content {
        Content::Text(source) => Some((name_of(&change.path).to_owned(), source.clone())),
        _ => None,
    }
}

/// The blueprints of a file that was parsed.
fn blueprints(change: &FileChange) -> Vec<Arc<Blueprint>> {
    let Content::Parsed(_, parsed) = &change.content else { return Vec::new() };
    let blueprint = |document: &Document| match document {
        Document::Blueprint(blueprint) => Some(blueprint.clone()),
        Document::Attachment(_) => None,
    };
    parsed.documents.iter().filter_map(blueprint).collect()
}

/// What is to be written, and what must not have changed meanwhile.
#[derive(Default)]
struct Edits {
    /// Entries by name, and their texts; none where they go.
    edits: Vec<(String, Option<String>)>,
    /// Entries on which what is written depends.
    unchanged: Vec<String>,
    /// Whether nothing else may have been written at all.
    alone: bool,
}

impl OpenStore {
    /// Reads a store; a directory that is not there is an empty one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(store: &StoreAddress) -> Result<Self, WriteError> {
        let kept = match store.reach()? {
            Reached::Directory(path) => Kept::directory(Directory::read(path)),
            Reached::Shared(store) => Kept::Shared(Box::new(listed(store)?)),
        };
        Self::load(kept)
    }

    /// Reads a store that will be written to. A directory is made where it is not there, and locked.
    ///
    /// # Errors
    /// It cannot be read, or the directory not be made or locked.
    pub fn write(store: &StoreAddress) -> Result<Self, WriteError> {
        match store.reach()? {
            Reached::Directory(path) => Self::load(Kept::directory(Directory::lock(path)?)),
            Reached::Shared(store) => Self::load(Kept::Shared(Box::new(listed(store)?))),
        }
    }

    /// Reads a directory, locked or not.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn directory(directory: Directory) -> Result<Self, WriteError> {
        Self::load(Kept::directory(directory))
    }

    /// Reads a store that several machines share.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn shared(store: Listed) -> Result<Self, WriteError> {
        Self::load(Kept::Shared(Box::new(store)))
    }

    fn load(kept: Kept) -> Result<Self, WriteError> {
        let mut open = Self { kept, lineages: Lineages::default() };
        open.reload()?;
        Ok(open)
    }

    fn reload(&mut self) -> Result<(), WriteError> {
        let changes = match &mut self.kept {
            Kept::Directory(directory, texts) => {
                let changes = directory.list()?;
                *texts = changes.iter().filter_map(text).collect();
                changes
            }
            Kept::Shared(listed) => listed.list()?,
        };
        // A command cannot know what a running proxy allows: whatever is below `/` may be a socket.
        self.lineages = Lineages::new(Rules { unix_under: vec!["/".to_owned()] });
        self.lineages.apply_at(cores::map(&changes, FileChange::parsed), clock::now());
        Ok(())
    }

    /// What the store means.
    #[must_use]
    pub fn lineages(&self) -> &Lineages {
        &self.lineages
    }

    /// The state of an environment, to be compared for equality; `None` where it is not there.
    #[must_use]
    pub fn revision(&self, id: &EnvironmentId) -> Option<Revision> {
        let source = &self.lineages.claims(id).next()?.source;
        match &self.kept {
            Kept::Directory(..) => Some(revision_of(&source.text)),
            Kept::Shared(listed) => listed.revision(name_of(&source.path)).cloned(),
        }
    }

    /// The state of the whole store as it was read, where it has any.
    #[must_use]
    pub fn state(&self) -> Option<&Revision> {
        match &self.kept {
            Kept::Directory(..) => None,
            Kept::Shared(listed) => listed.whole_revision(),
        }
    }

    /// How an entry is shown.
    fn shown(&self, name: &str) -> String {
        match &self.kept {
            Kept::Directory(directory, _) => directory.path().join(name).display().to_string(),
            Kept::Shared(listed) => format!("{}/{name}", listed.address()),
        }
    }

    /// Writes, and takes in what it wrote.
    fn commit(&mut self, edits: &Edits) -> Result<Option<Revision>, WriteError> {
        if edits.edits.is_empty() {
            return Ok(None);
        }
        let revision = match &mut self.kept {
            Kept::Directory(directory, _) => {
                for (name, text) in &edits.edits {
                    directory.put(name, text.as_deref())?;
                }
                None
            }
            Kept::Shared(listed) => Some(listed.commit(&edits.edits, &edits.unchanged, edits.alone)?),
        };
        let changes = edits.edits.iter().map(|(name, text)| self.change(name, text.clone())).collect();
        self.lineages.apply(changes);
        Ok(revision)
    }

    /// Writes what another process asks for, on its conditions: it is checked against the whole store first, as what
    /// is written here. Of a directory, `mirror` is what is known of it elsewhere.
    ///
    /// # Errors
    /// It is no entry or not right, or somebody else came before: [`WriteError::Conflict`] is not tried again, since
    /// only who asks knows what to do then.
    pub fn accept(&mut self, commit: &Commit, mirror: &Mirror) -> Result<Committed, WriteError> {
        let named = |write: &Write| {
            let name = &write.name;
            is_blueprint(OsStr::new(name)) && name.len() <= MAX_NAME && !name.contains(['/', '\0'])
        };
        if let Some(write) = commit.writes.iter().find(|write| !named(write)) {
            return Err(WriteError::NoName(write.name.clone()));
        }
        if !self.stands(commit, mirror) {
            return Err(WriteError::Conflict);
        }
        let changes: Vec<_> =
            commit.writes.iter().map(|write| self.change(&write.name, write.text.clone())).collect();
        let parsed = cores::map(&changes, FileChange::parsed);
        let documents = parsed.iter().flat_map(blueprints).collect::<Vec<_>>();
        let mut applied = self.lineages.apply(parsed);
        applied.diagnostics.extend(documents.iter().filter_map(|blueprint| self.without_preview(blueprint)));
        if applied.diagnostics.iter().any(Diagnostic::is_error) {
            return Err(WriteError::Invalid(applied.diagnostics));
        }
        match &self.kept {
            Kept::Directory(directory, _) => {
                // What is not there need not go.
                let changed =
                    commit.writes.iter().filter(|write| write.text.is_some() || write.known.is_some());
                for write in changed {
                    directory.put(&write.name, write.text.as_deref())?;
                }
                let entries = commit.writes.iter().map(|write| write.text.as_deref().map(revision_of));
                Ok(Committed { revision: Revision::new(""), entries: entries.collect() })
            }
            Kept::Shared(listed) => Ok(listed.pass_on(&self.on_our_conditions(commit, &documents, listed))?),
        }
    }

    /// Whether the conditions hold as far as can be told here; engines hold them again.
    fn stands(&self, commit: &Commit, mirror: &Mirror) -> bool {
        let known = commit.writes.iter().all(|write| self.kept.revision(&write.name) == write.known);
        let unchanged =
            commit.unchanged.iter().all(|(name, known)| self.kept.revision(name).as_ref() == Some(known));
        let alone = commit.alone_since.as_ref().is_none_or(|since| match &self.kept {
            Kept::Directory(_, texts) => mirror.everything().is_some_and(|all| {
                let same = |(name, kept): &(Arc<str>, mirror::Kept)| {
                    texts.get(&**name).is_some_and(|source| source.text == kept.source.text)
                };
                all.revision == *since && all.entries.len() == texts.len() && all.entries.iter().all(same)
            }),
            Kept::Shared(listed) => listed.whole_revision().is_some_and(|now| now.is_at_least(since)),
        });
        known && unchanged && alone
    }

    /// What another process asks for, and what it may have left out: that what ours was checked against is still so.
    fn on_our_conditions(&self, commit: &Commit, written: &[Arc<Blueprint>], listed: &Listed) -> Commit {
        let mut commit = commit.clone();
        let parents = written.iter().filter_map(|blueprint| Some(&blueprint.parent()?.value));
        for parent in parents.filter_map(|id| self.lineages.claims(id).next()) {
            let name = name_of(&parent.source.path);
            let told = commit.writes.iter().any(|write| write.name == name)
                || commit.unchanged.iter().any(|(known, _)| known == name);
            let revision = listed.revision(name).filter(|_| !told);
            commit.unchanged.extend(revision.map(|revision| (name.to_owned(), revision.clone())));
        }
        let goes = |write: &Write| write.text.is_none() && !write.name.ends_with(ATTACHED);
        if commit.alone_since.is_none() && commit.writes.iter().any(goes) {
            commit.alone_since = listed.whole_revision().cloned();
        }
        commit
    }

    /// An entry that is another one from now on, or gone.
    fn change(&self, name: &str, text: Option<String>) -> FileChange {
        let path: Arc<str> = self.shown(name).into();
        let content = match text {
            Some(text) => Content::Text(Arc::new(Source::new(path.clone(), text, None))),
            None => Content::Gone,
        };
        FileChange { path, content }
    }

    /// Does something until nobody else comes before it, each time after a new look at the store.
    fn undisturbed<T>(
        &mut self,
        mut once: impl FnMut(&mut Self) -> Result<T, WriteError>,
    ) -> Result<T, WriteError> {
        let mut pause = PAUSE;
        for _ in 0..ATTEMPTS {
            match once(self) {
                Err(WriteError::Conflict) => {
                    thread::sleep(pause.mul_f64(fastrand::f64()));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    self.reload()?;
                }
                done => return done,
            }
        }
        Err(WriteError::Busy)
    }

    /// Writes every blueprint of `source`, if all of them are right.
    ///
    /// # Errors
    /// Nothing was written where the input or an environment that depends on it would be wrong.
    pub fn put(&mut self, source: &Arc<Source>, put: &Put, now: UnixMillis) -> Result<Written, WriteError> {
        let parsed = parse(source);
        if parsed.diagnostics.iter().any(Diagnostic::is_error) {
            return Err(WriteError::Invalid(parsed.diagnostics));
        }
        let mut blueprints = Vec::new();
        for document in &parsed.documents {
            match document {
                Document::Blueprint(blueprint) => blueprints.push(blueprint),
                Document::Attachment(attachment) => {
                    let error = Diagnostic::error(
                        source,
                        attachment.environment.span,
                        "an attachment is no blueprint",
                    );
                    return Err(WriteError::Invalid(vec![
                        error.hint("use `overlane attach ID SERVICE --url URL`"),
                    ]));
                }
            }
        }
        let again = |(at, own): (usize, &&Arc<Blueprint>)| {
            let before = blueprints[..at].iter().any(|before| before.id.value == own.id.value);
            before
                .then(|| Diagnostic::error(source, own.id.span, format!("`{}` is there twice", own.id.value)))
        };
        let twice: Vec<_> = blueprints.iter().enumerate().filter_map(again).collect();
        if !twice.is_empty() {
            return Err(WriteError::Invalid(twice));
        }
        self.undisturbed(|open| open.put_once(source, &blueprints, put, now))
    }

    fn put_once(
        &mut self,
        source: &Arc<Source>,
        blueprints: &[&Arc<Blueprint>],
        put: &Put,
        now: UnixMillis,
    ) -> Result<Written, WriteError> {
        let prepare = |blueprint: &&Arc<Blueprint>| self.prepare(source, blueprint, put, now);
        let writes = blueprints.iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
        let unchanged = self.ancestors(&writes);
        // What depends on one that becomes another one was checked with it: no other may come meanwhile.
        let depended_on = |write: &Prepared| {
            write.outcome == Outcome::Configured
                && self.lineages.children(&write.blueprint.id.value).next().is_some()
        };
        let alone = writes.iter().any(depended_on);
        let warnings = self.check(&writes)?;
        let changed = writes.iter().filter(|write| write.outcome != Outcome::Unchanged && !put.dry_run);
        let mut edits: Vec<_> = changed.map(|write| (write.name.clone(), Some(write.text.clone()))).collect();
        if put.ttl.is_some() && !put.dry_run {
            // Who says how long it lives from now on does not mean at least so long.
            edits.extend(writes.iter().filter_map(|write| self.without_extension(&write.blueprint.id.value)));
        }
        let revision = self.commit(&Edits { edits, unchanged, alone })?;
        let environments = writes.into_iter().map(|write| (write.blueprint, write.outcome)).collect();
        Ok(Written { environments, warnings, revision })
    }

    /// The entries of the ancestors of what is about to be written, where these are not written as well: with the parent
    /// alone, two who move environments below each other could make a cycle.
    fn ancestors(&self, writes: &[Prepared]) -> Vec<String> {
        let mut names = BTreeSet::new();
        for write in writes {
            let mut parent = write.blueprint.parent();
            while let Some(ancestor) = parent.and_then(|id| self.lineages.claims(&id.value).next())
                && names.insert(name_of(&ancestor.source.path).to_owned())
            {
                parent = ancestor.parent();
            }
        }
        let is_written = |name: &String| {
            writes.iter().any(|write| write.name == *name && write.outcome != Outcome::Unchanged)
        };
        names.into_iter().filter(|name| !is_written(name)).collect()
    }

    fn prepare(
        &self,
        source: &Arc<Source>,
        blueprint: &Arc<Blueprint>,
        put: &Put,
        now: UnixMillis,
    ) -> Result<Prepared, WriteError> {
        let id = &blueprint.id.value;
        let parent = blueprint.parent().map(|parent| &parent.value);
        if let Some(flag) = put.parent.as_ref().filter(|flag| Some(*flag) != parent) {
            return Err(WriteError::OtherParent {
                environment: id.clone(),
                flag: flag.clone(),
                file: parent.cloned(),
            });
        }
        if let (Some(renewed), Some(told)) = (blueprint.renewed_for(), put.ttl)
            && renewed != told
        {
            let span = blueprint.ttl.as_ref().map_or(blueprint.id.span, |ttl| ttl.span);
            let error =
                Diagnostic::error(source, span, "another `ttl` than `--ttl`, and it counts from each use");
            return Err(WriteError::Invalid(vec![error.hint("make them agree, or leave `--ttl` out")]));
        }
        let ttl = put.ttl.or(blueprint.ttl.as_ref().map(|ttl| ttl.value)).filter(|_| parent.is_some());
        let text = match ttl {
            Some(ttl) => with_expiry(source, blueprint, now.after(ttl)),
            None => source.text
                [blueprint.span.start as usize..(blueprint.span.end as usize).min(source.text.len())]
                .to_owned(),
        };
        let text = format!("{}\n", text.trim_end());
        self.expect(id, put.only.as_ref())?;
        let known = self.lineages.claims(id).next();
        let (name, outcome) = match known {
            None => (self.new_entry(id, blueprint)?, Outcome::Created),
            Some(_) if put.create => return Err(WriteError::Exists(id.clone())),
            Some(known) => {
                let name = own_entry(id, known)?;
                (name, if known.source.text == text { Outcome::Unchanged } else { Outcome::Configured })
            }
        };
        Ok(Prepared { blueprint: blueprint.clone(), name, text, outcome })
    }

    /// The entry of an environment that is new. What others call so, such as a baseline that is named otherwise than its
    /// id, is not overwritten.
    fn new_entry(&self, id: &EnvironmentId, blueprint: &Blueprint) -> Result<String, WriteError> {
        let name = format!("{id}.yaml");
        let path = self.shown(&name);
        let holds =
            |other: &&EnvironmentId| self.lineages.claims(other).any(|known| *known.source.path == *path);
        match self.lineages.standings().map(|(other, _)| other).find(holds) {
            None => Ok(name),
            Some(other) => {
                let error = Diagnostic::error(
                    &blueprint.source,
                    blueprint.id.span,
                    format!("{path} is where `{other}` is"),
                );
                Err(WriteError::Invalid(vec![
                    error.hint("choose another id, or move that one to an entry of its own id"),
                ]))
            }
        }
    }

    /// Fails where an environment must be in a state in which it is not.
    fn expect(&self, id: &EnvironmentId, only: Option<&Revision>) -> Result<(), WriteError> {
        let now = self.revision(id);
        if only.is_none_or(|only| Some(only) == now.as_ref()) {
            return Ok(());
        }
        Err(WriteError::Changed(id.clone(), now))
    }

    /// Holds what would be written against the whole store; returns the warnings.
    fn check(&mut self, writes: &[Prepared]) -> Result<Vec<Diagnostic>, WriteError> {
        let changes = writes.iter().map(|write| {
            let path: Arc<str> = self.shown(&write.name).into();
            // Places are shown in what the person wrote, which is the same text up to an expiry.
            let source = Arc::new(Source::new(path.clone(), write.text.clone(), None));
            FileChange { path, content: Content::Text(source) }
        });
        let mut applied = self.lineages.apply(changes.collect());
        let overlays = writes.iter().map(|write| &write.blueprint).filter(|own| own.parent().is_some());
        applied.diagnostics.extend(overlays.filter_map(|blueprint| self.without_preview(blueprint)));
        match applied.diagnostics.iter().any(Diagnostic::is_error) {
            true => Err(WriteError::Invalid(applied.diagnostics)),
            false => Ok(applied.diagnostics),
        }
    }

    /// What is wrong with an overlay of which a service could not be seen in a browser.
    fn without_preview(&self, blueprint: &Blueprint) -> Option<Diagnostic> {
        let id = &blueprint.id.value;
        let exposed = self.lineages.exposed(id).into_iter();
        let why = exposed.filter_map(|(service, _)| label(Some(service), id).err()).next()?;
        let error = Diagnostic::error(&blueprint.source, blueprint.id.span, why.to_string()).of(id);
        Some(error.hint("choose a shorter id, or `expose: false` for that service"))
    }

    /// Removes an environment and its attachments; only in the state `only`, where that is given.
    ///
    /// # Errors
    /// It is not there, others have it as parent, or it shares its file.
    pub fn delete(
        &mut self,
        id: &EnvironmentId,
        only: Option<&Revision>,
        dry_run: bool,
    ) -> Result<Outcome, WriteError> {
        self.undisturbed(|open| open.delete_once(id, only, dry_run))
    }

    fn delete_once(
        &mut self,
        id: &EnvironmentId,
        only: Option<&Revision>,
        dry_run: bool,
    ) -> Result<Outcome, WriteError> {
        let Some(known) = self.lineages.claims(id).next() else {
            return Err(WriteError::NotFound(id.to_string()));
        };
        let children: Vec<_> = self.lineages.children(id).cloned().collect();
        if !children.is_empty() {
            return Err(WriteError::HasChildren(id.clone(), children));
        }
        self.expect(id, only)?;
        let name = own_entry(id, known)?;
        let attached = self.own_attachments(id).next().map(|_| attachment_entry(id));
        if !dry_run {
            // Nobody may have become its child meanwhile.
            // In a directory the one goes after the other: what is attached must not be left to the next of that id.
            let edits = attached.into_iter().chain([name]).map(|name| (name, None)).collect();
            self.commit(&Edits { edits, unchanged: Vec::new(), alone: true })?;
        }
        Ok(Outcome::Deleted)
    }

    /// Attaches an address to a service of an environment, or takes it away where `url` is `None`.
    ///
    /// # Errors
    /// The environment does not own the service, or has no such address to take away.
    pub fn attach(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: Option<&Url>,
        dry_run: bool,
    ) -> Result<Outcome, WriteError> {
        self.undisturbed(|open| open.attach_once(id, service, url, None, dry_run))
    }

    /// Attaches an address that is used until then, where nobody renews that.
    ///
    /// # Errors
    /// The environment does not own the service.
    pub fn lease(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: &Url,
        until: UnixMillis,
        dry_run: bool,
    ) -> Result<Outcome, WriteError> {
        self.undisturbed(|open| open.attach_once(id, service, Some(url), Some(until), dry_run))
    }

    /// Has an attached address used until then, at `to` from now on; false where another one is attached by now, or none.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn renew(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: &Url,
        to: &Url,
        until: UnixMillis,
    ) -> Result<bool, WriteError> {
        self.undisturbed(|open| {
            let mut attached = open.attached(id);
            match attached.services.get_mut(service.as_str()) {
                // It may have been renewed already, by a write whose answer was lost.
                Some(own) if own.0 == url.to_string() || own.0 == to.to_string() => {
                    *own = (to.to_string(), Some(until.to_string()));
                }
                _ => return Ok(false),
            }
            open.write_attached(id, &attached)?;
            Ok(true)
        })
    }

    /// Takes an attached address away, if it is this one; whether it was.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn release(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: &Url,
    ) -> Result<bool, WriteError> {
        self.undisturbed(|open| {
            let mut attached = open.attached(id);
            if attached.services.get(service.as_str()).is_none_or(|(own, _)| *own != url.to_string()) {
                return Ok(false);
            }
            attached.services.remove(service.as_str());
            open.write_attached(id, &attached)?;
            Ok(true)
        })
    }

    /// Lets an overlay live until then at least; where it is used only if it did so `at` that time. Returns what became
    /// of it, and until when it lives by itself.
    ///
    /// # Errors
    /// It is not there, or never expires.
    pub fn extend(
        &mut self,
        id: &EnvironmentId,
        until: UnixMillis,
        used: Option<UnixMillis>,
        dry_run: bool,
    ) -> Result<(Outcome, UnixMillis), WriteError> {
        self.undisturbed(|open| {
            let Some(blueprint) = open.lineages.claims(id).next() else {
                return Err(WriteError::NotFound(format!("overlay `{id}`")));
            };
            let written = open.lineages.expiry(blueprint);
            if blueprint.ttl.is_none() && written.is_none() {
                return Err(WriteError::NeverExpires(id.clone()));
            }
            if let Some(lives) = written.filter(|at| *at >= until || used.is_some_and(|used| *at <= used)) {
                return Ok((Outcome::Unchanged, lives));
            }
            let mut attached = open.attached(id);
            attached.expires_at = Some(until.to_string());
            if !dry_run {
                open.write_attached(id, &attached)?;
            }
            Ok((Outcome::Configured, until))
        })
    }

    /// The edit that takes back by how much an overlay was extended.
    fn without_extension(&self, id: &EnvironmentId) -> Option<(String, Option<String>)> {
        let mut attached = self.attached(id);
        attached.expires_at.take()?;
        Some((attachment_entry(id), attachment_text(id, &attached)))
    }

    fn attach_once(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: Option<&Url>,
        until: Option<UnixMillis>,
        dry_run: bool,
    ) -> Result<Outcome, WriteError> {
        let Some(blueprint) = self.lineages.claims(id).next() else {
            return Err(WriteError::NotFound(format!("`{id}`")));
        };
        if !blueprint.services.iter().any(|known| known.name.value == *service) && url.is_some() {
            return Err(WriteError::NotFound(format!("service `{service}` of `{id}`")));
        }
        let mut attached = self.attached(id);
        let all = &mut attached.services;
        let before = all.clone();
        match url {
            Some(url) => {
                all.insert(service.to_string(), (url.to_string(), until.map(|at| at.to_string())));
            }
            None if all.remove(service.as_str()).is_none() => {
                return Err(WriteError::NotFound(format!("address attached to `{service}` of `{id}`")));
            }
            None => {}
        }
        let outcome = match (before == *all, url.is_some(), before.contains_key(service.as_str())) {
            (true, ..) => Outcome::Unchanged,
            (false, false, _) => Outcome::Deleted,
            (false, true, true) => Outcome::Configured,
            (false, true, false) => Outcome::Created,
        };
        if !dry_run && outcome != Outcome::Unchanged {
            self.write_attached(id, &attached)?;
        }
        Ok(outcome)
    }

    /// Notes a link to an overlay that is given away.
    ///
    /// # Errors
    /// The overlay is not there, or cannot be written.
    pub fn share(&mut self, id: &EnvironmentId, share: &NewShare, dry_run: bool) -> Result<(), WriteError> {
        self.undisturbed(|open| open.share_once(id, share, dry_run))
    }

    fn share_once(&mut self, id: &EnvironmentId, share: &NewShare, dry_run: bool) -> Result<(), WriteError> {
        if self.lineages.claims(id).next().is_none() {
            return Err(WriteError::NotFound(format!("`{id}`")));
        }
        let mut attached = self.attached(id);
        let expires_at = share.expires_at.map(|at| at.to_string());
        attached.shares.insert(share.id.clone(), (hex(&share.hash), expires_at));
        if dry_run { Ok(()) } else { self.write_attached(id, &attached) }
    }

    /// Takes a link back, or all links where `share` is `None`; which ones these were.
    ///
    /// # Errors
    /// There is none, it is in a file that this one did not write, or it cannot be written.
    pub fn unshare(
        &mut self,
        id: &EnvironmentId,
        share: Option<&str>,
        dry_run: bool,
    ) -> Result<Vec<String>, WriteError> {
        self.undisturbed(|open| open.unshare_once(id, share, dry_run))
    }

    fn unshare_once(
        &mut self,
        id: &EnvironmentId,
        share: Option<&str>,
        dry_run: bool,
    ) -> Result<Vec<String>, WriteError> {
        let own = self.shown(&attachment_entry(id));
        let wanted = |known: &Share| share.is_none_or(|share| share == &*known.id.value);
        let others = self.lineages.attachments(id).iter().filter(|record| *record.source.path != *own);
        if let Some(record) = others.into_iter().find(|record| record.shares.iter().any(wanted)) {
            return Err(WriteError::Shared(id.clone(), record.source.path.clone()));
        }
        let mut attached = self.attached(id);
        let taken: Vec<_> =
            attached.shares.keys().filter(|own| share.is_none_or(|share| share == *own)).cloned().collect();
        if taken.is_empty() {
            let what =
                share.map_or_else(|| "link that was shared".to_owned(), |share| format!("share `{share}`"));
            return Err(WriteError::NotFound(format!("{what} of `{id}`")));
        }
        attached.shares.retain(|own, _| !taken.contains(own));
        if !dry_run {
            self.write_attached(id, &attached)?;
        }
        Ok(taken)
    }

    /// What the command line attached to an environment.
    fn own_attachments(&self, id: &EnvironmentId) -> impl Iterator<Item = &Arc<Attachment>> {
        let own = self.shown(&attachment_entry(id));
        self.lineages.attachments(id).iter().filter(move |attached| *attached.source.path == *own)
    }

    fn attached(&self, id: &EnvironmentId) -> Attached {
        let mut attached = Attached::default();
        for record in self.own_attachments(id) {
            let services = record.services.iter().map(|one| {
                let until = one.expires_at.map(|at| at.to_string());
                (one.service.value.to_string(), (one.url.value.to_string(), until))
            });
            attached.services.extend(services);
            attached.expires_at = record.expires_at.map(|at| at.to_string());
            let shares = record.shares.iter().map(|share| {
                let expires_at = share.expires_at.map(|at| at.to_string());
                (share.id.value.to_string(), (hex(&share.hash), expires_at))
            });
            attached.shares.extend(shares);
        }
        attached
    }

    fn write_attached(&mut self, id: &EnvironmentId, attached: &Attached) -> Result<(), WriteError> {
        let entry = attachment_entry(id);
        // What cannot be read, or is something else, is not what `attached` was made from: it would be lost.
        if self.kept.revision(&entry).is_some() && self.own_attachments(id).next().is_none() {
            let path: Arc<str> = self.shown(&entry).into();
            let error = Diagnostic::file(&path, "cannot be read, and is not overwritten");
            return Err(WriteError::Invalid(vec![error.hint("mend it, or delete it")]));
        }
        let edits = vec![(attachment_entry(id), attachment_text(id, attached))];
        let environment = self.lineages.claims(id).map(|known| name_of(&known.source.path).to_owned());
        let unchanged = environment.collect();
        self.commit(&Edits { edits, unchanged, alone: false })?;
        Ok(())
    }
}

/// A store that one process writes to again and again. Nobody waits for it in between: a directory is read anew each
/// time, and what several machines share is only read anew where somebody else came before.
pub struct Reopened {
    address: StoreAddress,
    open: Option<OpenStore>,
}

impl Reopened {
    /// It is not opened yet.
    #[must_use]
    pub fn new(address: StoreAddress) -> Self {
        Self { address, open: None }
    }

    /// Does something in the store.
    ///
    /// # Errors
    /// It cannot be opened, or what `with` says.
    pub fn with<T>(
        &mut self,
        mut with: impl FnMut(&mut OpenStore) -> Result<T, WriteError>,
    ) -> Result<T, WriteError> {
        if let Some(mut open) = self.open.take()
            && let Ok(done) = with(&mut open)
        {
            self.open = Some(open);
            return Ok(done);
        }
        // Of what was kept open, the connection may be gone by now.
        let mut open = OpenStore::write(&self.address)?;
        let done = with(&mut open)?;
        self.open = Some(open).filter(|open| matches!(open.kept, Kept::Shared(_)));
        Ok(done)
    }
}

/// The entry of what is attached to an environment.
fn attachment_entry(id: &EnvironmentId) -> String {
    format!("{id}{ATTACHED}")
}

/// The entry of an environment, if it has one of its own.
fn own_entry(id: &EnvironmentId, blueprint: &Blueprint) -> Result<String, WriteError> {
    let path = &blueprint.source.path;
    if parse(&blueprint.source).documents.len() > 1 {
        return Err(WriteError::Shared(id.clone(), path.clone()));
    }
    Ok(name_of(path).to_owned())
}

fn listed(store: Arc<dyn super::shared::Shared>) -> Result<Listed, WriteError> {
    Listed::new(store).map_err(|error| WriteError::Store(Fault(error.to_string())))
}

/// A link that is given away.
#[derive(Debug)]
pub struct NewShare {
    /// By which it is called.
    pub id: String,
    /// The SHA-256 of its secret.
    pub hash: [u8; 32],
    /// Until when it lets anybody in.
    pub expires_at: Option<UnixMillis>,
}

/// An environment that is about to be written.
struct Prepared {
    blueprint: Arc<Blueprint>,
    name: String,
    text: String,
    outcome: Outcome,
}

/// What is attached to an environment: addresses and the ends of their leases by service, by id the hash and the end of
/// what was shared, and until when it was extended.
#[derive(Debug, Default)]
struct Attached {
    expires_at: Option<String>,
    services: BTreeMap<String, (String, Option<String>)>,
    shares: BTreeMap<String, (String, Option<String>)>,
}

/// The text of the record; none where nothing is attached.
fn attachment_text(id: &EnvironmentId, attached: &Attached) -> Option<String> {
    if attached.services.is_empty() && attached.shares.is_empty() && attached.expires_at.is_none() {
        return None;
    }
    let until = |mut value: serde_json::Value, expires_at: &Option<String>| {
        if let Some(at) = expires_at {
            value["expiresAt"] = at.as_str().into();
        }
        value
    };
    let service = |(name, (url, expires_at)): (&String, &(String, Option<String>))| {
        until(serde_json::json!({ "name": name, "url": url }), expires_at)
    };
    let share = |(id, (hash, expires_at)): (&String, &(String, Option<String>))| {
        until(serde_json::json!({ "id": id, "sha256": hash }), expires_at)
    };
    let mut spec = serde_json::Map::new();
    if let Some(at) = &attached.expires_at {
        spec.insert("expiresAt".to_owned(), at.as_str().into());
    }
    let mut add = |name: &str, list: Vec<serde_json::Value>| {
        if !list.is_empty() {
            spec.insert(name.to_owned(), list.into());
        }
    };
    add("services", attached.services.iter().map(service).collect());
    add("shares", attached.shares.iter().map(share).collect());
    let document = serde_json::json!({
        "apiVersion": API_VERSION,
        "kind": "Attachment",
        "metadata": { "name": id.as_str() },
        "spec": spec,
    });
    // Strings, lists and mappings of strings can always be written.
    Some(serde_yaml::to_string(&document).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::store::shared::memory::Memory;

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
    }

    impl Tried {
        fn directory() -> Self {
            let tried = Self::Directory(tempfile::tempdir().expect("folder"));
            tried.put(BASELINE, &Put::default()).expect("baseline");
            tried
        }

        /// One of each kind, with a baseline in it.
        fn each() -> [Self; 2] {
            let memory = Self::Memory(Memory::new());
            memory.put(BASELINE, &Put::default()).expect("baseline");
            [Self::directory(), memory]
        }

        fn path(&self) -> &Path {
            match self {
                Self::Directory(folder) => folder.path(),
                Self::Memory(_) => unreachable!("it is in memory"),
            }
        }

        /// Opened to be written to: nobody else can meanwhile, where it is a directory.
        fn open(&self) -> OpenStore {
            match self {
                Self::Directory(folder) => OpenStore::write(&StoreAddress::directory(folder.path())),
                Self::Memory(memory) => {
                    OpenStore::shared(Listed::new(Arc::new(memory.clone())).expect("runtime"))
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
                Self::Memory(memory) => {
                    let text = memory.text(from);
                    memory.put(to, text.as_deref());
                    memory.put(from, None);
                }
            }
        }

        /// What is written of an environment.
        fn text(&self, of: &str) -> Option<String> {
            Some(self.open().lineages().claims(&id(of)).next()?.source.text.to_string())
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
            assert!(store.open().lineages().is_empty());
        }
    }

    #[test]
    fn what_is_written_only_in_one_state_is_not_in_another() {
        for store in Tried::each() {
            store.put(&overlay("a", "staging"), &Put::default()).expect("a");
            let first = store.open().revision(&id("a"));
            let only = Put { only: first.clone(), ..Put::default() };
            let more = overlay("a", "staging") + "    expose: true\n";
            assert_eq!(store.put(&more, &only).expect("as it was"), Outcome::Configured);
            let second = store.open().revision(&id("a"));
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
            let open = store.open();
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
            assert!(store.open().lineages().attachments(&id("a")).is_empty());
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
            assert_eq!(store.open().lineages().attachments(&id("a"))[0].services.len(), 16);
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
            store
                .put(&text.replace("name: staging", "name: production"), &Put::default())
                .expect("production");
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
    fn an_attached_address_is_renewed_and_released_by_who_attached_it_and_by_nobody_else() {
        let (service, url): (ServiceName, Url) =
            ("web".parse().expect("name"), "http://h:1".parse().expect("url"));
        let other: Url = "http://h:2".parse().expect("url");
        let until = UnixMillis(clock::now().0 / 1000 * 1000).after(Duration::from_secs(3600));
        for tried in Tried::each() {
            tried.put(&overlay("alice", "staging"), &Put::default()).expect("overlay");
            let mut own = Reopened::new(StoreAddress::directory("unused"));
            let lease = || {
                let open = tried.open();
                let records = open.lineages().attachments(&id("alice"));
                records.iter().flat_map(|record| record.services.clone()).next().map(|one| one.expires_at)
            };
            let mut with = |write: &dyn Fn(&mut OpenStore) -> Result<bool, WriteError>| {
                let mut open = own.open.take().unwrap_or_else(|| tried.open());
                let done = write(&mut open);
                // A view that is kept, while others write.
                own.open = Some(open).filter(|open| matches!(open.kept, Kept::Shared(_)));
                done.expect("written")
            };
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
            tried
                .put(&overlay("alice", "staging").replace("sparse", "the same"), &Put::default())
                .expect("put");
            tried.put(&overlay("alice", "staging"), &put).expect("put");
            assert_eq!(extend(NOW, None), (Outcome::Unchanged, over), "`--ttl` says how long from now on");
            tried.put(&overlay("bob", "staging"), &Put::default()).expect("overlay");
            let refused = tried.open().extend(&id("bob"), later, None, false);
            assert!(matches!(refused, Err(WriteError::NeverExpires(_))), "{refused:?}");
        }
    }
}
