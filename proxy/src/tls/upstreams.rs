//! TLS to upstreams: whom they are verified by, what is shown to them, and why a handshake failed.
//!
//! A configuration is made once, of files, on the control side, and shared by all workers: so sessions are
//! resumed. Verification is never off.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use overlane_config::carrier::HostPattern;
use overlane_config::route::Reason;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};
use tokio::sync::OnceCell;

use super::certificates::{Pair, chain, read};
use super::credentials::{Kept, Parsed};
use crate::settings::{SettingsError, error};

/// How upstreams with certain hosts are spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The hosts, as the urls of services name them.
    pub hosts: Vec<HostPattern>,
    /// Their authorities; the system's where it is not told.
    pub ca: Option<PathBuf>,
    /// What is shown to them.
    pub pair: Option<Pair>,
    /// The name that their certificates must have, and that they are asked for; their url's host by default.
    pub server_name: Option<ServerName<'static>>,
}

impl UpstreamTls {
    /// Its files, as they are now: the authorities, the certificate and its key; empty where there is none.
    fn read(&self) -> Parsed<[Vec<u8>; 3]> {
        let ca = self.ca.as_ref().map(|path| read("authorities' file", path)).transpose()?;
        let pair = self.pair.as_ref().map(Pair::read).transpose()?;
        let [certificate, key] = pair.unwrap_or_default();
        Ok([ca.unwrap_or_default(), certificate, key])
    }

    /// Whether its files are of use now.
    ///
    /// # Errors
    /// Which is not, and what to do.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.handshakes().map(|_| ())
    }

    /// What handshakes are made with, by the files as they are now.
    ///
    /// # Errors
    /// Which is of no use, and what to do.
    pub fn handshakes(&self) -> Result<Arc<Handshakes>, SettingsError> {
        self.parse(&self.read()?)
    }

    fn parse(&self, [ca, certificate, key]: &[Vec<u8>; 3]) -> Parsed<Arc<Handshakes>> {
        let roots = match &self.ca {
            None => system_roots().map_err(|why| error(why, "give the authorities' certificates as `ca`"))?,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in chain(path, ca)? {
                    roots.add(authority).map_err(|why| {
                        error(
                            format!("{} cannot verify upstreams: {why}", path.display()),
                            "give the certificates of the authorities that issue the upstreams' certificates",
                        )
                    })?;
                }
                roots
            }
        };
        let shown = match &self.pair {
            None => None,
            Some(pair) => Some(pair.parse(&[certificate.clone(), key.clone()])?.certified()),
        };
        Handshakes::new(roots, shown.map(|key| SingleCertAndKey::from((*key).clone())))
            .map_err(|why| error(format!("TLS cannot be spoken: {why}"), "use `http` urls"))
    }
}

/// What handshakes are made with.
#[derive(Debug)]
pub struct Handshakes {
    /// For HTTP/1.1.
    pub http1: Arc<ClientConfig>,
    /// For HTTP/2, or HTTP/1.1 where it is not spoken.
    pub http2: Arc<ClientConfig>,
}

impl Handshakes {
    fn new(roots: RootCertStore, shown: Option<SingleCertAndKey>) -> Result<Arc<Self>, Error> {
        let builder = ClientConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut http1 = match shown {
            Some(shown) => builder.with_client_cert_resolver(Arc::new(shown)),
            None => builder.with_no_client_auth(),
        };
        // What is remembered of sessions is shared by both.
        let mut http2 = http1.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        http2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(Self { http1: http1.into(), http2: http2.into() }))
    }
}

/// The authorities that the system trusts, or `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems have some that nobody can use.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or("there are none".to_owned(), ToString::to_string);
        return Err(format!("the system's certificates are of no use: {why}"));
    }
    Ok(roots)
}

/// Where the certificates of upstreams come from, and what is in force of them.
#[derive(Debug, Default)]
pub struct Upstreams {
    profiles: Box<[Profile]>,
    /// For all other hosts; read when somebody needs it.
    system: OnceCell<Arc<Handshakes>>,
    state: Mutex<State>,
    /// Held by who reads files, so that nobody brings older ones into force.
    looking: Mutex<()>,
}

#[derive(Debug)]
struct Profile {
    settings: UpstreamTls,
    handshakes: ArcSwap<Handshakes>,
}

#[derive(Debug, Default)]
struct State {
    /// As the profiles.
    kept: Vec<Kept<Arc<Handshakes>>>,
    failures: u64,
}

impl Upstreams {
    /// Reads all files.
    ///
    /// # Errors
    /// One of them is of no use: which, and what to do.
    pub fn load(settings: &[UpstreamTls]) -> Result<Self, SettingsError> {
        let first = |own: &UpstreamTls| Kept::new(&own.read()?, |files| own.parse(files));
        let kept: Vec<_> = settings.iter().map(first).collect::<Result<_, _>>()?;
        let profile = |(settings, kept): (&UpstreamTls, &Kept<Arc<Handshakes>>)| Profile {
            settings: settings.clone(),
            handshakes: ArcSwap::new(kept.good.clone()),
        };
        let profiles = settings.iter().zip(&kept).map(profile).collect();
        Ok(Self { profiles, state: Mutex::new(State { kept, failures: 0 }), ..Self::default() })
    }

    /// What a handshake with an upstream of this host is made with, and the name that it must have.
    ///
    /// # Errors
    /// The system has no authorities, or the host is no name that a certificate could have.
    pub async fn handshakes(
        &self,
        host: &str,
    ) -> Result<(Arc<Handshakes>, ServerName<'static>), (Reason, &'static str)> {
        let profile = self.profiles.iter().find(|own| own.settings.hosts.iter().any(|one| one.has(host)));
        let handshakes = match profile {
            Some(profile) => profile.handshakes.load_full(),
            None => self.system().await?,
        };
        let told = profile.and_then(|profile| profile.settings.server_name.clone());
        let of_host = || ServerName::try_from(host).map(|name| name.to_owned());
        let name = told.map_or_else(of_host, Ok);
        Ok((handshakes, name.map_err(|_| (Reason::Unhealthy, "its host is no name that a certificate has"))?))
    }

    async fn system(&self) -> Result<Arc<Handshakes>, (Reason, &'static str)> {
        let read = || async {
            // Files may be slow: not on a worker's thread.
            let read = || Handshakes::new(system_roots()?, None).map_err(|why| why.to_string());
            let read = tokio::task::spawn_blocking(read).await;
            read.map_err(|why| why.to_string()).and_then(|read| read).map_err(|why| {
                tracing::error!(hint = "set SSL_CERT_FILE, or `upstreamTls` in the settings", "{why}");
                (Reason::Unhealthy, "the system has no certificates to verify it by")
            })
        };
        self.system.get_or_try_init(read).await.cloned()
    }

    /// Its files.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.profiles.iter().flat_map(|Profile { settings, .. }| {
            let pair = settings.pair.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
            settings.ca.iter().chain(pair)
        })
    }

    /// Reads all files again. Each that is of use comes into force; what is wrong with another one is
    /// logged when it is new.
    pub fn look(&self) {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, Profile { settings, handshakes }) in self.profiles.iter().enumerate() {
            let read = settings.read();
            let State { kept, failures } = &mut *self.state();
            let Some(kept) = kept.get_mut(at) else { continue };
            if kept.renew(read, |files| settings.parse(files), failures) {
                handshakes.store(kept.good.clone());
                let hosts: Vec<_> = settings.hosts.iter().map(ToString::to_string).collect();
                tracing::info!(hosts = hosts.join(" "), "new certificates for upstreams are in force");
            }
        }
    }

    /// What is wrong with the files now.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.state().kept.iter().filter_map(|kept| kept.problem.clone()).collect()
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

/// Whether a handshake failed since the upstream speaks nothing of what it was offered (ALPN).
#[must_use]
pub fn is_no_common_protocol(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(
        inner,
        Some(Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol))
    )
}

/// Why a handshake failed, in words.
#[must_use]
pub fn failure(error: &std::io::Error) -> (Reason, &'static str) {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let words = match inner {
        Some(Error::InvalidCertificate(why)) => certificate_failure(why),
        Some(Error::AlertReceived(alert)) => match alert {
            AlertDescription::CertificateRequired => "it asks for a certificate of ours",
            AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate => "it does not take our certificate",
            AlertDescription::UnrecognisedName => "it does not know the name that it was asked for",
            AlertDescription::NoApplicationProtocol => "it speaks no protocol that we speak",
            _ => "it refused the TLS handshake",
        },
        Some(Error::PeerIncompatible(_)) => "it speaks no version of TLS that we speak",
        Some(_) => "what it speaks is not TLS",
        None => "it ended the TLS handshake",
    };
    (Reason::Unhealthy, words)
}

fn certificate_failure(why: &CertificateError) -> &'static str {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name"
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is of an authority that is not trusted"
        }
        CertificateError::Revoked => "its certificate was revoked",
        // As many make them for themselves; rustls has no variant for it.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is an authority's own (CA:TRUE), not a server's"
        }
        _ => "its certificate is not valid",
    }
}
