//! `overlane import`: a baseline's blueprint of what is there.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use overlane_config::diagnostic::{Severity, Source};
use overlane_config::lineage::{Content, FileChange, Lineages, Rules};
use overlane_config::name::EnvironmentId;

use super::inject::manifests;
use super::output::{CliError, Output};
use crate::manifests::files::File;
use crate::manifests::import;

/// From where.
#[derive(Debug, Subcommand)]
pub enum Origin {
    /// Services of Kubernetes, with what Ingresses and HTTPRoutes lead to them
    Kubernetes {
        /// Of which
        #[command(flatten)]
        from: From,
        /// The namespace of what names none
        #[arg(long, value_name = "NAME", default_value = "default")]
        namespace: String,
    },
    /// Services of a compose file
    Compose {
        /// Of which
        #[command(flatten)]
        from: From,
    },
}

/// Which files.
#[derive(Debug, Args)]
#[command(
    after_help = "For example:\n  kubectl -n staging get services,deployments,ingresses -o yaml | overlane import kubernetes --name staging -f - > staging.yaml\n  overlane import compose -f compose.yaml > baseline.yaml"
)]
pub struct From {
    /// A file or a directory of them, `-` for standard input; repeatable
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The baseline's id; by default that of the compose file, else `staging`
    #[arg(long, value_name = "ID")]
    name: Option<EnvironmentId>,
}

impl From {
    fn read(&self) -> Result<Vec<File>, CliError> {
        manifests(&self.files)
    }

    fn id(&self, named: Option<&str>) -> Result<EnvironmentId, CliError> {
        match (&self.name, named) {
            (Some(told), _) => Ok(told.clone()),
            (None, named) => named.unwrap_or("staging").parse().map_err(|why| {
                CliError::failure(format!("`{}` is no id: {why}", named.unwrap_or_default()))
                    .hint("give the baseline one: `--name staging`")
            }),
        }
    }
}

/// Prints the blueprint.
///
/// # Errors
/// What cannot be read, or that no service is in it.
pub fn run(origin: &Origin, out: &mut Output<'_>) -> Result<(), CliError> {
    let (text, what) = match origin {
        Origin::Kubernetes { from, namespace } => (
            import::kubernetes(&from.read()?, &from.id(None)?, namespace),
            "Services with a port that speaks HTTP",
        ),
        Origin::Compose { from } => {
            let files = from.read()?;
            (
                import::compose(&files, &from.id(import::project(&files))?),
                "services with a port that speaks HTTP",
            )
        }
    };
    if text.contains("\nservices: []\n") {
        let left_out = text.lines().filter_map(|line| line.strip_prefix("  # "));
        left_out.filter(|line| line.contains(": ")).for_each(|line| out.note(line));
        return Err(CliError::failure(format!("there are no {what} in these files"))
            .hint("look whether these are the files"));
    }
    check(&text, out)?;
    out.result().write_all(text.as_bytes())?;
    out.note("Next: look at its comments, then `overlane validate FILE` and `overlane baseline create --file FILE`");
    Ok(())
}

/// What is drafted is right: what `validate` would say of it is said here.
fn check(text: &str, out: &mut Output<'_>) -> Result<(), CliError> {
    let source = Arc::new(Source::new("(draft)".into(), text.to_owned(), None));
    let change = FileChange { path: "(draft)".into(), content: Content::Text(source) };
    let applied = Lineages::new(Rules::default()).apply(vec![change]);
    let errors: Vec<_> =
        applied.diagnostics.into_iter().filter(|diagnostic| diagnostic.severity == Severity::Error).collect();
    if errors.is_empty() {
        return Ok(());
    }
    out.diagnostics(&errors);
    Err(CliError::failure("what is there does not fit into a blueprint")
        .hint("draft it by hand: docs/blueprint.md"))
}
