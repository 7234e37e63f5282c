//! Where the process listens, whom it trusts there, and what outbound lets through that is no request.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::route::{Listener, Role};
use overlane_config::url::Url;

use super::value::or_default;
use super::{DEFAULT_ADMIN, DEFAULT_GATEWAY, SettingsError, error};
use crate::plane::ListenerSettings;
use crate::plane::passage::PassageSettings;
use crate::plane::trust::Trust;
use crate::tls::TlsSettings;
use crate::upstream::Address;

/// What was asked for about listeners, before it is known whether it fits together.
pub(super) struct Asked {
    pub(super) baseline: Option<EnvironmentId>,
    pub(super) environment: Option<EnvironmentId>,
    pub(super) service: Option<ServiceName>,
    pub(super) app: Option<Url>,
    pub(super) gateway: Option<Address>,
    pub(super) outbound: Option<Address>,
    pub(super) inbound: Option<Address>,
    pub(super) trust: Option<Trust>,
}

impl Asked {
    /// Those that were asked for; where none was and the process does not serve its store to others either, a gateway.
    pub(super) fn listeners(self, serves: bool) -> Result<Vec<ListenerSettings>, SettingsError> {
        let none = !serves && self.gateway.is_none() && self.outbound.is_none() && self.inbound.is_none();
        let gateway =
            if none { Some(or_default("gateway", None, DEFAULT_GATEWAY)?) } else { self.gateway.clone() };
        let mut listeners = Vec::new();
        if let Some(address) = gateway {
            let trust = self.edge_trust("gateway", &address)?;
            listeners.push(self.listener(address, Role::Gateway, None, trust));
        }
        if let Some(address) = self.outbound.clone() {
            let role =
                Role::Outbound { service: self.service.clone(), environment: self.environment.clone() };
            let trust = self.edge_trust("outbound", &address)?;
            listeners.push(self.listener(address, role, None, trust));
        }
        match (self.inbound.clone(), &self.app, &self.service) {
            (Some(address), Some(app), Some(service)) => {
                let role = Role::Inbound { service: service.clone(), environment: self.environment.clone() };
                // Sidecars trust their peers unless told otherwise.
                listeners.push(self.listener(
                    address,
                    role,
                    Some(app.clone()),
                    self.trust.clone().unwrap_or(Trust::Any),
                ));
            }
            (Some(_), None, _) => {
                return Err(error(
                    "`--inbound` without `--app`",
                    "say where the application listens: `--app http://127.0.0.1:8080`",
                ));
            }
            (Some(_), _, None) => {
                return Err(error(
                    "`--inbound` without `--service`",
                    "say which service it is: `--service payments-api`",
                ));
            }
            (None, Some(_), _) => {
                return Err(error(
                    "`--app` without `--inbound`",
                    "say where requests for it arrive: `--inbound 0.0.0.0:8080`",
                ));
            }
            (None, None, _) => {}
        }
        Ok(listeners)
    }

    fn listener(&self, address: Address, role: Role, app: Option<Url>, trust: Trust) -> ListenerSettings {
        ListenerSettings { address, listener: Listener { role, baseline: self.baseline.clone() }, app, trust }
    }

    /// On loopback everybody is trusted; elsewhere somebody has to say who is.
    fn edge_trust(&self, name: &str, address: &Address) -> Result<Trust, SettingsError> {
        match &self.trust {
            Some(trust) => Ok(trust.clone()),
            None if address.is_local() => Ok(Trust::Any),
            None => Err(error(
                format!(
                    "the {name} listener at {address} can be reached from other machines, and nobody said whose overlay headers to trust"
                ),
                "add `--trust any`, `--trust none` or `--trust 10.0.0.0/8,…`",
            )),
        }
    }
}

/// The admin listener: off loopback only with a token.
pub(super) fn admin(address: Option<SocketAddr>, token: Option<&str>) -> Result<SocketAddr, SettingsError> {
    let admin = or_default("admin", address, DEFAULT_ADMIN)?;
    if admin.ip().is_loopback() || token.is_some() {
        return Ok(admin);
    }
    Err(error(
        format!("the admin listener at {admin} can be reached from other machines and has no token"),
        "set OVERLANE_ADMIN_TOKEN, or give probes and metrics a listener of their own with `--probes`",
    ))
}

/// What is intercepted of IPv6 comes to the loopback address of IPv6, where there is one.
pub(super) fn beside_ipv4(listeners: &[ListenerSettings]) -> Option<ListenerSettings> {
    let outbound = listeners.iter().find(|one| matches!(one.listener.role, Role::Outbound { .. }))?;
    let (own, loopback) = (outbound.address.tcp()?, Ipv6Addr::LOCALHOST);
    let there = own.ip() == Ipv4Addr::LOCALHOST && std::net::TcpListener::bind((loopback, 0)).is_ok();
    let beside = SocketAddr::from((loopback, own.port()));
    there.then(|| ListenerSettings { address: beside.into(), ..outbound.clone() })
}

pub(super) fn check_passage(
    passage: &PassageSettings,
    listeners: &[ListenerSettings],
) -> Result<(), SettingsError> {
    let outbound = |one: &ListenerSettings| matches!(one.listener.role, Role::Outbound { .. });
    if passage.intercept && !listeners.iter().any(|one| outbound(one) && one.address.tcp().is_some()) {
        return Err(error(
            "`--intercept` without `--outbound` at an address of TCP",
            "intercepted connections come to the outbound listener: say where it listens",
        ));
    }
    let Some(mark) = passage.mark else { return Ok(()) };
    let tried = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
        .and_then(|socket| socket.set_mark(mark));
    tried.map_err(|why| {
        error(
            format!("connections cannot be marked with {mark}: {why}"),
            "give the process CAP_NET_ADMIN, or leave `mark` out and exempt it by its user",
        )
    })
}

/// Identities are trusted only where somebody verifies them.
pub(super) fn check_identities(
    listeners: &[ListenerSettings],
    tls: Option<&TlsSettings>,
) -> Result<(), SettingsError> {
    let verified = tls.is_some_and(|tls| tls.clients.is_some());
    if !verified && listeners.iter().any(|listener| listener.trust.asks_for_identity()) {
        return Err(error(
            "`--trust` names identities, and no listener asks clients for certificates",
            "give `--tls-client-ca` with `--tls-cert` and `--tls-key`",
        ));
    }
    Ok(())
}
