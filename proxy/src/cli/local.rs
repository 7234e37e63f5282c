//! `overlane overlay run`: a changed service as a process of this machine, in its overlay for as long as it lives.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use overlane_config::blueprint::{Blueprint, Document, parse};
use overlane_config::diagnostic::{Diagnostic, Source};
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::time::UnixMillis;
use tokio::sync::watch;

use super::environment::{source, ttl};
use super::output::{CliError, Output};
use super::preview::print_links;
use super::run::raise_descriptors;
use crate::clock;
use crate::local::child::{Local, NotListening, Program, Signals, container_runtime, environment};
use crate::local::{Changed, Heartbeat, Leased, Sidecar, free_port, linger, without_proxy};
use crate::logs;
use crate::plane::drain::{Drain, Stage};
use crate::store::StoreAddress;
use crate::store::hub::{HubAddress, HubStore};
use crate::store::open::{OpenStore, Put, WriteError};
use crate::store::shared::Revision;
use crate::tunnel::Inward;

/// `overlane overlay run`.
#[derive(Debug, Args)]
pub struct RunLocal {
    /// The overlay's blueprint, `-` for standard input; the overlay is created where it is not there, and deleted at the end then
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The service that is run; the only one of the overlay where it is left out
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,
    /// The port that the command listens on; a free one where it is left out
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Where its sidecar takes the overlay's requests: an address that gateways and other sidecars reach. On loopback, with a hub as store, everything goes through the hub
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The admin listener of its sidecar
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    admin: SocketAddr,
    /// For how long it is still attached where this command dies without a word. An overlay that was created for this, and says nothing of a ttl, expires an hour later
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = lease)]
    lease: Duration,
    /// How long the command may take until it listens
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = ttl)]
    wait: Duration,
    /// How long the overlay lives, where it is created, such as 4h
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Duration>,
    /// Do not delete the overlay at the end, though it was created for this
    #[arg(long)]
    keep: bool,
    /// Take the service over from where it is attached now
    #[arg(long)]
    replace: bool,
    /// The command, which listens on $PORT, or on the port that stands for {port} in it; the service's image with docker or podman where it is left out
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn lease(text: &str) -> Result<Duration, String> {
    match ttl(text)? {
        lease if lease < Duration::from_secs(3) => Err("a lease of less than 3s".to_owned()),
        lease => Ok(lease),
    }
}

/// Runs it until it ends.
///
/// # Errors
/// It cannot start; else its own exit code, if that is not 0.
pub fn run(args: &RunLocal, store: &StoreAddress, out: &mut Output<'_>) -> Result<(), CliError> {
    logs::start("warn");
    raise_descriptors();
    let source = source(&args.file)?;
    let blueprint = overlay(&source)?;
    let service = which(&blueprint, args.service.as_ref())?;
    // What cannot run is found before anything is written.
    let image = image(&blueprint, &service, &args.command)?;
    let id = &blueprint.id.value;
    let mut open = OpenStore::write(store)?;
    let Made { created, until } = create(&source, &blueprint, args, &mut open, out)?;
    let ran =
        prepare(args, store, id, &service, open, image).and_then(|ready| ready.run(args, until, store, out));
    if let Some(revision) = created.filter(|_| !args.keep) {
        delete(id, &revision, store, out);
    }
    match ran? {
        0 => Ok(()),
        exit => Err(CliError { exit, ..CliError::failure("") }),
    }
}

/// The overlay of a file.
fn overlay(source: &Arc<Source>) -> Result<Arc<Blueprint>, CliError> {
    let parsed = parse(source);
    if parsed.diagnostics.iter().any(Diagnostic::is_error) {
        return Err(WriteError::Invalid(parsed.diagnostics).into());
    }
    match &parsed.documents[..] {
        [Document::Blueprint(overlay)] if overlay.parent().is_some() => Ok(overlay.clone()),
        [_] => Err(CliError::failure(format!("{} is no overlay", source.path))
            .hint("what is run is a service of an overlay: `mode: overlay`")),
        _ => Err(CliError::failure(format!("{} holds several documents", source.path))
            .hint("give a file with the overlay alone")),
    }
}

/// The service that is run.
fn which(blueprint: &Blueprint, told: Option<&ServiceName>) -> Result<ServiceName, CliError> {
    let names: Vec<_> = blueprint.services.iter().map(|service| &service.name.value).collect();
    let id = &blueprint.id.value;
    match (told, &names[..]) {
        (Some(told), names) if names.contains(&told) => Ok(told.clone()),
        (Some(told), names) => {
            let near = overlane_config::diagnostic::did_you_mean(
                told.as_str(),
                names.iter().map(|name| name.as_str()),
            );
            let error = CliError::not_found(format!("`{id}` does not own `{told}`"));
            Err(near.map(|near| format!("did you mean `{near}`?")).into_iter().fold(error, CliError::hint))
        }
        (None, [only]) => Ok((*only).clone()),
        (None, []) => Err(CliError::failure(format!("`{id}` owns no service"))),
        (None, names) => {
            let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
            Err(CliError::usage(format!("`{id}` owns {}", names.join(", ")))
                .hint("say which one is run: `--service NAME`"))
        }
    }
}

/// The image and what runs it, where no command is given.
fn image(
    blueprint: &Blueprint,
    service: &ServiceName,
    command: &[OsString],
) -> Result<Option<(PathBuf, String)>, CliError> {
    if !command.is_empty() {
        return Ok(None);
    }
    let own = blueprint.services.iter().find(|known| known.name.value == *service);
    let Some(image) = own.and_then(|own| own.image.as_deref()) else {
        return Err(CliError::usage(format!("no command, and `{service}` has no `image`"))
            .hint("write `overlane overlay run --file FILE -- COMMAND`"));
    };
    match container_runtime(std::env::var_os("PATH").as_deref()) {
        Some(runtime) => Ok(Some((runtime, image.to_owned()))),
        None => Err(CliError::failure(format!(
            "no command, and neither docker nor podman is installed to run {image}"
        ))
        .hint("write `overlane overlay run --file FILE -- COMMAND`, or install one of them")),
    }
}

/// The overlay in which something is run.
struct Made {
    /// The state in which it is, where it was made for this.
    created: Option<Revision>,
    /// When it ends by itself where nobody says that something is run in it; none where its blueprint or a flag says when, and
    /// where it has no end.
    until: Option<UnixMillis>,
}

/// Creates the overlay where it is not there, or has expired.
fn create(
    source: &Arc<Source>,
    blueprint: &Blueprint,
    args: &RunLocal,
    open: &mut OpenStore,
    out: &mut Output<'_>,
) -> Result<Made, CliError> {
    let id = &blueprint.id.value;
    let now = clock::now();
    let known = open.lineages().claims(id).next();
    let ends = known.and_then(|known| open.lineages().expiry(known));
    let expired = ends.is_some_and(|until| until <= now);
    let says_when = args.ttl.is_some() || blueprint.ttl.is_some() || blueprint.expires_at.is_some();
    if known.is_some() && !expired {
        out.note(format_args!("overlay {id} is there: it stays as it is in the store"));
        // Whoever made it may be gone before this one.
        return Ok(Made { created: None, until: ends.filter(|_| !says_when) });
    }
    let lingers = (!says_when && !args.keep).then(|| linger(args.lease).max(args.wait * 2));
    let put = Put { create: !expired, ttl: lingers.or(args.ttl), ..Put::default() };
    let written = open.put(source, &put, now)?;
    out.diagnostics(&written.warnings);
    out.note(format_args!(
        "overlay {id} {}",
        if expired { "had expired, and is made anew" } else { "created" }
    ));
    let until = lingers.map(|ttl| now.after(ttl));
    Ok(Made { created: open.revision(id), until })
}

/// All that is needed to run it.
struct Ready {
    changed: Changed,
    /// By which hub it is reached, where nothing else can.
    hub: Option<HubAddress>,
    sidecar: Sidecar,
    program: Program,
    app: SocketAddr,
}

fn prepare(
    args: &RunLocal,
    store: &StoreAddress,
    id: &EnvironmentId,
    service: &ServiceName,
    open: OpenStore,
    image: Option<(PathBuf, String)>,
) -> Result<Ready, CliError> {
    let lineages = open.lineages();
    let Some(changed) = Changed::of(id, service, lineages) else {
        return Err(CliError::failure(format!("`{service}` of `{id}` cannot be run as it is in the store"))
            .hint(format!("`overlane overlay describe {id}` says how it is")));
    };
    let records = lineages.attachments(id).iter().flat_map(|record| &record.services);
    let mut attached = records.filter(|one| one.service.value == *service);
    let taken = attached.find(|one| one.expires_at.is_none_or(|until| until > clock::now()));
    if let Some(taken) = taken.filter(|_| !args.replace) {
        let until = taken.expires_at.map_or_else(String::new, |at| format!(" until {at}"));
        return Err(CliError::failure(format!(
            "`{service}` of `{id}` is attached to {}{until}",
            taken.url.value
        ))
        .hint(format!(
            "`overlane detach {id} {service}` takes that away, and `--replace` takes the service over"
        )));
    }
    let port = match args.port {
        Some(port) => port,
        None => free_port()?,
    };
    let app = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // Who listens there already would be taken for the command: requests would test something else.
    if let Err(error) = TcpListener::bind(app) {
        return Err(CliError::failure(format!("port {port} cannot be the command's: {error}"))
            .hint("end what listens there, or give another `--port`"));
    }
    let said = ["NO_PROXY", "no_proxy"].iter().find_map(|name| std::env::var(name).ok());
    let without = without_proxy(id, lineages, said.as_deref());
    // A directory is locked while it is open.
    drop(open);
    let sidecar = Sidecar::bind(&changed, app, args.listen, args.admin, store.clone())?;
    let hub = hub_between(args, store);
    let sidecar = hub.iter().fold(sidecar, Sidecar::by_way_of);
    let environment = environment(port, sidecar.outbound, &without);
    let program = match image {
        Some((runtime, image)) => {
            let name = format!("overlane-{id}-{service}-{}", std::process::id());
            Program::container(runtime, &image, &name, environment)
        }
        None => {
            Program::command(&args.command, port, environment).ok_or_else(|| CliError::usage("no command"))?
        }
    };
    Ok(Ready { changed, hub, sidecar, program, app })
}

/// The hub through which everything goes: where it is all that is known, and nobody is told another address of this machine.
fn hub_between(args: &RunLocal, store: &StoreAddress) -> Option<HubAddress> {
    match store {
        StoreAddress::Hub(hub) if args.listen.ip().is_loopback() => Some(hub.clone()),
        _ => None,
    }
}

impl Ready {
    /// Runs it from its start to its end; its exit code.
    fn run(
        self,
        args: &RunLocal,
        overlay: Option<UnixMillis>,
        store: &StoreAddress,
        out: &mut Output<'_>,
    ) -> Result<u8, CliError> {
        let Self { changed, hub, sidecar, program, app } = self;
        let (inbound, outbound) = (sidecar.inbound, sidecar.outbound);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _inside = runtime.enter();
        let signals = Signals::catch()?;
        let running = sidecar.into_prepared().start(Vec::new())?;
        let name = program.program.to_string_lossy().into_owned();
        let mut local = Local::start(&program, signals)
            .map_err(|error| CliError::failure(format!("cannot run {name}: {error}")))?;
        let listens = runtime.block_on(local.listens(app, args.wait));
        let exit = match listens {
            Ok(()) => {
                let place = match &hub {
                    None => Ok(watch::channel(Some(changed.url(inbound))).1),
                    Some(hub) => {
                        let hub = HubStore::for_tunnels(hub.clone());
                        runtime.block_on(Inward::start(
                            hub,
                            changed.clone(),
                            inbound,
                            running.runtime().handle(),
                        ))
                    }
                };
                let attached = place.map_err(WriteError::Store).and_then(|place| {
                    let url = place.borrow().clone().unwrap_or_else(|| changed.url(inbound));
                    let leased = Leased { url, lease: args.lease, overlay, changed };
                    attach(&leased, store).map(|()| (leased, place))
                });
                match attached {
                    Ok((leased, place)) => {
                        welcome(&leased, app, outbound, store, out);
                        let heartbeat = Heartbeat::start(leased, place, store.clone());
                        let ended = runtime.block_on(ended_with(&mut local, running.drain()));
                        detach(heartbeat);
                        ended.map(exit_code).map_err(CliError::from)
                    }
                    Err(error) => {
                        local.end();
                        let _ = runtime.block_on(local.ended());
                        Err(error.into())
                    }
                }
            }
            Err(why) => Err(not_listening(why, &name, app, args.wait)),
        };
        match running.stop() {
            true => exit,
            false => Err(CliError::failure("the sidecar failed; the log says where")),
        }
    }
}

/// The end of the command; where its sidecar fails, requests do not come through any more, and it is ended.
async fn ended_with(local: &mut Local, drain: &Drain) -> std::io::Result<ExitStatus> {
    tokio::select! {
        ended = local.ended() => return ended,
        () = drain.reached(Stage::Leaving) => local.end(),
    }
    local.ended().await
}

fn attach(leased: &Leased, store: &StoreAddress) -> Result<(), WriteError> {
    leased.attach(&mut OpenStore::change(store)?)
}

/// Takes the address away, if it is still the one.
fn detach(heartbeat: Heartbeat) {
    if let Err(error) = heartbeat.stop() {
        let problem = CliError::from(error).message;
        tracing::warn!(%problem, "the address cannot be taken away: it is used until its lease is over");
    }
}

fn welcome(
    leased: &Leased,
    app: SocketAddr,
    outbound: SocketAddr,
    store: &StoreAddress,
    out: &mut Output<'_>,
) {
    let Changed { overlay, service, .. } = &leased.changed;
    out.note(format_args!("`{service}` of `{overlay}` is at {app}, behind {}", leased.url));
    out.note(format_args!("its calls go through HTTP_PROXY=http://{outbound}"));
    if let Ok(open) = OpenStore::read(store) {
        print_links(overlay, open.lineages(), out);
    }
}

fn not_listening(why: NotListening, name: &str, app: SocketAddr, wait: Duration) -> CliError {
    let hint =
        format!("it is to listen on the port that $PORT names, or {{port}} in its words: {}", app.port());
    match why {
        NotListening::Ended(status) => {
            let exit = exit_code(status).max(1);
            CliError {
                exit,
                ..CliError::failure(format!("{name} ended before it listened: {status}")).hint(hint)
            }
        }
        NotListening::Silent(_) => CliError::failure(format!(
            "{name} does not listen on {app} after {} s, and was ended",
            wait.as_secs()
        ))
        .hint(hint),
        NotListening::Io(error) => error.into(),
    }
}

/// The exit code, as shells have it: 128 and the number of the signal that ended it.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Deletes the overlay that was created, unless somebody else uses it by now.
fn delete(id: &EnvironmentId, revision: &Revision, store: &StoreAddress, out: &mut Output<'_>) {
    let deleted = OpenStore::change(store).and_then(|mut open| {
        open.look_at(id)?;
        let attached = open.lineages().attachments(id).iter().any(|record| !record.services.is_empty());
        if attached {
            return Ok(false);
        }
        open.delete(id, Some(revision), false).map(|_| true)
    });
    let became = match deleted {
        Ok(true) => "deleted".to_owned(),
        Ok(false) => "stays: another address is attached to it".to_owned(),
        Err(WriteError::NotFound(_)) => "is gone already".to_owned(),
        Err(WriteError::Changed(..)) => "stays: it was changed meanwhile".to_owned(),
        Err(error) => format!("stays: {}", CliError::from(error).message),
    };
    out.note(format_args!("overlay {id} {became}"));
}
