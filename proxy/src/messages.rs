//! Messages of queues: whose is this one?
//!
//! A message that was produced while an overlay's request was handled belongs to that overlay, whoever
//! produced it: its headers carry the key as a request's do. Consumers of all environments read the same
//! queue, and each handles what is its own: the nearest owner of the consuming service in the key's
//! lineage, by the same decision as a call to that service.

use std::collections::BTreeMap;

use overlane_config::carrier::{Carriers, Keys};
use overlane_config::name::{EnvironmentId, HeaderName, ServiceName};
use overlane_config::route::{self, Decision, Listener, Request, Role, Tried, Untraced};
use overlane_config::table::RoutingTable;
use overlane_config::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::explain::Refused;

/// A message, and who asks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Its headers.
    pub headers: BTreeMap<String, Values>,
    /// The service that consumes it; the process's own where it is not told.
    #[serde(default)]
    pub service: Option<String>,
    /// The environment of the consumer that asks; else the process's own, else the baseline.
    #[serde(default)]
    pub environment: Option<String>,
}

/// The value of a header, or the values of several of one name.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// One.
    One(String),
    /// Several, in order.
    Several(Vec<String>),
}

/// The process's own place.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The service that it stands beside.
    pub service: Option<ServiceName>,
    /// Its environment; `None` is the baseline.
    pub environment: Option<EnvironmentId>,
    /// The listeners' baseline.
    pub baseline: Option<EnvironmentId>,
}

impl Place {
    /// What the roles of the process's listeners say: of a sidecar, its service and environment.
    #[must_use]
    pub fn of<'l>(listeners: impl IntoIterator<Item = &'l Listener>) -> Self {
        let mut place = Self::default();
        for Listener { role, baseline } in listeners {
            place.baseline = place.baseline.or_else(|| baseline.clone());
            let (service, environment) = match role {
                Role::Gateway => continue,
                Role::Inbound { service, environment } => (Some(service), environment),
                Role::Outbound { service, environment } => (service.as_ref(), environment),
            };
            place.service = place.service.or_else(|| service.cloned());
            place.environment = place.environment.or_else(|| environment.clone());
        }
        place
    }
}

/// Whose the message is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the consumer that asks is the one to handle it.
    pub mine: bool,
    /// The key that it carries; several ids are joined by `, `.
    pub key: Option<String>,
    /// Whether its carriers name different keys.
    pub contradicted: bool,
    /// The environment whose consumer is to handle it; `None` where it is refused.
    pub environment: Option<String>,
    /// Whose that is, seen from the key.
    pub via: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Why nobody is to handle it, where the rules of its key's environment say so.
    pub refused: Option<Refused>,
    /// The generation of the table that decided.
    pub generation: u64,
}

/// A consumer, and the baseline by which is decided.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// The service that consumes.
    pub service: ServiceName,
    /// The consumer's environment.
    pub environment: EnvironmentId,
    listener: Listener,
}

impl Consumer {
    /// The consumer that asks: what it says of itself, else the process's own place.
    ///
    /// # Errors
    /// A field is missing or wrong; the message names it, and the remedy.
    pub fn new<U>(
        table: &RoutingTable<U>,
        place: &Place,
        service: Option<&str>,
        environment: Option<&str>,
    ) -> Result<Self, String> {
        let service = match (service, &place.service) {
            (Some(text), _) => text.parse().map_err(|error| format!("`service`: {error}"))?,
            (None, Some(own)) => own.clone(),
            (None, None) => {
                return Err(
                    "`service` is missing, and this process stands beside none: name the consuming service"
                        .to_owned(),
                );
            }
        };
        let baseline = table.baseline(place.baseline.as_ref()).ok_or(
            "there is no baseline to decide by, or there are several: tell the process which with `--baseline`",
        )?;
        let environment = match environment {
            None => place.environment.clone().unwrap_or_else(|| baseline.id.clone()),
            Some(text) => text.parse().map_err(|error| format!("`environment`: {error}"))?,
        };
        // As a call of nobody's: a message without a key is the baseline's, whoever asks.
        let role = Role::Outbound { service: None, environment: None };
        let listener = Listener { role, baseline: Some(baseline.id.clone()) };
        Ok(Self { service, environment, listener })
    }

    /// What is decided of a message with these keys.
    fn decide<'t, U>(
        &'t self,
        table: &'t RoutingTable<U>,
        keys: Option<&Keys>,
        now: UnixMillis,
    ) -> Decision<'t, U> {
        let authority = self.service.as_str();
        let request = Request {
            authority,
            path: "/",
            preview: None,
            by_browser: false,
            keys,
            untrusted: false,
            hop: None,
            require: "",
        };
        route::decide(table, &self.listener, &request, now, &Tried::default(), &mut Untraced)
    }

    /// Who handles the messages of each environment's key; `None` where nobody may. What is not in it, and
    /// a message without a key, is as the baseline's own.
    #[must_use]
    pub fn rules<U>(&self, table: &RoutingTable<U>, now: UnixMillis) -> BTreeMap<String, Option<String>> {
        let handler = |id: &EnvironmentId| match self.decide(table, Some(&Keys::one(id)), now) {
            Decision::Serve(served) => Some(served.environment.to_string()),
            Decision::Refuse(_) | Decision::PassThrough(_) => None,
        };
        table.environments().map(|(id, _)| (id.to_string(), handler(id))).collect()
    }
}

/// Decides whose `message` is.
///
/// # Errors
/// A field of the question is missing or wrong; the message names it, and the remedy.
pub fn decide<U>(
    table: &RoutingTable<U>,
    carriers: &Carriers,
    place: &Place,
    message: &Message,
    now: UnixMillis,
) -> Result<Verdict, String> {
    let Message { headers, service, environment } = message;
    let consumer = Consumer::new(table, place, service.as_deref(), environment.as_deref())?;
    let baseline = table.baseline(consumer.listener.baseline.as_ref());
    let key_header = baseline.map_or_else(HeaderName::default_key, |baseline| baseline.header.clone());
    let arrived = carriers
        .read(key_header.as_str(), &fields(headers)?[..], |_, _| {})
        .map_err(|error| format!("`headers`: `{key_header}`: {error}"))?;
    let verdict = Verdict {
        mine: false,
        key: arrived.keys.as_ref().map(|keys| keys.as_str().to_owned()),
        contradicted: arrived.contradicted,
        environment: None,
        via: None,
        reason: None,
        refused: None,
        generation: 0,
    };
    match consumer.decide(table, arrived.keys.as_ref(), now) {
        Decision::Serve(served) => Ok(Verdict {
            mine: *served.environment == consumer.environment,
            environment: Some(served.environment.to_string()),
            via: Some(served.via.as_str().to_owned()),
            reason: Some(served.reason.as_str().to_owned()),
            ..verdict
        }),
        Decision::Refuse(refusal) => Ok(Verdict { refused: Some(Refused::from(&refusal)), ..verdict }),
        Decision::PassThrough(_) => Err(format!(
            "`service`: no environment has the service `{}`: declare it in a blueprint",
            consumer.service
        )),
    }
}

/// The headers, each value for itself. Names are compared without regard to case.
fn fields(headers: &BTreeMap<String, Values>) -> Result<Vec<(&str, &str)>, String> {
    let mut fields = Vec::new();
    for (name, values) in headers {
        let values = match values {
            Values::One(value) => std::slice::from_ref(value),
            Values::Several(values) => values,
        };
        fields.extend(values.iter().map(|value| (name.as_str(), value.as_str())));
    }
    match fields.iter().find(|(name, _)| name.is_empty()) {
        Some(_) => Err("`headers`: a name is empty".to_owned()),
        None => Ok(fields),
    }
}
