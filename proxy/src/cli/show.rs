//! Environments for people: what kind they are, `get`, `list` and `describe`.

use std::collections::BTreeMap;

use overlane_config::blueprint::{Blueprint, Mode, OnUnavailable, OnUnknown};
use overlane_config::diagnostic::Diagnostic;
use overlane_config::lineage::{Lineages, Resolved, Standing};
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::time::{UnixMillis, written};
use serde_json::{Value, json};

use super::output::{CliError, Format, Output};
use super::preview::{links, print_links};
use super::select::Selection;
use crate::clock;
use crate::store::open::OpenStore;

/// Which kind of environment a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Baseline,
    Overlay,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Overlay => "overlay",
        }
    }

    pub(super) fn with_article(self) -> &'static str {
        match self {
            Self::Baseline => "a baseline",
            Self::Overlay => "an overlay",
        }
    }

    pub(crate) fn of(blueprint: &Blueprint) -> Self {
        match blueprint.mode {
            Mode::Baseline => Self::Baseline,
            Mode::Overlay { .. } => Self::Overlay,
        }
    }
}

pub(super) fn not_found(id: &EnvironmentId, kind: Kind, lineages: &Lineages) -> CliError {
    let error = CliError::not_found(format!("there is no {} `{id}`", kind.as_str()));
    let known = of_kind(kind, lineages).map(|(known, _)| known.as_str());
    match overlane_config::diagnostic::did_you_mean(id.as_str(), known) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("`overlane {} list` shows them", kind.as_str())),
    }
}

/// The environments of a kind, in order; refused ones by what their blueprint says.
fn of_kind(kind: Kind, lineages: &Lineages) -> impl Iterator<Item = (&EnvironmentId, &Standing)> {
    lineages.standings().filter(move |(id, standing)| match standing.resolved() {
        Some(resolved) => Kind::of(&resolved.blueprint) == kind,
        // What was never read could be either.
        None => lineages.claims(id).next().is_none_or(|claim| Kind::of(claim) == kind),
    })
}

/// What of the environments is shown, and how.
pub(super) struct Shown {
    pub(super) kind: Kind,
    pub(super) selection: Selection,
    /// Labels that have columns of their own.
    pub(super) labels: Vec<String>,
    pub(super) format: Format,
}

/// The environments of a kind that are selected. Only those whose blueprint can be read are, where anything is asked of it.
fn selection<'l>(
    kind: Kind,
    selection: &Selection,
    lineages: &'l Lineages,
) -> impl Iterator<Item = (&'l EnvironmentId, &'l Standing)> {
    let blueprint = |id, standing: &'l Standing| {
        standing.resolved().map(|resolved| &resolved.blueprint).or_else(|| lineages.claims(id).next())
    };
    of_kind(kind, lineages).filter(move |(id, standing)| {
        !selection.is_given() || blueprint(id, standing).is_some_and(|blueprint| selection.selects(blueprint))
    })
}

/// The ids of those, children before their parents.
pub(super) fn selected(kind: Kind, of: &Selection, lineages: &Lineages) -> Vec<EnvironmentId> {
    let mut found: Vec<_> = selection(kind, of, lineages).collect();
    found.sort_by_key(|(_, standing)| std::cmp::Reverse(standing.depth()));
    found.into_iter().map(|(id, _)| id.clone()).collect()
}

pub(super) fn get(
    id: Option<&EnvironmentId>,
    shown: &Shown,
    open: &OpenStore,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let lineages = open.lineages();
    let Shown { kind, format, .. } = *shown;
    let found: Vec<_> = selection(kind, &shown.selection, lineages)
        .filter(|(known, _)| id.is_none_or(|id| id == *known))
        .collect();
    if let (Some(id), true) = (id, found.is_empty()) {
        return Err(not_found(id, kind, lineages));
    }
    match format {
        Format::Table | Format::Wide | Format::Name => {
            rows(&found, shown, lineages, out)?;
            if let (Some(id), Kind::Overlay, true) = (id, kind, format != Format::Name) {
                print_links(id, lineages, out);
            }
            Ok(())
        }
        Format::Yaml => {
            for (at, (id, _)) in found.iter().enumerate() {
                if at > 0 {
                    out.line("---")?;
                }
                for blueprint in lineages.claims(id) {
                    out.line(document(blueprint).trim_end())?;
                }
            }
            Ok(())
        }
        Format::Json => {
            let values = found
                .iter()
                .flat_map(|(id, _)| lineages.claims(id))
                .map(|blueprint| as_json(blueprint))
                .collect::<Result<Vec<_>, _>>()?;
            match (id, &values[..]) {
                (Some(_), [only]) => out.value(only, format),
                _ => out.value(&Value::Array(values), format),
            }
        }
    }
}

/// The document as it is written.
pub(super) fn document(blueprint: &Blueprint) -> &str {
    let text = &blueprint.source.text;
    &text[blueprint.span.start as usize..(blueprint.span.end as usize).min(text.len())]
}

pub(crate) fn as_json(blueprint: &Blueprint) -> Result<Value, CliError> {
    serde_yaml::from_str(document(blueprint))
        .map_err(|error| CliError::failure(format!("{}: {error}", blueprint.source.path)))
}

pub(super) fn list(
    baseline: Option<&EnvironmentId>,
    shown: &Shown,
    open: &OpenStore,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let lineages = open.lineages();
    let Shown { kind, format, .. } = *shown;
    let selected = selection(kind, &shown.selection, lineages);
    let found: Vec<_> = selected.filter(|(_, standing)| is_of(baseline, standing)).collect();
    match format {
        Format::Json | Format::Yaml => {
            let values = found.iter().map(|(id, standing)| summary(id, standing, lineages)).collect();
            out.value(&Value::Array(values), format)
        }
        _ => {
            if found.is_empty() && shown.selection.is_given() {
                out.note(format_args!("no {} is selected", kind.as_str()));
            } else if found.is_empty() && format != Format::Name {
                out.note(format_args!(
                    "no {}s; `overlane {} create --file FILE` makes one",
                    kind.as_str(),
                    kind.as_str()
                ));
            }
            rows(&found, shown, lineages, out)
        }
    }
}

fn rows(
    found: &[(&EnvironmentId, &Standing)],
    shown: &Shown,
    lineages: &Lineages,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let wide = shown.format == Format::Wide;
    if shown.format == Format::Name {
        return found.iter().try_for_each(|(id, _)| out.line(id));
    }
    let now = clock::now();
    let row = |(id, standing): &(&EnvironmentId, &Standing)| {
        let mut row = columns(id, standing, lineages, now).to_vec();
        let claim = lineages.claims(id).next();
        let blueprint = standing.resolved().map(|resolved| &resolved.blueprint).or(claim);
        if wide {
            row.push(or_dash(blueprint.and_then(|blueprint| blueprint.owner.as_deref())));
            row.push(or_dash(blueprint.map(|blueprint| labels(blueprint)).as_deref()));
            row.push(or_dash(claim.map(|claim| &*claim.source.path)));
        }
        let label = |key: &String| or_dash(blueprint.and_then(|blueprint| blueprint.label(key)));
        row.extend(shown.labels.iter().map(label));
        row
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let header = ["ID", "BASELINE", "PARENT", "SERVICES", "EXPIRES", "STATUS", "OWNER", "LABELS", "FILE"];
    let mut header = header[..if wide { 9 } else { 6 }].to_vec();
    let keys: Vec<_> = shown.labels.iter().map(|key| key.to_uppercase()).collect();
    header.extend(keys.iter().map(String::as_str));
    out.table(&header, &rows)
}

fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

/// The labels as `key=value`, joined by commas.
fn labels(blueprint: &Blueprint) -> String {
    let labels: Vec<_> = blueprint.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.join(",")
}

/// What a row says of an environment.
fn columns(id: &EnvironmentId, standing: &Standing, lineages: &Lineages, now: UnixMillis) -> [String; 6] {
    let resolved = standing.resolved();
    let of = |field: fn(&Resolved) -> String| resolved.map_or_else(|| "-".to_owned(), field);
    [
        id.to_string(),
        of(|resolved| resolved.baseline.to_string()),
        of(|resolved| resolved.parent.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)),
        of(services),
        of(|resolved| resolved.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string())),
        status(id, standing, lineages, now),
    ]
}

/// The rows of a list by id.
pub(super) fn watched(
    baseline: Option<&EnvironmentId>,
    kind: Kind,
    lineages: &Lineages,
) -> BTreeMap<EnvironmentId, [String; 6]> {
    let now = clock::now();
    let found = of_kind(kind, lineages).filter(|(_, standing)| is_of(baseline, standing));
    found.map(|(id, standing)| (id.clone(), columns(id, standing, lineages, now))).collect()
}

/// Whether its lineage ends at this baseline.
fn is_of(baseline: Option<&EnvironmentId>, standing: &Standing) -> bool {
    baseline.is_none_or(|baseline| standing.resolved().is_some_and(|resolved| resolved.baseline == *baseline))
}

fn services(resolved: &Resolved) -> String {
    let names: Vec<_> =
        resolved.blueprint.services.iter().map(|service| service.name.value.to_string()).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

/// READY, PENDING (a service without address), EXPIRED, FROZEN (a bad edit; the last good one is in
/// force) or REFUSED.
fn status(id: &EnvironmentId, standing: &Standing, lineages: &Lineages, now: UnixMillis) -> String {
    let Some(resolved) = standing.resolved() else {
        return "REFUSED".to_owned();
    };
    if resolved.expires_at.is_some_and(|at| at <= now) {
        return "EXPIRED".to_owned();
    }
    if lineages.problems(id).iter().any(Diagnostic::is_error) {
        return "FROZEN".to_owned();
    }
    let services = resolved.blueprint.services.iter().zip(&resolved.urls);
    let pending: Vec<_> = services
        .filter(|(_, urls)| urls.is_empty())
        .map(|(service, _)| service.name.value.to_string())
        .collect();
    if pending.is_empty() { "READY".to_owned() } else { format!("PENDING({})", pending.join(",")) }
}

/// The addresses that are attached to a service, and until when, where that has an end.
fn attached(id: &EnvironmentId, service: &ServiceName, lineages: &Lineages) -> Vec<Value> {
    let records = lineages.attachments(id).iter().flat_map(|record| &record.services);
    let own = records.filter(|one| one.service.value == *service);
    own.map(|one| json!({ "url": one.url.value.to_string(), "expiresAt": one.expires_at.map(|at| at.to_string()) }))
        .collect()
}

pub(crate) fn summary(id: &EnvironmentId, standing: &Standing, lineages: &Lineages) -> Value {
    let resolved = standing.resolved();
    let services = resolved.map(|resolved| {
        let services = resolved.blueprint.services.iter().zip(&resolved.urls);
        let service = services.map(|(service, urls)| {
            json!({ "name": service.name.value.as_str(), "attached": attached(id, &service.name.value, lineages), "urls": urls.iter().map(ToString::to_string).collect::<Vec<_>>(), "image": service.image })
        });
        service.collect::<Vec<_>>()
    });
    let blueprint = resolved.map(|resolved| &resolved.blueprint).or_else(|| lineages.claims(id).next());
    json!({
        "id": id.as_str(),
        "baseline": resolved.map(|resolved| resolved.baseline.as_str()),
        "parent": resolved.and_then(|resolved| resolved.parent.as_ref()).map(EnvironmentId::as_str),
        "services": services,
        "owner": blueprint.and_then(|blueprint| blueprint.owner.as_deref()),
        "labels": blueprint.map(|blueprint| blueprint.labels.iter().map(|(key, value)| (key.to_string(), Value::from(&**value))).collect::<serde_json::Map<_, _>>()),
        "expiresAt": resolved.and_then(|resolved| resolved.expires_at).map(|at| at.to_string()),
        "status": status(id, standing, lineages, clock::now()),
        "file": lineages.claims(id).next().map(|claim| claim.source.path.to_string()),
        "problems": lineages.problems(id).iter().map(Diagnostic::short).collect::<Vec<_>>(),
    })
}

pub(super) fn describe(
    id: &EnvironmentId,
    kind: Kind,
    open: &OpenStore,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let lineages = open.lineages();
    let Some((_, standing)) = of_kind(kind, lineages).find(|(known, _)| *known == id) else {
        return Err(not_found(id, kind, lineages));
    };
    out.line(format_args!("Id:        {id}"))?;
    out.line(format_args!("Kind:      {}", kind.as_str()))?;
    out.line(format_args!("Status:    {}", status(id, standing, lineages, clock::now())))?;
    for blueprint in lineages.claims(id) {
        out.line(format_args!("Declared:  {}", blueprint.declared()))?;
    }
    if let Some(resolved) = standing.resolved() {
        describe_resolved(id, resolved, lineages, out)?;
    }
    let children: Vec<_> = lineages.children(id).map(ToString::to_string).collect();
    if !children.is_empty() {
        out.line(format_args!("Overlays:  {}", children.join(", ")))?;
    }
    let problems = lineages.problems(id);
    if !problems.is_empty() {
        out.line("Problems:")?;
        for problem in &problems {
            out.line(format_args!("  {}", problem.short()))?;
        }
    }
    Ok(())
}

fn describe_resolved(
    id: &EnvironmentId,
    resolved: &Resolved,
    lineages: &Lineages,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let lineage = lineage(id, lineages);
    let names: Vec<_> = lineage.iter().map(|(id, _)| id.as_str()).collect();
    out.line(format_args!("Lineage:   {}", names.join(" → ")))?;
    out.line(format_args!(
        "Key:       {}: {id}{}",
        resolved.header,
        if resolved.propagate { "" } else { " (does not go upstream)" }
    ))?;
    out.line(format_args!(
        "Expires:   {}",
        resolved.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string())
    ))?;
    if let Some(ttl) = resolved.blueprint.renewed_for() {
        let ttl = written(ttl);
        out.line(format_args!("           each use lets it live for {ttl} from then on"))?;
    }
    if let Some(owner) = &resolved.blueprint.owner {
        out.line(format_args!("Owner:     {owner}"))?;
    }
    if !resolved.blueprint.labels.is_empty() {
        out.line(format_args!("Labels:    {}", labels(&resolved.blueprint)))?;
    }
    let unavailable = match resolved.policy.on_unavailable {
        OnUnavailable::Fail => "fail (503)",
        OnUnavailable::Fallback => "fall back to the next owner",
    };
    out.line(format_args!(
        "Policy:    hold {} s, then {unavailable}",
        resolved.policy.hold_for.as_secs_f32()
    ))?;
    if resolved.on_unknown == OnUnknown::Reject {
        out.line("           unknown keys are rejected")?;
    }
    for (at, (service, link)) in links(id, lineages, None).iter().enumerate() {
        let label = if at == 0 { "Previews:" } else { "" };
        out.line(format_args!("{label:10} {link} ({service})"))?;
    }
    for one in lineages.attachments(id).iter().flat_map(|record| &record.services) {
        if let Some(at) = one.expires_at {
            let over = if at <= clock::now() { "was attached until" } else { "is attached until" };
            let (url, service) = (&one.url.value, &one.service.value);
            out.line(format_args!("Leases:    {url} {over} {at} ({service})"))?;
        }
    }
    out.line("Services:")?;
    let mut seen: Vec<&ServiceName> = Vec::new();
    let mut rows = Vec::new();
    for (owner, resolved) in &lineage {
        for (service, urls) in resolved
            .blueprint
            .services
            .iter()
            .zip(&resolved.urls)
            .filter(|(service, _)| !seen.contains(&&service.name.value))
        {
            let urls: Vec<_> = urls.iter().map(ToString::to_string).collect();
            let urls = if urls.is_empty() { "pending".to_owned() } else { urls.join(", ") };
            let image = service.image.as_deref().unwrap_or("-").to_owned();
            rows.push(vec![format!("  {}", service.name.value), owner.to_string(), urls, image]);
        }
        seen.extend(resolved.blueprint.services.iter().map(|service| &service.name.value));
    }
    out.table(&["  NAME", "OWNER", "URL", "IMAGE"], &rows)
}

/// An environment and its ancestors, nearest first.
pub(crate) fn lineage<'l>(
    id: &'l EnvironmentId,
    lineages: &'l Lineages,
) -> Vec<(&'l EnvironmentId, &'l Resolved)> {
    let mut chain = Vec::new();
    let mut next = Some(id);
    while let Some((id, resolved)) = next.and_then(|id| Some((id, lineages.standing(id)?.resolved()?))) {
        chain.push((id, resolved));
        next = resolved.parent.as_ref();
    }
    chain
}
