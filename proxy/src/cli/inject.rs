//! `overlane inject`: manifests of Kubernetes with the sidecar in them.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use overlane_config::name::EnvironmentId;

use super::diff::differ;
use super::environment::source;
use super::output::{CliError, Output};
use super::validate::collect;
use crate::manifests::Mistake;
use crate::manifests::files::File;
use crate::manifests::inject::{Injection, inject};
use crate::manifests::objects::Port;
use crate::manifests::sidecar::{Amounts, Key, Sidecar, Store};
use crate::store::StoreAddress;
use crate::store::hub::HubAddress;

/// `overlane inject`.
#[derive(Debug, Args)]
#[command(
    after_help = "Workloads that a Service of the files leads to get the sidecar; the annotation `overlane.dev/inject: \"false\"` \
leaves one alone. Injecting twice is injecting once. docs/kubernetes.md shows it step by step."
)]
pub struct Inject {
    /// A file of manifests or a directory of them, `-` for standard input; repeatable
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Only before this Service; repeatable
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<String>,
    /// The port of the Service, by name or number, where several may speak HTTP
    #[arg(long, value_name = "PORT")]
    port: Option<Port>,
    /// The overlay whose own instance this is; the baseline's by default
    #[arg(long, value_name = "ID")]
    environment: Option<EnvironmentId>,
    /// Take the sidecar out again
    #[arg(long)]
    remove: bool,
    /// Write what was changed into the files
    #[arg(short, long, conflicts_with = "diff")]
    in_place: bool,
    /// Show what would be changed; exit code 1 where something would
    #[arg(long)]
    diff: bool,
    /// What compares two directories, in place of `diff -u -N`
    #[arg(long, value_name = "PROGRAM", env = "OVERLANE_EXTERNAL_DIFF", default_value = "diff", hide = true)]
    external: String,
    #[command(flatten)]
    sidecar: SidecarArgs,
}

/// What the sidecar is told.
#[derive(Debug, Args)]
#[command(next_help_heading = "The sidecar")]
pub struct SidecarArgs {
    /// A hub that it asks for blueprints, such as http://overlane-hub.overlane.svc:7484; `--store etcd:…` is the same for an etcd
    #[allow(rustdoc::bare_urls, reason = "it is read in a terminal")]
    #[arg(long, value_name = "URL", conflicts_with = "config_map")]
    hub: Option<HubAddress>,
    /// The Secret with its token for the hub
    #[arg(long, value_name = "SECRET[/KEY]", value_parser = key)]
    token_secret: Option<Key>,
    /// The ConfigMap with its blueprints, where it asks no store
    #[arg(long, value_name = "NAME", default_value = "overlane-environments")]
    config_map: String,
    /// The baseline, where the store has several
    #[arg(long, value_name = "ID")]
    baseline: Option<EnvironmentId>,
    /// Have the application's calls go through it (HTTP_PROXY), so that they keep their key
    #[arg(long)]
    outbound: bool,
    /// A plain container: for clusters before Kubernetes 1.29, and before 1.32 where Services name their target ports
    #[arg(long)]
    no_native: bool,
    /// Its image
    #[arg(long, value_name = "IMAGE", default_value = concat!("overlane:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// When its image is pulled
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: String,
    /// What it asks for
    #[arg(long, value_name = "NAME=AMOUNT,…", value_delimiter = ',', value_parser = amount, default_value = "cpu=50m,memory=32Mi")]
    requests: Vec<(String, String)>,
    /// What it gets at most
    #[arg(long, value_name = "NAME=AMOUNT,…", value_delimiter = ',', value_parser = amount, default_value = "memory=256Mi")]
    limits: Vec<(String, String)>,
}

fn key(text: &str) -> Result<Key, String> {
    let (secret, key) = text.split_once('/').unwrap_or((text, "token"));
    match secret.is_empty() || key.is_empty() {
        true => Err("write SECRET or SECRET/KEY, such as overlane-hub/token".to_owned()),
        false => Ok(Key { secret: secret.to_owned(), key: key.to_owned() }),
    }
}

fn amount(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, amount))
            if !name.is_empty() && amount.starts_with(|first: char| first.is_ascii_digit()) =>
        {
            Ok((name.to_owned(), amount.to_owned()))
        }
        _ => Err("write NAME=AMOUNT, such as memory=64Mi".to_owned()),
    }
}

impl SidecarArgs {
    /// What the sidecar of an environment is. A directory of this machine, as the store of other commands may be one, is
    /// not in a pod.
    pub(super) fn sidecar(&self, environment: Option<EnvironmentId>, told: Option<&StoreAddress>) -> Sidecar {
        let store = match (&self.hub, told) {
            (Some(hub), _) => Store::Shared(format!("hub:{hub}")),
            #[cfg(feature = "etcd")]
            (None, Some(told @ StoreAddress::Etcd(_))) => Store::Shared(told.to_string()),
            (None, Some(told @ StoreAddress::Hub(_))) => Store::Shared(told.to_string()),
            (None, _) => Store::ConfigMap(self.config_map.clone()),
        };
        let amounts = |all: &[(String, String)]| all.iter().cloned().collect::<Amounts>();
        Sidecar {
            image: self.image.clone(),
            pull_policy: self.image_pull_policy.clone(),
            store,
            token: self.token_secret.clone(),
            baseline: self.baseline.clone(),
            environment,
            outbound: self.outbound,
            native: !self.no_native,
            requests: amounts(&self.requests),
            limits: amounts(&self.limits),
        }
    }
}

/// Prints manifests with the sidecar, or shows or writes what that changes.
///
/// # Errors
/// What cannot be read or injected, all of it; with `--diff` also that something would be changed.
pub fn run(args: &Inject, store: Option<&StoreAddress>, out: &mut Output<'_>) -> Result<(), CliError> {
    let mut files = manifests(&args.files)?;
    let sidecar = (!args.remove).then(|| args.sidecar.sidecar(args.environment.clone(), store));
    let how = Injection { sidecar, services: args.services.clone(), port: args.port.clone() };
    let notes = inject(&mut files, &how).map_err(|mistakes| told(mistakes, out))?;
    notes.iter().for_each(|note| out.note(note));
    if let Some(Sidecar { store: Store::ConfigMap(name), .. }) = &how.sidecar {
        out.note(format_args!("the sidecar reads the ConfigMap {name}; `--hub URL` has it ask a hub"));
    }
    let mut written = Vec::new();
    for file in &files {
        let now = file.written();
        for document in &now.anew {
            out.note(format_args!(
                "{file}: document {document} is written anew: its comments and its layout could not be kept"
            ));
        }
        written.push((file, now.text));
    }
    match (args.diff, args.in_place) {
        (true, _) => show(&args.external, &written, out),
        (_, true) => written.iter().try_for_each(|(file, text)| write(file, text, out)),
        _ => print(written.iter().map(|(_, text)| text.as_str()), out),
    }
}

/// Files of manifests, and those of directories.
pub(super) fn manifests(paths: &[PathBuf]) -> Result<Vec<File>, CliError> {
    let mut all = Vec::new();
    for path in paths {
        match path.is_dir() {
            true => collect(path, &mut all)?,
            false => all.push(path.clone()),
        }
    }
    all.iter()
        .map(|path| {
            let source = source(path)?;
            File::read(&*source.path, source.text.clone()).map_err(CliError::from)
        })
        .collect()
}

/// Prints all mistakes but the last, which is the command's error.
pub(super) fn told(mut mistakes: Vec<Mistake>, out: &mut Output<'_>) -> CliError {
    let last = mistakes.pop().map_or_else(|| CliError::failure(""), CliError::from);
    for mistake in mistakes {
        out.error(&mistake.into());
    }
    last
}

impl From<Mistake> for CliError {
    fn from(mistake: Mistake) -> Self {
        Self::failure(mistake.message).hint(mistake.hint)
    }
}

/// Prints texts of manifests as one.
pub(super) fn print<'t>(texts: impl Iterator<Item = &'t str>, out: &mut Output<'_>) -> Result<(), CliError> {
    let mut first = true;
    for text in texts.filter(|text| !text.trim().is_empty()) {
        if !std::mem::take(&mut first) && !text.starts_with("---") {
            out.line("---")?;
        }
        out.result().write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            out.line("")?;
        }
    }
    Ok(())
}

fn show(program: &str, written: &[(&File, String)], out: &mut Output<'_>) -> Result<(), CliError> {
    let folder = tempfile::tempdir()?;
    for side in ["before", "after"] {
        fs::create_dir(folder.path().join(side))?;
    }
    for (at, (file, after)) in written.iter().enumerate() {
        let name = Path::new(&file.name).file_name().unwrap_or_default().to_string_lossy();
        let taken = written[..at].iter().any(|(other, _)| Path::new(&other.name).ends_with(&*name));
        let name = if taken { format!("{at}-{name}") } else { name.into_owned() };
        fs::write(folder.path().join("before").join(&name), file.text())?;
        fs::write(folder.path().join("after").join(&name), after)?;
    }
    match differ(program, folder.path(), ["before", "after"], out) {
        Ok(true) => Ok(()),
        Ok(false) => Err(CliError::failure("")),
        Err(error) => Err(CliError { exit: 2, ..error }),
    }
}

/// Writes a file beside the old one, and puts it in its place.
fn write(file: &File, text: &str, out: &mut Output<'_>) -> Result<(), CliError> {
    if text == file.text() {
        return Ok(());
    }
    let path = fs::canonicalize(&file.name).map_err(|why| {
        CliError::failure(format!("{file} cannot be written: {why}"))
            .hint("`--in-place` is for files; leave it out")
    })?;
    let failed = |why: std::io::Error| CliError::failure(format!("{file} cannot be written: {why}"));
    let mut beside =
        tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    beside.write_all(text.as_bytes()).map_err(failed)?;
    beside.as_file().set_permissions(fs::metadata(&path).map_err(failed)?.permissions()).map_err(failed)?;
    beside.persist(&path).map_err(|why| failed(why.error))?;
    out.note(format_args!("{file} is changed"));
    Ok(())
}
