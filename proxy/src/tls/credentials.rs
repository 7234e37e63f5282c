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
#[derive(Debug)]
pub(crate) struct Kept<T> {
    pub(crate) good: T,
    /// Of the bytes that it was made of.
    digest: u64,
    /// Why the files are of no use now, if so.
    pub(crate) problem: Option<String>,
}

impl<T> Kept<T> {
    pub(crate) fn new<B: Hash>(bytes: &B, parse: impl FnOnce(&B) -> Parsed<T>) -> Parsed<Self> {
        Ok(Self { good: parse(bytes)?, digest: digest(bytes), problem: None })
    }

    /// Takes what was read anew, and notes what is wrong with it; true where there is something new.
    pub(crate) fn renew<B: Hash>(
        &mut self,
        read: Parsed<B>,
        parse: impl FnOnce(&B) -> Parsed<T>,
        failures: &mut u64,
    ) -> bool {
        let renewed = read.and_then(|bytes| match digest(&bytes) == self.digest {
            true => Ok(None),
            false => Self::new(&bytes, parse).map(Some),
        });
        match renewed {
            Ok(None) => self.problem = None,
            Ok(Some(renewed)) => {
                *self = renewed;
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

pub(crate) type Parsed<T> = Result<T, SettingsError>;

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
    /// Never held while a file is read: whoever asks for the state does not wait for disks.
    state: Mutex<State>,
    /// Held by who reads files, so that nobody brings older ones into force.
    looking: Mutex<()>,
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
        let first = |pair: &Pair| Kept::new(&pair.read()?, |files| pair.parse(files));
        let certificates = settings.certificates.iter().map(first).collect::<Result<_, _>>()?;
        let first = |clients: &ClientSettings| Kept::new(&clients.read()?, |file| clients.parse(file));
        let clients = settings.clients.as_ref().map(first).transpose()?;
        let ticketer = Ticketer::new().map_err(|why| unusable(&why))?;
        let state = State { certificates, clients, ticketer, failures: 0 };
        let config = ArcSwap::new(config(settings, &state).map_err(|why| unusable(&why))?);
        let (state, looking) = (Mutex::new(state), Mutex::default());
        Ok(Self { settings: settings.clone(), config, state, looking })
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
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let TlsSettings { certificates, clients, .. } = &self.settings;
        let read: Vec<_> = certificates.iter().map(Pair::read).collect();
        let read_clients = clients.as_ref().map(|clients| (clients, clients.read()));
        let mut state = self.state();
        let State { certificates: kept, clients: kept_clients, failures, .. } = &mut *state;
        let mut renewed = Vec::new();
        for ((pair, kept), read) in certificates.iter().zip(kept).zip(read) {
            if renew_pair(pair, kept, read, failures) {
                renewed.push((pair.certificate.display(), kept.good.said.clone()));
            }
        }
        let authorities = read_clients.zip(kept_clients.as_mut()).and_then(|((settings, read), kept)| {
            kept.renew(read, |file| settings.parse(file), failures).then_some(settings.ca.display())
        });
        if renewed.is_empty() && authorities.is_none() {
            return;
        }
        match config(&self.settings, &state) {
            Ok(config) => self.config.store(config),
            Err(why) => return tracing::error!(%why, "what was last good stays in force"),
        }
        // Said once it is true.
        for (path, said) in renewed {
            tracing::info!(%path, names = said.names().join(" "), until = %said.until, "a new certificate is in force");
        }
        if let Some(path) = authorities {
            tracing::info!(%path, "new authorities for clients are in force");
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

/// Renews one pair. Also one that did not change can be of no use any more.
fn renew_pair(
    pair: &Pair,
    kept: &mut Kept<Certificate>,
    read: Parsed<[Vec<u8>; 2]>,
    failures: &mut u64,
) -> bool {
    let (before, path) = (kept.problem.clone(), pair.certificate.display());
    let renewed = kept.renew(read, |files| pair.parse(files), failures);
    if !renewed
        && kept.problem.is_none()
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
    // is taken: it could be replayed. Who shows a certificate is verified each time: in a resumed
    // session it would count after it has expired, or its authority is gone.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if state.clients.is_none() {
        config.ticketer = state.ticketer.clone();
    }
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_certificate_that_expires_in_force_is_a_problem_and_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let pair = Pair { certificate: folder.path().join("tls.crt"), key: folder.path().join("tls.key") };
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).expect("certificate");
        fs::write(&pair.certificate, made.cert.pem()).expect("write");
        fs::write(&pair.key, made.signing_key.serialize_pem()).expect("write");
        let settings =
            TlsSettings { certificates: vec![pair], clients: None, only_13: false, roles: Vec::new() };
        let credentials = Credentials::load(&settings).expect("good");
        credentials.look();
        assert_eq!(credentials.problems(), Vec::<String>::new());
        let config = credentials.config();
        credentials.state().certificates[0].good.said.until = UnixMillis(1000);
        credentials.look();
        assert!(credentials.problems()[0].ends_with("tls.crt expired at 1970-01-01T00:00:01Z"));
        assert_eq!(credentials.failures(), 0, "it was good when it was read");
        assert!(Arc::ptr_eq(&config, &credentials.config()));
    }
}
