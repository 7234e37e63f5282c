//! The data plane: listeners, workers, connections, and the engines that they are lent to.
//!
//! Each worker is a thread with a current-thread runtime, its own sockets on every listener, its
//! own accept loop and its own Pingora `HttpProxy`; on the request path nothing crosses threads.

pub mod admit;
pub mod announced;
pub mod answer;
pub mod asked;
pub mod authorizer;
pub mod bearer;
pub mod buffer;
pub mod clients;
pub mod conn;
pub mod deadline;
pub mod drain;
pub mod edge;
pub mod engine;
pub mod exchange;
pub mod express;
pub mod forwarded;
pub mod grpc;
pub mod h2;
pub mod leave;
pub mod link;
pub mod listen;
pub mod overload;
pub mod passage;
pub mod propagation;
pub mod redirect;
pub mod serve;
pub mod shortage;
pub mod standing;
pub mod times;
pub mod trust;
pub mod tunnel;
pub mod worker;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use overlane_config::carrier::Carriers;
use overlane_config::route::{Listener, Role};
use overlane_config::url::Url;

use crate::access::AccessLog;
use crate::correlation::Correlation;
use crate::decisions::Decisions;
use crate::names::Names;
use crate::snapshot::Published;
use crate::tls::credentials::Credentials;
use crate::tls::upstreams::Upstreams;
use crate::tokens::keys::Tokens;
use crate::traces::Traces;
use crate::upstream::{Address, Endpoint, Upstream};
use authorizer::Authorizer;
use deadline::Pace;
use forwarded::Forwarding;
use passage::PassageSettings;
use trust::Trust;

/// The deadlines and limits of the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// For a whole request head, from its first byte (from the start of a connection for the first).
    pub head: Duration,
    /// For the next request on a connection.
    pub idle: Duration,
    /// Between two reads of a request's body; none for calls of gRPC, and once a stream answers.
    pub body: Duration,
    /// How many bytes per second of a body a client sends while it is waited for, on average over `body`.
    pub body_rate: u32,
    /// For a write to a client that makes no progress.
    pub write: Duration,
    /// How many bytes per second of a response a client takes while it is waited for, on average over `write`.
    pub write_rate: u32,
    /// For a connection to an upstream.
    pub connect: Duration,
    /// For a response's head, and between two reads of a response that says its length. None for calls of
    /// gRPC, which have deadlines of their own, and none between the events of a stream.
    pub upstream_read: Duration,
    /// For a write to an upstream that makes no progress.
    pub upstream_write: Duration,
    /// For an unused upstream connection; below the 5 s after which Node closes them.
    pub upstream_idle: Duration,
    /// For a stream or a tunnel whose environment is gone.
    pub grace: Duration,
    /// For how long new connections are served once the process is told to stop: others have to learn of it.
    pub lame_duck: Duration,
    /// For everything that is in flight when nothing is accepted any more.
    pub drain: Duration,
    /// The largest request head, in bytes.
    pub head_bytes: usize,
    /// The most bytes of a request's body, where there is a limit.
    pub body_bytes: Option<u64>,
    /// For a whole request, from its head to the end of its response, where there is a limit.
    pub request: Option<Duration>,
    /// The most connections of one client that a worker serves at once at a gateway, where there is a limit.
    pub client_connections: Option<u32>,
    /// The most connections that a worker serves at once, on each listener; and the most requests of HTTP/2.
    pub connections: usize,
    /// The most requests that a worker has in flight.
    pub requests: u32,
    /// The most requests that all workers have at one service of one environment, where its blueprint does not say.
    pub upstream_requests: u32,
    /// The most requests of a worker that wait for an upstream.
    pub held: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(60),
            body_rate: 240,
            write: Duration::from_secs(30),
            write_rate: 240,
            connect: Duration::from_secs(2),
            upstream_read: Duration::from_secs(300),
            upstream_write: Duration::from_secs(30),
            upstream_idle: Duration::from_secs(4),
            grace: Duration::from_secs(30),
            lame_duck: Duration::ZERO,
            drain: Duration::from_secs(20),
            head_bytes: 64 * 1024,
            body_bytes: None,
            request: None,
            client_connections: None,
            connections: 16 * 1024,
            requests: 8 * 1024,
            upstream_requests: 8 * 1024,
            held: 1024,
        }
    }
}

impl Limits {
    /// How fast a client has to send a request's body.
    #[must_use]
    pub fn body_pace(&self) -> Pace {
        Pace { within: self.body, rate: self.body_rate }
    }

    /// How many bytes of a body a client may send.
    #[must_use]
    pub fn most_of_a_body(&self) -> u64 {
        self.body_bytes.unwrap_or(u64::MAX)
    }

    /// How fast a client has to take a response.
    #[must_use]
    pub fn write_pace(&self) -> Pace {
        Pace { within: self.write, rate: self.write_rate }
    }
}

/// Which engine carries exchanges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The express engine carries what needs no translation, Pingora the rest.
    #[default]
    Auto,
    /// Pingora carries everything: the reference.
    Pingora,
}

/// A listener as it is configured.
#[derive(Debug, Clone)]
pub struct ListenerSettings {
    /// Where it listens; port 0 takes a free one.
    pub address: Address,
    /// What it stands for.
    pub listener: Listener,
    /// The application behind an inbound listener.
    pub app: Option<Url>,
    /// Whose overlay headers mean something here.
    pub trust: Trust,
}

/// A listener that runs.
#[derive(Debug)]
pub struct Gate {
    /// Its number among the listeners of this process.
    pub number: usize,
    /// Where it listens.
    pub address: Address,
    /// What it stands for.
    pub listener: Listener,
    /// The application behind an inbound listener.
    pub app: Option<Arc<Upstream>>,
    /// Whose overlay headers mean something here.
    pub trust: Trust,
    /// What it shows to clients, where it speaks TLS.
    pub tls: Option<Arc<Credentials>>,
    /// At which port clients reach the gateway that speaks TLS, where this listener sends them there.
    pub redirect: Option<u16>,
    /// Which key a trace belongs to: one memory for all listeners of a service's sidecar.
    pub correlation: Arc<Correlation>,
}

impl Gate {
    /// Tells it apart from others: where it is in memory.
    #[must_use]
    pub fn place(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// A gateway that nobody listens at.
    #[cfg(test)]
    pub(crate) fn of_tests() -> Self {
        let settings = crate::correlation::CorrelationSettings::default();
        Self {
            number: 0,
            address: Address::Tcp(([127, 0, 0, 1], 1).into()),
            listener: Listener { role: Role::Gateway, baseline: None },
            app: None,
            trust: Trust::Any,
            tls: None,
            redirect: None,
            correlation: Arc::new(Correlation::new(settings)),
        }
    }

    /// Whether strangers may be at the other end.
    #[must_use]
    pub fn is_edge(&self) -> bool {
        matches!(self.listener.role, Role::Gateway)
    }

    /// The role's name in logs.
    #[must_use]
    pub fn role(&self) -> &'static str {
        match self.redirect {
            Some(_) => "redirect",
            None => role_name(&self.listener.role),
        }
    }
}

/// A listener in the clear that sends clients to the gateway that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectSettings {
    /// Where it listens.
    pub address: Address,
    /// At which port clients reach the gateway; where it listens, if nobody says.
    pub port: Option<u16>,
}

/// A role's name in logs and settings.
#[must_use]
pub fn role_name(role: &Role) -> &'static str {
    match role {
        Role::Gateway => "gateway",
        Role::Outbound { .. } => "outbound",
        Role::Inbound { .. } => "inbound",
    }
}

/// What all workers share.
#[derive(Debug)]
pub struct Plane {
    /// The newest snapshot.
    pub published: Arc<Published>,
    /// The listeners.
    pub gates: Vec<Arc<Gate>>,
    /// Addresses that no request may be sent to: our own gateway, outbound and admin listeners.
    pub own: Vec<Address>,
    /// Deadlines and limits.
    pub limits: Limits,
    /// Which engine carries exchanges.
    pub engine: EngineChoice,
    /// Where keys are read and written.
    pub carriers: Arc<Carriers>,
    /// What outbound lets through that is no request.
    pub passage: PassageSettings,
    /// From which networks connections to gateway and inbound begin with a header of the PROXY protocol.
    pub proxy_protocol: Vec<IpNet>,
    /// Who is believed at a gateway in what it says of its clients, and how that is said.
    pub forwarding: Forwarding,
    /// By which tokens are verified at a gateway.
    pub tokens: Option<Arc<Tokens>>,
    /// Who is asked about what nothing else gives a right to.
    pub authorizer: Option<Authorizer>,
    /// How upstreams are spoken to in TLS.
    pub tls: Arc<Upstreams>,
    /// The resolver.
    pub names: Names,
    /// The access log.
    pub access: AccessLog,
    /// The last decisions.
    pub decisions: Arc<Decisions>,
    /// Where what spans are made of is handed in, if any are.
    pub traces: Option<Traces>,
    /// Whether each request at a gateway has an id.
    pub request_ids: bool,
    /// What a gateway says in TLS to have clients come in TLS only (`Strict-Transport-Security`, RFC 6797).
    pub hsts: Option<Box<str>>,
}

impl Plane {
    /// Whether a connection to `endpoint` would come back to us (loops, the admin listener).
    #[must_use]
    pub fn is_own(&self, endpoint: &Endpoint) -> bool {
        self.own.iter().any(|own| endpoint.leads_to(own))
    }
}
