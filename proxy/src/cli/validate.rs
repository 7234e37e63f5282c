//! `overlane validate`: every mistake of all files at once.

use std::path::{Path, PathBuf};

use clap::Args;
use overlane_config::diagnostic::{Diagnostic, Severity};
use overlane_config::lineage::{Content, FileChange, Lineages};
use serde_json::json;

use super::output::{CliError, Format, Output};
use crate::store::directory::read::{is_blueprint, read};
use crate::store::open::rules;

/// `overlane validate`.
#[derive(Debug, Args)]
pub struct Validate {
    /// Files and directories, which are checked together
    #[arg(required_unless_present = "file")]
    paths: Vec<PathBuf>,
    /// The same as a path
    #[arg(short, long, hide = true)]
    file: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Checks files together, as a store would hold them.
///
/// # Errors
/// A path cannot be listed, or there are errors, which were printed.
pub fn run(validate: &Validate, out: &mut Output<'_>) -> Result<(), CliError> {
    let mut files = Vec::new();
    for path in validate.paths.iter().chain(&validate.file) {
        collect(path, &mut files)?;
    }
    let changes: Vec<_> = files.iter().map(|file| change(file)).collect();
    let applied = Lineages::new(rules()).apply(changes);
    let count =
        |severity| applied.diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    match validate.output {
        Format::Json | Format::Yaml => {
            out.value(&applied.diagnostics.iter().map(value).collect(), validate.output)?;
        }
        _ => {
            for diagnostic in &applied.diagnostics {
                out.line(diagnostic)?;
            }
            out.line(format_args!(
                "{} and {} in {}",
                counted(errors, "error"),
                counted(warnings, "warning"),
                counted(files.len(), "file")
            ))?;
        }
    }
    if errors > 0 { Err(CliError::failure("")) } else { Ok(()) }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::failure(format!("{}: {error}", path.display()));
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let before = files.len();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_blueprint(&entry.file_name()) {
            files.push(entry.path());
        }
    }
    files[before..].sort();
    if files.len() == before {
        return Err(CliError::failure(format!("{}: no blueprint in it", path.display()))
            .hint("blueprints end in .yaml, .yml or .json"));
    }
    Ok(())
}

fn change(file: &Path) -> FileChange {
    let path = file.display().to_string().into();
    let content = match read(file, &path) {
        Ok(source) => Content::Text(source.into()),
        Err(error) => Content::Unreadable(error.to_string()),
    };
    FileChange { path, content }
}

pub(crate) fn value(diagnostic: &Diagnostic) -> serde_json::Value {
    let location = diagnostic.location.as_ref();
    json!({
        "severity": match diagnostic.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "message": diagnostic.message,
        "hint": diagnostic.hint,
        "file": &*diagnostic.path,
        "line": location.map(overlane_config::diagnostic::Location::line),
        "column": location.map(overlane_config::diagnostic::Location::column),
        "environment": diagnostic.environment.as_ref().map(ToString::to_string),
    })
}
