//! The names of all fields, and the walk over a mapping that takes the known and reports the rest.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use super::MAX_MISTAKES;
use super::node::{Key, Kind, Node};
use crate::diagnostic::{Diagnostic, Location, Source, Span, Spanned, did_you_mean};
use crate::name::printable;

/// The fields of a blueprint: those that routing acts on, and those of provisioning, which are kept.
pub const ROOT: &[&str] = &[
    "name",
    "routing",
    "services",
    "annotations",
    "autoShutdown",
    "autoShutdownAfter",
    "dependencies",
    "description",
    "env",
    "envFrom",
    "labels",
    "metadata",
    "networks",
    "owner",
    "plan",
    "plans",
    "resources",
    "secrets",
    "status",
    "tags",
    "team",
    "version",
    "volumes",
];
/// The fields of the envelope.
pub(super) const ENVELOPE: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
/// The fields of `metadata`; Kubernetes adds some of its own.
pub(super) const METADATA: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];
/// The fields of `routing`.
pub const ROUTING: &[&str] = &[
    "mode",
    "baselineId",
    "overlayId",
    "headerName",
    "propagateHeader",
    "serviceUrl",
    "overlayUrl",
    "previewUrl",
    "ttl",
    "ttlFrom",
    "expiresAt",
    "onUnavailable",
    "onUnknown",
    "holdFor",
];
/// The fields of a service: those that routing acts on, and those of provisioning, which are kept.
pub const SERVICE: &[&str] = &[
    "name",
    "url",
    "endpoints",
    "expose",
    "hosts",
    "path",
    "maxRequests",
    "image",
    "annotations",
    "args",
    "build",
    "command",
    "configMaps",
    "database",
    "dependsOn",
    "description",
    "entrypoint",
    "env",
    "envFrom",
    "healthCheck",
    "healthcheck",
    "imagePullPolicy",
    "labels",
    "livenessProbe",
    "port",
    "ports",
    "probes",
    "readinessProbe",
    "replicas",
    "resources",
    "restart",
    "secrets",
    "securityContext",
    "serviceAccount",
    "startupProbe",
    "type",
    "user",
    "volumeMounts",
    "volumes",
    "workingDir",
];
/// The fields of an attachment.
pub const ATTACHMENT: &[&str] = &["expiresAt", "services", "shares"];
/// The fields of an attached service.
pub const ATTACHED: &[&str] = &["name", "url", "expiresAt"];
/// The fields of a share.
pub const SHARE: &[&str] = &["id", "sha256", "expiresAt"];

/// Every field that is read, by where it stands; a schema has to know the same.
pub const KNOWN_FIELDS: &[(&str, &[&str])] = &[
    ("blueprint", ROOT),
    ("envelope", ENVELOPE),
    ("metadata", METADATA),
    ("routing", ROUTING),
    ("service", SERVICE),
    ("attachment", ATTACHMENT),
    ("attached", ATTACHED),
    ("share", SHARE),
];

/// Where the mistakes of one document are collected.
pub(super) struct Problems<'s> {
    pub(super) source: &'s Arc<Source>,
    /// At most [`MAX_MISTAKES`] of them.
    pub(super) list: Vec<Diagnostic>,
    /// Whether any was an error.
    pub(super) fatal: bool,
    /// How many there are that are not in the list.
    pub(super) unlisted: usize,
}

impl<'s> Problems<'s> {
    pub(super) fn new(source: &'s Arc<Source>) -> Self {
        Self { source, list: Vec::new(), fatal: false, unlisted: 0 }
    }

    pub(super) fn error(&mut self, span: Span, message: impl Into<String>, hint: impl Into<String>) {
        self.error_with(|source| Diagnostic::error(source, span, message).hint(hint));
    }

    pub(super) fn warning(&mut self, span: Span, message: impl Into<String>, hint: impl Into<String>) {
        let warning = Diagnostic::error(self.source, span, message).warning().hint(hint);
        self.add(|_| warning);
    }

    /// The second of two things that may be there once only; the hint ends with `advice`.
    pub(super) fn duplicate(&mut self, what: &str, name: &str, first: Span, second: Span, advice: &str) {
        self.error_with(|source| {
            let line = Location { source: source.clone(), span: first }.line();
            let message = format!("duplicate {what} `{}`", printable(name, 60));
            Diagnostic::error(source, second, message).hint(format!("it is already on line {line}; {advice}"))
        });
    }

    fn unknown_field(&mut self, key: &Key<'_>, place: &str, known: &[&str]) {
        self.error_with(|source| {
            let message = format!("unknown field `{}` in {place}", printable(&key.text, 60));
            let hint = suggestion(&key.text, known)
                .unwrap_or_else(|| format!("the fields here are {}", known.join(", ")));
            Diagnostic::error(source, key.span, message).hint(hint)
        });
    }

    fn error_with(&mut self, diagnostic: impl FnOnce(&Arc<Source>) -> Diagnostic) {
        self.fatal = true;
        self.add(diagnostic);
    }

    /// Makes the diagnostic only while there is room for it: some take time to make.
    fn add(&mut self, diagnostic: impl FnOnce(&Arc<Source>) -> Diagnostic) {
        if self.list.len() < MAX_MISTAKES {
            self.list.push(diagnostic(self.source));
        } else {
            self.unlisted += 1;
        }
    }

    /// A single value, and whether it is unquoted; an error where it is a list or a mapping.
    pub(super) fn scalar<'n>(&mut self, node: &'n Node<'_>, name: &str) -> Option<(&'n str, bool)> {
        match &node.kind {
            Kind::Scalar { text, plain } => Some((text, *plain)),
            _ => {
                let message = format!("`{name}` is {}, and should be a single value", node.what());
                self.error(node.span, message, format!("write `{name}: value`"));
                None
            }
        }
    }

    /// A value that is read from its text.
    pub(super) fn value<T: FromStr<Err: Display>>(
        &mut self,
        node: &Node<'_>,
        name: &str,
        hint: &str,
    ) -> Option<Spanned<T>> {
        self.value_with(node, name, hint, str::parse)
    }

    /// A value that `read` makes of its text.
    pub(super) fn value_with<T, E: Display>(
        &mut self,
        node: &Node<'_>,
        name: &str,
        hint: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Spanned<T>> {
        let (text, _) = self.scalar(node, name)?;
        match read(text) {
            Ok(value) => Some(Spanned { value, span: node.span }),
            Err(why) => {
                self.error(node.span, format!("`{name}`: {why}"), hint);
                None
            }
        }
    }

    /// `true` or `false`, unquoted.
    pub(super) fn boolean(&mut self, node: &Node<'_>, name: &str) -> Option<bool> {
        let message = match self.scalar(node, name)? {
            ("true", true) => return Some(true),
            ("false", true) => return Some(false),
            (text @ ("true" | "false"), false) => {
                format!("`{name}: \"{text}\"` is a text, and should be true or false")
            }
            (text, _) => format!("`{name}: {}` is neither true nor false", printable(text, 40)),
        };
        self.error(node.span, message, format!("write `{name}: true` or `{name}: false`, without quotes"));
        None
    }

    /// One word of a closed list.
    pub(super) fn word<T: Copy>(&mut self, node: &Node<'_>, name: &str, words: &[(&str, T)]) -> Option<T> {
        let (text, _) = self.scalar(node, name)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let hint = suggestion(text, &known).unwrap_or_else(|| format!("write `{}`", known.join("` or `")));
        self.error(node.span, format!("`{name}: {}` is unknown", printable(text, 40)), hint);
        None
    }

    /// The items of a list; an error where it is none.
    pub(super) fn items<'n>(&mut self, node: &'n Node<'n>, name: &str, hint: &str) -> &'n [Node<'n>] {
        match &node.kind {
            Kind::List(items) => items,
            _ => {
                self.error(node.span, format!("`{name}` is {}, and should be a list", node.what()), hint);
                &[]
            }
        }
    }
}

fn suggestion(word: &str, known: &[&str]) -> Option<String> {
    did_you_mean(word, known.iter().copied()).map(|near| format!("did you mean `{near}`?"))
}

/// A mapping whose fields are taken one by one.
pub(super) struct Fields<'n> {
    entries: &'n [(Key<'n>, Node<'n>)],
    known: &'static [&'static str],
    /// Its first character: the place of what is missing in it.
    pub(super) start: Span,
}

impl<'n> Fields<'n> {
    /// Opens `node`, which may have the fields `known`; every other one is reported. `None`, when it
    /// is no mapping at all.
    pub(super) fn open(
        node: &'n Node<'n>,
        place: &str,
        known: &'static [&'static str],
        problems: &mut Problems<'_>,
    ) -> Option<Self> {
        let Kind::Mapping(entries) = &node.kind else {
            let message = format!("{place} is {}, and should be a mapping", node.what());
            problems.error(node.span, message, "write fields as `name: value`, one per line");
            return None;
        };
        for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&&*key.text)) {
            problems.unknown_field(key, place, known);
        }
        let start = Span { end: node.span.start, ..node.span };
        Some(Self { entries, known, start })
    }

    /// Opens the mapping in `field`; one without fields, where there is none.
    pub(super) fn within(
        &self,
        field: &str,
        known: &'static [&'static str],
        problems: &mut Problems<'_>,
    ) -> Option<Self> {
        match self.get(field) {
            Some(node) => Self::open(node, &format!("`{field}`"), known, problems),
            None => Some(Self { entries: &[], known, start: self.start }),
        }
    }

    /// The value of a field; null counts as absent.
    pub(super) fn get(&self, field: &str) -> Option<&'n Node<'n>> {
        debug_assert!(self.known.contains(&field), "{field} is read and not known");
        let (_, value) = self.entries.iter().find(|(key, _)| key.text == field)?;
        Some(value).filter(|value| !value.is_null())
    }
}
