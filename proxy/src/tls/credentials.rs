//! What listeners show and ask for, as it is in force: the last good of every file.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use overlane_config::time::UnixMillis;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::{ALL_VERSIONS, ServerConfig, version};

use super::certificates::{ByHost, Certificate, Pair};
use super::{ClientSettings, PROTOCOLS, TlsSettings};
use crate::clock;
use crate::settings::{SettingsError, error};

/// What was made of files. It is kept while there is nothing better in them.
struct Kept<T> {
    good: T,
    /// Of the bytes that it was made of.
    digest: u64,
    /// Why the files are of no use now, if so.
    problem: Option<String>,
}

impl<T> Kept<T> {
    /// What is made of files for the first time.
    fn first(read: Result<Option<(T, u64)>, SettingsError>) -> Result<Self, SettingsError> {
        let (good, digest) = read?.ok_or_else(|| error("nothing was read", "start again"))?;
        Ok(Self { good, digest, problem: None })
    }

    /// Takes what was read anew, and notes what is wrong with it; true where there is something new.
    fn renew(&mut self, read: Result<Option<(T, u64)>, SettingsError>, failures: &mut u64) -> bool {
        match read {
            Ok(None) => self.problem = None,
            Ok(Some((good, digest))) => {
                *self = Self { good, digest, problem: None };
                return true;
            }
            Err(SettingsError { message, hint }) => {
                if self.problem.as_ref() != Some(&message) {
                    *failures += 1;
                    tracing::warn!(hint, "{message}; what was last good stays in force");
                }
                self.problem = Some(message);
            }
        }
        false
    }
}

struct State {
    /// In the order of the settings.
    certificates: Vec<Kept<Certificate>>,
    clients: Option<Kept<Arc<dyn ClientCertVerifier>>>,
    /// Makes tickets that resume sessions, with keys that change every six hours. It outlives new
    /// certificates.
    ticketer: Arc<dyn ProducesTickets>,
    failures: u64,
}

/// What is known of a certificate in force.
#[derive(Debug, Clone)]
pub struct Status {
    /// Where it is, as the settings say.
    pub path: String,
    /// The hosts that it is for.
    pub names: Vec<String>,
    /// Until when it is valid.
    pub until: UnixMillis,
}

/// The certificates in force, and whom clients are verified by. Handshakes only load a pointer; everything
/// else is the control side's.
pub struct Credentials {
    settings: TlsSettings,
    config: ArcSwap<ServerConfig>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads all files.
    ///
    /// # Errors
    /// One of them is of no use: which, and what to do.
    pub fn load(settings: &TlsSettings) -> Result<Self, SettingsError> {
        let first = |pair: &Pair| Kept::first(read_pair(pair, None));
        let certificates = settings.certificates.iter().map(first).collect::<Result<_, _>>()?;
        let clients = settings.clients.as_ref().map(|clients| Kept::first(read_clients(clients, None)));
        let ticketer = Ticketer::new().map_err(|why| unusable(&why))?;
        let state = State { certificates, clients: clients.transpose()?, ticketer, failures: 0 };
        let config = ArcSwap::new(config(settings, &state).map_err(|why| unusable(&why))?);
        Ok(Self { settings: settings.clone(), config, state: Mutex::new(state) })
    }

    /// What they were read by.
    #[must_use]
    pub fn settings(&self) -> &TlsSettings {
        &self.settings
    }

    /// What a handshake that begins now is made with.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Reads all files again. Each that is of use comes into force; what is wrong with another one is
    /// logged when it is new.
    pub fn look(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut renewed = false;
        for (pair, kept) in self.settings.certificates.iter().zip(&mut state.certificates) {
            renewed |= renew_pair(pair, kept, &mut state.failures);
        }
        if let Some((settings, kept)) = self.settings.clients.as_ref().zip(state.clients.as_mut())
            && kept.renew(read_clients(settings, Some(kept.digest)), &mut state.failures)
        {
            tracing::info!(path = %settings.ca.display(), "new authorities for clients are in force");
            renewed = true;
            // A resumed session is not verified again: who was verified by others has to begin anew.
            state.ticketer = Ticketer::new().unwrap_or_else(|_| state.ticketer.clone());
        }
        if renewed {
            match config(&self.settings, state) {
                Ok(config) => self.config.store(config),
                Err(why) => tracing::error!(%why, "what was last good stays in force"),
            }
        }
    }

    /// What is wrong with the files now.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let state = self.state();
        let clients = state.clients.iter().filter_map(|kept| kept.problem.clone());
        state.certificates.iter().filter_map(|kept| kept.problem.clone()).chain(clients).collect()
    }

    /// The certificates in force.
    #[must_use]
    pub fn certificates(&self) -> Vec<Status> {
        let state = self.state();
        let pairs = self.settings.certificates.iter().zip(&state.certificates);
        let status = |(pair, kept): (&Pair, &Kept<Certificate>)| Status {
            path: pair.certificate.display().to_string(),
            names: kept.good.said.names(),
            until: kept.good.said.until,
        };
        pairs.map(status).collect()
    }

    /// How often files were of no use after the start.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.state().failures
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn renew_pair(pair: &Pair, kept: &mut Kept<Certificate>, failures: &mut u64) -> bool {
    let (before, path) = (kept.problem.clone(), pair.certificate.display());
    let renewed = kept.renew(read_pair(pair, Some(kept.digest)), failures);
    if renewed {
        let Certificate { said, .. } = &kept.good;
        tracing::info!(%path, names = said.names().join(" "), until = %said.until, "a new certificate is in force");
    } else if kept.problem.is_none()
        && let Some(untimely) = kept.good.said.untimely(clock::now())
    {
        let problem = format!("the certificate {path} {untimely}");
        if before.as_ref() != Some(&problem) {
            tracing::warn!(hint = "renew it", "{problem}");
        }
        kept.problem = Some(problem);
    }
    renewed
}

/// A certificate and the digest of its files; `None` where that is `known`.
fn read_pair(pair: &Pair, known: Option<u64>) -> Result<Option<(Certificate, u64)>, SettingsError> {
    let bytes = pair.read()?;
    match digest(&bytes) {
        digest if known == Some(digest) => Ok(None),
        digest => Ok(Some((pair.parse(&bytes)?, digest))),
    }
}

type Verifier = Arc<dyn ClientCertVerifier>;

/// The same for what clients are verified by.
fn read_clients(
    clients: &ClientSettings,
    known: Option<u64>,
) -> Result<Option<(Verifier, u64)>, SettingsError> {
    let bytes = clients.read()?;
    match digest(&bytes) {
        digest if known == Some(digest) => Ok(None),
        digest => Ok(Some((clients.parse(&bytes)?, digest))),
    }
}

fn digest(bytes: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn unusable(why: &rustls::Error) -> SettingsError {
    error(format!("TLS cannot be spoken: {why}"), "leave `tls` out, and put TLS before this process")
}

fn config(settings: &TlsSettings, state: &State) -> Result<Arc<ServerConfig>, rustls::Error> {
    let versions = if settings.only_13 { &[&version::TLS13] } else { ALL_VERSIONS };
    let builder =
        ServerConfig::builder_with_provider(default_provider().into()).with_protocol_versions(versions)?;
    let builder = match &state.clients {
        Some(clients) => builder.with_client_cert_verifier(clients.good.clone()),
        None => builder.with_no_client_auth(),
    };
    let certificates = state.certificates.iter().map(|kept| &kept.good);
    let mut config = builder.with_cert_resolver(Arc::new(ByHost::new(certificates)));
    config.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
    // Clients keep their sessions themselves, encrypted. Nothing is remembered here, and no early data
    // is taken: it could be replayed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = state.ticketer.clone();
    Ok(Arc::new(config))
}
