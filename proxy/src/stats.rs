//! How many requests went where, and how long they took: of one proxy, and of several together.
//!
//! A request passes several proxies, and each counts it: the gateway or the sidecar of whoever calls, and the sidecar of
//! the service. As served it counts once: where it was delivered, and where nobody delivers such requests, where it was sent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::metrics::{BOUNDS, Meter, Observed, Origin};

/// The most flows of which a proxy tells: those with the most requests.
const MOST: usize = 5000;

/// Requests that took one way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// Which way.
    #[serde(flatten)]
    pub way: Way,
    /// How many there were.
    pub requests: u64,
    /// Those of them that were answered with 5xx.
    pub errors: u64,
    /// How long they took together, in seconds.
    pub seconds: f64,
    /// How many took at most as long as each bound, and longer than the one before.
    pub buckets: Vec<u64>,
}

/// A way that requests take.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// The overlay that the key names; empty where there is none.
    pub overlay: String,
    /// Who counted it.
    pub side: Side,
    /// The service that called; empty where it is from outside, or not told.
    pub from: String,
    /// The service that was called.
    pub to: String,
    /// The environment that answered, or should have.
    pub environment: String,
    /// Whose answer it was; nothing where it was the proxy's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub via: Option<String>,
}

/// Who counts a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Whoever sends it.
    Sent,
    /// Whoever gives it to the application.
    Delivered,
    /// The sidecar of a service in another environment, to which it came first.
    Passed,
}

/// What is counted of requests; all of it since the processes started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// How many there were.
    pub requests: u64,
    /// Those of them that were answered with 5xx.
    pub errors: u64,
    /// How long they took together, in seconds.
    pub seconds: f64,
    /// How many took at most so many seconds.
    pub buckets: Vec<(f64, u64)>,
}

/// Requests to a service under an overlay's key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Served {
    /// The overlay that the key names; empty where there is none.
    pub overlay: String,
    /// The service.
    pub service: String,
    /// Whose answer it was; nothing where it was a proxy's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub via: Option<String>,
    /// How many, and how long.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Requests of one service to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Edge {
    /// The overlay that the key names; empty where there is none.
    pub overlay: String,
    /// Who calls; empty where it is from outside, or not told.
    pub from: String,
    /// Who is called.
    pub to: String,
    /// The environment that answered, or should have.
    pub environment: String,
    /// Whose answer it was; nothing where it was a proxy's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub via: Option<String>,
    /// How many, and how long.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Where requests went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// When this was counted, as RFC 3339.
    pub at: String,
    /// How many proxies it is of.
    pub proxies: usize,
    /// Proxies that were asked and did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
    /// By overlay, service and whose answer it was.
    pub services: Vec<Served>,
    /// By who called whom.
    pub edges: Vec<Edge>,
    /// What the proxies added to requests; not measured yet.
    #[serde(default)]
    pub overhead: Option<Counts>,
}

/// The ways of several proxies, each once.
#[derive(Debug, Default)]
pub struct Flows(BTreeMap<Way, Flow>);

impl Flows {
    /// Those of one proxy.
    #[must_use]
    pub fn of(flows: Vec<Flow>) -> Self {
        let mut all = Self::default();
        flows.into_iter().for_each(|flow| all.add(flow));
        all
    }

    /// Adds one.
    pub fn add(&mut self, flow: Flow) {
        let Some(known) = self.0.get_mut(&flow.way) else {
            self.0.insert(flow.way.clone(), flow);
            return;
        };
        known.requests += flow.requests;
        known.errors += flow.errors;
        known.seconds += flow.seconds;
        known.buckets.iter_mut().zip(&flow.buckets).for_each(|(known, more)| *known += more);
    }

    /// All of them.
    #[must_use]
    pub fn into_all(self) -> Vec<Flow> {
        self.0.into_values().collect()
    }
}

impl Meter {
    /// The ways that requests took, those with the most first.
    pub(crate) fn flows(&self) -> Vec<Flow> {
        let mut ways: BTreeMap<Way, (Observed, u64)> = BTreeMap::new();
        for (labels, observed) in self.requests() {
            let Some(service) = &labels.service else { continue };
            let text = |id: &Option<overlane_config::name::EnvironmentId>| {
                id.as_ref().map_or_else(String::new, ToString::to_string)
            };
            let (side, from) = match &labels.origin {
                Origin::Outside => (Side::Sent, String::new()),
                Origin::Service(caller) => {
                    (Side::Sent, caller.as_ref().map_or_else(String::new, ToString::to_string))
                }
                Origin::Delivered => (Side::Delivered, String::new()),
                Origin::SentOn => (Side::Passed, String::new()),
            };
            let way = Way {
                overlay: text(&labels.overlay),
                side,
                from,
                to: service.to_string(),
                environment: text(&labels.environment),
                via: labels.via.map(|via| via.as_str().to_owned()),
            };
            let (all, errors) = ways.entry(way).or_default();
            all.add(observed);
            *errors += if labels.class == 5 { observed.count } else { 0 };
        }
        let flow = |(way, (all, errors)): (Way, (Observed, u64))| Flow {
            way,
            requests: all.count,
            errors,
            seconds: all.seconds,
            buckets: all.buckets.to_vec(),
        };
        let mut flows: Vec<_> = ways.into_iter().map(flow).collect();
        flows.sort_by_key(|flow| std::cmp::Reverse(flow.requests));
        flows.truncate(MOST);
        flows
    }
}

impl Counts {
    /// As they are, each bucket for itself: what is shown is cumulative.
    fn add(&mut self, flow: &Flow) {
        self.requests += flow.requests;
        self.errors += flow.errors;
        self.seconds += flow.seconds;
        if self.buckets.is_empty() {
            self.buckets = BOUNDS.iter().map(|bound| (*bound, 0)).collect();
        }
        let mut cumulative = 0;
        for ((_, total), own) in self.buckets.iter_mut().zip(&flow.buckets) {
            cumulative += own;
            *total += cumulative;
        }
    }
}

impl Stats {
    /// Of these flows, of so many proxies.
    #[must_use]
    pub fn of(at: String, proxies: usize, silent: Vec<String>, flows: &[Flow]) -> Self {
        Self { at, proxies, silent, services: served(flows), edges: edges(flows), overhead: None }
    }
}

fn served(flows: &[Flow]) -> Vec<Served> {
    type Of<'f> = (&'f str, &'f str, Option<&'f str>);
    let of = |flow: &'_ Flow| -> (String, String, Option<String>) {
        (flow.way.overlay.clone(), flow.way.to.clone(), flow.way.via.clone())
    };
    fn key(flow: &Flow) -> Of<'_> {
        (&flow.way.overlay, &flow.way.to, flow.way.via.as_deref())
    }
    let delivered: BTreeSet<_> =
        flows.iter().filter(|flow| flow.way.side == Side::Delivered).map(key).collect();
    let mut all: BTreeMap<_, Counts> = BTreeMap::new();
    for flow in flows {
        let wanted = if delivered.contains(&key(flow)) { Side::Delivered } else { Side::Sent };
        if flow.way.side == wanted {
            all.entry(of(flow)).or_default().add(flow);
        }
    }
    let served =
        all.into_iter().map(|((overlay, service, via), counts)| Served { overlay, service, via, counts });
    served.collect()
}

fn edges(flows: &[Flow]) -> Vec<Edge> {
    let called: BTreeSet<&str> =
        flows.iter().filter(|flow| flow.way.side == Side::Sent).map(|flow| &*flow.way.to).collect();
    // Where nobody's call is seen, it is from outside as far as anybody knows.
    let is_edge = |flow: &&Flow| match flow.way.side {
        Side::Sent => true,
        Side::Delivered => !called.contains(&*flow.way.to),
        Side::Passed => false,
    };
    let mut all: BTreeMap<Way, Counts> = BTreeMap::new();
    for flow in flows.iter().filter(is_edge) {
        all.entry(Way { side: Side::Sent, ..flow.way.clone() }).or_default().add(flow);
    }
    let edge = |(Way { overlay, from, to, environment, via, .. }, counts)| Edge {
        overlay,
        from,
        to,
        environment,
        via,
        counts,
    };
    all.into_iter().map(edge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(overlay: &str, side: Side, from: &str, to: &str, requests: u64) -> Flow {
        let way = Way {
            overlay: overlay.to_owned(),
            side,
            from: from.to_owned(),
            to: to.to_owned(),
            environment: "staging".to_owned(),
            via: Some("baseline".to_owned()),
        };
        let mut buckets = vec![0; BOUNDS.len()];
        (buckets[1], buckets[3]) = (requests - 1, 1);
        Flow { way, requests, errors: 1, seconds: 0.5, buckets }
    }

    #[test]
    fn a_request_that_several_proxies_count_is_served_once() {
        let flows = [
            flow("alice", Side::Sent, "", "web", 5),
            flow("alice", Side::Delivered, "", "web", 4),
            flow("alice", Side::Sent, "web", "api", 3),
            flow("alice", Side::Passed, "", "api", 3),
        ];
        let stats = Stats::of(String::new(), 3, Vec::new(), &flows);
        let served: Vec<_> = stats.services.iter().map(|one| (&*one.service, one.counts.requests)).collect();
        assert_eq!(served, [("api", 3), ("web", 4)]);
        let edges: Vec<_> =
            stats.edges.iter().map(|one| (&*one.from, &*one.to, one.counts.requests)).collect();
        assert_eq!(edges, [("", "web", 5), ("web", "api", 3)]);
    }

    #[test]
    fn a_service_whose_callers_nobody_sees_is_called_from_outside() {
        let stats = Stats::of(String::new(), 1, Vec::new(), &[flow("", Side::Delivered, "", "web", 2)]);
        assert_eq!((&*stats.edges[0].from, &*stats.edges[0].to), ("", "web"));
    }

    #[test]
    fn buckets_are_cumulative_and_those_of_several_proxies_are_added() {
        let flows = [flow("", Side::Sent, "", "web", 3), flow("", Side::Sent, "", "web", 2)];
        let stats = Stats::of(String::new(), 2, Vec::new(), &flows);
        let summed = Flows::of(flows.to_vec()).into_all();
        assert_eq!((summed.len(), Stats::of(String::new(), 2, Vec::new(), &summed)), (1, stats.clone()));
        let counts = &stats.services[0].counts;
        assert_eq!((counts.requests, counts.errors, counts.seconds), (5, 2, 1.0));
        let at = |bound: f64| counts.buckets.iter().find(|(le, _)| *le == bound).map(|(_, count)| *count);
        assert_eq!([at(0.0005), at(0.001), at(0.0025), at(0.005), at(10.0)], [0, 3, 3, 5, 5].map(Some));
    }
}
