//! The lease of an attached address, renewed while the process that serves there lives.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use overlane_config::time::UnixMillis;
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
    /// Until when the overlay lives, where it ends by itself when nobody says that something is run in it.
    pub overlay: Option<UnixMillis>,
}

/// How long an overlay that was made for a process lives on without a word from it: long enough that its requests are refused,
/// and not silently the baseline's, while somebody may still look.
const LINGER: Duration = Duration::from_secs(3600);

/// How long an overlay lives that was made for a process whose lease is so long.
#[must_use]
pub fn linger(lease: Duration) -> Duration {
    LINGER.max(lease * 2)
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
        if renewed {
            self.extend(open)?;
        }
        Ok(renewed)
    }

    /// Has the overlay live on, where that hangs on this: seldom, and long before it ends.
    fn extend(&mut self, open: &mut OpenStore) -> Result<(), WriteError> {
        let (now, linger) = (clock::now(), linger(self.lease));
        if self.overlay.is_none_or(|until| until > now.after(linger / 2)) {
            return Ok(());
        }
        self.overlay = match open.extend(&self.changed.overlay, now.after(linger), None, false) {
            Ok((_, until)) => Some(until),
            // Somebody else wrote it, and said so: it is no longer this one's to end.
            Err(WriteError::NeverExpires(_)) => None,
            Err(error) => return Err(error),
        };
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use overlane_config::diagnostic::Source;
    use overlane_config::url::Scheme;

    use super::*;
    use crate::store::open::Put;

    const OVERLAY: &str =
        "name: alice\nrouting: {mode: overlay, baselineId: staging}\nservices: [{name: web}]\n";
    const BASELINE: &str =
        "name: staging\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://127.0.0.1:1'}]\n";

    /// A store with an overlay that lives for so long, and what is leased in it.
    fn leased(ttl: Option<Duration>) -> (tempfile::TempDir, OpenStore, Leased) {
        let folder = tempfile::tempdir().expect("folder");
        let mut open = OpenStore::write(&StoreAddress::directory(folder.path())).expect("open");
        let mut put = |text: &str, ttl| {
            let source = Arc::new(Source::new("input.yaml".into(), text.to_owned(), None));
            open.put(&source, &Put { ttl, ..Put::default() }, clock::now()).expect("written");
        };
        put(BASELINE, None);
        put(OVERLAY, ttl);
        let changed = Changed {
            overlay: "alice".parse().expect("id"),
            service: "web".parse().expect("name"),
            baseline: "staging".parse().expect("id"),
            scheme: Scheme::Http,
        };
        let (url, lease) = ("http://127.0.0.1:9".parse().expect("url"), Duration::from_secs(60));
        let leased = Leased { changed, url, lease, overlay: ttl.map(|ttl| clock::now().after(ttl)) };
        leased.attach(&mut open).expect("attached");
        (folder, open, leased)
    }

    fn expiry(open: &OpenStore) -> Option<UnixMillis> {
        let known = open.lineages().claims(&"alice".parse().expect("id")).next().expect("there");
        open.lineages().expiry(known)
    }

    #[test]
    fn an_overlay_that_was_made_for_a_process_lives_as_long_as_that_is_heard_of_and_is_written_seldom() {
        let (_folder, mut open, mut leased) = leased(Some(Duration::from_secs(600)));
        let url = leased.url.clone();
        assert!(leased.renew(&url, &mut open).expect("renewed"));
        let extended = expiry(&open).expect("it ends");
        assert!(extended > clock::now().after(LINGER - Duration::from_secs(60)), "{extended}");
        assert!(leased.renew(&url, &mut open).expect("renewed"));
        assert_eq!(expiry(&open), Some(extended), "half of it is left");
    }

    #[test]
    fn an_overlay_that_was_there_lives_as_long_as_it_says() {
        let (_folder, mut open, mut leased) = leased(None);
        let url = leased.url.clone();
        assert!(leased.renew(&url, &mut open).expect("renewed"));
        assert_eq!(expiry(&open), None);
    }
}
