//! A whole small environment in one process: a gateway, and a sidecar pair before each instance of
//! each service. What `try` and `demo` run.

use std::io;
use std::net::SocketAddr;

use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::route::{Listener, Role};
use overlane_config::url::Url;

use crate::plane::ListenerSettings;
use crate::plane::trust::Trust;
use crate::process::Prepared;
use crate::settings::Settings;
use crate::upstream::Address;

/// One process that listens already: a service in an environment.
#[derive(Debug, Clone)]
pub struct Instance {
    /// The service.
    pub service: ServiceName,
    /// The environment.
    pub environment: EnvironmentId,
    /// Where the process listens.
    pub app: Url,
}

/// A gateway and sidecars for some instances. The first instance is what the gateway leads to.
pub struct Stack {
    baseline: EnvironmentId,
    instances: Vec<Instance>,
    prepared: Prepared,
    /// Where its listeners are: they are all of TCP.
    addresses: Vec<SocketAddr>,
}

impl Stack {
    /// Binds a gateway, an admin listener, and two sidecar listeners per instance.
    ///
    /// # Errors
    /// An address that is taken.
    pub fn bind(
        baseline: EnvironmentId,
        instances: Vec<Instance>,
        gateway: SocketAddr,
        admin: SocketAddr,
    ) -> io::Result<Self> {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = |address, role, app| {
            let listener = Listener { role, baseline: Some(baseline.clone()) };
            ListenerSettings { address: Address::Tcp(address), listener, app, trust: Trust::Any }
        };
        let mut listeners = vec![listener(gateway, Role::Gateway, None)];
        for Instance { service, environment, app } in &instances {
            let inbound = Role::Inbound { service: service.clone(), environment: Some(environment.clone()) };
            listeners.push(listener(free, inbound, Some(app.clone())));
            let (service, environment) = (Some(service.clone()), Some(environment.clone()));
            listeners.push(listener(free, Role::Outbound { service, environment }, None));
        }
        let settings = Settings { admin, ..Settings::in_process(listeners) };
        let prepared = Prepared::bind(settings)?;
        let addresses = prepared.addresses();
        Ok(Self { prepared, addresses, baseline, instances })
    }

    /// The instances.
    #[must_use]
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// Where the gateway listens.
    #[must_use]
    pub fn gateway(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where requests for an instance arrive.
    #[must_use]
    pub fn inbound(&self, instance: usize) -> SocketAddr {
        self.addresses[1 + 2 * instance]
    }

    /// Where an instance sends its calls.
    #[must_use]
    pub fn outbound(&self, instance: usize) -> SocketAddr {
        self.addresses[2 + 2 * instance]
    }

    /// The blueprint of an environment of this stack, with the sidecars' addresses as urls.
    #[must_use]
    pub fn blueprint(&self, environment: &EnvironmentId) -> String {
        let routing = if *environment == self.baseline {
            format!("  mode: baseline\n  baselineId: {environment}\n")
        } else {
            format!("  mode: overlay\n  baselineId: {}\n  overlayId: {environment}\n", self.baseline)
        };
        let mut text = format!("name: {environment}\nrouting:\n{routing}services:\n");
        for (at, instance) in
            self.instances.iter().enumerate().filter(|(_, instance)| instance.environment == *environment)
        {
            text.push_str(&format!("  - name: {}\n    url: http://{}\n", instance.service, self.inbound(at)));
            if at == 0 {
                text.push_str("    expose: true\n");
            }
        }
        text
    }

    /// The process behind it, and the store's place in its settings.
    #[must_use]
    pub fn into_prepared(self) -> Prepared {
        self.prepared
    }
}
