//! `overlane run`, `try` and `demo`: commands that serve until they are told to stop.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::url::Url;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{CliError, Output};
use crate::admin::page::PAGE;
use crate::control::Trigger;
use crate::demo::{Demo, Forwards};
use crate::logs;
use crate::plane::drain::Stage;
use crate::process::{Prepared, Running};
use crate::settings::{DEFAULT_ADMIN, DEFAULT_GATEWAY, RunArgs, Settings};
use crate::stack::{Instance, Stack};
use crate::store::StoreAddress;
use crate::store::hub::Access;
use crate::systemd;

/// Takes as many file descriptors as the process may have: the limit that shells and service managers set is
/// meant for programs that cannot have many (setrlimit(2), `man 5 systemd.exec`).
pub(super) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of file descriptors stays {:?}", limit.current);
    }
}

/// `overlane run`.
///
/// # Errors
/// Settings that cannot be, or an address that is taken.
pub fn run(args: RunArgs, store: Option<StoreAddress>, access: &Access) -> Result<(), CliError> {
    let settings = Settings::merge(args, store)?.with_access(access);
    logs::start("info");
    raise_descriptors();
    let store = settings.store.clone();
    let prepared = Prepared::bind(settings)?;
    let signals = Signals::install(prepared.runtime())?;
    let running = prepared.start(Vec::new())?;
    for gate in running.gates() {
        let tls = gate.tls.is_some();
        tracing::info!(role = gate.role(), address = %gate.address, trust = %gate.trust, tls, "listening");
    }
    let page = format!("http://{}{PAGE}", running.admin());
    tracing::info!(role = "admin", address = %running.admin(), page, "listening");
    if let Some(address) = running.hub() {
        tracing::info!(role = "hub", %address, "listening");
    }
    if let Some(address) = running.probes() {
        tracing::info!(role = "probes", %address, "listening");
    }
    if let Some(store) =
        store.filter(|_| running.control().lineages(overlane_config::lineage::Lineages::is_empty))
    {
        tracing::warn!(
            "the store {store} is empty; type next: overlane baseline create --file baseline.yaml --store {store}"
        );
    }
    serve(running, signals)
}

/// Says that it serves, waits until it is told to stop, and sees it to its end.
///
/// # Errors
/// It ends because something in it failed.
fn serve(running: Running, signals: Signals) -> Result<(), CliError> {
    for address in systemd::unused() {
        tracing::warn!(%address, "a socket that was handed over is of no listener; give one of them this address");
    }
    signals.follow(&running);
    running.runtime().spawn(systemd::watchdog());
    systemd::ready();
    running.until_told();
    systemd::stopping();
    match running.stop() {
        true => Ok(()),
        false => Err(CliError::failure("a part of the process panicked; the log says where")),
    }
}

/// The signals that end a process or make it read its store again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Catches them from now on: before anybody is served, so that none is too early.
    fn install(runtime: &tokio::runtime::Runtime) -> std::io::Result<Self> {
        let _inside = runtime.enter();
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Has them followed until the end. SIGTERM is sent by who runs many of these: it makes the process leave
    /// before it drains. SIGINT is sent by somebody at a terminal: it drains at once. Each further one makes
    /// it go faster. SIGHUP reads everything again.
    fn follow(mut self, running: &Running) {
        let (reload, drain, files) =
            (running.reload_door(), running.drain().clone(), running.files().clone());
        running.runtime().spawn(async move {
            loop {
                tokio::select! {
                    _ = self.terminate.recv() => drain.ask(Stage::Leaving),
                    _ = self.interrupt.recv() => drain.ask(Stage::Draining),
                    _ = self.hangup.recv() => {
                        let files = files.clone();
                        tokio::task::spawn_blocking(move || files.look());
                        let (reply, _) = tokio::sync::oneshot::channel();
                        // Without a store there is nothing to read again; where so many wait, one more is none.
                        let _ = reload.try_send((Trigger::Signal, reply));
                    }
                }
            }
        });
    }
}

/// `overlane try`.
#[derive(Debug, Args)]
pub struct Try {
    /// Services of the baseline and where they listen, such as web=:3000; the first is the entrance
    #[arg(required = true, value_name = "SERVICE=ADDR", value_parser = service_at)]
    services: Vec<(ServiceName, Url)>,
    /// A service of an overlay and where it listens, such as alice:api=:4001; repeatable
    #[arg(long, value_name = "OVERLAY:SERVICE=ADDR", value_parser = overlay_service_at)]
    overlay: Vec<(EnvironmentId, ServiceName, Url)>,
    /// Where the gateway listens
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_GATEWAY)]
    gateway: SocketAddr,
    /// The admin listener
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: SocketAddr,
}

fn service_at(text: &str) -> Result<(ServiceName, Url), String> {
    let (service, at) = text.split_once('=').ok_or("write SERVICE=ADDR, such as web=:3000")?;
    let service = service.parse().map_err(|error: overlane_config::name::InvalidLabel| error.to_string())?;
    let url = match at.strip_prefix(':') {
        Some(port) => format!("http://127.0.0.1:{port}"),
        None if at.contains("://") || at.starts_with("unix:") => at.to_owned(),
        None => format!("http://{at}"),
    };
    Ok((service, url.parse()?))
}

fn overlay_service_at(text: &str) -> Result<(EnvironmentId, ServiceName, Url), String> {
    let (overlay, rest) =
        text.split_once(':').ok_or("write OVERLAY:SERVICE=ADDR, such as alice:api=:4001")?;
    let overlay = overlay.parse().map_err(|error: overlane_config::name::InvalidLabel| error.to_string())?;
    let (service, url) = service_at(rest)?;
    Ok((overlay, service, url))
}

/// Runs a gateway and sidecars for processes that already listen.
///
/// # Errors
/// An address is taken, or services and overlays do not fit together.
pub fn try_it(args: &Try, out: &mut Output<'_>) -> Result<(), CliError> {
    logs::start("info");
    let baseline: EnvironmentId = "baseline"
        .parse()
        .map_err(|error: overlane_config::name::InvalidLabel| CliError::failure(error.to_string()))?;
    let mut instances: Vec<_> = args
        .services
        .iter()
        .map(|(service, app)| Instance {
            service: service.clone(),
            environment: baseline.clone(),
            app: app.clone(),
        })
        .collect();
    for (overlay, service, app) in &args.overlay {
        if *overlay == baseline {
            return Err(CliError::usage("`baseline` is the name of the baseline here")
                .hint("give the overlay another name"));
        }
        instances.push(Instance { service: service.clone(), environment: overlay.clone(), app: app.clone() });
    }
    let stack = Stack::bind(baseline.clone(), instances, args.gateway, args.admin)?;
    let mut environments: Vec<_> = vec![baseline];
    for (overlay, ..) in &args.overlay {
        if !environments.contains(overlay) {
            environments.push(overlay.clone());
        }
    }
    let documents: Vec<_> =
        environments.iter().map(|environment| given(environment, stack.blueprint(environment))).collect();
    let lines = instructions(&stack, &environments);
    let prepared = stack.into_prepared();
    let signals = Signals::install(prepared.runtime())?;
    let running = prepared.start(documents)?;
    let problems = running.control().problems();
    if !problems.is_empty() {
        let refused = running
            .control()
            .lineages(|lineages| lineages.standings().any(|(_, standing)| standing.resolved().is_none()));
        if refused {
            running.stop();
            return Err(CliError::failure(problems.join("\n")));
        }
    }
    out.line(format_args!("{lines}\nLook at it: http://{}{PAGE}\n\nCtrl-C ends it.", running.admin()))?;
    serve(running, signals)
}

fn given(environment: &EnvironmentId, text: String) -> FileChange {
    let path: Arc<str> = format!("({environment})").into();
    let source = Source::new(path.clone(), text, None);
    FileChange { path, content: Content::Text(Arc::new(source)) }
}

fn instructions(stack: &Stack, environments: &[EnvironmentId]) -> String {
    let gateway = stack.gateway();
    let mut text =
        format!("The gateway is at http://{gateway}/ and leads to `{}`.\n\n", stack.instances()[0].service);
    text.push_str(&format!("  curl http://{gateway}/\n"));
    for overlay in &environments[1..] {
        text.push_str(&format!("  curl -i -H 'x-overlay-id: {overlay}' http://{gateway}/\n"));
        let (service, port) = (&stack.instances()[0].service, gateway.port());
        text.push_str(&format!("  http://{service}--{overlay}.localhost:{port}/    in a browser\n"));
    }
    text.push_str("\nLet each service call the others by name through its own outbound sidecar, and forward the header x-overlay-id (or baggage):\n\n");
    for (at, instance) in stack.instances().iter().enumerate() {
        let Instance { service, environment, app } = instance;
        text.push_str(&format!(
            "  {service} ({environment}, {app})   HTTP_PROXY=http://{}\n",
            stack.outbound(at)
        ));
    }
    text
}

/// `overlane demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Make the calls, check the answers, and end
    #[arg(long)]
    once: bool,
    /// What the first service forwards of a request's headers: its tracer's, from which its sidecar restores the key, or nothing
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    forward: Forwards,
}

/// Runs the demo.
///
/// # Errors
/// It cannot start, or with `--once` an answer was wrong.
pub fn demo(args: &DemoArgs, out: &mut Output<'_>) -> Result<(), CliError> {
    if !args.once {
        logs::start("info");
    }
    let demo = Demo::start(args.forward)?;
    if !args.once {
        let signals = Signals::install(demo.running().runtime())?;
        out.line(demo.welcome())?;
        signals.follow(demo.running());
        demo.running().until_told();
        demo.stop();
        return Ok(());
    }
    let (report, right) = demo.check();
    demo.stop();
    out.line(report.trim_end())?;
    if right { Ok(()) } else { Err(CliError::failure("the demo did not answer as it should")) }
}
