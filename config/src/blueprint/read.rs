//! Trees to blueprints: the format, field by field.

use std::sync::Arc;
use std::time::Duration;

use super::fields::{ATTACHED, ATTACHMENT, ENVELOPE, Fields, METADATA, Problems, ROOT, ROUTING, SERVICE};
use super::node::{Documents, Kind, Node};
use super::{
    Attachment, Blueprint, Document, MAX_FILE_BYTES, Mode, OnUnavailable, OnUnknown, Parsed, Service,
};
use crate::diagnostic::{Diagnostic, Location, Source, Span, Spanned};
use crate::name::{EnvironmentId, ServiceName};
use crate::time::{UnixMillis, parse_duration, parse_timestamp};
use crate::url::{Url, split_authority};

/// The version of the envelope.
pub const API_VERSION: &str = "overlane.dev/v1alpha1";

const ID_HINT: &str =
    "lower-case letters, digits and single dashes, at most 63 bytes, such as `alice-payments`";
const URL_HINT: &str = "such as `http://payments-api.staging.svc.cluster.local:8080`";
const TEMPLATE_HINT: &str = "such as `http://{service}.{overlay}.svc.cluster.local:8080`";
const DURATION_HINT: &str = "such as `4h`, `90s` or `1h30m`";
const SERVICES_HINT: &str = "write `services:` and below it `- name: payments-api`";

/// The longest time that a request may be held.
const MAX_HOLD: Duration = Duration::from_secs(60);

/// Reads every document of a source and reports every mistake in it.
#[must_use]
pub fn parse(source: &Arc<Source>) -> Parsed {
    let mut parsed = Parsed::default();
    if source.text.len() > MAX_FILE_BYTES {
        let mib = MAX_FILE_BYTES / 1024 / 1024;
        parsed.diagnostics.push(
            Diagnostic::file(&source.path, format!("larger than {mib} MiB"))
                .hint("split it: one file per environment"),
        );
        return parsed;
    }
    let mut documents = Documents::new(source);
    let mut count = 0;
    let stopped = loop {
        match documents.next() {
            Ok(Some(node)) => {
                count += 1;
                let duplicates = std::mem::take(&mut documents.problems);
                read_document(source, &node, count == 1, duplicates, &mut parsed);
            }
            Ok(None) => break None,
            Err(problem) => break Some(*problem),
        }
    };
    if count == 0 && stopped.is_none() {
        parsed.diagnostics.push(
            Diagnostic::file(&source.path, "empty: there is no blueprint in it")
                .hint("a blueprint begins with `name:`; `docs/blueprint.md` shows one"),
        );
    }
    parsed.diagnostics.extend(stopped);
    if let ([Document::Blueprint(only)], 1) = (&mut parsed.documents[..], count)
        && let Some(only) = Arc::get_mut(only)
    {
        // Alone in its file, its comments before and after belong to it.
        only.span.end = u32::try_from(source.text.len()).unwrap_or(u32::MAX);
    }
    parsed
}

fn read_document(
    source: &Arc<Source>,
    node: &Node,
    first: bool,
    duplicates: Vec<Diagnostic>,
    parsed: &mut Parsed,
) {
    let mut problems = Problems { source, list: duplicates };
    let (document, id) = match envelope(node, &mut problems) {
        Wrapped::Attachment { name, spec } => attachment(name, spec, &mut problems),
        Wrapped::Blueprint { kind, name, spec } => {
            let start = if first { 0 } else { node.span.start };
            blueprint(kind, name, spec, Span { start, end: node.span.end }, &mut problems)
        }
    };
    let good = !problems.list.iter().any(Diagnostic::is_error);
    let of_id = |diagnostic: Diagnostic| match &id {
        Some(id) => diagnostic.of(id),
        None => diagnostic,
    };
    problems.list.sort_by_key(|problem| problem.location.as_ref().map(|location| location.span.start));
    parsed.diagnostics.extend(problems.list.into_iter().map(of_id));
    match document.filter(|_| good) {
        Some(document) => parsed.documents.push(document),
        None => parsed.broken.extend(id),
    }
}

/// What the envelope says about the document in it.
enum Wrapped<'n> {
    Blueprint { kind: Option<(&'n str, Span)>, name: Option<&'n Node>, spec: &'n Node },
    Attachment { name: Option<&'n Node>, spec: &'n Node },
}

fn envelope<'n>(node: &'n Node, problems: &mut Problems<'_>) -> Wrapped<'n> {
    if node.get("apiVersion").is_none() && node.get("kind").is_none() {
        return Wrapped::Blueprint { kind: None, name: None, spec: node };
    }
    let fields = Fields::open(node, "the document", ENVELOPE, problems);
    match fields.get("apiVersion") {
        Some(version) => {
            let _ = problems.word(version, "apiVersion", &[(API_VERSION, ())]);
        }
        None => problems.error(
            node.span,
            "`kind` without `apiVersion`",
            format!("add `apiVersion: {API_VERSION}`"),
        ),
    }
    let name = fields
        .get("metadata")
        .and_then(|metadata| Fields::open(metadata, "`metadata`", METADATA, problems).get("name"));
    let spec = fields.get("spec").unwrap_or_else(|| {
        problems.error(node.span, "`spec` is missing", "put `routing` and `services` under `spec:`");
        node
    });
    let kinds = [
        ("Baseline", "Baseline"),
        ("Overlay", "Overlay"),
        ("Blueprint", "Blueprint"),
        ("Attachment", "Attachment"),
    ];
    let kind = match fields.get("kind") {
        Some(kind) => problems.word(kind, "kind", &kinds).map(|word| (word, kind.span)),
        None => {
            problems.error(
                node.span,
                "`apiVersion` without `kind`",
                "add `kind: Baseline` or `kind: Overlay`",
            );
            None
        }
    };
    match kind {
        Some(("Attachment", _)) => Wrapped::Attachment { name, spec },
        Some(("Blueprint", _)) => Wrapped::Blueprint { kind: None, name, spec },
        kind => Wrapped::Blueprint { kind, name, spec },
    }
}

fn attachment(
    name: Option<&Node>,
    spec: &Node,
    problems: &mut Problems<'_>,
) -> (Option<Document>, Option<EnvironmentId>) {
    let fields = Fields::open(spec, "`spec`", ATTACHMENT, problems);
    let environment: Option<Spanned<EnvironmentId>> = match name {
        Some(name) => problems.value(name, "metadata.name", ID_HINT),
        None => {
            problems.error(
                spec.span,
                "the attachment names no environment",
                "add `metadata: {name: OVERLAY}`",
            );
            None
        }
    };
    let mut services = Vec::new();
    for item in fields.get("services").map_or(&[][..], |list| problems.items(list, "services", SERVICES_HINT))
    {
        let fields = Fields::open(item, "the attached service", ATTACHED, problems);
        match (fields.get("name"), fields.get("url")) {
            (Some(name), Some(url)) => {
                let name = problems.value(name, "name", ID_HINT);
                let url = problems.value(url, "url", URL_HINT);
                services.extend(name.zip(url));
            }
            _ => problems.error(
                item.span,
                "an attached service needs `name` and `url`",
                "such as `{name: payments-api, url: \"http://127.0.0.1:4001\"}`",
            ),
        }
    }
    let Some(environment) = environment else {
        return (None, None);
    };
    // A broken attachment makes no environment unavailable: its id is not reported as broken.
    (
        Some(Document::Attachment(Arc::new(Attachment {
            source: problems.source.clone(),
            environment,
            services,
        }))),
        None,
    )
}

fn blueprint(
    kind: Option<(&str, Span)>,
    outer: Option<&Node>,
    node: &Node,
    span: Span,
    problems: &mut Problems<'_>,
) -> (Option<Document>, Option<EnvironmentId>) {
    let root = Fields::open(node, "the blueprint", ROOT, problems);
    let routing = root.get("routing").map(|routing| Fields::open(routing, "`routing`", ROUTING, problems));
    let field = |name: &str| routing.as_ref().and_then(|routing| routing.get(name));
    let baseline = is_baseline(kind, field("mode"), node, problems);
    let own_key = if baseline { "baselineId" } else { "overlayId" };
    let Some(id) = identity(own_key, field(own_key), root.get("name"), outer, node, problems) else {
        return (None, None);
    };
    let mode = if baseline {
        only(field("overlayId"), "overlayId", "it is an overlay's; a baseline has `baselineId`", problems);
        for name in ["ttl", "expiresAt"] {
            only(field(name), name, "a baseline does not expire", problems);
        }
        Some(Mode::Baseline)
    } else {
        for name in ["serviceUrl", "onUnknown"] {
            only(field(name), name, "it is the baseline's, and holds for all its overlays", problems);
        }
        parent(field("baselineId"), &id, node, problems)
    };
    let on_unknown = [("baseline", OnUnknown::Baseline), ("reject", OnUnknown::Reject)];
    let on_unavailable = [("fail", OnUnavailable::Fail), ("fallback", OnUnavailable::Fallback)];
    let read = Blueprint {
        source: problems.source.clone(),
        span,
        mode: mode.clone().unwrap_or(Mode::Baseline),
        header: field("headerName")
            .and_then(|node| problems.value(node, "headerName", "such as `x-overlay-id`")),
        propagate: field("propagateHeader").and_then(|node| problems.boolean(node, "propagateHeader")),
        service_url: field("serviceUrl")
            .filter(|_| baseline)
            .and_then(|node| problems.value(node, "serviceUrl", TEMPLATE_HINT)),
        overlay_url: field("overlayUrl").and_then(|node| problems.value(node, "overlayUrl", TEMPLATE_HINT)),
        ttl: field("ttl").and_then(|node| duration(node, "ttl", problems)),
        expires_at: field("expiresAt").and_then(|node| timestamp(node, problems)),
        on_unavailable: field("onUnavailable")
            .and_then(|node| problems.word(node, "onUnavailable", &on_unavailable)),
        on_unknown: field("onUnknown").and_then(|node| {
            Some(Spanned { value: problems.word(node, "onUnknown", &on_unknown)?, span: node.span })
        }),
        hold_for: field("holdFor").and_then(|node| hold(node, problems)),
        services: services(root.get("services"), problems),
        id: id.clone(),
    };
    if read.services.is_empty() && !problems.list.iter().any(Diagnostic::is_error) {
        problems.warning(id.span, format!("`{}` owns no service", id.value), SERVICES_HINT);
    }
    (mode.map(|_| Document::Blueprint(Arc::new(read))), Some(id.value))
}

/// Whether the document is a baseline: `routing.mode` says so, or the envelope's kind.
fn is_baseline(
    kind: Option<(&str, Span)>,
    mode: Option<&Node>,
    node: &Node,
    problems: &mut Problems<'_>,
) -> bool {
    let by_kind = kind.map(|(kind, _)| kind == "Baseline");
    let Some(mode) = mode else {
        if by_kind.is_none() {
            problems.error(
                node.span_of_start(),
                "`routing.mode` is missing",
                "write `mode: baseline`, or `mode: overlay` with the `baselineId` that it overlays",
            );
        }
        return by_kind.unwrap_or(true);
    };
    if matches!(&mode.kind, Kind::Scalar { text, .. } if text == "isolated") {
        problems.error(mode.span, "`mode: isolated` is not served here", "an isolated environment shares nothing, so it needs no overlay routing; write `baseline` or `overlay`");
        return true;
    }
    let by_mode = problems.word(mode, "mode", &[("baseline", true), ("overlay", false)]);
    if let (Some(by_mode), Some(by_kind), Some((kind, span))) = (by_mode, by_kind, kind)
        && by_mode != by_kind
    {
        let shown = if by_mode { "baseline" } else { "overlay" };
        problems.error(
            span,
            format!("`kind: {kind}` contradicts `mode: {shown}`"),
            "make them agree, or leave `mode` out",
        );
    }
    by_mode.or(by_kind).unwrap_or(true)
}

/// The id: the mode's own key, else `name`; `metadata.name` must agree.
fn identity(
    key: &str,
    own: Option<&Node>,
    name: Option<&Node>,
    outer: Option<&Node>,
    node: &Node,
    problems: &mut Problems<'_>,
) -> Option<Spanned<EnvironmentId>> {
    let (source, written) = match (own, name, outer) {
        (Some(own), ..) => (key, own),
        (None, Some(name), _) => ("name", name),
        (None, None, Some(outer)) => ("metadata.name", outer),
        (None, None, None) => {
            problems.error(
                node.span_of_start(),
                "the environment has no id",
                format!("add `routing.{key}` or `name`"),
            );
            return None;
        }
    };
    let id: Spanned<EnvironmentId> = problems.value(written, source, ID_HINT)?;
    if let Some(outer) = outer
        && let Some((text, _)) = problems.scalar(outer, "metadata.name")
        && text != id.value.as_str()
    {
        let message = format!(
            "`metadata.name` is `{}` and `{source}` is `{}`",
            crate::name::printable(text, 80),
            id.value
        );
        problems.error(outer.span, message, "an environment has one id: make them agree");
    }
    Some(id)
}

fn only(node: Option<&Node>, name: &str, why: &str, problems: &mut Problems<'_>) {
    if let Some(node) = node {
        problems.error(node.span, format!("`{name}` does not belong here"), why);
    }
}

fn parent(
    node: Option<&Node>,
    id: &Spanned<EnvironmentId>,
    whole: &Node,
    problems: &mut Problems<'_>,
) -> Option<Mode> {
    let Some(node) = node else {
        problems.error(
            whole.span_of_start(),
            format!("the overlay `{}` has no `baselineId`", id.value),
            "name its parent: a baseline, or another overlay",
        );
        return None;
    };
    let parent: Spanned<EnvironmentId> = problems.value(node, "baselineId", ID_HINT)?;
    if parent.value == id.value {
        problems.error(
            parent.span,
            format!("`{}` names itself as parent", id.value),
            "name a baseline, or another overlay",
        );
        return None;
    }
    Some(Mode::Overlay { parent })
}

fn duration(node: &Node, name: &str, problems: &mut Problems<'_>) -> Option<Spanned<Duration>> {
    let (text, _) = problems.scalar(node, name)?;
    let shown = crate::name::printable(text, 40);
    match parse_duration(text) {
        Ok(value) if value.is_zero() && name == "ttl" => {
            problems.error(node.span, "`ttl` is zero", DURATION_HINT);
        }
        Ok(value) => {
            return Some(Spanned { value, span: node.span });
        }
        Err(why) => problems.error(node.span, format!("`{name}: {shown}`: {why}"), DURATION_HINT),
    }
    None
}

fn hold(node: &Node, problems: &mut Problems<'_>) -> Option<Duration> {
    let hold = duration(node, "holdFor", problems)?;
    if hold.value > MAX_HOLD {
        problems.error(
            node.span,
            "`holdFor` is longer than a minute",
            "clients and proxies give up earlier; hold for some seconds",
        );
        return None;
    }
    Some(hold.value)
}

fn timestamp(node: &Node, problems: &mut Problems<'_>) -> Option<Spanned<UnixMillis>> {
    let (text, _) = problems.scalar(node, "expiresAt")?;
    match parse_timestamp(text) {
        Ok(value) => Some(Spanned { value, span: node.span }),
        Err(why) => {
            problems.error(
                node.span,
                format!("`expiresAt: {}`: {why}", crate::name::printable(text, 40)),
                "such as `2027-01-31T18:00:00Z`",
            );
            None
        }
    }
}

fn services(node: Option<&Node>, problems: &mut Problems<'_>) -> Vec<Service> {
    let items = node.map_or(&[][..], |node| problems.items(node, "services", SERVICES_HINT));
    let mut services: Vec<Service> = Vec::with_capacity(items.len());
    for item in items {
        let Some(service) = service(item, problems) else {
            continue;
        };
        match services.iter().find(|known| known.name.value == service.name.value) {
            None => services.push(service),
            Some(first) => {
                let line = Location { source: problems.source.clone(), span: first.name.span }.line();
                problems.error(
                    service.name.span,
                    format!("duplicate service `{}`", service.name.value),
                    format!(
                        "it is already on line {line}; several addresses of one service go under `endpoints:`"
                    ),
                );
            }
        }
    }
    services
}

fn service(node: &Node, problems: &mut Problems<'_>) -> Option<Service> {
    let fields = Fields::open(node, "the service", SERVICE, problems);
    let name: Option<Spanned<ServiceName>> = match fields.get("name") {
        Some(name) => problems.value(name, "name", ID_HINT),
        None => {
            if matches!(node.kind, Kind::Mapping(_)) {
                problems.error(node.span_of_start(), "the service has no `name`", "add `name: payments-api`");
            }
            None
        }
    };
    let expose = fields.get("expose").and_then(|node| problems.boolean(node, "expose"));
    let urls = urls(fields.get("url"), fields.get("endpoints"), problems);
    let hosts_list = fields.get("hosts");
    let hosts: Vec<_> = hosts_list
        .map_or(&[][..], |list| problems.items(list, "hosts", "write `hosts: [shop.example.com]`"))
        .iter()
        .filter_map(|item| host(item, problems))
        .collect();
    let path = fields.get("path").and_then(|node| path(node, problems));
    if expose == Some(false)
        && let Some(unused) = hosts_list.or(fields.get("path"))
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
    Some(Service { name: name?, urls, expose, hosts, path, image })
}

fn urls(url: Option<&Node>, endpoints: Option<&Node>, problems: &mut Problems<'_>) -> Vec<Spanned<Url>> {
    match (url, endpoints) {
        (Some(_), Some(endpoints)) => {
            problems.error(
                endpoints.span,
                "both `url` and `endpoints`",
                "write `url` for one address, `endpoints` for several",
            );
            Vec::new()
        }
        (Some(url), None) => problems.value(url, "url", URL_HINT).into_iter().collect(),
        (None, Some(list)) => problems
            .items(list, "endpoints", "write `endpoints: [10.0.0.1:8080, 10.0.0.2:8080]`")
            .iter()
            .filter_map(|item| endpoint(item, problems))
            .collect(),
        (None, None) => Vec::new(),
    }
}

/// A url, or `host:port` for plain HTTP.
fn endpoint(node: &Node, problems: &mut Problems<'_>) -> Option<Spanned<Url>> {
    let (text, _) = problems.scalar(node, "endpoints")?;
    let whole = if text.contains("://") || text.starts_with("unix:") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    match whole.parse() {
        Ok(value) => Some(Spanned { value, span: node.span }),
        Err(why) => {
            problems.error(
                node.span,
                format!("`endpoints`: {why}"),
                "such as `10.0.0.1:8080` or `http://10.0.0.1:8080`",
            );
            None
        }
    }
}

fn host(node: &Node, problems: &mut Problems<'_>) -> Option<Spanned<Box<str>>> {
    let (text, _) = problems.scalar(node, "hosts")?;
    let shown = crate::name::printable(text, 80);
    if text.contains('*') {
        problems.error(node.span, format!("the host `{shown}` has a wildcard"), "write each host out");
        return None;
    }
    match split_authority(text) {
        Ok((host, None)) => {
            Some(Spanned { value: host.trim_end_matches('.').to_ascii_lowercase().into(), span: node.span })
        }
        Ok((_, Some(_))) => {
            problems.error(
                node.span,
                format!("the host `{shown}` has a port"),
                "leave the port out: the gateway matches the name",
            );
            None
        }
        Err(why) => {
            problems.error(node.span, format!("`hosts`: {why}"), "such as `shop.staging.example.com`");
            None
        }
    }
}

fn path(node: &Node, problems: &mut Problems<'_>) -> Option<Spanned<Box<str>>> {
    let (text, _) = problems.scalar(node, "path")?;
    if text.starts_with('/') && !text.contains(['?', '#', '*']) && text.bytes().all(|b| b.is_ascii_graphic())
    {
        return Some(Spanned { value: text.into(), span: node.span });
    }
    problems.error(
        node.span,
        format!("the path `{}` is no prefix", crate::name::printable(text, 80)),
        "it begins with `/` and has no `?`, `#`, `*` or spaces, such as `/api`",
    );
    None
}

impl Node {
    /// The first character, for mistakes about a whole mapping.
    fn span_of_start(&self) -> Span {
        Span { end: self.span.start, ..self.span }
    }
}

/// The text of a blueprint's document with `routing.expiresAt` set, by the smallest edit: comments
/// and everything else stay as they are.
#[must_use]
pub fn with_expiry(source: &Arc<Source>, blueprint: &Blueprint, at: UnixMillis) -> String {
    let within =
        |node: &Node| node.span.start <= blueprint.id.span.start && blueprint.id.span.end <= node.span.end;
    let mut documents = Documents::new(source);
    let node = loop {
        match documents.next() {
            Ok(Some(node)) if within(&node) => break Some(node),
            Ok(Some(_)) => {}
            _ => break None,
        }
    };
    let spec = node.as_ref().map(|node| node.get("spec").unwrap_or(node));
    let edit = spec.and_then(|spec| expiry_edit(source, spec, at));
    let document = blueprint.span.start as usize..(blueprint.span.end as usize).min(source.text.len());
    let mut text = source.text[document.clone()].to_owned();
    if let Some((range, replacement)) = edit {
        text.replace_range(range.start - document.start..range.end - document.start, &replacement);
    }
    text
}

/// What to replace, and by what.
fn expiry_edit(source: &Source, spec: &Node, at: UnixMillis) -> Option<(std::ops::Range<usize>, String)> {
    let routing = spec.get("routing")?;
    if let Some(known) = routing.get("expiresAt").filter(|known| known.span.end > known.span.start) {
        return Some((known.span.start as usize..known.span.end as usize, format!("\"{at}\"")));
    }
    let start = routing.span.start as usize;
    if source.text[start..].starts_with('{') {
        return Some((start + 1..start + 1, format!("\"expiresAt\": \"{at}\", ")));
    }
    let Kind::Mapping(entries) = &routing.kind else {
        return None;
    };
    let key = entries.first()?.0.span.start as usize;
    let line = source.text[..key].rfind('\n').map_or(0, |newline| newline + 1);
    Some((key..key, format!("expiresAt: \"{at}\"\n{}", " ".repeat(key - line))))
}
