//! The command line.

pub mod bench;
pub mod check;
pub mod diff;
pub mod doctor;
pub mod environment;
pub mod explain;
mod follow;
pub mod import;
pub mod inject;
pub mod lease;
pub mod local;
pub mod output;
pub mod preview;
pub mod render;
pub mod run;
pub mod schema;
mod select;
pub mod server;
pub(crate) mod show;
pub mod status;
pub mod tap;
pub mod token;
pub mod top;
pub mod trace;
pub mod validate;
mod wait;
pub mod why;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::settings::{DEFAULT_STORE, RunArgs};
use crate::store::StoreAddress;
use output::{CliError, Output};

/// Overlay environments over one shared baseline
#[derive(Debug, Parser)]
#[command(
    name = "overlane",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 ok, 1 failure, 2 usage, 4 not found.\nLogs go to standard error; OVERLANE_LOG sets their level (error, warn, info, debug)."
)]
struct Cli {
    /// The store: a directory of blueprints (a path, or dir:PATH), etcd:ENDPOINTS[/PREFIX], kubernetes:[NAMESPACE], or hub:URL
    #[arg(long, global = true, value_name = "STORE", env = "OVERLANE_STORE")]
    store: Option<StoreAddress>,
    #[command(flatten)]
    server: server::ServerArgs,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Reads a command line. Of two settings that say the same, one that is written there goes before one of the
    /// environment.
    fn read<A: Into<OsString> + Clone>(arguments: impl IntoIterator<Item = A>) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(arguments)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        let is_written = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        match (is_written("store"), is_written("server")) {
            (true, false) => cli.server.server = None,
            (false, true) => cli.store = None,
            _ => {}
        }
        match (is_written("server_token"), is_written("server_token_file")) {
            (true, false) => cli.server.server_token_file = None,
            (false, true) => cli.server.server_token = None,
            _ => {}
        }
        Ok(cli)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy: gateway, sidecar, or both
    Run(Box<RunArgs>),
    /// Baselines: complete, shared environments
    #[command(visible_alias = "bl")]
    Baseline {
        #[command(subcommand)]
        command: environment::Verb,
    },
    /// Overlays: sparse environments over a baseline or another overlay
    #[command(visible_alias = "ov")]
    Overlay {
        #[command(subcommand)]
        command: environment::OverlayVerb,
    },
    /// Create or change an environment, from a file or from flags alone
    Apply(environment::QuickApply),
    /// Show what `apply` would change; exit code 1 where it would
    Diff(diff::Diff),
    /// Give a service of an overlay an address, such as a laptop's
    Attach(environment::Attach),
    /// Take an attached address away
    Detach(environment::Detach),
    /// Overlay tokens: who has one may choose its overlays at a gateway that trusts nobody
    Token {
        #[command(subcommand)]
        command: token::Verb,
    },
    /// Check blueprints and show every mistake
    Validate(validate::Validate),
    /// Aliases for people who come from elsewhere
    #[command(hide = true)]
    Env {
        #[command(subcommand)]
        command: EnvCommand,
    },
    /// Show every step of a routing decision, and the blueprint lines behind it
    Explain(explain::Explain),
    /// Send a request and draw the hops that it took, and who served each
    Trace(Box<trace::Trace>),
    /// Which services lose the key, how often, and what to add
    Doctor(doctor::Doctor),
    /// The proxies: which generation and state of the store each routes by
    Status(status::StatusArgs),
    /// Requests as they pass, and how each was decided
    Tap(tap::Tap),
    /// What became of one request: each hop's decision, and where its key went
    Why(why::Why),
    /// Requests per second, how many went well and how long they took, by overlay and service
    Top(top::Top),
    /// Give Kubernetes manifests the sidecar, before the services that they run
    Inject(Box<inject::Inject>),
    /// Print the blueprint of a baseline, of the services that are there
    Import {
        #[command(subcommand)]
        origin: import::Origin,
    },
    /// Preflight: ports, store, names, reachability
    Check(Box<check::Check>),
    /// Try it on processes that already listen: no file at all
    Try(run::Try),
    /// Three small services, an overlay, and what to try
    Demo(run::DemoArgs),
    /// Measure what routing costs, or put load on an address
    Bench(Box<bench::Bench>),
    /// Print the JSON Schema of blueprints, or of the settings file, for completion in editors
    Schema(schema::Schema),
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum EnvCommand {
    /// The same as `overlane validate`
    Validate(validate::Validate),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let mut out = Output::standard();
    match Cli::read(std::env::args_os()) {
        Ok(cli) => finish(dispatch(cli, &mut out), &mut out),
        Err(error) => {
            // clap knows where its help and its errors go, and in which colours.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

/// The whole command line, for its page.
#[cfg(test)]
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// Runs a command line and returns its exit code; for tests and documentation.
pub fn run_from<I: IntoIterator<Item = String>>(arguments: I, out: &mut Output<'_>) -> u8 {
    match Cli::read(arguments) {
        Ok(cli) => match dispatch(cli, out) {
            Ok(()) => 0,
            Err(error) => {
                out.error(&error);
                error.exit
            }
        },
        Err(error) => {
            out.note(error.render());
            u8::try_from(error.exit_code()).unwrap_or(2)
        }
    }
}

fn finish(done: Result<(), CliError>, out: &mut Output<'_>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::from(error.exit)
        }
    }
}

fn dispatch(cli: Cli, out: &mut Output<'_>) -> Result<(), CliError> {
    let (told, access) = cli.server.store(cli.store)?;
    let store = || told.clone().unwrap_or_else(|| StoreAddress::directory(DEFAULT_STORE));
    match cli.command {
        Command::Run(args) => run::run(*args, told, &access),
        Command::Baseline { command } => environment::baseline(command, &store(), out),
        Command::Overlay { command } => environment::overlay(command, &store(), out),
        Command::Apply(apply) => environment::quick_apply(&apply, &store(), out),
        Command::Diff(args) => diff::run(&args, &store(), out),
        Command::Attach(attach) => environment::attach(&attach, &store(), out),
        Command::Detach(detach) => environment::detach(&detach, &store(), out),
        Command::Validate(validate) | Command::Env { command: EnvCommand::Validate(validate) } => {
            validate::run(&validate, out)
        }
        Command::Token { command } => token::run(&command, out),
        Command::Explain(explain) => explain::run(&explain, &store(), out),
        Command::Trace(trace) => trace::run(&trace, out),
        Command::Doctor(args) => doctor::run(&args, told.as_ref(), out),
        Command::Status(args) => status::run(&args, told.as_ref(), out),
        Command::Tap(args) => tap::run(&args, told.as_ref(), out),
        Command::Why(args) => why::run(&args, told.as_ref(), out),
        Command::Top(args) => top::run(&args, told.as_ref(), out),
        Command::Inject(args) => inject::run(&args, told.as_ref(), out),
        Command::Import { origin } => import::run(&origin, out),
        Command::Check(check) => check::run(*check, told, &access, out),
        Command::Try(args) => run::try_it(&args, out),
        Command::Demo(args) => run::demo(&args, out),
        Command::Bench(args) => bench::run(&args, out),
        Command::Schema(args) => schema::run(&args, out),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "overlane", &mut script);
            out.result().write_all(&script).map_err(CliError::from)
        }
    }
}
