//! What a hub and those who follow it say to each other: JSON, a line for each thing that changed.

use std::borrow::Cow;
use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use overlane_config::lineage::About;
use overlane_config::name::{EnvironmentId, InvalidLabel};
use overlane_config::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::store::mirror::{Kept, Step};
use crate::store::shared::{Entry, Revision};

/// Where entries are listed, and followed with `?after=REVISION`.
pub const ENTRIES: &str = "/hub/v1/entries";
/// Where it is told which of them are around a change.
pub const AROUND: &str = "/hub/v1/around";
/// Where they are written.
pub const COMMIT: &str = "/hub/v1/commit";
/// What lines of entries are.
pub const LINES: &str = "application/x-ndjson";

/// What a change is about: see [`About`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Change {
    changed: Vec<String>,
    named: Vec<String>,
    entries: Vec<String>,
}

impl From<&About> for Change {
    fn from(about: &About) -> Self {
        // Many name the same parent.
        let ids = |ids: &[EnvironmentId]| {
            ids.iter().collect::<BTreeSet<_>>().into_iter().map(ToString::to_string).collect()
        };
        Self { changed: ids(&about.changed), named: ids(&about.named), entries: about.paths.clone() }
    }
}

impl TryFrom<Change> for About {
    type Error = InvalidLabel;

    fn try_from(change: Change) -> Result<Self, InvalidLabel> {
        let ids = |ids: Vec<String>| ids.iter().map(|id| id.parse()).collect::<Result<_, _>>();
        Ok(Self { changed: ids(change.changed)?, named: ids(change.named)?, paths: change.entries })
    }
}

/// A line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line<'a> {
    /// An entry is so from now on.
    Put(Put<'a>),
    /// The entry of this name is gone.
    Gone(Cow<'a, str>),
    /// The state after what was told until here; also said now and then where nothing changes.
    At(Revision),
    /// The reader was too slow: what it missed is not known any more.
    Forgotten,
}

/// See [`Entry`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Put<'a> {
    name: Cow<'a, str>,
    text: Cow<'a, str>,
    /// Milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    modified: Option<u64>,
    revision: Revision,
}

impl<'a> Put<'a> {
    /// An entry as it is kept in memory.
    pub fn of(name: &'a str, kept: &'a Kept) -> Self {
        Self {
            name: name.into(),
            text: kept.source.text.as_str().into(),
            modified: kept.source.modified.map(|at| at.0),
            revision: kept.revision.clone(),
        }
    }
}

impl From<Put<'_>> for Entry {
    fn from(put: Put<'_>) -> Self {
        Self {
            name: put.name.into_owned(),
            text: put.text.into_owned(),
            modified: put.modified.map(UnixMillis),
            revision: put.revision,
        }
    }
}

impl Line<'_> {
    /// Appends it.
    pub fn write(&self, to: &mut BytesMut) {
        // Strings and numbers can always be written, and memory takes them.
        let _ = serde_json::to_writer((&mut *to).writer(), self);
        to.put_u8(b'\n');
    }

    /// It alone.
    #[must_use]
    pub fn alone(&self) -> Bytes {
        let mut line = BytesMut::new();
        self.write(&mut line);
        line.freeze()
    }
}

/// What changed at once.
pub fn step(step: &Step) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, kept) in &step.changes {
        match kept {
            Some(kept) => Line::Put(Put::of(name, kept)).write(&mut lines),
            None => Line::Gone((&**name).into()).write(&mut lines),
        }
    }
    Line::At(step.revision.clone()).write(&mut lines);
    lines.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let put = Put {
            name: "a.yaml".into(),
            text: "name: a\n\"ö\"\n".into(),
            modified: Some(7),
            revision: Revision::new(5),
        };
        for line in
            [Line::Put(put), Line::Gone("a.yaml".into()), Line::At(Revision::new("x.5")), Line::Forgotten]
        {
            let written = line.alone();
            assert!(written.ends_with(b"\n") && written.iter().filter(|byte| **byte == b'\n').count() == 1);
            assert_eq!(serde_json::from_slice::<Line<'_>>(&written).expect("a line"), line);
        }
    }
}
