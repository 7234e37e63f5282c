//! Writing to a directory: checked against the whole store first, whole files only, one writer at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use overlane_config::blueprint::{API_VERSION, Blueprint, Document, Share, hex, parse, with_expiry};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{Content, FileChange, Lineages, Rules};
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::preview::label;
use overlane_config::time::UnixMillis;
use overlane_config::url::Url;

use super::StoreAddress;
use super::read::DirReader;
use crate::clock::Moment;
use crate::cores;

/// The lock that writers hold; its name is none of a blueprint.
const LOCK: &str = ".overlane.lock";

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
    /// What the system says, about a path.
    Io(PathBuf, io::Error),
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
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// Each environment and what became of it.
    pub environments: Vec<(Arc<Blueprint>, Outcome)>,
    /// What may not be as it was meant.
    pub warnings: Vec<Diagnostic>,
}

/// A store that is open, and locked where it may be written to.
pub struct OpenStore {
    path: PathBuf,
    lineages: Lineages,
    /// Held until the store is closed.
    _lock: Option<File>,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |error| WriteError::Io(path, error)
}

impl OpenStore {
    /// Reads a store; a directory that is not there is an empty one.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(store: &StoreAddress) -> Result<Self, WriteError> {
        Self::load(store, None)
    }

    /// Makes the directory where it is not there, takes the writers' lock, and reads the store.
    ///
    /// # Errors
    /// The directory cannot be made, locked or read.
    pub fn write(store: &StoreAddress) -> Result<Self, WriteError> {
        let path = store.path();
        fs::create_dir_all(path).map_err(at(path))?;
        let name = path.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&name).map_err(at(&name))?;
        lock.lock().map_err(at(&name))?;
        Self::load(store, Some(lock))
    }

    fn load(store: &StoreAddress, lock: Option<File>) -> Result<Self, WriteError> {
        let mut reader = DirReader::new(store.path());
        let scan = reader.read_all(Moment::now());
        if let Some(problem) = scan.problem {
            return Err(WriteError::Io(store.path().to_owned(), io::Error::other(problem)));
        }
        // A command cannot know what a running proxy allows: whatever is below `/` may be a socket.
        let mut lineages = Lineages::new(Rules { unix_under: vec!["/".to_owned()] });
        lineages.apply(cores::map(&scan.changes, FileChange::parsed));
        Ok(Self { path: store.path().to_owned(), lineages, _lock: lock })
    }

    /// What the store means.
    #[must_use]
    pub fn lineages(&self) -> &Lineages {
        &self.lineages
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
        let mut writes = Vec::new();
        for document in &parsed.documents {
            match document {
                Document::Blueprint(blueprint) => writes.push(self.prepare(source, blueprint, put, now)?),
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
        let warnings = self.check(&writes)?;
        for write in writes.iter().filter(|write| write.outcome != Outcome::Unchanged && !put.dry_run) {
            self.write_file(&write.path, write.text.as_bytes())?;
        }
        let environments = writes.into_iter().map(|write| (write.blueprint, write.outcome)).collect();
        Ok(Written { environments, warnings })
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
        let ttl = put.ttl.or(blueprint.ttl.as_ref().map(|ttl| ttl.value)).filter(|_| parent.is_some());
        let text = match ttl {
            Some(ttl) => with_expiry(source, blueprint, now.after(ttl)),
            None => source.text
                [blueprint.span.start as usize..(blueprint.span.end as usize).min(source.text.len())]
                .to_owned(),
        };
        let text = format!("{}\n", text.trim_end());
        let known = self.lineages.claims(id).next();
        let (path, outcome) = match known {
            None => (self.path.join(format!("{id}.yaml")), Outcome::Created),
            Some(_) if put.create => return Err(WriteError::Exists(id.clone())),
            Some(known) => {
                let path = self.own_file(id, known)?;
                (path, if known.source.text == text { Outcome::Unchanged } else { Outcome::Configured })
            }
        };
        Ok(Prepared { blueprint: blueprint.clone(), path, text, outcome })
    }

    /// The file of an environment, if it has one of its own.
    fn own_file(&self, id: &EnvironmentId, blueprint: &Blueprint) -> Result<PathBuf, WriteError> {
        let path = &blueprint.source.path;
        if parse(&blueprint.source).documents.len() > 1 {
            return Err(WriteError::Shared(id.clone(), path.clone()));
        }
        Ok(PathBuf::from(&**path))
    }

    /// Holds what would be written against the whole store; returns the warnings.
    fn check(&mut self, writes: &[Prepared]) -> Result<Vec<Diagnostic>, WriteError> {
        let changes = writes.iter().map(|write| {
            let path: Arc<str> = write.path.display().to_string().into();
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

    /// Removes an environment and its attachments.
    ///
    /// # Errors
    /// It is not there, others have it as parent, or it shares its file.
    pub fn delete(&mut self, id: &EnvironmentId, dry_run: bool) -> Result<Outcome, WriteError> {
        let Some(known) = self.lineages.claims(id).next() else {
            return Err(WriteError::NotFound(id.to_string()));
        };
        let children: Vec<_> = self.lineages.children(id).cloned().collect();
        if !children.is_empty() {
            return Err(WriteError::HasChildren(id.clone(), children));
        }
        let path = self.own_file(id, known)?;
        let attached = self.attachment_file(id);
        if !dry_run {
            fs::remove_file(&path).map_err(at(&path))?;
            if attached.exists() {
                fs::remove_file(&attached).map_err(at(&attached))?;
            }
            self.sync_directory()?;
            self.lineages.apply(
                [path, attached]
                    .map(|path| FileChange {
                        path: path.display().to_string().into(),
                        content: Content::Gone,
                    })
                    .into(),
            );
        }
        Ok(Outcome::Deleted)
    }

    fn attachment_file(&self, id: &EnvironmentId) -> PathBuf {
        self.path.join(format!("{id}.attached.yaml"))
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
                all.insert(service.to_string(), url.to_string());
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
        let own = self.attachment_file(id).display().to_string();
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
    fn attached(&self, id: &EnvironmentId) -> Attached {
        let shown = self.attachment_file(id).display().to_string();
        let own = self.lineages.attachments(id).iter().filter(|attached| *attached.source.path == *shown);
        let mut attached = Attached::default();
        for record in own {
            let services = record.services.iter();
            attached
                .services
                .extend(services.map(|(name, url)| (name.value.to_string(), url.value.to_string())));
            let shares = record.shares.iter().map(|share| {
                let expires_at = share.expires_at.map(|at| at.to_string());
                (share.id.value.to_string(), (hex(&share.hash), expires_at))
            });
            attached.shares.extend(shares);
        }
        attached
    }

    fn write_attached(&self, id: &EnvironmentId, attached: &Attached) -> Result<(), WriteError> {
        let path = self.attachment_file(id);
        if attached.services.is_empty() && attached.shares.is_empty() {
            fs::remove_file(&path).map_err(at(&path))?;
            return self.sync_directory();
        }
        self.write_file(&path, attachment_text(id, attached).as_bytes())
    }

    /// Writes beside, syncs, renames: a reader sees the old file or the new one, and so does a
    /// machine that lost power.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
        let mut beside =
            tempfile::Builder::new().prefix(".overlane-").tempfile_in(&self.path).map_err(at(path))?;
        let mode = fs::metadata(path)
            .map(|metadata| metadata.permissions())
            .unwrap_or_else(|_| std::os::unix::fs::PermissionsExt::from_mode(0o644));
        beside.as_file().set_permissions(mode).map_err(at(path))?;
        beside.write_all(bytes).and_then(|()| beside.as_file().sync_all()).map_err(at(path))?;
        beside.persist(path).map_err(|error| WriteError::Io(path.to_owned(), error.error))?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> Result<(), WriteError> {
        File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(at(&self.path))
    }
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
    path: PathBuf,
    text: String,
    outcome: Outcome,
}

/// What is attached to an environment: addresses by service, and by id the hash and the end of what was shared.
#[derive(Debug, Default)]
struct Attached {
    services: BTreeMap<String, String>,
    shares: BTreeMap<String, (String, Option<String>)>,
}

fn attachment_text(id: &EnvironmentId, attached: &Attached) -> String {
    let services =
        attached.services.iter().map(|(name, url)| serde_json::json!({ "name": name, "url": url }));
    let share = |(id, (hash, expires_at)): (&String, &(String, Option<String>))| {
        let mut share = serde_json::json!({ "id": id, "sha256": hash });
        if let Some(at) = expires_at {
            share["expiresAt"] = at.as_str().into();
        }
        share
    };
    let mut spec = serde_json::Map::new();
    let mut add = |name: &str, list: Vec<serde_json::Value>| {
        if !list.is_empty() {
            spec.insert(name.to_owned(), list.into());
        }
    };
    add("services", services.collect());
    add("shares", attached.shares.iter().map(share).collect());
    let document = serde_json::json!({
        "apiVersion": API_VERSION,
        "kind": "Attachment",
        "metadata": { "name": id.as_str() },
        "spec": spec,
    });
    // Strings, lists and mappings of strings can always be written.
    serde_yaml::to_string(&document).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn store() -> (tempfile::TempDir, StoreAddress) {
        let folder = tempfile::tempdir().expect("folder");
        let address = StoreAddress::directory(folder.path().join("environments"));
        put(&address, BASELINE, &Put::default()).expect("baseline");
        (folder, address)
    }

    fn put(store: &StoreAddress, text: &str, put: &Put) -> Result<Outcome, WriteError> {
        let written = OpenStore::write(store)?.put(&source(text), put, NOW)?;
        Ok(written.environments[0].1)
    }

    fn id(text: &str) -> EnvironmentId {
        text.parse().expect("id")
    }

    #[test]
    fn apply_creates_configures_and_leaves_alone() {
        let (_folder, store) = store();
        assert_eq!(put(&store, &overlay("a", "staging"), &Put::default()).expect("new"), Outcome::Created);
        assert_eq!(put(&store, &overlay("a", "staging"), &Put::default()).expect("same"), Outcome::Unchanged);
        let more = overlay("a", "staging") + "    expose: true\n";
        assert_eq!(put(&store, &more, &Put::default()).expect("other"), Outcome::Configured);
        assert_eq!(fs::read_to_string(store.path().join("a.yaml")).expect("file"), more);
        let create = Put { create: true, ..Put::default() };
        assert!(matches!(put(&store, &more, &create), Err(WriteError::Exists(_))));
    }

    #[test]
    fn what_would_be_wrong_is_not_written() {
        let (_folder, store) = store();
        assert!(matches!(put(&store, &overlay("a", "stagin"), &Put::default()), Err(WriteError::Invalid(_))));
        assert!(matches!(put(&store, "name: [", &Put::default()), Err(WriteError::Invalid(_))));
        let other = Put { parent: Some(id("production")), ..Put::default() };
        assert!(matches!(put(&store, &overlay("a", "staging"), &other), Err(WriteError::OtherParent { .. })));
        let dry = Put { dry_run: true, ..Put::default() };
        assert_eq!(put(&store, &overlay("a", "staging"), &dry).expect("dry"), Outcome::Created);
        assert!(!store.path().join("a.yaml").exists());
    }

    #[test]
    fn what_is_written_carries_an_absolute_expiry_and_keeps_its_comments() {
        let (_folder, store) = store();
        let ttl = Put { ttl: Some(Duration::from_secs(3600)), ..Put::default() };
        put(&store, &overlay("a", "staging"), &ttl).expect("written");
        let text = fs::read_to_string(store.path().join("a.yaml")).expect("file");
        let expected =
            overlay("a", "staging").replace("  mode:", "  expiresAt: \"2027-01-15T09:00:00Z\"\n  mode:");
        assert_eq!(text, expected);
        put(&store, &text, &Put { ttl: Some(Duration::from_secs(7200)), ..Put::default() }).expect("again");
        let text = fs::read_to_string(store.path().join("a.yaml")).expect("file");
        assert_eq!(text, expected.replace("09:00", "10:00"));
    }

    #[test]
    fn deleting_a_baseline_with_overlays_names_them() {
        let (_folder, store) = store();
        put(&store, &overlay("a", "staging"), &Put::default()).expect("a");
        put(&store, &overlay("b", "a"), &Put::default()).expect("b");
        let mut open = OpenStore::write(&store).expect("open");
        assert!(
            matches!(open.delete(&id("staging"), false), Err(WriteError::HasChildren(_, names)) if names == [id("a")])
        );
        assert!(matches!(open.delete(&id("a"), false), Err(WriteError::HasChildren(..))));
        for name in ["b", "a", "staging"] {
            open.delete(&id(name), false).expect(name);
        }
        assert!(matches!(open.delete(&id("a"), false), Err(WriteError::NotFound(_))));
    }

    #[test]
    fn attachments_are_records_of_their_own_and_survive_apply() {
        let (_folder, store) = store();
        put(&store, &overlay("a", "staging"), &Put::default()).expect("a");
        let web: ServiceName = "web".parse().expect("name");
        let url: Url = "http://127.0.0.1:9".parse().expect("url");
        let attach = |service: &ServiceName, url| {
            OpenStore::write(&store).expect("open").attach(&id("a"), service, url, false)
        };
        assert_eq!(attach(&web, Some(&url)).expect("attach"), Outcome::Created);
        assert_eq!(attach(&web, Some(&url)).expect("again"), Outcome::Unchanged);
        put(&store, &(overlay("a", "staging") + "    expose: true\n"), &Put::default()).expect("apply");
        let open = OpenStore::read(&store).expect("open");
        let urls =
            &open.lineages().standing(&id("a")).and_then(|standing| standing.resolved()).expect("a").urls;
        assert_eq!(urls[0][0], url);
        assert!(matches!(attach(&"ledger".parse().expect("name"), Some(&url)), Err(WriteError::NotFound(_))));
        assert_eq!(attach(&web, None).expect("detach"), Outcome::Deleted);
        assert!(matches!(attach(&web, None), Err(WriteError::NotFound(_))));
    }

    #[test]
    fn a_file_with_several_documents_is_read_and_never_edited() {
        let (_folder, store) = store();
        fs::write(
            store.path().join("many.yaml"),
            format!("{}---\n{}", overlay("a", "staging"), overlay("b", "staging")),
        )
        .expect("file");
        let more = overlay("a", "staging") + "    expose: true\n";
        assert!(matches!(put(&store, &more, &Put::default()), Err(WriteError::Shared(..))));
        assert!(matches!(
            OpenStore::write(&store).expect("open").delete(&id("a"), false),
            Err(WriteError::Shared(..))
        ));
    }

    #[test]
    fn two_writers_at_once_lose_nothing() {
        let (_folder, store) = store();
        put(
            &store,
            &overlay("a", "staging").replace(
                "  - name: web\n",
                &(0..16).map(|n| format!("  - name: s{n}\n")).collect::<String>(),
            ),
            &Put::default(),
        )
        .expect("a");
        std::thread::scope(|scope| {
            for n in 0..16 {
                let store = &store;
                scope.spawn(move || {
                    let service: ServiceName = format!("s{n}").parse().expect("name");
                    let url: Url = format!("http://127.0.0.1:{}", 1000 + n).parse().expect("url");
                    OpenStore::write(store)
                        .expect("open")
                        .attach(&id("a"), &service, Some(&url), false)
                        .expect("attach");
                });
            }
        });
        let open = OpenStore::read(&store).expect("open");
        assert_eq!(open.lineages().attachments(&id("a"))[0].services.len(), 16);
    }
}
