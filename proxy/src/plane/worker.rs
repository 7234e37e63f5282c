//! Workers: threads that accept and serve, and how they stop.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::route::Role;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use super::admit::admit;
use super::drain::{Drain, Stage, announce};
use super::listen::{Listening, Place, SocketFile, listen};
use super::serve::Worker;
use super::shortage::Shortage;
use super::{Gate, Plane, RedirectSettings, deadline, h2, link, role_name};
use crate::access::AccessLog;
use crate::correlation::{Correlation, CorrelationSettings};
use crate::metrics::{Event, MeterDoor, answer_scrapes, count};
use crate::names::Names;
use crate::settings::Settings;
use crate::tls::credentials::Credentials;
use crate::upstream::{Address, Upstream};

/// How long a connection that a client has begun to open has to come to its end before its listener closes.
const SETTLING: Duration = Duration::from_millis(100);
/// One in so many connections is closed at a time to make room: looking for them costs.
const ROOM: usize = 64;
/// How often it is looked for them, where there are none.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long it may take until those are gone: clients of HTTP/2 are told before.
const CLOSING: Duration = Duration::from_millis(1500);

/// Listeners that are bound and not yet served, so that everything that can fail has failed.
pub struct Bound {
    gates: Vec<Arc<Gate>>,
    /// Per worker, its socket on each gate.
    sockets: Vec<Vec<Listening>>,
    files: Vec<SocketFile>,
}

impl Bound {
    /// Binds a socket for each worker on each listener.
    ///
    /// # Errors
    /// An address that is taken or not ours.
    pub fn new(settings: &Settings, names: &Names, tls: Option<&Arc<Credentials>>) -> io::Result<Self> {
        let Settings { listeners, redirect, workers, socket_mode, correlation, .. } = settings;
        let speaks = |role| tls.filter(|tls| tls.settings().roles.contains(&role_name(role))).cloned();
        let mut sidecars = Sidecars { settings: correlation, known: Vec::new() };
        let mut sockets: Vec<Vec<Listening>> = (0..*workers).map(|_| Vec::new()).collect();
        let (mut gates, mut files) = (Vec::new(), Vec::new());
        let mut bind = |address: &Address| -> io::Result<Address> {
            let Place { address, sockets: shared, file } = listen(address, *workers, *socket_mode)?;
            files.extend(file);
            for (own, socket) in sockets.iter_mut().zip(shared) {
                own.push(socket);
            }
            Ok(address)
        };
        for settings in listeners {
            gates.push(Arc::new(Gate {
                number: gates.len(),
                address: bind(&settings.address)?,
                listener: settings.listener.clone(),
                app: settings.app.clone().map(|url| Upstream::new(Arc::new([url]), names, true)),
                trust: settings.trust.clone(),
                tls: speaks(&settings.listener.role),
                redirect: None,
                correlation: sidecars.correlation(&settings.listener.role),
            }));
        }
        let gateway = gates.iter().find(|gate| gate.listener.role == Role::Gateway).cloned();
        if let (Some(RedirectSettings { address, port }), Some(gateway)) = (redirect, gateway) {
            let port = port.or(gateway.address.tcp().map(|address| address.port()));
            gates.push(Arc::new(Gate {
                number: gates.len(),
                address: bind(address)?,
                listener: gateway.listener.clone(),
                app: None,
                trust: gateway.trust.clone(),
                tls: None,
                // The port that an `https:` url means.
                redirect: Some(port.unwrap_or(443)),
                correlation: gateway.correlation.clone(),
            }));
        }
        Ok(Self { gates, sockets, files })
    }

    /// The listeners, with the ports that they got.
    #[must_use]
    pub fn gates(&self) -> &[Arc<Gate>] {
        &self.gates
    }

    /// Starts the workers. They end when `drain` says so.
    ///
    /// # Errors
    /// No thread or no runtime can be had.
    pub fn start(self, plane: &Arc<Plane>, drain: &Drain) -> io::Result<Workers> {
        let mut workers =
            Workers { drain: drain.clone(), files: self.files, threads: Vec::new(), doors: Vec::new() };
        for (number, sockets) in self.sockets.into_iter().enumerate() {
            let (door, scrapes) = mpsc::channel(4);
            let (access, lines) = (plane.access.clone(), plane.access.clone());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .on_thread_park(move || lines.hand_over())
                .build()?;
            let (plane, drain) = (plane.clone(), drain.clone());
            let body = move || {
                plane.decisions.take_up(number);
                // What is cut short is logged as well, where a panic ends all as well: after the runtime, which goes first.
                let _last = HandsOver(access);
                let runtime = runtime;
                runtime.block_on(work(plane, sockets, drain, scrapes));
            };
            workers.threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(body)?);
            workers.doors.push(door);
        }
        Ok(workers)
    }
}

/// Hands over what this thread has of the access log, once nothing runs on it any more.
struct HandsOver(AccessLog);

impl Drop for HandsOver {
    fn drop(&mut self) {
        self.0.hand_over();
    }
}

/// The sidecars of a process, and what each of them remembers.
struct Sidecars<'s> {
    settings: &'s CorrelationSettings,
    known: Vec<(Sidecar, Arc<Correlation>)>,
}

/// The service and the environment that a sidecar stands for.
type Sidecar = (Option<ServiceName>, Option<EnvironmentId>);

impl Sidecars<'_> {
    /// The memory of the sidecar that a listener of this role is part of. A gateway is part of none.
    fn correlation(&mut self, role: &Role) -> Arc<Correlation> {
        let sidecar = match role {
            Role::Gateway => return Arc::new(Correlation::new(self.settings.clone().without_memory())),
            Role::Inbound { service, environment } => (Some(service.clone()), environment.clone()),
            Role::Outbound { service, environment } => (service.clone(), environment.clone()),
        };
        let known = self.known.iter().find(|(known, _)| *known == sidecar).map(|(_, known)| known.clone());
        let correlation = known.unwrap_or_else(|| {
            let new = Arc::new(Correlation::new(self.settings.clone()));
            self.known.push((sidecar, new.clone()));
            new
        });
        if matches!(role, Role::Outbound { .. }) {
            correlation.calls_pass_here();
        }
        correlation
    }
}

/// Running workers.
pub struct Workers {
    drain: Drain,
    files: Vec<SocketFile>,
    threads: Vec<JoinHandle<()>>,
    doors: Vec<MeterDoor>,
}

impl Workers {
    /// Where the workers are asked for their counts.
    #[must_use]
    pub fn doors(&self) -> &[MeterDoor] {
        &self.doors
    }

    /// Tells all workers to drain: they accept what waits already, tell their clients, and finish what
    /// is in flight within the drain limit. Returns when all have.
    pub fn stop(self) {
        // While they still accept: nobody finds a file on which nobody listens, and a successor can begin.
        drop(self.files);
        self.drain.tell(Stage::Draining);
        for thread in self.threads {
            if thread.join().is_err() {
                self.drain.fail("a worker");
            }
        }
    }
}

async fn work(
    plane: Arc<Plane>,
    sockets: Vec<Listening>,
    drain: Drain,
    scrapes: mpsc::Receiver<tokio::sync::oneshot::Sender<crate::metrics::Meter>>,
) {
    let (pingora, draining) = watch::channel(false);
    let worker = Arc::new(Worker::new(plane.clone(), drain.clone(), draining));
    let published = plane.published.clone();
    // Without these a worker is no use; they are dropped with it.
    let mut beside = JoinSet::new();
    beside.spawn(deadline::watch());
    beside.spawn(link::sweep(plane.limits.upstream_idle));
    beside.spawn(h2::sweep());
    beside.spawn(announce(drain.clone(), pingora));
    beside
        .spawn(answer_scrapes(scrapes, move |id| published.load().table.environment(id.as_str()).is_some()));
    let mut accepting = JoinSet::new();
    for (gate, socket) in plane.gates.iter().zip(sockets) {
        accepting.spawn(accept(socket, gate.clone(), worker.clone()));
    }
    let check = |ended: Result<(), JoinError>| {
        if ended.is_err() {
            drain.fail("a task of a worker");
        }
    };
    loop {
        tokio::select! {
            Some(ended) = beside.join_next() => check(ended),
            ended = accepting.join_next() => match ended {
                Some(ended) => check(ended),
                None => return,
            },
        }
    }
}

/// Closes connections of a listener on which nothing is asked, those first that were so for the longest time:
/// whoever keeps connections open without using them does not keep others out. Returns when to try again.
fn make_room(gate: &Arc<Gate>, connections: usize) -> Duration {
    let closed = deadline::close_idle(gate.place(), connections.div_ceil(ROOM));
    (0..closed).for_each(|_| count(Event::IdleClosed));
    if closed == 0 { LOOK_AGAIN } else { CLOSING }
}

/// Accepts on one socket until told to stop, then sees its connections to their end.
async fn accept(socket: Listening, gate: Arc<Gate>, worker: Arc<Worker>) {
    let socket = match socket.accepting() {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(address = %gate.address, %error, "cannot accept");
            return;
        }
    };
    let limits = &worker.plane.limits;
    let (mut connections, mut shortage) = (JoinSet::new(), Shortage::default());
    let mut draining = pin!(worker.drain.reached(Stage::Draining));
    // The one that came when there was no room.
    let mut waiting = None;
    loop {
        let full = connections.len() >= limits.connections;
        if let Some(accepted) = waiting.take_if(|_| !full) {
            connections.spawn(admit(accepted, gate.clone(), worker.clone()));
            continue;
        }
        let look_again = waiting.is_some().then(|| make_room(&gate, limits.connections));
        tokio::select! {
            biased;
            () = &mut draining => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = tokio::time::sleep(look_again.unwrap_or_default()), if look_again.is_some() => {}
            accepted = socket.accept(), if waiting.is_none() => match accepted {
                Ok(accepted) if full => {
                    count(Event::ListenerFull);
                    waiting = Some(accepted);
                }
                Ok(accepted) => {
                    connections.spawn(admit(accepted, gate.clone(), worker.clone()));
                }
                Err(error) => shortage.wait(&gate.address, &error).await,
            },
        }
    }
    if let Some(accepted) = waiting {
        connections.spawn(admit(accepted, gate.clone(), worker.clone()));
    }
    // The kernel has told clients of connections that wait here that they are open, and tells those whose
    // handshake is under way: closing now would reset them.
    socket.turn_away();
    let mut settled = pin!(sleep(SETTLING));
    loop {
        tokio::select! {
            () = &mut settled => break,
            Ok(accepted) = socket.accept() => {
                connections.spawn(admit(accepted, gate.clone(), worker.clone()));
            }
        }
    }
    drop(socket);
    let why = tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => return,
        () = sleep(limits.drain) => "the drain limit is reached",
        () = worker.drain.reached(Stage::Closing) => "told to stop at once",
    };
    tracing::warn!(address = %gate.address, connections = connections.len(), "{why}: closing what is left");
    connections.shutdown().await;
}
