//! Workers: threads that accept and serve, and how they stop.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::route::Role;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::admit::admit;
use super::listen::{Listening, Place, SocketFile, listen};
use super::serve::Worker;
use super::{Gate, ListenerSettings, Plane, deadline, h2, link, role_name};
use crate::correlation::{Correlation, CorrelationSettings};
use crate::metrics::{MeterDoor, answer_scrapes};
use crate::tls::credentials::Credentials;
use crate::upstream::Upstream;

thread_local! {
    static DRAINING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this worker was told to stop.
#[must_use]
pub fn is_draining() -> bool {
    DRAINING.get()
}

/// Completes when the process is told to stop, also if that was long ago.
async fn told(draining: &mut watch::Receiver<bool>) {
    // An error means that nobody is left to tell us: that is a stop as well.
    let _ = draining.wait_for(|draining| *draining).await;
}

/// How long accepting pauses when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(20);

/// Listeners that are bound and not yet served, so that everything that can fail has failed.
pub struct Bound {
    gates: Vec<Arc<Gate>>,
    /// Per worker, its socket on each gate.
    sockets: Vec<Vec<Listening>>,
    files: Vec<SocketFile>,
}

impl Bound {
    /// Binds `workers` sockets on each listener; the files of unix sockets get `mode`.
    ///
    /// # Errors
    /// An address that is taken or not ours.
    pub fn new(
        listeners: &[ListenerSettings],
        workers: usize,
        mode: u32,
        names: &crate::names::Names,
        correlation: &CorrelationSettings,
        tls: Option<&Arc<Credentials>>,
    ) -> io::Result<Self> {
        let speaks = |role| tls.filter(|tls| tls.settings().roles.contains(&role_name(role))).cloned();
        let mut sidecars = Sidecars { settings: correlation, known: Vec::new() };
        let mut sockets: Vec<Vec<Listening>> = (0..workers).map(|_| Vec::new()).collect();
        let (mut gates, mut files) = (Vec::new(), Vec::new());
        for settings in listeners {
            let Place { address, sockets: shared, file } = listen(&settings.address, workers, mode)?;
            files.extend(file);
            for (own, socket) in sockets.iter_mut().zip(shared) {
                own.push(socket);
            }
            gates.push(Arc::new(Gate {
                address,
                listener: settings.listener.clone(),
                app: settings.app.clone().map(|url| Upstream::new(Arc::new([url]), names, true)),
                trust: settings.trust.clone(),
                tls: speaks(&settings.listener.role),
                correlation: sidecars.correlation(&settings.listener.role),
            }));
        }
        Ok(Self { gates, sockets, files })
    }

    /// The listeners, with the ports that they got.
    #[must_use]
    pub fn gates(&self) -> &[Arc<Gate>] {
        &self.gates
    }

    /// Starts the workers.
    ///
    /// # Errors
    /// No thread or no runtime can be had.
    pub fn start(self, plane: &Arc<Plane>) -> io::Result<Workers> {
        let (stop, draining) = watch::channel(false);
        let mut workers = Workers { stop, files: self.files, threads: Vec::new(), doors: Vec::new() };
        for (number, sockets) in self.sockets.into_iter().enumerate() {
            let (door, scrapes) = mpsc::channel(4);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (plane, draining) = (plane.clone(), draining.clone());
            let body = move || runtime.block_on(work(plane, sockets, draining, scrapes));
            workers.threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(body)?);
            workers.doors.push(door);
        }
        Ok(workers)
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
    stop: watch::Sender<bool>,
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

    /// Tells all workers to stop: they accept what waits already, tell their clients, and finish what
    /// is in flight within the drain limit. Returns when all have.
    pub fn stop(self) {
        // While they still accept: nobody finds a file on which nobody listens, and a successor can begin.
        drop(self.files);
        self.stop.send_replace(true);
        drop(self.doors);
        for thread in self.threads {
            // A worker that panicked has nothing left to finish.
            let _ = thread.join();
        }
    }
}

async fn work(
    plane: Arc<Plane>,
    sockets: Vec<Listening>,
    draining: watch::Receiver<bool>,
    scrapes: mpsc::Receiver<tokio::sync::oneshot::Sender<crate::metrics::Meter>>,
) {
    let worker = Arc::new(Worker::new(plane.clone(), draining.clone()));
    let watching = [
        tokio::spawn(deadline::watch()),
        tokio::spawn(link::sweep(plane.limits.upstream_idle)),
        tokio::spawn(h2::sweep()),
        tokio::spawn(announce(draining)),
    ];
    let published = plane.published.clone();
    let scrapes = tokio::spawn(answer_scrapes(scrapes, move |id| {
        published.load().table.environment(id.as_str()).is_some()
    }));
    let mut accepting = JoinSet::new();
    for (gate, socket) in plane.gates.iter().zip(sockets) {
        accepting.spawn(accept(socket, gate.clone(), worker.clone()));
    }
    accepting.join_all().await;
    scrapes.abort();
    watching.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Tells this worker's connections when the process is told to stop: those that wait wake up.
async fn announce(mut draining: watch::Receiver<bool>) {
    told(&mut draining).await;
    DRAINING.set(true);
    deadline::wake_all();
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
    let mut draining = worker.draining.clone();
    let limits = &worker.plane.limits;
    let mut connections = JoinSet::new();
    loop {
        let full = connections.len() >= limits.connections;
        tokio::select! {
            biased;
            () = told(&mut draining) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = socket.accept(), if !full => match accepted {
                Ok(accepted) => {
                    connections.spawn(admit(accepted, gate.clone(), worker.clone()));
                }
                Err(error) => {
                    tracing::warn!(address = %gate.address, %error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
    // What is in the queue was accepted by the kernel already: closing now would reset it.
    while let Ok(Ok(accepted)) = timeout(Duration::ZERO, socket.accept()).await {
        connections.spawn(admit(accepted, gate.clone(), worker.clone()));
    }
    drop(socket);
    let finished = timeout(limits.drain, async { while connections.join_next().await.is_some() {} }).await;
    if finished.is_err() {
        tracing::warn!(address = %gate.address, connections = connections.len(), "drain limit reached: closing what is left");
        connections.shutdown().await;
    }
}
