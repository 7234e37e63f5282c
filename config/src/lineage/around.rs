//! The part of all files by which a change is judged as it would be by all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::resolve::Suggestions;
use super::{Content, File, FileChange, Lineages, Set};
use crate::blueprint::{Document, Parsed};
use crate::diagnostic::Diagnostic;
use crate::name::EnvironmentId;

/// What a change is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The environments that it makes, changes or removes.
    pub changed: Vec<EnvironmentId>,
    /// Those that it only refers to, such as parents.
    pub named: Vec<EnvironmentId>,
    /// The files that it writes or removes, as they are shown.
    pub paths: Vec<String>,
}

impl About {
    /// What is about to be written, where `paths` are told beside.
    #[must_use]
    pub fn text(parsed: &Parsed) -> Self {
        let blueprint = |document: &Document| match document {
            Document::Blueprint(blueprint) => Some(blueprint.clone()),
            Document::Attachment(_) => None,
        };
        let blueprints = parsed.documents.iter().filter_map(blueprint).chain(parsed.doubtful.iter().cloned());
        let named = blueprints.filter_map(|blueprint| Some(blueprint.parent()?.value.clone())).collect();
        let changed = parsed.documents.iter().map(Document::environment).chain(&parsed.broken);
        Self { changed: changed.cloned().collect(), named, paths: Vec::new() }
    }

    /// What both are about.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.changed.extend(other.changed);
        self.named.extend(other.named);
        self.paths.extend(other.paths);
        self
    }

    /// Whether all that another change is about is among it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let named = |id| self.named.contains(id) || self.changed.contains(id);
        other.changed.iter().all(|id| self.changed.contains(id))
            && other.named.iter().all(named)
            && other.paths.iter().all(|path| self.paths.contains(path))
    }
}

impl File {
    fn ids(&self) -> impl Iterator<Item = &EnvironmentId> {
        let documents = self.documents.iter().chain(&self.overruled);
        documents.map(Document::environment).chain(&self.broken)
    }

    /// The parents that it names.
    fn parents(&self) -> impl Iterator<Item = &EnvironmentId> {
        self.documents.iter().chain(&self.overruled).filter_map(|document| match document {
            Document::Blueprint(blueprint) => Some(&blueprint.parent()?.value),
            Document::Attachment(_) => None,
        })
    }
}

impl Lineages {
    /// The files by which a change is judged as it would be by all: those of what it is about, of all that inherits from what it changes,
    /// and of the ancestors of these. They are as who starts anew reads them: what is in force here instead of a bad text is not
    /// known there. Costs what they are, and nothing of others.
    #[must_use]
    pub fn around(&self, about: &About) -> Vec<FileChange> {
        let written = about.paths.iter().filter_map(|path| self.files.get_key_value(path.as_str()));
        // What these say may name other parents than what is in force, by which children are found here.
        let overruled = self.overruled.iter().filter_map(|path| self.files.get_key_value(path));
        let mut files: BTreeMap<&Arc<str>, &File> = written.chain(overruled).collect();
        let mut ids: Vec<_> = about.changed.clone();
        ids.extend(files.values().flat_map(|file| file.ids()).cloned());
        let mut known = self.with_descendants(&mut ids);
        let parents = files.values().flat_map(|file| file.parents());
        for id in about.named.iter().chain(parents).chain(self.probably_meant(about)) {
            if known.insert(id.clone()) {
                ids.push(id.clone());
            }
        }
        let mut at = 0;
        while let Some(id) = ids.get(at).cloned() {
            for (path, file) in self.files_of(&id) {
                if files.insert(path, file).is_none() {
                    ids.extend(file.parents().filter(|parent| known.insert((*parent).clone())).cloned());
                }
            }
            at += 1;
        }
        files.into_iter().filter_map(|(path, file)| file.as_read(path)).collect()
    }

    /// The files that say anything of an environment.
    fn files_of(&self, id: &EnvironmentId) -> impl Iterator<Item = (&Arc<str>, &File)> {
        let claims = self.claims(id).map(|blueprint| &blueprint.source.path);
        let attached = self.attachments(id).iter().map(|attachment| &attachment.source.path);
        let broken = self.broken.get(id).into_iter().flatten();
        claims.chain(attached).chain(broken).filter_map(|path| self.files.get_key_value(path))
    }

    /// What is like those names that nobody has, nor will have: who mistyped one is told. Looks at so many at most.
    fn probably_meant(&self, about: &About) -> Vec<&EnvironmentId> {
        let changed: Set<_> = about.changed.iter().collect();
        let named: BTreeSet<_> = about.named.iter().collect();
        let unknown = |id: &&EnvironmentId| !changed.contains(id) && !self.entries.contains_key(*id);
        let mut names = Suggestions::default();
        let near = |named: &EnvironmentId| {
            let others = self.declared().filter(|known| !changed.contains(known)).map(EnvironmentId::as_str);
            let near = names.nearest(named.as_str(), self.entries.len(), others)?;
            self.entries.get_key_value(near).map(|(id, _)| id)
        };
        named.into_iter().filter(unknown).filter_map(near).collect()
    }
}

impl File {
    /// It as it was last read; none where it never could be.
    fn as_read(&self, path: &Arc<str>) -> Option<FileChange> {
        let text = self.text.clone()?;
        let good = self.broken.is_empty() && !self.diagnostics.iter().any(Diagnostic::is_error);
        let content = match good {
            true => {
                let (documents, diagnostics) = (self.documents.clone(), self.diagnostics.clone());
                Content::Parsed(text, Box::new(Parsed { documents, diagnostics, ..Parsed::default() }))
            }
            false => Content::Text(text),
        };
        Some(FileChange { path: path.clone(), content })
    }
}
