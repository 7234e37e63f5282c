//! `overlane overlay render`: an overlay's Deployments and Services, made of the baseline's manifests.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use overlane_config::blueprint::{Blueprint, Document, Mode, parse};
use overlane_config::diagnostic::{Severity, Source};
use overlane_config::lineage::{Content, FileChange, Lineages, Standing};
use overlane_config::name::EnvironmentId;
use serde_yaml::Value;

use super::environment::sources;
use super::inject::{SidecarArgs, manifests, print, told as tell};
use super::output::{CliError, Output};
use crate::manifests::Fields;
use crate::manifests::files::written;
use crate::manifests::render::{Changed, Overlay, render, variables};
use crate::store::StoreAddress;
use crate::store::open::{OpenStore, rules};

/// `overlane overlay render`.
#[derive(Debug, Args)]
#[command(
    after_help = "Its services get the images, variables (env), commands and arguments that the blueprint gives them, and stand where the \
blueprint or the baseline's overlayUrl says that they are. For example:\n\n  kubectl -n staging get deployments,services -o yaml | overlane overlay render -f alice.yaml --from - | kubectl apply -f -"
)]
pub struct Render {
    /// The overlay's blueprint
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The baseline's manifests, or a directory of them, `-` for standard input; repeatable
    #[arg(long, value_name = "FILE", required = true)]
    from: Vec<PathBuf>,
    /// Where its objects are, if no url says so; in the baseline's namespace by default
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    sidecar: SidecarArgs,
}

/// Prints the objects of each overlay.
///
/// # Errors
/// What cannot be read or made, all of it.
pub fn run(args: &Render, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    let files = manifests(&args.from)?;
    let overlays = overlays(&args.files, out)?;
    let known = known(store, &overlays)?;
    let mut objects = Vec::new();
    for overlay in &overlays {
        let id = &overlay.id.value;
        let sidecar = args.sidecar.sidecar(Some(id.clone()), Some(store));
        let services = changes(overlay, known.standing(id));
        let overlay = Overlay { id, services, namespace: args.namespace.as_deref(), sidecar: &sidecar };
        let rendered = render(&files, &overlay).map_err(|mistakes| tell(mistakes, out))?;
        rendered.notes.iter().for_each(|note| out.note(note));
        objects.extend(rendered.objects);
    }
    print([written(&objects).as_str()].into_iter(), out)
}

/// The overlays of files. Their mistakes are told.
fn overlays(files: &[PathBuf], out: &mut Output<'_>) -> Result<Vec<Arc<Blueprint>>, CliError> {
    let mut overlays = Vec::new();
    for source in sources(files)? {
        let parsed = parse(&source);
        if parsed.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
            out.diagnostics(&parsed.diagnostics);
            return Err(CliError::failure(format!("{} has mistakes, and nothing was rendered", source.path)));
        }
        for document in parsed.documents {
            match document {
                Document::Blueprint(blueprint) if blueprint.mode == Mode::Baseline => {
                    return Err(CliError::failure(format!("{}: `{}` is a baseline", source.path, blueprint.id.value))
                        .hint("give the blueprint of an overlay with `--file`, and the baseline's manifests with `--from`"));
                }
                Document::Blueprint(blueprint) => overlays.push(blueprint),
                Document::Attachment(_) => {}
            }
        }
    }
    Ok(overlays)
}

/// What the store knows of the overlays' ancestors, with the overlays as they are in the files: by that it is known where
/// their services are. Without a store it is not.
fn known(store: &StoreAddress, overlays: &[Arc<Blueprint>]) -> Result<Lineages, CliError> {
    if matches!(store, StoreAddress::Directory(path) if !path.exists()) {
        return Ok(Lineages::default());
    }
    let open = OpenStore::read(store)?;
    // What the store has of these overlays is not asked: an address that is attached to one may be somebody's laptop.
    let ours = |id: &EnvironmentId| overlays.iter().any(|overlay| overlay.id.value == *id);
    let others =
        |source: &&Arc<Source>| !parse(source).documents.iter().any(|document| ours(document.environment()));
    let texts: Vec<_> = open.lineages().texts().into_iter().flatten().collect();
    let texts = texts.iter().filter(others).chain(overlays.iter().map(|overlay| &overlay.source)).cloned();
    let change = |(at, source): (usize, Arc<Source>)| FileChange {
        path: format!("{at} {}", source.path).into(),
        content: Content::Text(source),
    };
    let mut lineages = Lineages::new(rules());
    lineages.apply(texts.enumerate().map(change).collect());
    Ok(lineages)
}

/// What an overlay changes of each of its services.
fn changes(overlay: &Blueprint, standing: Option<&Standing>) -> Vec<Changed> {
    let written =
        overlay.source.text.get(overlay.span.start as usize..overlay.span.end as usize).unwrap_or_default();
    let document: Value = serde_yaml::from_str(written).unwrap_or_default();
    let document = document.at("spec").unwrap_or(&document);
    let change = |(at, service): (usize, &overlane_config::blueprint::Service)| {
        let name = &service.name.value;
        let fields =
            document.items("services").iter().find(|fields| fields.text("name") == Some(name.as_str()));
        let field = |field: &'static str| {
            Some((field, fields?.at(field)?.clone())).filter(|(_, value)| value.is_sequence())
        };
        let resolved =
            standing.and_then(Standing::resolved).and_then(|resolved| resolved.urls.get(at)?.first());
        Changed {
            name: name.clone(),
            place: format!("{}:{}", overlay.source.path, overlay.location(service.name.span).line()),
            url: resolved.or(service.urls.first()).cloned(),
            image: service.image.as_deref().map(str::to_owned),
            env: fields.and_then(|fields| fields.at("env")).map(variables).unwrap_or_default(),
            fields: ["command", "args"].into_iter().filter_map(field).collect(),
        }
    };
    overlay.services.iter().enumerate().map(change).collect()
}
