//! Stores that several machines share: what an engine must be able to do to be one.
//!
//! Whatever keeps them, they hold entries as a directory holds files: `alice.yaml` is an environment,
//! `alice.attached.yaml` what is attached to it, each with its text. Every write is one compare-and-swap, and whoever
//! follows takes in one listing and then changes. What the texts mean is nobody's business here.

pub mod follow;
#[cfg(test)]
pub(crate) mod memory;
pub mod verdict;
pub mod write;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use overlane_config::lineage::About;
use overlane_config::time::UnixMillis;
use serde::{Deserialize, Serialize};

/// A state of a store, or of one entry: as the engine writes it, to be compared for equality only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Revision(Arc<str>);

impl From<String> for Revision {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<Revision> for String {
    fn from(revision: Revision) -> Self {
        revision.as_str().to_owned()
    }
}

impl Revision {
    /// A state that the engine calls so.
    #[must_use]
    pub fn new(name: impl fmt::Display) -> Self {
        Self(format!("{name}").into())
    }

    /// What the engine calls it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both count the same, so that what is known of one says something of the other.
    #[must_use]
    pub fn is_counted_like(&self, other: &Self) -> bool {
        let (own, others) = (self.0.split(','), other.0.split(','));
        let same = |(own, other)| match (counted(own), counted(other)) {
            (Some((of, _)), Some((of_other, _))) => of == of_other,
            _ => false,
        };
        own.clone().count() == others.clone().count() && own.zip(others).all(same)
    }

    /// Whether this is that state or a later one, as far as can be told: engines count their states, some after the
    /// name of what they count for (`name.7`), and some count several things at once (`7,9`).
    #[must_use]
    pub fn is_at_least(&self, other: &Self) -> bool {
        let (own, others) = (self.0.split(','), other.0.split(','));
        own.clone().count() == others.clone().count()
            && own.zip(others).all(|(own, other)| counts_to(own, other))
    }
}

/// A count, and what it is for.
fn counted(text: &str) -> Option<(&str, u64)> {
    let (of, count) = text.rsplit_once('.').unwrap_or(("", text));
    Some((of, count.parse().ok()?))
}

/// Whether a count is another one or a later one; what is none is equal or not.
fn counts_to(own: &str, other: &str) -> bool {
    match (counted(own), counted(other)) {
        (Some((of, own)), Some((of_other, other))) if of == of_other => own >= other,
        _ => own == other,
    }
}

/// Something that a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, such as `alice.yaml`.
    pub name: String,
    /// Its text: YAML or JSON.
    pub text: String,
    /// When it was written, where the engine says so; a ttl counts from here.
    pub modified: Option<UnixMillis>,
    /// The state in which it is.
    pub revision: Revision,
}

/// All that a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In no order.
    pub entries: Vec<Entry>,
    /// The state of which these are.
    pub revision: Revision,
}

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is new, or another one now.
    Put(Entry),
    /// The entry of this name is gone.
    Gone(String),
}

/// What changed at once; nothing, where an engine only says that it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// In order.
    pub changes: Vec<Change>,
    /// The state after them.
    pub revision: Revision,
}

/// Something to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Write {
    /// The entry's name.
    pub name: String,
    /// The state in which it must be; `None` where it must not be there.
    pub known: Option<Revision>,
    /// Its text from now on; `None` takes it away.
    pub text: Option<String>,
}

/// What is written: all of it or nothing, provided that nobody else came before. An engine without transactions
/// writes one after the other, holds each [`Write::known`], and says so in its documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Commit {
    /// Not empty.
    pub writes: Vec<Write>,
    /// Entries that must still be in these states.
    pub unchanged: Vec<(String, Revision)>,
    /// The state after which no environment may have been written. What is attached to others may have been; whether it is
    /// is the engine's choice.
    pub alone_since: Option<Revision>,
}

/// What a [`Commit`] made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Committed {
    /// The state of the store afterwards.
    pub revision: Revision,
    /// The states of what was written, in its order; `None` where it is gone.
    pub entries: Vec<Option<Revision>>,
}

/// Why a store could not be asked: for people, with the place, and what to do where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// Why a [`Commit`] was not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitError {
    /// Somebody else came before: nothing was written, and a new look at the store says what there is.
    Conflict,
    /// The store refused it, or cannot be asked: nothing was written.
    Fault(Fault),
    /// The answer was lost: it may have been written, or may yet be.
    Unsure(Fault),
}

/// Why following ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchError {
    /// The engine does not remember that state any more: the store is to be listed again.
    Compacted,
    /// It cannot be asked, or not any more.
    Fault(Fault),
}

impl From<Fault> for CommitError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Fault> for WatchError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What is told of a store that is followed.
pub type Watching = BoxStream<'static, Result<Changes, WatchError>>;

/// Whether an entry is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Its name.
    pub name: String,
    /// Of this state of it.
    pub revision: Revision,
    /// What is wrong with it, for people; none where it is in force as it is written.
    pub wrong: Option<String>,
}

/// A store that several machines share. Every method gives up by itself where the engine does not answer.
#[async_trait]
pub trait Shared: Send + Sync {
    /// Where it is, as it is written in `--store`; entries are shown as `{address}/{name}`.
    fn address(&self) -> String;

    /// All that it holds.
    ///
    /// # Errors
    /// It cannot be asked.
    async fn list(&self) -> Result<Listing, Fault>;

    /// What is [around](overlane_config::lineage::Lineages::around) a change, and a state of which it is, where the store can tell: its
    /// paths are entries' names. `None` where all is to be listed.
    ///
    /// # Errors
    /// It cannot be asked.
    async fn around(&self, _about: &About) -> Result<Option<Listing>, Fault> {
        Ok(None)
    }

    /// What changes after a state, in order and without gaps. Never silent for longer than [`follow::SILENCE`]: where
    /// nothing changes, [`Changes`] without a change say so. The stream ends with an error.
    ///
    /// # Errors
    /// It cannot be asked, or does not remember that state.
    async fn watch(&self, after: &Revision) -> Result<Watching, WatchError>;

    /// Whether it has a place for [`Verdict`]s beside what it holds.
    fn takes_verdicts(&self) -> bool {
        false
    }

    /// Says of entries whether they are in force, to whoever looks into the store itself.
    ///
    /// # Errors
    /// It cannot be asked, or we may not say so.
    async fn say(&self, _verdicts: &[Verdict]) -> Result<(), Fault> {
        Ok(())
    }

    /// Writes.
    ///
    /// # Errors
    /// See [`CommitError`].
    async fn commit(&self, commit: &Commit) -> Result<Committed, CommitError>;
}
