//! `overlane baseline …` and `overlane overlay …`, `apply`, `attach`, `detach`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use overlane_config::blueprint::{Blueprint, Mode, OnUnavailable, OnUnknown};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::lineage::{Lineages, Resolved, Standing};
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::time::{UnixMillis, parse_duration};
use overlane_config::url::Url;
use serde_json::{Value, json};

use super::output::{CliError, Format, Output};
use crate::clock;
use crate::store::StoreAddress;
use crate::store::read::read;
use crate::store::write::{OpenStore, Outcome, Put};

/// What to do with environments of a kind.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create from files; fails where one exists
    Create(FromFiles),
    /// Create or change, from files or, for an overlay, from flags alone
    Apply(QuickApply),
    /// Show one or all, as they are written
    Get {
        /// The id; all where it is left out
        id: Option<EnvironmentId>,
        /// How
        #[command(flatten)]
        format: FormatArg,
    },
    /// List all
    #[command(visible_alias = "ls")]
    List {
        /// Only the overlays whose lineage ends at this baseline
        #[arg(long, value_name = "ID")]
        baseline: Option<EnvironmentId>,
        /// How
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show everything about one: lineage, services, policies, problems
    Describe {
        /// The id
        id: EnvironmentId,
    },
    /// Delete some
    #[command(visible_alias = "rm")]
    Delete {
        /// The ids
        #[arg(required = true)]
        ids: Vec<EnvironmentId>,
        /// Do not fail where one does not exist
        #[arg(long)]
        ignore_not_found: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// `-o`.
#[derive(Debug, Clone, Copy, Args)]
pub struct FormatArg {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Files and how to write them.
#[derive(Debug, Args)]
pub struct FromFiles {
    /// A blueprint file, `-` for standard input; repeatable
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    how: How,
}

/// How to write.
#[derive(Debug, Args)]
pub struct How {
    /// The parent that the overlay must have
    #[arg(long, value_name = "ID")]
    baseline: Option<EnvironmentId>,
    /// How long it lives from now on, such as 4h
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Duration>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: FormatArg,
}

fn ttl(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(ttl) if ttl.is_zero() => Err("a ttl of zero".to_owned()),
        parsed => parsed,
    }
}

/// `overlane apply`.
#[derive(Debug, Args)]
pub struct QuickApply {
    /// A blueprint file, `-` for standard input; repeatable
    #[arg(short, long = "file", value_name = "FILE", conflicts_with_all = ["id", "url"])]
    files: Vec<PathBuf>,
    /// The id of an overlay to make without a file
    #[arg(long, value_name = "ID", requires = "baseline")]
    id: Option<EnvironmentId>,
    /// A service that it owns and where it is; repeatable, or separated by commas
    #[arg(long, value_name = "SERVICE=URL", value_delimiter = ',', value_parser = service_url)]
    url: Vec<(ServiceName, Url)>,
    #[command(flatten)]
    how: How,
}

fn service_url(text: &str) -> Result<(ServiceName, Url), String> {
    let (service, url) =
        text.split_once('=').ok_or("write SERVICE=URL, such as payments-api=http://127.0.0.1:4001")?;
    Ok((
        service.parse().map_err(|error: overlane_config::name::InvalidLabel| error.to_string())?,
        url.parse()?,
    ))
}

/// `overlane attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// The overlay
    id: EnvironmentId,
    /// The service
    service: ServiceName,
    /// Where it is
    #[arg(long, value_name = "URL")]
    url: Url,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// `overlane detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// The overlay
    id: EnvironmentId,
    /// The service
    service: ServiceName,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Which kind of environment a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Baseline,
    Overlay,
}

impl Kind {
    fn as_str(self) -> &'static str {
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

    fn of(blueprint: &Blueprint) -> Self {
        match blueprint.mode {
            Mode::Baseline => Self::Baseline,
            Mode::Overlay { .. } => Self::Overlay,
        }
    }
}

/// `overlane baseline …`.
///
/// # Errors
/// See [`CliError`].
pub fn baseline(verb: Verb, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    run(verb, Kind::Baseline, store, out)
}

/// `overlane overlay …`.
///
/// # Errors
/// See [`CliError`].
pub fn overlay(verb: Verb, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    run(verb, Kind::Overlay, store, out)
}

fn run(verb: Verb, kind: Kind, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    match verb {
        Verb::Create(from) => write_files(&from.files, &from.how, true, Some(kind), store, out),
        Verb::Apply(apply) => apply_as(&apply, Some(kind), store, out),
        Verb::Get { id, format } => get(id.as_ref(), kind, format.output, &OpenStore::read(store)?, out),
        Verb::List { baseline, format } => {
            list(baseline.as_ref(), kind, format.output, &OpenStore::read(store)?, out)
        }
        Verb::Describe { id } => describe(&id, kind, &OpenStore::read(store)?, out),
        Verb::Delete { ids, ignore_not_found, dry_run } => {
            let mut open = OpenStore::write(store)?;
            for id in &ids {
                delete(id, kind, ignore_not_found, dry_run, &mut open, out)?;
            }
            Ok(())
        }
    }
}

/// `overlane apply`: files of any kind, or an overlay made of flags.
///
/// # Errors
/// See [`CliError`].
pub fn quick_apply(apply: &QuickApply, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    apply_as(apply, None, store, out)
}

fn apply_as(
    apply: &QuickApply,
    kind: Option<Kind>,
    store: &StoreAddress,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let (Some(id), Some(parent)) = (&apply.id, &apply.how.baseline) else {
        if apply.files.is_empty() {
            return Err(CliError::usage("nothing to apply")
                .hint("give `--file FILE`, or `--id pr-12 --baseline staging --url payments-api=http://…`"));
        }
        return write_files(&apply.files, &apply.how, false, kind, store, out);
    };
    let mut text = format!(
        "name: {id}\nrouting:\n  mode: overlay\n  baselineId: {parent}\n  overlayId: {id}\nservices:\n"
    );
    for (service, url) in &apply.url {
        text.push_str(&format!("  - name: {service}\n    url: {url}\n"));
    }
    if apply.url.is_empty() {
        return Err(CliError::usage("an overlay without `--url` would own nothing")
            .hint("add `--url payments-api=http://127.0.0.1:4001`"));
    }
    let source = Arc::new(Source { path: "(flags)".into(), text, modified: None });
    write_sources(&[source], &apply.how, false, kind, store, out)
}

fn write_files(
    files: &[PathBuf],
    how: &How,
    create: bool,
    kind: Option<Kind>,
    store: &StoreAddress,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let sources = files.iter().map(|file| source(file)).collect::<Result<Vec<_>, _>>()?;
    write_sources(&sources, how, create, kind, store, out)
}

fn source(file: &Path) -> Result<Arc<Source>, CliError> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| CliError::failure(format!("standard input: {error}")))?;
        return Ok(Arc::new(Source { path: "(stdin)".into(), text, modified: None }));
    }
    let shown = file.display().to_string().into();
    match read(file, &shown) {
        Ok(read) => Ok(Arc::new(Source { modified: None, ..read })),
        Err(error) => Err(CliError::failure(format!("{shown} {error}"))),
    }
}

fn write_sources(
    sources: &[Arc<Source>],
    how: &How,
    create: bool,
    kind: Option<Kind>,
    store: &StoreAddress,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let put = Put { create, dry_run: how.dry_run, ttl: how.ttl, parent: how.baseline.clone() };
    let mut open = OpenStore::write(store)?;
    let mut written = Vec::new();
    for source in sources {
        if let Some(kind) = kind {
            refuse_other_kind(source, kind)?;
        }
        let done = open.put(source, &put, clock::now())?;
        out.diagnostics(&done.warnings);
        written.extend(done.environments);
    }
    for (blueprint, outcome) in &written {
        report(blueprint, *outcome, how, out)?;
    }
    if let Some((blueprint, _)) =
        written.last().filter(|_| how.format.output == Format::Table && !how.dry_run)
    {
        out.note(next_step(blueprint, store));
    }
    Ok(())
}

fn refuse_other_kind(source: &Arc<Source>, kind: Kind) -> Result<(), CliError> {
    for document in overlane_config::blueprint::parse(source).documents {
        if let overlane_config::blueprint::Document::Blueprint(blueprint) = document
            && Kind::of(&blueprint) != kind
        {
            let (id, is) = (&blueprint.id.value, Kind::of(&blueprint).as_str());
            return Err(CliError::failure(format!(
                "{}: `{id}` is {}",
                source.path,
                Kind::of(&blueprint).with_article()
            ))
            .hint(format!("use `overlane {is} …`, or `overlane apply` for files of any kind")));
        }
    }
    Ok(())
}

fn report(blueprint: &Blueprint, outcome: Outcome, how: &How, out: &mut Output<'_>) -> Result<(), CliError> {
    let id = &blueprint.id.value;
    match how.format.output {
        Format::Name => out.line(id),
        Format::Table | Format::Wide => {
            let dry = dry(how.dry_run);
            out.line(format_args!("{} {id} {}{dry}", Kind::of(blueprint).as_str(), outcome.as_str()))
        }
        format => out.value(
            &json!({ "id": id.as_str(), "kind": Kind::of(blueprint).as_str(), "outcome": outcome.as_str() }),
            format,
        ),
    }
}

fn next_step(blueprint: &Blueprint, store: &StoreAddress) -> String {
    let id = &blueprint.id.value;
    match blueprint.mode {
        Mode::Baseline => format!(
            "Next: overlane run --store {store}\n      overlane overlay create --baseline {id} --file OVERLAY.yaml --store {store}"
        ),
        Mode::Overlay { .. } => format!(
            "Next: overlane run --store {store}    (a running one has it already)\n      curl -H 'x-overlay-id: {id}' http://{}/",
            crate::settings::DEFAULT_GATEWAY
        ),
    }
}

fn delete(
    id: &EnvironmentId,
    kind: Kind,
    ignore: bool,
    dry_run: bool,
    open: &mut OpenStore,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let is_kind = open.lineages().claims(id).next().map(|known| Kind::of(known));
    match is_kind {
        None if ignore => return Ok(()),
        None => return Err(not_found(id, kind, open.lineages())),
        Some(is) if is != kind => {
            return Err(CliError::failure(format!("`{id}` is {}", is.with_article()))
                .hint(format!("use `overlane {} delete {id}`", is.as_str())));
        }
        Some(_) => {}
    }
    let outcome = open.delete(id, dry_run)?;
    let dry = dry(dry_run);
    out.line(format_args!("{} {id} {}{dry}", kind.as_str(), outcome.as_str()))
}

fn dry(run: bool) -> &'static str {
    if run { " (dry run)" } else { "" }
}

fn not_found(id: &EnvironmentId, kind: Kind, lineages: &Lineages) -> CliError {
    let error = CliError::not_found(format!("there is no {} `{id}`", kind.as_str()));
    let known = of_kind(kind, lineages).map(|(known, _)| known.as_str());
    match overlane_config::diagnostic::did_you_mean(id.as_str(), known) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("`overlane {} list` shows them", kind.as_str())),
    }
}

/// `overlane attach`.
///
/// # Errors
/// See [`CliError`].
pub fn attach(attach: &Attach, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    let outcome =
        OpenStore::write(store)?.attach(&attach.id, &attach.service, Some(&attach.url), attach.dry_run)?;
    out.line(format_args!(
        "attachment {}/{} {}{}",
        attach.id,
        attach.service,
        outcome.as_str(),
        dry(attach.dry_run)
    ))
}

/// `overlane detach`.
///
/// # Errors
/// See [`CliError`].
pub fn detach(detach: &Detach, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    let outcome = OpenStore::write(store)?.attach(&detach.id, &detach.service, None, detach.dry_run)?;
    out.line(format_args!(
        "attachment {}/{} {}{}",
        detach.id,
        detach.service,
        outcome.as_str(),
        dry(detach.dry_run)
    ))
}

/// The environments of a kind, in order; refused ones by what their blueprint says.
fn of_kind(kind: Kind, lineages: &Lineages) -> impl Iterator<Item = (&EnvironmentId, &Standing)> {
    lineages.standings().filter(move |(id, standing)| match standing.resolved() {
        Some(resolved) => Kind::of(&resolved.blueprint) == kind,
        // What was never read could be either.
        None => lineages.claims(id).next().is_none_or(|claim| Kind::of(claim) == kind),
    })
}

fn get(
    id: Option<&EnvironmentId>,
    kind: Kind,
    format: Format,
    open: &OpenStore,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let lineages = open.lineages();
    let found: Vec<_> =
        of_kind(kind, lineages).filter(|(known, _)| id.is_none_or(|id| id == *known)).collect();
    if let (Some(id), true) = (id, found.is_empty()) {
        return Err(not_found(id, kind, lineages));
    }
    match format {
        Format::Table | Format::Wide | Format::Name => rows(&found, format, lineages, out),
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
fn document(blueprint: &Blueprint) -> &str {
    let text = &blueprint.source.text;
    &text[blueprint.span.start as usize..(blueprint.span.end as usize).min(text.len())]
}

fn as_json(blueprint: &Blueprint) -> Result<Value, CliError> {
    serde_yaml::from_str(document(blueprint))
        .map_err(|error| CliError::failure(format!("{}: {error}", blueprint.source.path)))
}

fn list(
    baseline: Option<&EnvironmentId>,
    kind: Kind,
    format: Format,
    open: &OpenStore,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let lineages = open.lineages();
    let of_baseline = |standing: &Standing| {
        baseline
            .is_none_or(|baseline| standing.resolved().is_some_and(|resolved| resolved.baseline == *baseline))
    };
    let found: Vec<_> = of_kind(kind, lineages).filter(|(_, standing)| of_baseline(standing)).collect();
    match format {
        Format::Json | Format::Yaml => {
            let values = found.iter().map(|(id, standing)| summary(id, standing, lineages)).collect();
            out.value(&Value::Array(values), format)
        }
        _ => {
            if found.is_empty() && format != Format::Name {
                out.note(format_args!(
                    "no {}s; `overlane {} create --file FILE` makes one",
                    kind.as_str(),
                    kind.as_str()
                ));
            }
            rows(&found, format, lineages, out)
        }
    }
}

fn rows(
    found: &[(&EnvironmentId, &Standing)],
    format: Format,
    lineages: &Lineages,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    if format == Format::Name {
        return found.iter().try_for_each(|(id, _)| out.line(id));
    }
    let now = clock::now();
    let row = |(id, standing): &(&EnvironmentId, &Standing)| {
        let resolved = standing.resolved();
        let of = |field: fn(&Resolved) -> String| resolved.map_or_else(|| "-".to_owned(), field);
        let mut row = vec![
            id.to_string(),
            of(|resolved| resolved.baseline.to_string()),
            of(|resolved| resolved.parent.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)),
            of(services),
            of(|resolved| resolved.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string())),
            status(id, standing, lineages, now),
        ];
        if format == Format::Wide {
            row.push(
                lineages
                    .claims(id)
                    .next()
                    .map_or_else(|| "-".to_owned(), |claim| claim.source.path.to_string()),
            );
        }
        row
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let header = ["ID", "BASELINE", "PARENT", "SERVICES", "EXPIRES", "STATUS", "FILE"];
    out.table(&header[..if format == Format::Wide { 7 } else { 6 }], &rows)
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

fn summary(id: &EnvironmentId, standing: &Standing, lineages: &Lineages) -> Value {
    let resolved = standing.resolved();
    let services = resolved.map(|resolved| {
        let services = resolved.blueprint.services.iter().zip(&resolved.urls);
        let service = services.map(|(service, urls)| {
            json!({ "name": service.name.value.as_str(), "urls": urls.iter().map(ToString::to_string).collect::<Vec<_>>(), "image": service.image })
        });
        service.collect::<Vec<_>>()
    });
    json!({
        "id": id.as_str(),
        "baseline": resolved.map(|resolved| resolved.baseline.as_str()),
        "parent": resolved.and_then(|resolved| resolved.parent.as_ref()).map(EnvironmentId::as_str),
        "services": services,
        "expiresAt": resolved.and_then(|resolved| resolved.expires_at).map(|at| at.to_string()),
        "status": status(id, standing, lineages, clock::now()),
        "file": lineages.claims(id).next().map(|claim| claim.source.path.to_string()),
        "problems": lineages.problems(id).iter().map(Diagnostic::short).collect::<Vec<_>>(),
    })
}

fn describe(id: &EnvironmentId, kind: Kind, open: &OpenStore, out: &mut Output<'_>) -> Result<(), CliError> {
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
fn lineage<'l>(id: &'l EnvironmentId, lineages: &'l Lineages) -> Vec<(&'l EnvironmentId, &'l Resolved)> {
    let mut chain = Vec::new();
    let mut next = Some(id);
    while let Some((id, resolved)) = next.and_then(|id| Some((id, lineages.standing(id)?.resolved()?))) {
        chain.push((id, resolved));
        next = resolved.parent.as_ref();
    }
    chain
}
