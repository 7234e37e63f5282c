//! `overlane baseline …` and `overlane overlay …`, `apply`, `attach`, `detach`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use overlane_config::blueprint::{Blueprint, Mode};
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Lineages, Standing};
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::time::parse_duration;
use overlane_config::url::Url;
use serde_json::json;

use super::follow::follow;
use super::output::{CliError, Format, Output};
use super::select::Selection;
use super::show::{Kind, Shown, describe, get, list, not_found, selected};
use super::validate::collect;
use super::wait::{WaitArgs, Wanted, wait};
use super::{lease, local, preview, render};
use crate::clock;
use crate::store::StoreAddress;
use crate::store::directory::read::{read, read_text};
use crate::store::open::{OpenStore, Outcome, Put, WriteError};
use crate::store::shared::Revision;

/// What to do with overlays.
#[derive(Debug, Subcommand)]
pub enum OverlayVerb {
    /// What there is for every kind
    #[command(flatten)]
    Any(Verb),
    /// Run a changed service as a process of this machine, in its overlay while it lives
    Run(Box<local::RunLocal>),
    /// Print the Deployments and Services of one, made of the baseline's manifests
    Render(Box<render::Render>),
    /// Let one live longer
    Extend(lease::Extend),
    /// Make a link that lets in whoever has it
    Share(preview::ShareArgs),
    /// Take a link back
    Unshare(preview::UnshareArgs),
    /// Show the links that were given away
    Shares(preview::SharesArgs),
}

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
        #[arg(conflicts_with_all = ["selector", "owner"])]
        id: Option<EnvironmentId>,
        /// Which
        #[command(flatten)]
        selection: Selection,
        /// What is shown of them
        #[command(flatten)]
        columns: Columns,
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
        /// Go on with what changes
        #[arg(short, long, conflicts_with_all = ["selector", "owner", "labels"])]
        watch: bool,
        /// Which
        #[command(flatten)]
        selection: Selection,
        /// What is shown of them
        #[command(flatten)]
        columns: Columns,
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
        #[arg(required_unless_present_any = ["selector", "owner"], conflicts_with_all = ["selector", "owner"])]
        ids: Vec<EnvironmentId>,
        /// Which
        #[command(flatten)]
        selection: Selection,
        /// Do not fail where one does not exist
        #[arg(long)]
        ignore_not_found: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// `-L`.
#[derive(Debug, Clone, Default, Args)]
pub struct Columns {
    /// Show the values of these labels in columns of their own; repeatable, or separated by commas
    #[arg(short = 'L', long = "label-columns", value_name = "KEY", value_delimiter = ',')]
    pub(super) labels: Vec<String>,
}

/// `-o`.
#[derive(Debug, Clone, Copy, Args)]
pub struct FormatArg {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Format,
}

/// Files and how to write them.
#[derive(Debug, Args)]
pub struct FromFiles {
    /// A blueprint file or a directory of them, `-` for standard input; repeatable
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
    wait: WaitArgs,
    #[command(flatten)]
    format: FormatArg,
}

pub(crate) fn ttl(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(ttl) if ttl.is_zero() => Err("a ttl of zero".to_owned()),
        parsed => parsed,
    }
}

/// `overlane apply`.
#[derive(Debug, Args)]
pub struct QuickApply {
    /// A blueprint file or a directory of them, `-` for standard input; repeatable
    #[arg(short, long = "file", value_name = "FILE", conflicts_with_all = ["id", "url", "image"])]
    files: Vec<PathBuf>,
    /// The id of an overlay to make without a file
    #[arg(long, value_name = "ID", requires = "baseline")]
    id: Option<EnvironmentId>,
    /// A service that it owns and where it is; repeatable, or separated by commas
    #[arg(long, value_name = "SERVICE=URL", value_delimiter = ',', value_parser = service_url)]
    url: Vec<(ServiceName, Url)>,
    /// A service that it owns and its image; where it is, `--url` says, else the baseline's overlayUrl; repeatable
    #[arg(long, value_name = "SERVICE=IMAGE", value_delimiter = ',', value_parser = service_image)]
    image: Vec<(ServiceName, String)>,
    /// Delete afterwards what the files do not have, of what `-l` and `--owner` select
    #[arg(long, requires = "files")]
    prune: bool,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    how: How,
}

impl QuickApply {
    /// What is deleted where the files do not have it.
    fn pruned(&self) -> Result<Option<&Selection>, CliError> {
        match (self.prune, self.selection.is_given()) {
            (false, false) => Ok(None),
            (true, true) => Ok(Some(&self.selection)),
            (true, false) => Err(CliError::usage("`--prune` alone would delete everything else")
                .hint("say what these files are all of: `--prune -l team=payments`, or `--owner NAME`")),
            (false, true) => Err(CliError::usage("`-l` and `--owner` say what is deleted with `--prune`")
                .hint("add `--prune`, or leave them out")),
        }
    }
}

fn service_image(text: &str) -> Result<(ServiceName, String), String> {
    let (service, image) =
        text.split_once('=').ok_or("write SERVICE=IMAGE, such as payments-api=my-org/payments-api:pr-12")?;
    let of_images = |c: char| c.is_ascii_alphanumeric() || "./:@_-".contains(c);
    if image.is_empty()
        || !image.chars().all(of_images)
        || !image.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Err(format!("`{image}` is no image: write NAME[:TAG] or NAME@DIGEST"));
    }
    Ok((
        service.parse().map_err(|error: overlane_config::name::InvalidLabel| error.to_string())?,
        image.to_owned(),
    ))
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
    /// How long it is used, where this is not said again before; for ever where it is left out
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Duration>,
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
pub fn overlay(verb: OverlayVerb, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    match verb {
        OverlayVerb::Any(verb) => run(verb, Kind::Overlay, store, out),
        OverlayVerb::Run(args) => local::run(&args, store, out),
        OverlayVerb::Render(args) => render::run(&args, store, out),
        OverlayVerb::Extend(args) => lease::extend(&args, store, out),
        OverlayVerb::Share(args) => preview::share(&args, store, out),
        OverlayVerb::Unshare(args) => preview::unshare(&args, store, out),
        OverlayVerb::Shares(args) => preview::shares(&args, store, out),
    }
}

fn run(verb: Verb, kind: Kind, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    match verb {
        Verb::Create(from) => {
            let what = What { create: true, kind: Some(kind), pruned: None };
            write_sources(&sources(&from.files)?, &from.how, &what, store, out)
        }
        Verb::Apply(apply) => apply_as(&apply, Some(kind), store, out),
        Verb::Get { id, selection, columns, format } => {
            let shown = Shown { kind, selection, labels: columns.labels, format: format.output };
            get(id.as_ref(), &shown, &OpenStore::read(store)?, out)
        }
        Verb::List { baseline, watch: true, format, .. } => match format.output {
            Format::Json | Format::Yaml => Err(CliError::usage("`--watch` shows rows")
                .hint("leave `-o` out; `GET /api/v1/overlays` of an admin listener or a hub has JSON")),
            format => follow(baseline.as_ref(), kind, format, store, out),
        },
        Verb::List { baseline, watch: false, selection, columns, format } => {
            let shown = Shown { kind, selection, labels: columns.labels, format: format.output };
            list(baseline.as_ref(), &shown, &OpenStore::read(store)?, out)
        }
        Verb::Describe { id } => describe(&id, kind, &OpenStore::read(store)?, out),
        Verb::Delete { mut ids, selection, ignore_not_found, dry_run } => {
            let chosen = selection.is_given();
            let mut open = if chosen { OpenStore::write(store)? } else { OpenStore::change(store)? };
            if chosen {
                ids = selected(kind, &selection, open.lineages());
                if ids.is_empty() {
                    out.note(format_args!("no {} is selected", kind.as_str()));
                }
            } else if ids.is_empty() {
                return Err(CliError::usage("an empty selector selects everything")
                    .hint("name the ids, or what they have in common: `-l team=payments`"));
            }
            let seen: Vec<_> = ids.iter().map(|id| open.revision(id).filter(|_| chosen)).collect();
            for (id, only) in ids.iter().zip(&seen) {
                let how = Deletion { kind, ignore_not_found, dry_run, with: &ids, only: only.as_ref() };
                delete(id, &how, &mut open, out)?;
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
    let pruned = apply.pruned()?;
    let (Some(id), Some(parent)) = (&apply.id, &apply.how.baseline) else {
        if apply.files.is_empty() {
            return Err(CliError::usage("nothing to apply")
                .hint("give `--file FILE`, or `--id pr-12 --baseline staging --url payments-api=http://…`"));
        }
        let what = What { create: false, kind, pruned };
        return write_sources(&sources(&apply.files)?, &apply.how, &what, store, out);
    };
    if apply.url.is_empty() && apply.image.is_empty() {
        return Err(CliError::usage("an overlay without `--url` and `--image` would own nothing")
            .hint("add `--url payments-api=http://127.0.0.1:4001`"));
    }
    let text = format!(
        "name: {id}\nrouting:\n  mode: overlay\n  baselineId: {parent}\n  overlayId: {id}\nservices:\n{}",
        services(&apply.url, &apply.image)
    );
    let source = Arc::new(Source::new("(flags)".into(), text, None));
    write_sources(&[source], &apply.how, &What { create: false, kind, pruned }, store, out)
}

/// The services of a blueprint, each with the image and the address that it was given.
fn services(urls: &[(ServiceName, Url)], images: &[(ServiceName, String)]) -> String {
    let mut all: Vec<(&ServiceName, String)> = Vec::new();
    let images = images.iter().map(|(service, image)| (service, format!("    image: {image}\n")));
    let urls = urls.iter().map(|(service, url)| (service, format!("    url: {url}\n")));
    for (service, line) in images.chain(urls) {
        match all.iter_mut().find(|(known, _)| *known == service) {
            // Two images, or two addresses: the blueprint's reader says so, with the place.
            Some((_, lines)) => lines.push_str(&line),
            None => all.push((service, line)),
        }
    }
    all.iter().map(|(service, lines)| format!("  - name: {service}\n{lines}")).collect()
}

/// The texts of files, and of those in directories: parents before their children.
pub(super) fn sources(files: &[PathBuf]) -> Result<Vec<Arc<Source>>, CliError> {
    let mut all = Vec::new();
    for file in files {
        match file.is_dir() {
            true => collect(file, &mut all)?,
            false => all.push(file.clone()),
        }
    }
    let sources = all.iter().map(|file| source(file)).collect::<Result<Vec<_>, _>>()?;
    if sources.len() < 2 {
        return Ok(sources);
    }
    let mut left: Vec<_> = sources.into_iter().map(|source| (ids(&source), source)).collect();
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let to_come: Vec<_> = left.iter().flat_map(|((own, _), _)| own.clone()).collect();
        let free = |((own, parents), _): &((Vec<_>, Vec<_>), _)| {
            parents.iter().all(|parent| own.contains(parent) || !to_come.contains(parent))
        };
        // A circle is said to be one where it is checked.
        let next = left.iter().position(free).unwrap_or(0);
        ordered.push(left.remove(next).1);
    }
    Ok(ordered)
}

/// The environments of a file, and their parents.
fn ids(source: &Arc<Source>) -> (Vec<EnvironmentId>, Vec<EnvironmentId>) {
    let documents = overlane_config::blueprint::parse(source).documents;
    let blueprints = documents.iter().filter_map(|document| match document {
        overlane_config::blueprint::Document::Blueprint(blueprint) => Some(blueprint),
        overlane_config::blueprint::Document::Attachment(_) => None,
    });
    let parent = |blueprint: &Arc<Blueprint>| blueprint.parent().map(|parent| parent.value.clone());
    blueprints.map(|blueprint| (blueprint.id.value.clone(), parent(blueprint))).fold(
        (Vec::new(), Vec::new()),
        |(mut own, mut parents), (id, parent)| {
            own.push(id);
            parents.extend(parent);
            (own, parents)
        },
    )
}

pub(super) fn source(file: &Path) -> Result<Arc<Source>, CliError> {
    if file == Path::new("-") {
        let text = read_text(std::io::stdin())
            .map_err(|error| CliError::failure(format!("standard input {error}")))?;
        return Ok(Arc::new(Source::new("(stdin)".into(), text, None)));
    }
    let shown = file.display().to_string().into();
    match read(file, &shown) {
        Ok(read) => Ok(Arc::new(Source::new(read.path, read.text, None))),
        Err(error) => Err(CliError::failure(format!("{shown} {error}"))),
    }
}

/// What files are written as.
struct What<'w> {
    /// None of it may be there.
    create: bool,
    /// All of it must be of this kind.
    kind: Option<Kind>,
    /// Of these, what is in no file is deleted.
    pruned: Option<&'w Selection>,
}

fn write_sources(
    sources: &[Arc<Source>],
    how: &How,
    what: &What<'_>,
    store: &StoreAddress,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let What { create, kind, .. } = *what;
    let put =
        Put { create, dry_run: how.dry_run, ttl: how.ttl, parent: how.baseline.clone(), ..Put::default() };
    let mut open = match (sources, what.pruned) {
        ([_], None) => OpenStore::change(store)?,
        _ => OpenStore::write(store)?,
    };
    let mut written = Vec::new();
    let mut state = None;
    for source in sources {
        if let Some(kind) = kind {
            refuse_other_kind(source, kind)?;
        }
        let done = open.put(source, &put, clock::now())?;
        out.diagnostics(&done.warnings);
        state = done.revision.or(state);
        written.extend(done.environments);
    }
    for (blueprint, outcome) in &written {
        report(blueprint, *outcome, how, out)?;
    }
    if let Some(selection) = what.pruned {
        let written: Vec<_> = written.iter().map(|(blueprint, _)| &blueprint.id.value).collect();
        prune(selection, kind, &written, how, &mut open, out)?;
    }
    if let Some((blueprint, _)) =
        written.last().filter(|_| how.format.output == Format::Table && !how.dry_run)
    {
        out.note(next_step(blueprint, store, open.lineages()));
        if blueprint.parent().is_some() {
            preview::print_links(&blueprint.id.value, open.lineages(), out);
        }
    }
    if how.dry_run {
        return Ok(());
    }
    let wanted = written.iter().map(|(blueprint, _)| Wanted {
        id: blueprint.id.value.clone(),
        kind: Kind::of(blueprint),
        revision: open.revision(&blueprint.id.value),
    });
    let wanted: Vec<_> = wanted.collect();
    // Where nothing was different, what was read is waited for.
    let state = state.or_else(|| open.state().cloned());
    // Nobody else waits meanwhile.
    drop(open);
    wait(&how.wait, &wanted, state.as_ref(), store, out)
}

/// Deletes what is selected and was not written: children before their parents.
fn prune(
    selection: &Selection,
    kind: Option<Kind>,
    written: &[&EnvironmentId],
    how: &How,
    open: &mut OpenStore,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    if written.is_empty() {
        return Err(CliError::failure("there is no environment in these files: nothing is deleted")
            .hint("`overlane overlay delete -l SELECTOR` deletes all that is selected"));
    }
    let kinds =
        [Kind::Overlay, Kind::Baseline].into_iter().filter(|one| kind.is_none_or(|kind| kind == *one));
    let mut ids: Vec<_> = kinds.flat_map(|kind| selected(kind, selection, open.lineages())).collect();
    ids.retain(|id| !written.contains(&id));
    let seen: Vec<_> =
        ids.iter().map(|id| (open.lineages().claims(id).next().cloned(), open.revision(id))).collect();
    for (id, (known, only)) in ids.iter().zip(seen) {
        let Some(known) = known else { continue };
        let deletion = Deletion {
            kind: Kind::of(&known),
            ignore_not_found: true,
            dry_run: how.dry_run,
            with: &ids,
            only: only.as_ref(),
        };
        if let Some(outcome) = remove(id, &deletion, open)? {
            report(&known, outcome, how, out)?;
        }
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

fn next_step(blueprint: &Blueprint, store: &StoreAddress, lineages: &Lineages) -> String {
    let id = &blueprint.id.value;
    match blueprint.mode {
        Mode::Baseline => format!(
            "Next: overlane run --store {store}\n      overlane overlay create --baseline {id} --file OVERLAY.yaml --store {store}"
        ),
        Mode::Overlay { .. } => format!(
            "Next: overlane run --store {store}    (a running one has it already)\n      curl {} http://{}/",
            curl_headers(id, lineages),
            crate::settings::DEFAULT_GATEWAY
        ),
    }
}

/// The headers with which the gateway leads to something: the key, and a host where the baseline
/// exposes its services only under hosts.
fn curl_headers(id: &EnvironmentId, lineages: &Lineages) -> String {
    let resolved = |id| lineages.standing(id).and_then(Standing::resolved);
    let own = resolved(id);
    let header = own.map_or("x-overlay-id", |own| own.header.as_str());
    let key = format!("-H '{header}: {id}'");
    let Some(baseline) = own.and_then(|own| resolved(&own.baseline)) else { return key };
    let exposed = || baseline.blueprint.services.iter().filter(|service| service.expose);
    let by_host = exposed().all(|service| !service.hosts.is_empty());
    match exposed().find_map(|service| service.hosts.first()).filter(|_| by_host) {
        Some(host) => format!("-H 'Host: {}' {key}", host.value),
        None => key,
    }
}

/// How environments are deleted.
struct Deletion<'d> {
    kind: Kind,
    ignore_not_found: bool,
    dry_run: bool,
    /// All that are: their parents may go after them.
    with: &'d [EnvironmentId],
    /// The state in which it was chosen, where nobody named it: another one may not be meant.
    only: Option<&'d Revision>,
}

fn delete(
    id: &EnvironmentId,
    how: &Deletion<'_>,
    open: &mut OpenStore,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let Some(outcome) = remove(id, how, open)? else { return Ok(()) };
    out.line(format_args!("{} {id} {}{}", how.kind.as_str(), outcome.as_str(), dry(how.dry_run)))
}

/// What became of one; none where it was not there, and need not have been.
fn remove(id: &EnvironmentId, how: &Deletion<'_>, open: &mut OpenStore) -> Result<Option<Outcome>, CliError> {
    let Deletion { kind, dry_run, .. } = *how;
    open.look_at(id)?;
    let is_kind = open.lineages().claims(id).next().map(|known| Kind::of(known));
    match is_kind {
        None if how.ignore_not_found => return Ok(None),
        None => {
            // What was meant is among all.
            open.read_all()?;
            return Err(not_found(id, kind, open.lineages()));
        }
        Some(is) if is != kind => {
            return Err(CliError::failure(format!("`{id}` is {}", is.with_article()))
                .hint(format!("use `overlane {} delete {id}`", is.as_str())));
        }
        Some(_) => {}
    }
    match open.delete(id, how.only, dry_run) {
        Err(WriteError::HasChildren(_, children))
            if dry_run && children.iter().all(|child| how.with.contains(child)) =>
        {
            Ok(Some(Outcome::Deleted))
        }
        done => Ok(Some(done?)),
    }
}

pub(super) fn dry(run: bool) -> &'static str {
    if run { " (dry run)" } else { "" }
}

/// `overlane attach`.
///
/// # Errors
/// See [`CliError`].
pub fn attach(attach: &Attach, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    let Attach { id, service, url, ttl, dry_run } = attach;
    let mut open = OpenStore::change(store)?;
    let outcome = match ttl {
        Some(ttl) => open.lease(id, service, url, clock::now().after(*ttl), *dry_run),
        None => open.attach(id, service, Some(url), *dry_run),
    }?;
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
    let outcome = OpenStore::change(store)?.attach(&detach.id, &detach.service, None, detach.dry_run)?;
    out.line(format_args!(
        "attachment {}/{} {}{}",
        detach.id,
        detach.service,
        outcome.as_str(),
        dry(detach.dry_run)
    ))
}
