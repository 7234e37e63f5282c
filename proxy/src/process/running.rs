//! A process that serves, until it is told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::{Addresses, addresses};
use crate::access::Written;
use crate::admin::{Admin, ReloadRequest};
use crate::control::{Control, Report, Trigger};
use crate::metrics::MeterDoor;
use crate::plane::Gate;
use crate::plane::drain::{Drain, Stage};
use crate::plane::worker::Workers;
use crate::tls::credentials::Credentials;
use crate::tls::follow::Files;
use crate::traces::Exporting;

/// How long the end waits for the cache to be written.
const LAST_SAVE: Duration = Duration::from_millis(500);

/// A process that serves.
pub struct Running {
    /// What its parts share, as the admin side knows it.
    pub(super) admin: Admin,
    pub(super) at: Addresses,
    pub(super) workers: Workers,
    pub(super) lame_duck: Duration,
    pub(super) written: Written,
    pub(super) exporting: Option<Exporting>,
    pub(super) stopped: watch::Sender<bool>,
    pub(super) runtime: tokio::runtime::Runtime,
}

impl Running {
    /// All that is read from files that may change.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.admin.files
    }

    /// Waits until it is told to stop.
    pub fn until_told(&self) {
        self.runtime.block_on(self.admin.drain.reached(Stage::Leaving));
    }

    /// What listeners show that speak TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<Credentials>> {
        self.admin.tls.as_ref()
    }

    /// The control side.
    #[must_use]
    pub fn control(&self) -> &Arc<Control> {
        &self.admin.control
    }

    /// The listeners.
    #[must_use]
    pub fn gates(&self) -> &[Arc<Gate>] {
        &self.admin.gates
    }

    /// Where its listeners are; those on unix sockets are left out.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        addresses(&self.admin.gates)
    }

    /// Where the admin listener is.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.at.admin
    }

    /// Where the listener with only probes and metrics is.
    #[must_use]
    pub fn probes(&self) -> Option<SocketAddr> {
        self.at.probes
    }

    /// Where the hub is.
    #[must_use]
    pub fn hub(&self) -> Option<SocketAddr> {
        self.at.hub
    }

    /// The control runtime, for what belongs to neither workers nor store.
    #[must_use]
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// Where the workers are asked for their counts.
    #[must_use]
    pub fn doors(&self) -> &[MeterDoor] {
        self.workers.doors()
    }

    /// Reads the store now; `None` where there is none.
    #[must_use]
    pub fn reload(&self, trigger: Trigger) -> Option<Report> {
        let (reply, report) = oneshot::channel();
        self.admin.reload.blocking_send((trigger, reply)).ok()?;
        report.blocking_recv().ok()
    }

    /// Where a reload can be asked for from elsewhere.
    #[must_use]
    pub fn reload_door(&self) -> mpsc::Sender<ReloadRequest> {
        self.admin.reload.clone()
    }

    /// The end of the process.
    #[must_use]
    pub fn drain(&self) -> &Drain {
        &self.admin.drain
    }

    /// Stops: not ready any more, and where it was told to leave new connections are served for some time;
    /// then what is in flight is finished, and at last the admin listener goes, which until then shows it all.
    /// False where it ends since something failed.
    pub fn stop(self) -> bool {
        if self.admin.drain.stage() == Stage::Leaving && !self.lame_duck.is_zero() {
            let left = self.lame_duck;
            tracing::info!("stopping: not ready any more, new connections are served for {left:?}");
            let drained = self.admin.drain.reached(Stage::Draining);
            // A second signal is sooner.
            let _ = self.runtime.block_on(async { timeout(left, drained).await });
        }
        tracing::info!("stopping: finishing what is in flight; another signal closes it");
        self.workers.stop();
        self.runtime.block_on(self.written.done());
        if let Some(exporting) = self.exporting {
            self.runtime.block_on(exporting.end());
        }
        if let Some(cache) = self.admin.cache.clone() {
            // What changed within the last moments; a disk that hangs is not waited for.
            let control = self.admin.control.clone();
            let saved = self.runtime.spawn_blocking(move || cache.save(&control));
            let _ = self.runtime.block_on(async { timeout(LAST_SAVE, saved).await });
        }
        self.stopped.send_replace(true);
        // Whoever waits for a name server is not waited for.
        self.runtime.shutdown_background();
        !self.admin.drain.has_failed()
    }

    /// [`Running::stop`] on a thread of its own, for callers on a runtime.
    #[must_use]
    pub fn stop_in_background(self) -> JoinHandle<bool> {
        std::thread::spawn(move || self.stop())
    }
}
