//! The lease of an attached address, renewed while the process that serves there lives.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use overlane_config::url::Url;
use tokio::sync::watch;

use super::{Changed, interval};
use crate::cli::output::CliError;
use crate::clock;
use crate::store::StoreAddress;
use crate::store::open::{OpenStore, Reopened, WriteError};

/// How often it is looked whether the address is another one by now.
const LOOK: Duration = Duration::from_millis(100);

/// An address that is attached for as long as somebody says again that it is.
#[derive(Debug, Clone)]
pub struct Leased {
    /// To what.
    pub changed: Changed,
    /// The address.
    pub url: Url,
    /// For how long each time.
    pub lease: Duration,
}

impl Leased {
    /// Attaches it.
    ///
    /// # Errors
    /// The store cannot be written, or the overlay does not own the service.
    pub fn attach(&self, open: &mut OpenStore) -> Result<(), WriteError> {
        let (id, service) = (&self.changed.overlay, &self.changed.service);
        open.lease(id, service, &self.url, clock::now().after(self.lease), false).map(drop)
    }

    /// Renews its lease, `to` be another address from now on; whether it is still attached.
    fn renew(&mut self, to: &Url, open: &mut OpenStore) -> Result<bool, WriteError> {
        let (id, service) = (&self.changed.overlay, &self.changed.service);
        let renewed = open.renew(id, service, &self.url, to, clock::now().after(self.lease))?;
        self.url = to.clone();
        Ok(renewed)
    }

    /// Takes it away, if it is still attached.
    fn release(&self, open: &mut OpenStore) -> Result<(), WriteError> {
        open.release(&self.changed.overlay, &self.changed.service, &self.url).map(drop)
    }
}

/// Renews a lease on a thread of its own.
pub struct Heartbeat {
    stop: Sender<()>,
    thread: JoinHandle<(Leased, Reopened)>,
}

impl Heartbeat {
    /// Renews what is attached from now on; `moves` says where it is then, and is silent while that is nowhere.
    #[must_use]
    pub fn start(leased: Leased, moves: watch::Receiver<Option<Url>>, store: StoreAddress) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let (mut leased, mut store) = (leased, Reopened::new(store));
            renew_until(&stopped, &mut leased, &moves, &mut store);
            (leased, store)
        });
        Self { stop, thread }
    }

    /// Renews no more, and takes the address away.
    ///
    /// # Errors
    /// That cannot be written: the address is used until its lease is over.
    pub fn stop(self) -> Result<(), WriteError> {
        // It may have ended by itself.
        let _ = self.stop.send(());
        match self.thread.join() {
            Ok((leased, mut store)) => store.with(|open| leased.release(open)),
            // What panicked there was logged.
            Err(_) => Ok(()),
        }
    }
}

fn renew_until(
    stopped: &Receiver<()>,
    leased: &mut Leased,
    moves: &watch::Receiver<Option<Url>>,
    store: &mut Reopened,
) {
    let mut failing = false;
    let mut due = Instant::now() + interval(leased.lease);
    while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let Some(at) = moves.borrow().clone() else { continue };
        if (at == leased.url || failing) && Instant::now() < due {
            continue;
        }
        let pause = match store.with(|open| leased.renew(&at, open)) {
            Ok(true) => {
                if std::mem::take(&mut failing) {
                    tracing::warn!("the lease of the address is renewed again");
                }
                // Many that were started together do not write together.
                interval(leased.lease).mul_f64(0.8 + 0.2 * fastrand::f64())
            }
            Ok(false) => {
                let (service, overlay) = (&leased.changed.service, &leased.changed.overlay);
                tracing::warn!(
                    "`{service}` of `{overlay}` is attached to another address by now, or to none: its requests do not come here any more"
                );
                return;
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    let problem = CliError::from(error).message;
                    tracing::warn!(
                        %problem, "the lease of the address cannot be renewed: no request comes here once it is over"
                    );
                }
                interval(leased.lease) / 2
            }
        };
        due = Instant::now() + pause;
    }
}
