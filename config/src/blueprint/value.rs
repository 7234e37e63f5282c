//! A document as it is written, before anybody says what it means: for stores that keep it in another form than text.

use std::sync::Arc;

use super::node::{Documents, Kind, Node};
use crate::diagnostic::Source;

/// A value of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A single value, as it is written; `plain` where it is not quoted, so that it may be a number, a boolean or null.
    Scalar {
        /// Its text.
        text: String,
        /// Whether it is unquoted.
        plain: bool,
    },
    /// A list.
    List(Vec<Value>),
    /// A mapping, in order; each key once.
    Mapping(Vec<(String, Value)>),
}

impl Value {
    /// The value of a field, if this is a mapping that has it.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&Self> {
        match self {
            Self::Mapping(entries) => entries.iter().find(|(key, _)| key == field).map(|(_, value)| value),
            _ => None,
        }
    }
}

impl From<&Node<'_>> for Value {
    fn from(node: &Node<'_>) -> Self {
        match &node.kind {
            Kind::Scalar { text, plain } => Self::Scalar { text: text.to_string(), plain: *plain },
            Kind::List(items) => Self::List(items.iter().map(Self::from).collect()),
            Kind::Mapping(entries) => Self::Mapping(
                entries.iter().map(|(key, value)| (key.text.to_string(), Self::from(value))).collect(),
            ),
        }
    }
}

/// The documents of a source; `None` where one of them cannot be read.
#[must_use]
pub fn values(source: &Arc<Source>) -> Option<Vec<Value>> {
    let read = |tree: Result<super::node::Tree<'_>, _>| {
        tree.ok().filter(|tree| tree.duplicates.is_empty()).map(|tree| Value::from(&tree.root))
    };
    Documents::new(source).map(read).collect()
}
