//! A store that is open for one command: what is written is checked against the whole store first, whatever keeps it; where this process
//! follows it, against the part that matters.

mod attached;
mod reopened;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use foldhash::fast::RandomState;
use overlane_config::blueprint::{Blueprint, Document, parse, with_expiry};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{About, Content, FileChange, Lineages, Rules};
use overlane_config::name::EnvironmentId;
use overlane_config::preview::label;
use overlane_config::time::UnixMillis;

use super::directory::read::is_blueprint;
use super::directory::write::{At, Directory};
use super::mirror::{self, Mirror, revision_of};
use super::shared::follow::name_of;
use super::shared::write::Listed;
use super::shared::{Commit, CommitError, Committed, Fault, Revision, Write};
use super::{Reached, StoreAddress};
use crate::pauses::Pauses;
use crate::{clock, cores};

pub use attached::NewShare;
use attached::attachment_entry;
pub(super) use attached::is_attachment;
pub use reopened::Reopened;

/// How often a write is tried where others write at the same time.
const ATTEMPTS: u32 = 20;
/// How long it waits before the second attempt, at most.
const PAUSE: Duration = Duration::from_millis(20);
/// And before any.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The longest name of an entry, in bytes: that of a file.
const MAX_NAME: usize = 255;

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
    /// Its answer was lost: it may have been written.
    Unsure(Fault),
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
            CommitError::Unsure(fault) => Self::Unsure(fault),
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
    /// Fail where it does not exist.
    pub there: bool,
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
    /// Where only a part of it is looked at: for what that was done last. Paths are entries' names in it.
    about: Option<About>,
    /// Whether all was read nevertheless.
    whole: bool,
}

/// What keeps it.
enum Kept {
    /// And the files that were read, by name.
    Directory(Box<Directory>, HashMap<String, Arc<Source>, RandomState>),
    Shared(Box<Listed>),
}

impl Kept {
    fn directory(directory: Directory) -> Self {
        Self::Directory(Box::new(directory), HashMap::default())
    }

    /// The state of an entry.
    fn revision(&self, name: &str) -> Option<Revision> {
        match self {
            Self::Directory(_, texts) => Some(revision_of(&texts.get(name)?.text)),
            Self::Shared(listed) => listed.revision(name).cloned(),
        }
    }
}

/// Takes in files of a directory: those that could be read, by name.
fn take(texts: &mut HashMap<String, Arc<Source>, RandomState>, changes: &[FileChange]) {
    for change in changes {
        let name = name_of(&change.path);
        match &change.content {
            Content::Text(source) => drop(texts.insert(name.to_owned(), source.clone())),
            _ => drop(texts.remove(name)),
        }
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

/// What a change of an environment is about.
fn about(id: &EnvironmentId) -> About {
    let paths = vec![format!("{id}.yaml"), attachment_entry(id)];
    About { changed: vec![id.clone()], paths, ..About::default() }
}

/// What a change of an entry is about, that was parsed.
fn about_entry(change: &FileChange) -> About {
    let text = match &change.content {
        Content::Parsed(_, parsed) => About::text(parsed),
        _ => About::default(),
    };
    About { paths: vec![name_of(&change.path).to_owned()], ..text }
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

/// What a command allows in blueprints: it cannot know what a running proxy does, so that whatever is below `/` may be a
/// socket.
pub(crate) fn rules() -> Rules {
    Rules { unix_under: vec!["/".to_owned()] }
}

impl OpenStore {
    /// Reads a store; a directory that is not there is an empty one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(store: &StoreAddress) -> Result<Self, WriteError> {
        match store.reach()? {
            Reached::Directory(path) => Self::directory(Directory::read(path)),
            Reached::Shared(store) => Self::shared(listed(store)?),
        }
    }

    /// Reads a store that will be written to. A directory is made where it is not there, and locked.
    ///
    /// # Errors
    /// It cannot be read, or the directory not be made or locked.
    pub fn write(store: &StoreAddress) -> Result<Self, WriteError> {
        match store.reach()? {
            Reached::Directory(path) => Self::directory(Directory::lock(path)?),
            Reached::Shared(store) => Self::shared(listed(store)?),
        }
    }

    /// The same for who changes what it knows by name: of a store that can tell, such as a hub, only what that depends on is read,
    /// once it is known.
    ///
    /// # Errors
    /// See [`OpenStore::write`].
    pub fn change(store: &StoreAddress) -> Result<Self, WriteError> {
        match store.reach()? {
            Reached::Directory(path) => Self::directory(Directory::lock(path)?),
            Reached::Shared(store) => Ok(Self::part(listed(store)?)),
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

    /// A store that several machines share, of which nothing is known until it is [looked at](OpenStore::look_at) or written to.
    #[must_use]
    pub fn part(store: Listed) -> Self {
        let kept = Kept::Shared(Box::new(store));
        Self { kept, lineages: Lineages::default(), about: Some(About::default()), whole: false }
    }

    fn load(kept: Kept) -> Result<Self, WriteError> {
        let mut open = Self { kept, lineages: Lineages::default(), about: None, whole: true };
        open.reload()?;
        Ok(open)
    }

    /// Reads all of it, where only a part was looked at.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_all(&mut self) -> Result<(), WriteError> {
        if self.about.take().is_some() && !self.whole { self.reload() } else { Ok(()) }
    }

    /// Looks at what decides about a change, where that was not done already.
    fn look(&mut self, about: About) -> Result<(), WriteError> {
        if self.about.as_ref().is_none_or(|known| known.covers(&about)) {
            return Ok(());
        }
        self.about = Some(about);
        if self.whole { Ok(()) } else { self.reload() }
    }

    /// Looks at an environment: what it means is known then, and in which state it is.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn look_at(&mut self, id: &EnvironmentId) -> Result<(), WriteError> {
        self.look(about(id))
    }

    fn reload(&mut self) -> Result<(), WriteError> {
        let changes = match &mut self.kept {
            Kept::Directory(directory, texts) => {
                let changes = directory.list()?;
                texts.clear();
                take(texts, &changes);
                changes
            }
            Kept::Shared(listed) => {
                let part = self.about.as_ref().map(|about| listed.around(about)).transpose()?.flatten();
                // Where nobody can tell what belongs to it, or not now.
                self.whole = part.is_none();
                part.map_or_else(|| listed.list(), Ok)?
            }
        };
        self.lineages = Lineages::new(rules());
        self.lineages.apply_at(cores::map(&changes, FileChange::parsed), clock::now());
        Ok(())
    }

    /// Lets others write to a directory, until it is [entered](OpenStore::enter) again.
    fn leave(&mut self) {
        if let Kept::Directory(directory, _) = &mut self.kept {
            directory.leave();
        }
    }

    /// Locks a directory again that was left, and reads what changed meanwhile. What several machines share is as it was read: a
    /// write says whether it still is.
    fn enter(&mut self) -> Result<(), WriteError> {
        let Kept::Directory(directory, texts) = &mut self.kept else { return Ok(()) };
        directory.enter()?;
        let changes = directory.changes()?;
        take(texts, &changes);
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
            Kept::Directory(directory, texts) => {
                // What is not there need not go.
                let changed =
                    |(name, text): &&(String, Option<String>)| text.is_some() || texts.contains_key(name);
                for (name, text) in edits.edits.iter().filter(changed) {
                    directory.put(name, text.as_deref())?;
                }
                None
            }
            Kept::Shared(listed) => Some(listed.commit(&edits.edits, &edits.unchanged, edits.alone)?),
        };
        let changes: Vec<_> = edits.edits.iter().map(|(name, text)| self.file(name, text.clone())).collect();
        if let Kept::Directory(_, texts) = &mut self.kept {
            take(texts, &changes);
        }
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
        let changes: Vec<_> =
            commit.writes.iter().map(|write| self.file(&write.name, write.text.clone())).collect();
        let parsed = cores::map(&changes, FileChange::parsed);
        self.look(parsed.iter().map(about_entry).fold(About::default(), About::and))?;
        if !self.stands(commit, mirror) {
            return Err(WriteError::Conflict);
        }
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
        let unchanged = commit.unchanged.iter().all(|(name, known)| match &self.kept {
            Kept::Directory(..) => self.kept.revision(name).as_ref() == Some(known),
            Kept::Shared(listed) => listed.is_in(name, known),
        });
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
        for name in self.ancestors(written.iter().map(|blueprint| &**blueprint)) {
            let told = commit.writes.iter().any(|write| write.name == name)
                || commit.unchanged.iter().any(|(known, _)| *known == name);
            let revision = listed.revision(&name).filter(|_| !told);
            commit.unchanged.extend(revision.map(|revision| (name, revision.clone())));
        }
        let goes = |write: &Write| write.text.is_none() && !is_attachment(&write.name);
        if commit.alone_since.is_none() && commit.writes.iter().any(goes) {
            commit.alone_since = listed.whole_revision().cloned();
        }
        commit
    }

    /// An entry that is another one from now on, or gone.
    fn file(&self, name: &str, text: Option<String>) -> FileChange {
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
        let mut pauses = Pauses::new(PAUSE, LONGEST_PAUSE);
        for _ in 0..ATTEMPTS {
            match once(self) {
                Err(WriteError::Conflict) => {
                    thread::sleep(pauses.next());
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
        let own = blueprints.iter().map(|blueprint| about(&blueprint.id.value));
        self.look(own.fold(About::text(&parsed), About::and))?;
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
        let is_written = |name: &String| {
            writes.iter().any(|write| write.name == *name && write.outcome != Outcome::Unchanged)
        };
        let ancestors = self.ancestors(writes.iter().map(|write| &*write.blueprint)).into_iter();
        let unchanged = ancestors.filter(|name| !is_written(name)).collect();
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

    /// The entries of the ancestors of what is about to be written, on which it depends: with the parent alone, two who
    /// move environments below each other could make a cycle.
    fn ancestors<'b>(&self, written: impl IntoIterator<Item = &'b Blueprint>) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for blueprint in written {
            let mut parent = blueprint.parent();
            while let Some(ancestor) = parent.and_then(|id| self.lineages.claims(&id.value).next())
                && names.insert(name_of(&ancestor.source.path).to_owned())
            {
                parent = ancestor.parent();
            }
        }
        names
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
            None if put.there => return Err(WriteError::Changed(id.clone(), None)),
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
        self.look_at(id)?;
        self.undisturbed(|open| open.delete_once(id, only, dry_run))
    }

    /// Removes an overlay that by itself expired before a time; whether it did. What others inherit from is left, and what is in a
    /// file with others. What is looked at here are texts as they were last read; `needed` says whether anything else is known by
    /// which it [may be needed](Lineages::may_be_needed), such as what is in force instead of a bad text.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn remove_expired(
        &mut self,
        id: &EnvironmentId,
        before: UnixMillis,
        needed: impl Fn() -> bool,
    ) -> Result<bool, WriteError> {
        self.look_at(id)?;
        let removed = self.undisturbed(|open| {
            let overlay = open.lineages.claims(id).next().filter(|known| known.parent().is_some());
            let ends = overlay.and_then(|overlay| open.lineages.expiry(overlay));
            // What cannot be read may extend it.
            let stays = || open.is_attached_in_doubt(id) || open.lineages.may_be_needed(id) || needed();
            match ends.is_some_and(|at| at <= before) && !stays() {
                true => open.delete_once(id, None, false),
                false => Ok(Outcome::Unchanged),
            }
        });
        match removed {
            Ok(outcome) => Ok(outcome == Outcome::Deleted),
            Err(WriteError::Shared(..)) => Ok(false),
            Err(error) => Err(error),
        }
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
        // Also where nothing is attached: nothing may have come meanwhile. What is something else stays.
        let attached = Some(attachment_entry(id)).filter(|_| !self.is_attached_in_doubt(id));
        if !dry_run {
            // In a directory the one goes after the other: what is attached must not be left to the next of that id.
            let edits = attached.into_iter().chain([name]).map(|name| (name, None)).collect();
            // Nobody may have become its child meanwhile.
            self.commit(&Edits { edits, unchanged: Vec::new(), alone: true })?;
        }
        Ok(Outcome::Deleted)
    }
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

/// An environment that is about to be written.
struct Prepared {
    blueprint: Arc<Blueprint>,
    name: String,
    text: String,
    outcome: Outcome,
}

#[cfg(test)]
mod tests;
