//! Walking a mapping: known fields are taken, what is left over is reported.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use super::node::{Key, Kind, Node};
use crate::diagnostic::{Diagnostic, Source, Span, Spanned, did_you_mean};
use crate::name::printable;

/// The fields of a blueprint that routing acts on, and those of provisioning, which are kept.
pub(super) const ROOT: &[&str] = &[
    "name",
    "routing",
    "services",
    "description",
    "version",
    "labels",
    "annotations",
    "owner",
    "team",
    "tags",
    "plans",
    "plan",
    "autoShutdown",
    "autoShutdownAfter",
    "env",
    "envFrom",
    "volumes",
    "secrets",
    "dependencies",
    "resources",
    "networks",
    "metadata",
    "status",
];
/// The fields of the envelope.
pub(super) const ENVELOPE: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
/// The fields of `metadata`; Kubernetes adds some of its own.
pub(super) const METADATA: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "ownerReferences",
    "managedFields",
    "generateName",
    "selfLink",
];
/// The fields of `routing`.
pub(super) const ROUTING: &[&str] = &[
    "mode",
    "baselineId",
    "overlayId",
    "headerName",
    "propagateHeader",
    "serviceUrl",
    "overlayUrl",
    "ttl",
    "expiresAt",
    "onUnavailable",
    "onUnknown",
    "holdFor",
];
/// The fields of a service.
pub(super) const SERVICE: &[&str] = &[
    "name",
    "url",
    "endpoints",
    "expose",
    "hosts",
    "path",
    "image",
    "description",
    "type",
    "ports",
    "port",
    "env",
    "envFrom",
    "dependsOn",
    "volumes",
    "volumeMounts",
    "secrets",
    "configMaps",
    "command",
    "args",
    "entrypoint",
    "workingDir",
    "resources",
    "replicas",
    "build",
    "labels",
    "annotations",
    "probes",
    "readinessProbe",
    "livenessProbe",
    "startupProbe",
    "healthCheck",
    "healthcheck",
    "imagePullPolicy",
    "serviceAccount",
    "securityContext",
    "restart",
    "user",
];
/// The fields of an attachment.
pub(super) const ATTACHMENT: &[&str] = &["services"];
/// The fields of an attached service.
pub(super) const ATTACHED: &[&str] = &["name", "url"];

/// Where mistakes of one document are collected.
pub(super) struct Problems<'s> {
    pub(super) source: &'s Arc<Source>,
    pub(super) list: Vec<Diagnostic>,
}

impl Problems<'_> {
    pub(super) fn error(&mut self, span: Span, message: impl Into<String>, hint: impl Into<String>) {
        self.list.push(Diagnostic::error(self.source, span, message).hint(hint));
    }

    pub(super) fn warning(&mut self, span: Span, message: impl Into<String>, hint: impl Into<String>) {
        self.list.push(Diagnostic::error(self.source, span, message).warning().hint(hint));
    }

    /// A single value; an error where it is a list or a mapping.
    pub(super) fn scalar<'n>(&mut self, node: &'n Node, name: &str) -> Option<(&'n str, bool)> {
        match &node.kind {
            Kind::Scalar { text, plain } => Some((text, *plain)),
            _ => {
                self.error(
                    node.span,
                    format!("`{name}` is {}, and should be a single value", node.what()),
                    format!("write `{name}: value`"),
                );
                None
            }
        }
    }

    /// A value that is read from its text.
    pub(super) fn value<T: FromStr<Err: Display>>(
        &mut self,
        node: &Node,
        name: &str,
        hint: &str,
    ) -> Option<Spanned<T>> {
        let (text, _) = self.scalar(node, name)?;
        match text.parse() {
            Ok(value) => Some(Spanned { value, span: node.span }),
            Err(why) => {
                self.error(node.span, format!("`{name}`: {why}"), hint);
                None
            }
        }
    }

    /// `true` or `false`, unquoted.
    pub(super) fn boolean(&mut self, node: &Node, name: &str) -> Option<bool> {
        match self.scalar(node, name)? {
            ("true", true) => Some(true),
            ("false", true) => Some(false),
            (text, _) => {
                self.error(
                    node.span,
                    format!("`{name}: {}` is neither true nor false", printable(text, 40)),
                    format!("write `{name}: true` or `{name}: false`, without quotes"),
                );
                None
            }
        }
    }

    /// One word of a closed list.
    pub(super) fn word<T: Copy>(&mut self, node: &Node, name: &str, words: &[(&str, T)]) -> Option<T> {
        let (text, _) = self.scalar(node, name)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let known: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        let hint = match did_you_mean(text, words.iter().map(|(word, _)| *word)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("one of {}", known.join(", ")),
        };
        self.error(node.span, format!("`{name}: {}` is unknown", printable(text, 40)), hint);
        None
    }

    /// The items of a list; an error where it is none.
    pub(super) fn items<'n>(&mut self, node: &'n Node, name: &str, hint: &str) -> &'n [Node] {
        match &node.kind {
            Kind::List(items) => items,
            _ => {
                self.error(node.span, format!("`{name}` is {}, and should be a list", node.what()), hint);
                &[]
            }
        }
    }
}

/// A mapping whose fields are taken one by one.
pub(super) struct Fields<'n> {
    entries: &'n [(Key, Node)],
    known: &'static [&'static str],
}

impl<'n> Fields<'n> {
    /// Opens `node`, whose fields may be `known`; every other one is reported.
    pub(super) fn open(
        node: &'n Node,
        name: &str,
        known: &'static [&'static str],
        problems: &mut Problems<'_>,
    ) -> Self {
        let Kind::Mapping(entries) = &node.kind else {
            problems.error(
                node.span,
                format!("{name} is {}, and should be a mapping", node.what()),
                "write fields as `name: value`, one per line",
            );
            return Self { entries: &[], known };
        };
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.text.as_str())) {
            let hint = match did_you_mean(&key.text, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the fields here are {}", known.join(", ")),
            };
            problems.error(key.span, format!("unknown field `{}` in {name}", printable(&key.text, 60)), hint);
        }
        Self { entries, known }
    }

    /// The value of a field; null counts as absent.
    pub(super) fn get(&self, field: &str) -> Option<&'n Node> {
        debug_assert!(self.known.contains(&field), "{field} is read and not known");
        self.entries
            .iter()
            .find(|(key, _)| key.text == field)
            .map(|(_, value)| value)
            .filter(|value| !value.is_null())
    }
}
