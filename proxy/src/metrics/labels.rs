//! What a request is counted under.

use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::route::{Role, Via};

use crate::plane::Gate;

/// From where a request came, and whether it goes to the application here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// From outside, through a gateway.
    Outside,
    /// From the application that the sidecar stands beside, whose service may not be told.
    Service(Option<ServiceName>),
    /// From somebody who called the service that the sidecar stands before: delivered to its application.
    Delivered,
    /// The same, and sent on to another environment.
    SentOn,
}

/// What a request is counted under, as it is at hand.
#[derive(Debug, Clone, Copy)]
pub struct Counted<'c> {
    /// See [`Labels`].
    pub overlay: Option<&'c EnvironmentId>,
    /// See [`Labels`].
    pub service: Option<&'c ServiceName>,
    /// See [`Labels`].
    pub environment: Option<&'c EnvironmentId>,
    /// See [`Labels`].
    pub via: Option<Via>,
    /// See [`Labels`].
    pub class: u8,
    /// See [`Labels`].
    pub method: Method,
    /// The listener.
    pub gate: &'c Gate,
    /// Whether it goes to the application here.
    pub delivered: bool,
}

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Labels {
    /// From where it came.
    pub origin: Origin,
    /// The environment that answered, or should have.
    pub environment: Option<EnvironmentId>,
    /// The overlay that the key named.
    pub overlay: Option<EnvironmentId>,
    /// The service.
    pub service: Option<ServiceName>,
    /// Whose answer it was; `None` where it was the proxy's own, or passed through.
    pub via: Option<Via>,
    /// The hundreds of the status.
    pub class: u8,
    /// The method, of a closed list.
    pub method: Method,
}

#[cfg(test)]
impl<'c> Counted<'c> {
    /// A GET with an overlay's key that the overlay answered.
    pub(crate) fn of_tests(overlay: &'c EnvironmentId, service: &'c ServiceName, gate: &'c Gate) -> Self {
        Self {
            overlay: Some(overlay),
            service: Some(service),
            environment: None,
            via: Some(Via::Overlay),
            class: 2,
            method: Method::of("GET"),
            gate,
            delivered: false,
        }
    }
}

impl Labels {
    pub(super) fn of(request: &Counted<'_>) -> Self {
        let origin = match (&request.gate.listener.role, request.delivered) {
            (Role::Gateway, _) => Origin::Outside,
            (Role::Outbound { service, .. }, _) => Origin::Service(service.clone()),
            (Role::Inbound { .. }, true) => Origin::Delivered,
            (Role::Inbound { .. }, false) => Origin::SentOn,
        };
        Self {
            origin,
            overlay: request.overlay.cloned(),
            service: request.service.cloned(),
            environment: request.environment.cloned(),
            via: request.via,
            class: request.class,
            method: request.method,
        }
    }
}

/// Where labels are in memory. Names are shared with the table, so this tells two sets of labels apart
/// without reading them; one name in two places is two entries, until somebody asks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    overlay: usize,
    service: usize,
    environment: usize,
    gate: usize,
    delivered: bool,
    via: Option<Via>,
    class: u8,
    method: Method,
}

impl Place {
    pub(super) fn of(counted: &Counted<'_>) -> Self {
        let place = |text: &str| text.as_ptr() as usize;
        Self {
            overlay: counted.overlay.map_or(0, |id| place(id.as_str())),
            service: counted.service.map_or(0, |name| place(name.as_str())),
            environment: counted.environment.map_or(0, |id| place(id.as_str())),
            gate: counted.gate.number,
            delivered: counted.delivered,
            via: counted.via,
            class: counted.class,
            method: counted.method,
        }
    }
}

/// A method as a label: one of RFC 9110's and PATCH, else `_OTHER` (OpenTelemetry's word).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method(u8);

impl Method {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"];

    /// The label of this method.
    #[must_use]
    pub fn of(method: &str) -> Self {
        let known = Self::KNOWN.iter().position(|known| *known == method);
        // There are nine of them.
        Self(known.unwrap_or(Self::KNOWN.len()) as u8)
    }

    /// The one with this number.
    #[must_use]
    pub fn numbered(number: u8) -> Self {
        Self(number)
    }

    /// Its number, the same for as long as the process runs.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::KNOWN.get(usize::from(self.0)).copied().unwrap_or("_OTHER")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_that_is_not_known_never_becomes_a_label() {
        assert_eq!(Method::of("GET").as_str(), "GET");
        assert_eq!(Method::of("G\"ET").as_str(), "_OTHER");
        assert_eq!(Method::numbered(Method::of("PATCH").number()).as_str(), "PATCH");
    }
}
