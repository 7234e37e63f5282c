//! A changed service as a process of this machine: in front of it its sidecar, in this process; its address attached with
//! a lease that is renewed while it lives, and released when it ends. `overlane overlay run`.

pub mod child;
mod heartbeat;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use overlane_config::lineage::{Lineages, Standing};
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::route::{Listener, Role};
use overlane_config::url::{Scheme, Url};

use crate::plane::ListenerSettings;
use crate::plane::trust::Trust;
use crate::process::Prepared;
use crate::settings::Settings;
use crate::store::StoreAddress;
use crate::store::hub::{HubAddress, HubStore};
use crate::tunnel::Outward;

pub use heartbeat::{Heartbeat, Leased, linger};

/// What is run: a service of an overlay.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The overlay.
    pub overlay: EnvironmentId,
    /// The service, which it owns.
    pub service: ServiceName,
    /// The baseline at the end of its lineage.
    pub baseline: EnvironmentId,
    /// What the service speaks: `http`, or `h2c` where an ancestor's does.
    pub scheme: Scheme,
}

impl Changed {
    /// What there is to know of a service of an overlay; `None` where it is none that stands.
    #[must_use]
    pub fn of(overlay: &EnvironmentId, service: &ServiceName, lineages: &Lineages) -> Option<Self> {
        let own = lineages.standing(overlay)?.resolved()?;
        own.parent.as_ref()?;
        own.blueprint.services.iter().find(|known| known.name.value == *service)?;
        let mut next = Some(own);
        let mut h2c = false;
        while let Some(at) = next {
            let places = at.blueprint.services.iter().zip(&at.urls);
            let mut urls =
                places.filter(|(known, _)| known.name.value == *service).flat_map(|(_, urls)| &**urls);
            h2c |= urls.any(|url| url.scheme == Scheme::H2c);
            next = at.parent.as_ref().and_then(|id| lineages.standing(id)).and_then(Standing::resolved);
        }
        let scheme = if h2c { Scheme::H2c } else { Scheme::Http };
        Some(Self {
            overlay: overlay.clone(),
            service: service.clone(),
            baseline: own.baseline.clone(),
            scheme,
        })
    }

    /// The url of what it speaks at an address.
    #[must_use]
    pub fn url(&self, at: SocketAddr) -> Url {
        Url { scheme: self.scheme, host: at.ip().to_string().into(), port: at.port() }
    }
}

/// The sidecar of a local process: bound, and not serving yet.
pub struct Sidecar {
    prepared: Prepared,
    /// Where the overlay's requests arrive.
    pub inbound: SocketAddr,
    /// Where the process sends its calls.
    pub outbound: SocketAddr,
}

impl Sidecar {
    /// Binds the listeners before and behind a process that listens, or will, at `app`.
    ///
    /// # Errors
    /// An address that is taken.
    pub fn bind(
        changed: &Changed,
        app: SocketAddr,
        listen: SocketAddr,
        admin: SocketAddr,
        store: StoreAddress,
    ) -> io::Result<Self> {
        let listener = |address: SocketAddr, role, app| {
            let listener = Listener { role, baseline: Some(changed.baseline.clone()) };
            ListenerSettings { address: address.into(), listener, app, trust: Trust::Any }
        };
        let (service, environment) = (changed.service.clone(), Some(changed.overlay.clone()));
        let inbound = Role::Inbound { service: service.clone(), environment: environment.clone() };
        let outbound = Role::Outbound { service: Some(service), environment };
        let listeners = vec![
            listener(listen, inbound, Some(changed.url(app))),
            listener(([127, 0, 0, 1], 0).into(), outbound, None),
        ];
        let settings = Settings { admin, store: Some(store), ..Settings::in_process(listeners) };
        let prepared = Prepared::bind(settings)?;
        let addresses = prepared.addresses();
        Ok(Self { prepared, inbound: addresses[0], outbound: addresses[1] })
    }

    /// The same, where services are reached only through a hub.
    #[must_use]
    pub fn by_way_of(mut self, hub: &HubAddress) -> Self {
        let runtime = self.prepared.runtime().handle().clone();
        let outward = Outward::new(HubStore::for_tunnels(hub.clone()), runtime);
        self.prepared = self.prepared.by_way_of(outward);
        self
    }

    /// The process behind it.
    #[must_use]
    pub fn into_prepared(self) -> Prepared {
        self.prepared
    }
}

/// A port of this machine that nobody listens on now.
///
/// # Errors
/// There is none.
pub fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The hosts that a process is not to call through its sidecar, for `NO_PROXY`: its own machine, unless a service of its
/// lineage is there, and what the caller's environment says already.
#[must_use]
pub fn without_proxy(overlay: &EnvironmentId, lineages: &Lineages, said: Option<&str>) -> String {
    let mut next = lineages.standing(overlay).and_then(Standing::resolved);
    let mut here = false;
    while let Some(at) = next {
        here |= at.urls.iter().flat_map(|urls| &**urls).any(|url| is_loopback(&url.host));
        next = at.parent.as_ref().and_then(|id| lineages.standing(id)).and_then(Standing::resolved);
    }
    let own = if here { "" } else { "localhost,127.0.0.1,::1" };
    let all: Vec<_> = [said.unwrap_or_default(), own].into_iter().filter(|text| !text.is_empty()).collect();
    all.join(",")
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// How often a lease is renewed: twice may fail before it is over.
fn interval(lease: Duration) -> Duration {
    lease / 3
}
