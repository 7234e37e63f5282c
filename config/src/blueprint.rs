//! Blueprints: what people write. Text goes in, [`Blueprint`]s or diagnostics come out.
//!
//! The YAML reader stops here: nothing behind this module knows what the file looked like, except
//! for the [`Span`]s that let later diagnostics and `explain` point at its lines.

mod fields;
mod node;
mod plain;
mod read;
mod value;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, Location, Source, Span, Spanned};
use crate::name::{EnvironmentId, HeaderName, ServiceName};
use crate::preview::Previews;
use crate::time::UnixMillis;
use crate::url::{Url, UrlTemplate};

pub use fields::{ATTACHED, ATTACHMENT, KNOWN_FIELDS, ROOT, ROUTING, SERVICE, SHARE};
pub use read::{API_VERSION, parse, parse_yaml, with_expiry};
pub use value::{Value, values};

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 48 * 1024 * 1024;
/// The deepest nesting of lists and mappings that is read.
pub const MAX_NESTING: usize = 64;
/// The most values, keys included, that are read of one document: some fifty thousand services.
pub const MAX_NODES: usize = 500_000;
/// The most mistakes of one file that are told one by one; of the others, how many they are.
pub const MAX_MISTAKES: usize = 200;

/// One document of a file.
#[derive(Debug, Clone)]
pub enum Document {
    /// An environment.
    Blueprint(Arc<Blueprint>),
    /// Addresses attached to services of an environment.
    Attachment(Arc<Attachment>),
}

impl Document {
    /// The environment that the document is about.
    #[must_use]
    pub fn environment(&self) -> &EnvironmentId {
        match self {
            Self::Blueprint(blueprint) => &blueprint.id.value,
            Self::Attachment(attachment) => &attachment.environment.value,
        }
    }

    /// The file that it is of.
    #[must_use]
    pub fn source(&self) -> &Arc<Source> {
        match self {
            Self::Blueprint(blueprint) => &blueprint.source,
            Self::Attachment(attachment) => &attachment.source,
        }
    }
}

/// What `parse` made of a file: the documents that are right, and every mistake in the others.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// The good documents, in order; those beside a bad one too.
    pub documents: Vec<Document>,
    /// Every mistake, and warnings; beyond [`MAX_MISTAKES`] their number.
    pub diagnostics: Vec<Diagnostic>,
    /// Blueprints that have errors of their own: good only to look for more mistakes in.
    pub doubtful: Vec<Arc<Blueprint>>,
    /// The ids of documents that have errors, where the id itself could be read.
    pub broken: Vec<EnvironmentId>,
}

/// An environment as it was written.
#[derive(Debug)]
pub struct Blueprint {
    /// The file.
    pub source: Arc<Source>,
    /// The whole document within the file.
    pub span: Span,
    /// The id: `overlayId`, or `baselineId` in `mode: baseline`, else `name`.
    pub id: Spanned<EnvironmentId>,
    /// Baseline, or overlay of a parent.
    pub mode: Mode,
    /// The header that carries the key.
    pub header: Option<Spanned<HeaderName>>,
    /// Whether the key goes upstream.
    pub propagate: Option<bool>,
    /// Where a baseline's services are that give no url.
    pub service_url: Option<Spanned<UrlTemplate>>,
    /// Where an overlay's services are that give no url.
    pub overlay_url: Option<Spanned<UrlTemplate>>,
    /// Where a baseline's previews are.
    pub preview_url: Option<Spanned<Previews>>,
    /// How long the environment lives, counted from the file's modification.
    pub ttl: Option<Spanned<Duration>>,
    /// Whether each use begins its time to live anew.
    pub ttl_from: TtlFrom,
    /// When it expires; wins over `ttl`.
    pub expires_at: Option<Spanned<UnixMillis>>,
    /// What happens when an owner's upstream is unavailable.
    pub on_unavailable: Option<OnUnavailable>,
    /// What happens to a key that nobody knows; a baseline's.
    pub on_unknown: Option<Spanned<OnUnknown>>,
    /// How long a request waits for an upstream.
    pub hold_for: Option<Duration>,
    /// Labels, in order of their keys: by these it is found.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Whose it is.
    pub owner: Option<Box<str>>,
    /// The services, in the order of the file.
    pub services: Vec<Service>,
}

impl Blueprint {
    /// A place in this blueprint's file.
    #[must_use]
    pub fn location(&self, span: Span) -> Location {
        Location { source: self.source.clone(), span }
    }

    /// Where the environment's id is written.
    #[must_use]
    pub fn declared(&self) -> Location {
        self.location(self.id.span)
    }

    /// The parent of an overlay.
    #[must_use]
    pub fn parent(&self) -> Option<&Spanned<EnvironmentId>> {
        match &self.mode {
            Mode::Baseline => None,
            Mode::Overlay { parent } => Some(parent),
        }
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }

    /// For how long it lives on after each use, where it does.
    #[must_use]
    pub fn renewed_for(&self) -> Option<Duration> {
        self.ttl.as_ref().map(|ttl| ttl.value).filter(|_| self.ttl_from == TtlFrom::Use)
    }

    /// When the environment expires by itself, whatever its ancestors do and however it was extended.
    #[must_use]
    pub fn expiry(&self) -> Option<UnixMillis> {
        let by_ttl = || Some(self.source.modified?.after(self.ttl.as_ref()?.value));
        self.expires_at.as_ref().map(|at| at.value).or_else(by_ttl)
    }
}

/// What kind of environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// A complete, shared one.
    Baseline,
    /// A sparse one.
    Overlay {
        /// What it inherits from: a baseline or another overlay.
        parent: Spanned<EnvironmentId>,
    },
}

/// A service that an environment owns.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: Spanned<ServiceName>,
    /// Its addresses, from `url` or `endpoints`.
    pub urls: Arc<[Url]>,
    /// Where each of the addresses stands.
    pub url_spans: Box<[Span]>,
    /// Whether the gateway leads to it.
    pub expose: bool,
    /// The hosts at the gateway, in lower case.
    pub hosts: Vec<Spanned<Box<str>>>,
    /// The path prefix at the gateway; begins with `/`.
    pub path: Option<Spanned<Box<str>>>,
    /// How many requests a proxy has there at once at most; the proxy's own limit, where it is not said.
    pub max_requests: Option<NonZeroU32>,
    /// The container image: kept and shown.
    pub image: Option<Box<str>>,
}

/// What is attached to an environment: addresses of its services, links to it that were given to somebody, and how long
/// it was extended. A record of its own that survives `apply`.
///
/// ```yaml
/// apiVersion: overlane.dev/v1alpha1
/// kind: Attachment
/// metadata: {name: alice-payments}
/// spec:
///   expiresAt: "2030-01-01T00:00:00Z"
///   services:
///     - {name: payments-api, url: "http://127.0.0.1:4001", expiresAt: "2029-12-01T12:00:00Z"}
///   shares:
///     - {id: 3f9a1c02, sha256: "9f86…", expiresAt: "2030-01-01T00:00:00Z"}
/// ```
#[derive(Debug)]
pub struct Attachment {
    /// The file.
    pub source: Arc<Source>,
    /// The environment.
    pub environment: Spanned<EnvironmentId>,
    /// Until when the environment lives at least, where that was extended.
    pub expires_at: Option<UnixMillis>,
    /// The services and their addresses.
    pub services: Vec<AttachedUrl>,
    /// The links that were given to somebody.
    pub shares: Vec<Share>,
}

/// An address that is attached to a service.
#[derive(Debug, Clone)]
pub struct AttachedUrl {
    /// The service.
    pub service: Spanned<ServiceName>,
    /// Where it is.
    pub url: Spanned<Url>,
    /// Until when; who serves there renews this lease.
    pub expires_at: Option<UnixMillis>,
}

/// A link to an overlay that lets in whoever has it. The secret itself is nowhere but in the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// By which it is called, to be taken back.
    pub id: Spanned<Box<str>>,
    /// The SHA-256 of its secret.
    pub hash: [u8; 32],
    /// Until when it lets anybody in.
    pub expires_at: Option<UnixMillis>,
}

/// Bytes as hexadecimal digits, as a share's hash is written.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// From when on a ttl counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TtlFrom {
    /// From when the environment was written.
    Creation,
    /// From the last request with its key, or that of a descendant.
    Use,
}

/// What happens when the owner's upstream is pending, unhealthy or refuses the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnavailable {
    /// Hold, then 503: a silent baseline would be a false green.
    Fail,
    /// Hold, then the next owner in the lineage.
    Fallback,
}

/// What happens to a key that nobody knows, or that expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknown {
    /// The baseline serves, the receipt says so, and the key travels on.
    Baseline,
    /// 404, or 410 when expired.
    Reject,
}
