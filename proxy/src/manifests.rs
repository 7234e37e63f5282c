//! Manifests of others: Kubernetes' objects and compose files, read, changed and made.
//!
//! What a manifest means is a [`Value`]; changes are made there, and `rewrite` brings them into the text, so that
//! comments and layout stay. Nothing here knows a store, a proxy that runs, or a cluster: text goes in, and text comes out.

pub mod files;
pub mod import;
pub mod inject;
pub mod objects;
mod places;
pub mod render;
mod rewrite;
pub mod sidecar;

use std::fmt;

use serde_yaml::Value;

/// What is wrong with a manifest, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where, and what is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Mistake {
    /// Something wrong at a place: a file, a document, an object.
    #[must_use]
    pub fn at(place: impl fmt::Display, what: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self { message: format!("{place}: {what}"), hint: hint.into() }
    }
}

/// Fields of fields.
pub(crate) trait Fields {
    /// The value at a path of field names with dots between them.
    fn at(&self, path: &str) -> Option<&Value>;
    /// The text at a path.
    fn text(&self, path: &str) -> Option<&str>;
    /// The items of the list at a path; none where it is not there.
    fn items(&self, path: &str) -> &[Value];
    /// The list at a path, to be changed, where it is there.
    fn items_mut(&mut self, path: &str) -> Option<&mut Vec<Value>>;
    /// The value at a path, to be changed, where it is there.
    fn at_mut(&mut self, path: &str) -> Option<&mut Value>;
}

impl Fields for Value {
    fn at(&self, path: &str) -> Option<&Value> {
        path.split('.').filter(|field| !field.is_empty()).try_fold(self, |value, field| value.get(field))
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.at(path).and_then(Value::as_str)
    }

    fn items(&self, path: &str) -> &[Value] {
        self.at(path).and_then(Value::as_sequence).map_or(&[], Vec::as_slice)
    }

    fn items_mut(&mut self, path: &str) -> Option<&mut Vec<Value>> {
        self.at_mut(path)?.as_sequence_mut()
    }

    fn at_mut(&mut self, path: &str) -> Option<&mut Value> {
        path.split('.').filter(|field| !field.is_empty()).try_fold(self, |value, field| value.get_mut(field))
    }
}

#[cfg(test)]
mod tests;
