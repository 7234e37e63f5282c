//! Trees to blueprints: the format, field by field.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::fields::{
    ATTACHED, ATTACHMENT, ENVELOPE, Fields, METADATA, Problems, ROOT, ROUTING, SERVICE, SHARE,
};
use super::node::{Documents, Kind, Node, Tree, distinct, line_start};
use super::plain;
use super::{
    AttachedUrl, Attachment, Blueprint, Document, MAX_FILE_BYTES, MAX_MISTAKES, Mode, OnUnavailable,
    OnUnknown, Parsed, Service, Share, TtlFrom,
};
use crate::diagnostic::{Diagnostic, Source, Span, Spanned};
use crate::name::{EnvironmentId, MAX_LABEL, ServiceName, is_label, printable};
use crate::path::is_plain;
use crate::time::{UnixMillis, parse_duration, parse_timestamp};
use crate::url::Url;

/// The version of the envelope.
pub const API_VERSION: &str = "overlane.dev/v1alpha1";

/// The longest time that a request may be held.
const MAX_HOLD: Duration = Duration::from_secs(60);

const ID_HINT: &str =
    "lower-case letters, digits and single dashes, at most 63 bytes, such as `alice-payments`";
const URL_HINT: &str = "such as `http://payments-api.staging.svc.cluster.local:8080`";
const TEMPLATE_HINT: &str = "such as `http://{service}.{overlay}.svc.cluster.local:8080`";
const PREVIEW_HINT: &str =
    "such as `https://preview.example.com`, under which a wildcard name leads to the gateway";
const SHARES_HINT: &str = "`overlane overlay share ID` makes one";
const DURATION_HINT: &str = "such as `4h`, `90s` or `1h30m`";
const TIME_HINT: &str = "such as `2027-01-31T18:00:00Z`";
const ENDPOINT_HINT: &str = "such as `10.0.0.1:8080` or `http://10.0.0.1:8080`";
const HOST_HINT: &str = "such as `shop.staging.example.com`";
const PATH_HINT: &str = "such as `/api`";
const HOLD_HINT: &str = "such as `2s`; clients and proxies give up after a minute";
const REQUESTS_HINT: &str = "a number from 1 on, such as `50`: so many requests are there at once at most";
const SERVICES_HINT: &str = "write `services:` and below it `- name: payments-api`";

/// Reads every document of a source and reports every mistake in it.
#[must_use]
pub fn parse(source: &Arc<Source>) -> Parsed {
    if source.text.len() > MAX_FILE_BYTES {
        let problem =
            Diagnostic::file(&source.path, format!("larger than {} MiB", MAX_FILE_BYTES / 1024 / 1024));
        let diagnostics = vec![problem.hint("split it: one file per environment")];
        return Parsed { diagnostics, ..Parsed::default() };
    }
    parse_plain(source).unwrap_or_else(|| parse_yaml(source))
}

/// The same by the YAML reader, which a plain source does not need: what reads those is held against it.
#[must_use]
pub fn parse_yaml(source: &Arc<Source>) -> Parsed {
    let mut file = File::new(source);
    for tree in Documents::new(source) {
        match tree {
            Ok(tree) => file.read(&tree),
            Err(problem) => {
                file.fatal = true;
                file.list([*problem]);
            }
        }
    }
    file.finish()
}

/// Reads a source that the YAML reader is not needed for: all of it is plain, and there is no mistake.
fn parse_plain(source: &Arc<Source>) -> Option<Parsed> {
    let mut file = File::new(source);
    for tree in plain::trees(&source.text) {
        file.read(&tree?);
        if !file.parsed.diagnostics.is_empty() {
            return None;
        }
    }
    Some(file.parsed)
}

/// A file that is being read.
struct File<'s> {
    source: &'s Arc<Source>,
    parsed: Parsed,
    /// Whether there is any error.
    fatal: bool,
    /// How many mistakes are not listed.
    unlisted: usize,
}

impl<'s> File<'s> {
    fn new(source: &'s Arc<Source>) -> Self {
        Self { source, parsed: Parsed::default(), fatal: false, unlisted: 0 }
    }

    fn read(&mut self, tree: &Tree<'_>) {
        let mut problems = Problems::new(self.source);
        for duplicate in &tree.duplicates {
            let key = &duplicate.second;
            problems.duplicate("key", &key.text, duplicate.first, key.span, "keep one of them");
        }
        let (document, about) = match enveloped(&tree.root) {
            true => envelope(tree, &mut problems),
            false => bare(tree, &mut problems),
        };
        match document {
            Some(document) if !problems.fatal => self.parsed.documents.push(document),
            document => {
                self.parsed.broken.extend(about.broken().cloned());
                if let Some(Document::Blueprint(blueprint)) = document {
                    self.parsed.doubtful.push(blueprint);
                }
            }
        }
        self.fatal |= problems.fatal;
        self.unlisted += problems.unlisted;
        problems.list.sort_by_key(|problem| problem.location.as_ref().map(|location| location.span.start));
        self.list(problems.list.into_iter().map(|problem| match about.id() {
            Some(id) => problem.of(id),
            None => problem,
        }));
    }

    /// Adds as many mistakes as there is room for.
    fn list(&mut self, mistakes: impl IntoIterator<Item = Diagnostic>) {
        let mut mistakes = mistakes.into_iter();
        let room = MAX_MISTAKES.saturating_sub(self.parsed.diagnostics.len());
        self.parsed.diagnostics.extend(mistakes.by_ref().take(room));
        self.unlisted += mistakes.count();
    }

    fn finish(mut self) -> Parsed {
        let Parsed { documents, diagnostics, .. } = &mut self.parsed;
        if documents.is_empty() && diagnostics.is_empty() {
            let empty = Diagnostic::file(&self.source.path, "empty: there is no blueprint in it");
            diagnostics.push(empty.hint("a blueprint begins with `name:`; `docs/blueprint.md` shows one"));
        }
        if self.unlisted > 0 {
            let more = format!("{} more mistakes are not listed", self.unlisted);
            let more = Diagnostic::file(&self.source.path, more).hint("correct these first");
            diagnostics.push(if self.fatal { more } else { more.warning() });
        }
        self.parsed
    }
}

/// Which environment a document is about, as far as that could be read.
enum About {
    /// Its blueprint.
    Blueprint(Option<EnvironmentId>),
    /// Only what is attached to it.
    Attachment(Option<EnvironmentId>),
}

impl About {
    fn id(&self) -> Option<&EnvironmentId> {
        match self {
            Self::Blueprint(id) | Self::Attachment(id) => id.as_ref(),
        }
    }

    /// The environment that is broken when the document is; a bad attachment breaks none.
    fn broken(&self) -> Option<&EnvironmentId> {
        match self {
            Self::Blueprint(id) => id.as_ref(),
            Self::Attachment(_) => None,
        }
    }
}

/// What became of a document.
type Read = (Option<Document>, About);

/// Whether the document is one with `apiVersion`, `kind`, `metadata` and `spec`.
fn enveloped(root: &Node<'_>) -> bool {
    ["apiVersion", "kind", "spec"].iter().any(|field| root.get(field).is_some())
}

fn bare(tree: &Tree<'_>, problems: &mut Problems<'_>) -> Read {
    let Some(root) = Fields::open(&tree.root, "the blueprint", ROOT, problems) else {
        return (None, About::Blueprint(None));
    };
    let outer = Outer::of(&root, problems);
    blueprint(None, outer, &root, tree.span, problems)
}

fn envelope(tree: &Tree<'_>, problems: &mut Problems<'_>) -> Read {
    let Some(fields) = Fields::open(&tree.root, "the document", ENVELOPE, problems) else {
        return (None, About::Blueprint(None));
    };
    version(&fields, problems);
    let kind = kind(&fields, problems);
    let outer = Outer::of(&fields, problems);
    let Some(spec) = fields.get("spec") else {
        problems.error(fields.start, "`spec` is missing", "put `routing` and `services` under `spec:`");
        return unreadable("metadata.name", outer.name, problems);
    };
    let form = match kind {
        Some((EnvelopeKind::Attachment, _)) => return attachment(outer.name, spec, problems),
        Some((EnvelopeKind::Form(form), span)) => Some((form, span)),
        Some((EnvelopeKind::Blueprint, _)) | None => None,
    };
    match Fields::open(spec, "`spec`", ROOT, problems) {
        Some(root) => blueprint(form, outer, &root, tree.span, problems),
        None => unreadable("metadata.name", outer.name, problems),
    }
}

/// A blueprint that says nothing but its name.
fn unreadable(field: &str, name: Option<&Node<'_>>, problems: &mut Problems<'_>) -> Read {
    let id: Option<Spanned<_>> = name.and_then(|node| problems.value(node, field, ID_HINT));
    (None, About::Blueprint(id.map(|id| id.value)))
}

/// What `metadata` says.
#[derive(Clone, Copy, Default)]
struct Outer<'n> {
    name: Option<&'n Node<'n>>,
    labels: Option<&'n Node<'n>>,
}

impl<'n> Outer<'n> {
    fn of(fields: &Fields<'n>, problems: &mut Problems<'_>) -> Self {
        fields.within("metadata", METADATA, problems).map_or_else(Self::default, |metadata| Self {
            name: metadata.get("name"),
            labels: metadata.get("labels"),
        })
    }
}

fn version(fields: &Fields<'_>, problems: &mut Problems<'_>) {
    match fields.get("apiVersion") {
        // Only one version is known: that it is this one says all.
        Some(version) => drop(problems.word(version, "apiVersion", &[(API_VERSION, ())])),
        None => {
            let hint = format!("add `apiVersion: {API_VERSION}`");
            problems.error(fields.start, "`apiVersion` is missing", hint);
        }
    }
}

/// What `kind` can say.
#[derive(Clone, Copy)]
enum EnvelopeKind {
    Form(Form),
    Blueprint,
    Attachment,
}

fn kind(fields: &Fields<'_>, problems: &mut Problems<'_>) -> Option<(EnvelopeKind, Span)> {
    const KINDS: &[(&str, EnvelopeKind)] = &[
        ("Baseline", EnvelopeKind::Form(Form::Baseline)),
        ("Overlay", EnvelopeKind::Form(Form::Overlay)),
        ("Blueprint", EnvelopeKind::Blueprint),
        ("Attachment", EnvelopeKind::Attachment),
    ];
    let Some(node) = fields.get("kind") else {
        problems.error(fields.start, "`kind` is missing", "add `kind: Baseline` or `kind: Overlay`");
        return None;
    };
    Some((problems.word(node, "kind", KINDS)?, node.span))
}

fn attachment(name: Option<&Node<'_>>, spec: &Node<'_>, problems: &mut Problems<'_>) -> Read {
    let environment: Option<Spanned<EnvironmentId>> = match name {
        Some(name) => problems.value(name, "metadata.name", ID_HINT),
        None => {
            let start = Span { end: spec.span.start, ..spec.span };
            problems.error(
                start,
                "the attachment names no environment",
                "add `metadata: {name: alice-payments}`",
            );
            None
        }
    };
    let about = About::Attachment(environment.as_ref().map(|id| id.value.clone()));
    let Some(fields) = Fields::open(spec, "`spec`", ATTACHMENT, problems) else { return (None, about) };
    let items = listed(fields.get("services"), "services", SERVICES_HINT, problems);
    let services = read_distinct(items, attached, |url| &url.service, "keep one of them", problems);
    let expires_at = expires_at(&fields, problems);
    let items = listed(fields.get("shares"), "shares", SHARES_HINT, problems);
    let shares = items.iter().filter_map(|node| share(node, problems)).collect();
    let source = problems.source.clone();
    let attachment = |environment| Attachment { source, environment, expires_at, services, shares };
    (environment.map(attachment).map(Arc::new).map(Document::Attachment), about)
}

fn share(node: &Node<'_>, problems: &mut Problems<'_>) -> Option<Share> {
    let fields = Fields::open(node, "the share", SHARE, problems)?;
    let (Some(id), Some(hash)) = (fields.get("id"), fields.get("sha256")) else {
        problems.error(fields.start, "a share needs `id` and `sha256`", SHARES_HINT);
        return None;
    };
    let id = problems.value_with(id, "id", SHARES_HINT, |text| match is_label(text.as_bytes()) {
        true => Ok(text.into()),
        false => Err("not a label".to_owned()),
    });
    let hash = problems.value_with(hash, "sha256", SHARES_HINT, sha256);
    let expires_at = expires_at(&fields, problems);
    Some(Share { id: id?, hash: hash?.value, expires_at })
}

/// The `expiresAt` of an attachment, or of something in it.
fn expires_at(fields: &Fields<'_>, problems: &mut Problems<'_>) -> Option<UnixMillis> {
    let node = fields.get("expiresAt")?;
    problems.value_with(node, "expiresAt", TIME_HINT, timestamp).map(|at| at.value)
}

/// 32 bytes as hexadecimal digits.
fn sha256(text: &str) -> Result<[u8; 32], String> {
    let mut hash = [0; 32];
    let wrong = || "not 64 hexadecimal digits".to_owned();
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
    }
    Ok(hash)
}

fn attached(node: &Node<'_>, problems: &mut Problems<'_>) -> Option<AttachedUrl> {
    let fields = Fields::open(node, "the attached service", ATTACHED, problems)?;
    let (Some(name), Some(url)) = (fields.get("name"), fields.get("url")) else {
        let hint = "such as `{name: payments-api, url: \"http://127.0.0.1:4001\"}`";
        problems.error(fields.start, "an attached service needs `name` and `url`", hint);
        return None;
    };
    let service = problems.value(name, "name", ID_HINT);
    let url = problems.value(url, "url", URL_HINT);
    let expires_at = expires_at(&fields, problems);
    Some(AttachedUrl { service: service?, url: url?, expires_at })
}

/// The two forms of environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Baseline,
    Overlay,
}

impl Form {
    /// The word for it in `routing.mode`.
    fn mode(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Overlay => "overlay",
        }
    }

    fn with_article(self) -> &'static str {
        match self {
            Self::Baseline => "a baseline",
            Self::Overlay => "an overlay",
        }
    }

    /// The fields of `routing` that belong to the other form, and why.
    fn foreign(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Baseline => &[
                ("overlayId", "the id of a baseline is its `baselineId`"),
                ("ttl", "a baseline does not expire"),
                ("ttlFrom", "a baseline does not expire"),
                ("expiresAt", "a baseline does not expire"),
            ],
            Self::Overlay => &[
                ("serviceUrl", "it is the baseline's, and holds for all its overlays"),
                ("previewUrl", "it is the baseline's, and holds for all its overlays"),
                ("onUnknown", "it is the baseline's, and holds for all its overlays"),
            ],
        }
    }
}

/// Reads a blueprint whose envelope, if it has one, says `kind` and `outer`.
fn blueprint(
    kind: Option<(Form, Span)>,
    outer: Outer<'_>,
    root: &Fields<'_>,
    span: Span,
    problems: &mut Problems<'_>,
) -> Read {
    let services = services(root.get("services"), problems);
    let Some(routing) = root.within("routing", ROUTING, problems) else {
        return unreadable("name", root.get("name"), problems);
    };
    let form = form(kind, &routing, problems);
    let id = identity(form, root, &routing, outer.name, problems);
    let mode = mode(form, id.as_ref(), &routing, problems);
    exposed_once(form, &services, problems);
    let header = routing
        .get("headerName")
        .and_then(|node| problems.value(node, "headerName", "such as `x-overlay-id`"));
    let propagate = routing.get("propagateHeader").and_then(|node| problems.boolean(node, "propagateHeader"));
    let service_url =
        routing.get("serviceUrl").and_then(|node| problems.value(node, "serviceUrl", TEMPLATE_HINT));
    let overlay_url =
        routing.get("overlayUrl").and_then(|node| problems.value(node, "overlayUrl", TEMPLATE_HINT));
    let preview_url =
        routing.get("previewUrl").and_then(|node| problems.value(node, "previewUrl", PREVIEW_HINT));
    let ttl = routing.get("ttl").and_then(|node| problems.value_with(node, "ttl", DURATION_HINT, ttl));
    let ttl_from = ttl_from(&routing, problems);
    let expires_at = routing
        .get("expiresAt")
        .and_then(|node| problems.value_with(node, "expiresAt", TIME_HINT, timestamp));
    let labels = labels([outer.labels, root.get("labels")], problems);
    // Others may say more of an owner than a name: that is kept like all that is not acted on.
    let owner = root.get("owner").and_then(Node::text).map(Into::into);
    let on_unavailable =
        routing.get("onUnavailable").and_then(|node| problems.word(node, "onUnavailable", ON_UNAVAILABLE));
    let on_unknown = routing.get("onUnknown").and_then(|node| {
        Some(Spanned { value: problems.word(node, "onUnknown", ON_UNKNOWN)?, span: node.span })
    });
    let hold_for =
        routing.get("holdFor").and_then(|node| problems.value_with(node, "holdFor", HOLD_HINT, hold));
    let about = About::Blueprint(id.as_ref().map(|id| id.value.clone()));
    let (Some(id), Some(mode)) = (id, mode) else { return (None, about) };
    if services.is_empty() && !problems.fatal {
        problems.warning(id.span, format!("`{}` owns no service", id.value), SERVICES_HINT);
    }
    let blueprint = Blueprint {
        source: problems.source.clone(),
        span,
        id,
        mode,
        header,
        propagate,
        service_url,
        overlay_url,
        preview_url,
        ttl,
        ttl_from,
        expires_at,
        labels,
        owner,
        on_unavailable,
        on_unknown,
        hold_for: hold_for.map(|hold| hold.value),
        services,
    };
    (Some(Document::Blueprint(Arc::new(blueprint))), about)
}

/// No two services of one environment have the same host and path: requests would go to whichever comes first.
fn exposed_once(form: Option<Form>, services: &[Service], problems: &mut Problems<'_>) {
    let exposed = services.iter().filter(|service| service.expose);
    let bare = |service: &&Service| service.hosts.is_empty() && service.path.is_none();
    // As the table has it: the only such service of a baseline is exposed everywhere, any other nowhere.
    let everywhere = form == Some(Form::Baseline) && exposed.clone().filter(bare).count() == 1;
    let mut taken: HashMap<(Option<&str>, &str), &Service> = HashMap::new();
    for service in exposed.filter(|service| everywhere || !bare(service)) {
        let path = service.path.as_ref().map_or("/", |path| &*path.value);
        let place = service.path.as_ref().map_or(service.name.span, |path| path.span);
        let hosts = service.hosts.iter().map(|host| (Some(&*host.value), host.span));
        for (host, span) in hosts.chain(service.hosts.is_empty().then_some((None, place))) {
            let owner = taken.entry((host, path)).or_insert(service);
            if owner.name.value != service.name.value {
                let host = host.map_or_else(|| "every host".to_owned(), |host| format!("the host `{host}`"));
                let message =
                    format!("{host} with the path `{path}` leads to `{}` already", owner.name.value);
                problems.error(
                    span,
                    message,
                    "give one of the two another `path` or host, or `expose: false`",
                );
            }
        }
    }
}

/// What `routing.mode` says, or else the envelope's kind.
fn form(kind: Option<(Form, Span)>, routing: &Fields<'_>, problems: &mut Problems<'_>) -> Option<Form> {
    let by_kind = kind.map(|(form, _)| form);
    let Some(mode) = routing.get("mode") else {
        if by_kind.is_none() {
            let hint = "under `routing:` write `mode: baseline`, or `mode: overlay` and the `baselineId` that it overlays";
            problems.error(routing.start, "`routing.mode` is missing", hint);
        }
        return by_kind;
    };
    if matches!(&mode.kind, Kind::Scalar { text, .. } if text == "isolated") {
        let hint = "an isolated environment shares nothing, so it needs no overlay routing; write `baseline` or `overlay`";
        problems.error(mode.span, "`mode: isolated` is not served here", hint);
        return None;
    }
    let form =
        problems.word(mode, "mode", &[Form::Baseline, Form::Overlay].map(|form| (form.mode(), form)))?;
    if let Some((other, span)) = kind.filter(|(other, _)| *other != form) {
        let message = format!("`kind: {other:?}` contradicts `mode: {}`", form.mode());
        problems.error(span, message, "make them agree, or leave `mode` out");
    }
    Some(form)
}

/// The id: the form's own key, else `name`; `metadata.name` must agree.
fn identity(
    form: Option<Form>,
    root: &Fields<'_>,
    routing: &Fields<'_>,
    outer: Option<&Node<'_>>,
    problems: &mut Problems<'_>,
) -> Option<Spanned<EnvironmentId>> {
    // While the form is unknown, `baselineId` may be the parent's, which is not to blame.
    let key = if form == Some(Form::Baseline) { "baselineId" } else { "overlayId" };
    let by_key = routing.get(key).map(|node| (key, node));
    let by_name = || root.get("name").map(|node| ("name", node));
    let Some((key, node)) = by_key.or_else(by_name).or(outer.map(|node| ("metadata.name", node))) else {
        if form.is_some() {
            problems.error(root.start, "the environment has no id", format!("add `routing.{key}` or `name`"));
        }
        return None;
    };
    let id: Spanned<EnvironmentId> = problems.value(node, key, ID_HINT)?;
    if let Some(outer) = outer
        && let Some((name, _)) = problems.scalar(outer, "metadata.name")
        && name != id.value.as_str()
    {
        let message = format!("`metadata.name` is `{}` and `{key}` is `{}`", printable(name, 80), id.value);
        problems.error(outer.span, message, "an environment has one id: make them agree");
    }
    Some(id)
}

/// The mode with the overlay's parent; reports the fields that belong to the other form.
fn mode(
    form: Option<Form>,
    id: Option<&Spanned<EnvironmentId>>,
    routing: &Fields<'_>,
    problems: &mut Problems<'_>,
) -> Option<Mode> {
    let form = form?;
    for (field, why) in form.foreign() {
        if let Some(node) = routing.get(field) {
            problems.error(node.span, format!("`{field}` does not belong in {}", form.with_article()), *why);
        }
    }
    match form {
        Form::Baseline => Some(Mode::Baseline),
        Form::Overlay => Some(Mode::Overlay { parent: parent(id, routing, problems)? }),
    }
}

fn parent(
    id: Option<&Spanned<EnvironmentId>>,
    routing: &Fields<'_>,
    problems: &mut Problems<'_>,
) -> Option<Spanned<EnvironmentId>> {
    let Some(node) = routing.get("baselineId") else {
        problems.error(
            routing.start,
            "the overlay has no `baselineId`",
            "under `routing:` name its parent: a baseline, or another overlay",
        );
        return None;
    };
    let parent: Spanned<EnvironmentId> = problems.value(node, "baselineId", ID_HINT)?;
    if id.is_some_and(|id| id.value == parent.value) {
        problems.error(
            parent.span,
            format!("`{}` names itself as parent", parent.value),
            "name a baseline, or another overlay",
        );
        return None;
    }
    Some(parent)
}

const ON_UNAVAILABLE: &[(&str, OnUnavailable)] =
    &[("fail", OnUnavailable::Fail), ("fallback", OnUnavailable::Fallback)];
const ON_UNKNOWN: &[(&str, OnUnknown)] = &[("baseline", OnUnknown::Baseline), ("reject", OnUnknown::Reject)];

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|why| format!("`{}` is {why}", printable(text, 40)))
}

/// From when on the ttl counts.
fn ttl_from(routing: &Fields<'_>, problems: &mut Problems<'_>) -> TtlFrom {
    const WORDS: &[(&str, TtlFrom)] = &[("creation", TtlFrom::Creation), ("use", TtlFrom::Use)];
    let Some(node) = routing.get("ttlFrom") else { return TtlFrom::Creation };
    let from = problems.word(node, "ttlFrom", WORDS);
    if from.is_some() && routing.get("ttl").is_none() {
        problems.error(node.span, "`ttlFrom` without a `ttl`", "add `ttl: 4h`");
    }
    from.unwrap_or(TtlFrom::Creation)
}

/// Labels, of which later ones win. What is no label is kept like all that is not acted on.
fn labels(nodes: [Option<&Node<'_>>; 2], problems: &mut Problems<'_>) -> Box<[(Box<str>, Box<str>)]> {
    let mut all = BTreeMap::new();
    for node in nodes.into_iter().flatten() {
        let Kind::Mapping(entries) = &node.kind else {
            let message = format!("`labels` is {}: nothing is found by it", node.what());
            problems.warning(node.span, message, "write `labels: {team: payments}`");
            continue;
        };
        for (key, value) in entries {
            match value.text() {
                Some(text) => {
                    all.insert(Box::from(&*key.text), Box::from(text));
                }
                None => {
                    let key = printable(&key.text, 60);
                    let message = format!("the label `{key}` is {}: nothing is found by it", value.what());
                    problems.warning(value.span, message, format!("write `{key}: value`"));
                }
            }
        }
    }
    all.into_iter().collect()
}

fn ttl(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("a lifetime of zero".to_owned()),
        ttl => Ok(ttl),
    }
}

fn hold(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        hold if hold > MAX_HOLD => Err("longer than a minute".to_owned()),
        hold => Ok(hold),
    }
}

fn timestamp(text: &str) -> Result<UnixMillis, String> {
    parse_timestamp(text).map_err(|why| format!("`{}` is {why}", printable(text, 40)))
}

fn services(node: Option<&Node<'_>>, problems: &mut Problems<'_>) -> Vec<Service> {
    let items = listed(node, "services", SERVICES_HINT, problems);
    read_distinct(
        items,
        service,
        |service| &service.name,
        "several addresses of one service go under `endpoints:`",
        problems,
    )
}

/// The items of a list, which may be absent.
fn listed<'n>(
    node: Option<&'n Node<'n>>,
    name: &str,
    hint: &str,
    problems: &mut Problems<'_>,
) -> &'n [Node<'n>] {
    node.map_or(&[][..], |node| problems.items(node, name, hint))
}

/// What `read` makes of the items; the second of the same name is an error.
fn read_distinct<T>(
    items: &[Node<'_>],
    read: impl Fn(&Node<'_>, &mut Problems<'_>) -> Option<T>,
    name: impl Fn(&T) -> &Spanned<ServiceName>,
    advice: &str,
    problems: &mut Problems<'_>,
) -> Vec<T> {
    let mut all = Vec::with_capacity(items.len());
    all.extend(items.iter().filter_map(|item| read(item, problems)));
    distinct(
        all,
        |one| &name(one).value,
        |first, later| {
            let (first, later) = (name(first), name(&later));
            problems.duplicate("service", later.value.as_str(), first.span, later.span, advice);
        },
    )
}

fn service(node: &Node<'_>, problems: &mut Problems<'_>) -> Option<Service> {
    let fields = Fields::open(node, "the service", SERVICE, problems)?;
    let name = fields.get("name");
    if name.is_none() {
        problems.error(fields.start, "the service has no `name`", "add `name: payments-api`");
    }
    let name = name.and_then(|node| problems.value(node, "name", ID_HINT));
    let urls = urls(fields.get("url"), fields.get("endpoints"), problems);
    let url_spans = urls.iter().map(|url| url.span).collect();
    let urls = urls.into_iter().map(|url| url.value).collect();
    let expose = fields.get("expose").and_then(|node| problems.boolean(node, "expose"));
    let hosts = listed(fields.get("hosts"), "hosts", "write `hosts: [shop.staging.example.com]`", problems);
    let hosts: Vec<_> =
        hosts.iter().filter_map(|node| problems.value_with(node, "hosts", HOST_HINT, host)).collect();
    let path = fields.get("path").and_then(|node| problems.value_with(node, "path", PATH_HINT, path));
    if expose == Some(false)
        && let Some(unused) = fields.get("hosts").or(fields.get("path"))
    {
        problems.warning(
            unused.span,
            "`hosts` and `path` mean nothing with `expose: false`",
            "write `expose: true`, or leave them out",
        );
    }
    let image =
        fields.get("image").and_then(|node| problems.scalar(node, "image")).map(|(text, _)| text.into());
    // Who gives a host or a path means to expose it.
    let expose = expose.unwrap_or(!hosts.is_empty() || path.is_some());
    let max_requests = fields
        .get("maxRequests")
        .and_then(|node| problems.value_with(node, "maxRequests", REQUESTS_HINT, requests))
        .map(|most| most.value);
    Some(Service { name: name?, urls, url_spans, expose, hosts, path, max_requests, image })
}

fn urls(
    url: Option<&Node<'_>>,
    endpoints: Option<&Node<'_>>,
    problems: &mut Problems<'_>,
) -> Vec<Spanned<Url>> {
    if let (Some(_), Some(endpoints)) = (url, endpoints) {
        problems.error(
            endpoints.span,
            "both `url` and `endpoints`",
            "write `url` for one address, `endpoints` for several",
        );
    }
    let url = url.and_then(|node| problems.value(node, "url", URL_HINT));
    let items = listed(endpoints, "endpoints", "write `endpoints: [10.0.0.1:8080, 10.0.0.2:8080]`", problems);
    let endpoints =
        items.iter().filter_map(|node| problems.value_with(node, "endpoints", ENDPOINT_HINT, endpoint));
    url.into_iter().chain(endpoints).collect()
}

fn requests(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| format!("`{}` is no number of requests", printable(text, 40)))
}

/// A url, or `host:port` for plain HTTP.
fn endpoint(text: &str) -> Result<Url, String> {
    match text.contains("://") || text.starts_with("unix:") {
        true => text.parse(),
        false => format!("http://{text}").parse(),
    }
}

/// A DNS name in lower case, without the dot at its end.
fn host(text: &str) -> Result<Box<str>, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let shown = printable(text, 80);
    if name.contains('*') {
        return Err(format!("`{shown}` has a wildcard, which is not supported; write each host out"));
    }
    if name.contains(':') {
        return Err(format!("`{shown}` has a port or a scheme; the gateway matches the name alone"));
    }
    match name.len() <= 253 && name.split('.').all(is_host_label) {
        true => Ok(name.into()),
        false => Err(format!("`{shown}` is not a DNS name")),
    }
}

/// A label as DNS has it: unlike one of ours it may have `--` (`xn--…`, preview hosts) and `_`.
fn is_host_label(label: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(fine)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A prefix of paths.
fn path(text: &str) -> Result<Box<str>, String> {
    let shown = printable(text, 80);
    if !text.starts_with('/') {
        return Err(format!("`{shown}` does not begin with `/`"));
    }
    match text.bytes().find(|byte| !byte.is_ascii_graphic() || b"?#*".contains(byte)) {
        None if is_plain(text) => Ok(text.into()),
        None => Err(format!(
            "`{shown}` has an escape, a parameter, a backslash, or an empty or dot segment: nobody is led by it"
        )),
        Some(_) => {
            Err(format!("`{shown}` has `?`, `#`, `*`, a space or another character that no prefix has"))
        }
    }
}

/// The text of an overlay's document with `routing.expiresAt` set, by the smallest edit: comments
/// and everything else stay as they are.
#[must_use]
pub fn with_expiry(source: &Arc<Source>, blueprint: &Blueprint, at: UnixMillis) -> String {
    let whole = blueprint.span.start as usize..blueprint.span.end as usize;
    let mut text = source.text.get(whole.clone()).unwrap_or_default().to_owned();
    let tree = Documents::new(source).flatten().find(|tree| tree.span == blueprint.span);
    if let Some((place, replacement)) = tree.and_then(|tree| expiry_edit(&source.text, &tree.root, at)) {
        text.replace_range(place.start - whole.start..place.end - whole.start, &replacement);
    }
    text
}

/// What to replace, and by what.
fn expiry_edit(text: &str, root: &Node<'_>, at: UnixMillis) -> Option<(Range<usize>, String)> {
    let routing = root.get("spec").unwrap_or(root).get("routing")?;
    match routing.entry("expiresAt") {
        Some((_, value)) if value.span.start < value.span.end => {
            Some((value.span.start as usize..value.span.end as usize, format!("\"{at}\"")))
        }
        Some((key, _)) => Some(empty_value_edit(text, key.span.end as usize, at)),
        None => new_field_edit(text, routing, at),
    }
}

/// Fills in the value that is missing behind the key that ends at `key_end`.
fn empty_value_edit(text: &str, key_end: usize, at: UnixMillis) -> (Range<usize>, String) {
    let rest = text[key_end..].trim_start();
    match rest.strip_prefix(':') {
        Some(behind) => {
            let place = text.len() - behind.len();
            (place..place, format!(" \"{at}\""))
        }
        // In `{expiresAt}` there is not even a colon.
        None => (key_end..key_end, format!(": \"{at}\"")),
    }
}

/// Adds the field in front of the others.
fn new_field_edit(text: &str, routing: &Node<'_>, at: UnixMillis) -> Option<(Range<usize>, String)> {
    let Kind::Mapping(entries) = &routing.kind else { return None };
    let start = routing.span.start as usize;
    if let Some(inside) = text[start..].strip_prefix('{') {
        let comma = match (entries.is_empty(), inside.starts_with(char::is_whitespace)) {
            (true, _) => "",
            (false, true) => ",",
            (false, false) => ", ",
        };
        return Some((start + 1..start + 1, format!("\"expiresAt\": \"{at}\"{comma}")));
    }
    let line = line_start(text, start);
    let newline = if text[..line].ends_with("\r\n") { "\r\n" } else { "\n" };
    Some((start..start, format!("expiresAt: \"{at}\"{newline}{}", " ".repeat(start - line))))
}
