//! `overlane explain`: one decision, step by step; offline against a store, or live.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use http::{Request, header};
use http_body_util::Full;
use overlane_config::name::{EnvironmentId, ServiceName};

use super::output::{CliError, Format, Output};
use crate::client;
use crate::clock;
use crate::explain::{Explanation, Question, explain};
use crate::names::Names;
use crate::settings::carriers_of;
use crate::snapshot::Table;
use crate::store::StoreAddress;
use crate::store::open::OpenStore;
use crate::upstream::Upstream;

/// `overlane explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// A request header, `name: value` or `name=value`; repeatable
    #[arg(short = 'H', long = "header", value_name = "HEADER", value_parser = header)]
    headers: Vec<(String, String)>,
    /// A service that is called (as a sidecar sees it)
    #[arg(long, value_name = "NAME", conflicts_with = "host")]
    service: Option<ServiceName>,
    /// The host that is asked for
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    host: String,
    /// The path
    #[arg(long, default_value = "/")]
    path: String,
    /// The listener: gateway, outbound or inbound; outbound where a service is named
    #[arg(long, value_parser = ["gateway", "outbound", "inbound"])]
    role: Option<String>,
    /// The environment of the sidecar
    #[arg(long, value_name = "ID")]
    environment: Option<EnvironmentId>,
    /// The listener's baseline
    #[arg(long, value_name = "ID")]
    baseline: Option<EnvironmentId>,
    /// As for a sender whose overlay headers are not trusted
    #[arg(long)]
    untrusted: bool,
    /// Settings file whose carriers count, where the store is asked
    #[arg(long, value_name = "FILE", env = "OVERLANE_CONFIG")]
    config: Option<PathBuf>,
    /// Ask a running proxy at its admin address instead of the store
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

fn header(text: &str) -> Result<(String, String), String> {
    let at = text.find([':', '=']).ok_or("write `name: value`")?;
    Ok((text[..at].trim().to_owned(), text[at + 1..].trim().to_owned()))
}

impl Explain {
    fn question(&self) -> Question {
        let called = self.service.as_ref().map(ToString::to_string);
        let role = self
            .role
            .clone()
            .unwrap_or_else(|| if called.is_some() { "outbound" } else { "gateway" }.to_owned());
        Question {
            role,
            host: called.clone().unwrap_or_else(|| self.host.clone()),
            service: called,
            environment: self.environment.as_ref().map(ToString::to_string),
            baseline: self.baseline.as_ref().map(ToString::to_string),
            path: self.path.clone(),
            headers: self.headers.clone(),
            untrusted: self.untrusted,
        }
    }
}

/// Explains a request.
///
/// # Errors
/// The store or the proxy cannot be asked, or the question is malformed.
pub fn run(args: &Explain, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    let question = args.question();
    let explanation = match args.admin {
        Some(admin) => ask(admin, &question)?,
        None => {
            let carriers = carriers_of(args.config.as_deref())?;
            explain(&table(store)?, &carriers, &question, clock::now()).map_err(CliError::failure)?
        }
    };
    match args.output {
        Format::Json | Format::Yaml => {
            let value =
                serde_json::to_value(&explanation).map_err(|error| CliError::failure(error.to_string()))?;
            out.value(&value, args.output)
        }
        _ => out.line(explanation.to_string().trim_end()),
    }
}

fn table(store: &StoreAddress) -> Result<Table, CliError> {
    let open = OpenStore::read(store)?;
    let ids: Vec<_> = open.lineages().standings().map(|(id, _)| id.clone()).collect();
    Ok(Table::default()
        .compile(open.lineages(), &ids, |_, _, urls| Upstream::new(urls.clone(), &Names::none(), false)))
}

fn ask(admin: SocketAddr, question: &Question) -> Result<Explanation, CliError> {
    let body = serde_json::to_vec(question).map_err(|error| CliError::failure(error.to_string()))?;
    let request = Request::post("/api/v1/explain")
        .header(header::HOST, admin.to_string())
        .header(header::CONTENT_TYPE, "application/json");
    let request =
        request.body(Full::new(Bytes::from(body))).map_err(|error| CliError::failure(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let response = runtime.block_on(client::send(&admin.to_string(), request)).map_err(|why| {
        CliError::failure(why)
            .hint("is the proxy running, and is that its admin address? Without `--admin` the store is asked")
    })?;
    if !response.status().is_success() {
        return Err(CliError::failure(String::from_utf8_lossy(response.body()).trim().to_owned()));
    }
    serde_json::from_slice(response.body()).map_err(|error| {
        CliError::failure(format!("{admin} is not an admin listener of this version: {error}"))
    })
}
