//! `overlane diff`: what `apply` would change.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use overlane_config::blueprint::{Document, parse};

use super::environment::sources;
use super::output::{CliError, Output};
use super::show::document;
use crate::clock;
use crate::store::StoreAddress;
use crate::store::open::{OpenStore, Put};

/// `overlane diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// Blueprint files and directories of them, `-` for standard input; repeatable
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// What compares two directories, in place of `diff -u -N`
    #[arg(long, value_name = "PROGRAM", env = "OVERLANE_EXTERNAL_DIFF", default_value = "diff")]
    external: String,
}

/// Shows what is different in the store. As kubectl has it: exit code 0 where nothing is, 1 where something is, and a
/// greater one where that cannot be told.
///
/// # Errors
/// See above.
pub fn run(args: &Diff, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    match compare(args, store, out) {
        Ok(true) => Ok(()),
        Ok(false) => Err(CliError::failure("")),
        Err(error) => Err(CliError { exit: error.exit.max(2), ..error }),
    }
}

/// Whether everything is the same.
fn compare(args: &Diff, store: &StoreAddress, out: &mut Output<'_>) -> Result<bool, CliError> {
    let sources = sources(&args.files)?;
    let mut open = OpenStore::read(store)?;
    let (mut live, mut wanted) = (BTreeMap::new(), BTreeMap::new());
    for source in &sources {
        for one in parse(source).documents {
            let Document::Blueprint(blueprint) = one else { continue };
            let id = blueprint.id.value.clone();
            if let Some(claim) = open.lineages().claims(&id).next() {
                live.insert(id.clone(), document(claim).to_owned());
            }
            wanted.insert(id, document(&blueprint).to_owned());
        }
    }
    // What would not be written is no difference.
    for source in &sources {
        open.put(source, &Put { dry_run: true, ..Put::default() }, clock::now())?;
    }
    let folder = tempfile::tempdir()?;
    for (side, texts) in [("store", &live), ("files", &wanted)] {
        fs::create_dir(folder.path().join(side))?;
        for (id, text) in texts {
            // When it expires is said anew by each `apply`.
            let expiry = wanted.get(id).is_some_and(|wanted| !wanted.contains("expiresAt:"));
            let lines = text.trim_end().lines();
            let lines = lines.filter(|line| !(expiry && line.trim_start().starts_with("expiresAt:")));
            let text: String = lines.map(|line| format!("{line}\n")).collect();
            fs::write(folder.path().join(side).join(format!("{id}.yaml")), text)?;
        }
    }
    differ(&args.external, folder.path(), ["store", "files"], out)
}

/// Shows what is different between two directories of a folder; whether nothing is.
pub(super) fn differ(
    program: &str,
    folder: &Path,
    sides: [&str; 2],
    out: &mut Output<'_>,
) -> Result<bool, CliError> {
    let options: &[&str] = if program == "diff" { &["-u", "-N", "-r"] } else { &[] };
    let ran = Command::new(program).args(options).args(sides).current_dir(folder).output();
    let ran = ran.map_err(|why| {
        CliError::failure(format!("`{program}` cannot be run: {why}"))
            .hint("install it, or name another program with OVERLANE_EXTERNAL_DIFF")
    })?;
    out.result().write_all(&ran.stdout)?;
    match ran.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(CliError::failure(String::from_utf8_lossy(&ran.stderr).trim().to_owned())),
    }
}
