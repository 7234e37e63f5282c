//! Lineages: what the blueprints of all files mean together.
//!
//! [`Lineages`] keeps what every file says and what stands: each environment is [`Standing::Resolved`],
//! so that every name exists, its lineage ends at a baseline and has no cycle, or it is refused for
//! stated reasons. [`Lineages::apply`] takes changed files and costs what they and the descendants
//! of their environments cost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::blueprint::{Attachment, Blueprint, OnUnknown};
use crate::diagnostic::{Diagnostic, Source};
use crate::name::{EnvironmentId, HeaderName, ServiceName};
use crate::table::Policy;
use crate::time::UnixMillis;
use crate::url::Url;

/// The greatest depth of a lineage: ancestors of an overlay, the baseline included.
pub const MAX_DEPTH: usize = 16;

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
pub struct Lineages { _todo: (HashMap<EnvironmentId, Standing>, BTreeMap<Arc<str>, Source>, Vec<Arc<Attachment>>, Option<ServiceName>) }

impl Lineages {
    /// Takes in changed files.
    pub fn apply(&mut self, changes: Vec<FileChange>) -> Applied { todo!() }
    /// Where `id` stands; `None` where no blueprint has it.
    pub fn standing(&self, id: &EnvironmentId) -> Option<&Standing> { todo!() }
    /// All environments in order of id.
    pub fn standings(&self) -> impl Iterator<Item = (&EnvironmentId, &Standing)> { std::iter::empty() }
    /// Everything that is wrong, file by file.
    pub fn diagnostics(&self) -> Vec<Diagnostic> { todo!() }
    /// The attachments of `id`.
    pub fn attachments(&self, id: &EnvironmentId) -> Vec<Arc<Attachment>> { todo!() }
    /// The children of `id`.
    pub fn children(&self, id: &EnvironmentId) -> Vec<EnvironmentId> { todo!() }
}
impl Standing { /// Depth; a refused one has 0.
 pub fn depth(&self) -> usize { match self { Self::Resolved(r) => r.depth, Self::Refused(_) => 0 } } }
