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
    /// How much later clients had the heads of responses than from the upstreams themselves; nothing where no
    /// upstream has answered yet. A request that passes several proxies counts at each.
    #[serde(default)]
    pub overhead: Option<Counts>,
}

/// What one proxy counted, or several together: the ways that requests took, and what was added to them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Each way once, or of several proxies.
    pub flows: Vec<Flow>,
    /// See [`Stats::overhead`].
    #[serde(default)]
    pub overhead: Option<Counts>,
}

/// What several proxies counted, each way once.
#[derive(Debug, Default)]
pub struct Flows {
    ways: BTreeMap<Way, Flow>,
    overhead: Option<Counts>,
}

impl Flows {
    /// What one proxy counted.
    #[must_use]
    pub fn of(counted: Counted) -> Self {
        let mut all = Self::default();
        all.add(counted);
        all
    }

    /// Adds what another one counted.
    pub fn add(&mut self, counted: Counted) {
        counted.flows.into_iter().for_each(|flow| self.add_flow(flow));
        self.overhead = joined(self.overhead.take(), counted.overhead);
    }

    fn add_flow(&mut self, flow: Flow) {
        let Some(known) = self.ways.get_mut(&flow.way) else {
            self.ways.insert(flow.way.clone(), flow);
            return;
        };
        known.requests += flow.requests;
        known.errors += flow.errors;
        known.seconds += flow.seconds;
        known.buckets.iter_mut().zip(&flow.buckets).for_each(|(known, more)| *known += more);
    }

    /// All of it.
    #[must_use]
    pub fn into_all(self) -> Counted {
        Counted { flows: self.ways.into_values().collect(), overhead: self.overhead }
    }
}

/// What both counted.
fn joined(one: Option<Counts>, other: Option<Counts>) -> Option<Counts> {
    let (Some(mut sum), Some(other)) = (one.clone(), other.clone()) else { return one.or(other) };
    let same = |one: &[(f64, u64)], other: &[(f64, u64)]| {
        one.iter().map(|(le, _)| le).eq(other.iter().map(|(le, _)| le))
    };
    // Another version may have other bounds: then the first's alone count.
    if same(&sum.buckets, &other.buckets) {
        sum.requests += other.requests;
        sum.seconds += other.seconds;
        sum.buckets.iter_mut().zip(&other.buckets).for_each(|((_, sum), (_, own))| *sum += own);
    }
    Some(sum)
}

impl Meter {
    /// What is told of it: the ways that requests took, those with the most first.
    pub(crate) fn counted(&self) -> Counted {
        Counted { flows: self.flows(), overhead: self.overhead() }
    }

    fn flows(&self) -> Vec<Flow> {
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
    /// Of what so many proxies counted.
    #[must_use]
    pub fn of(at: String, proxies: usize, silent: Vec<String>, counted: Counted) -> Self {
        let Counted { flows, overhead } = counted;
        Self { at, proxies, silent, services: served(&flows), edges: edges(&flows), overhead }
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

    fn counted(flows: &[Flow]) -> Counted {
        Counted { flows: flows.to_vec(), overhead: None }
    }

    #[test]
    fn what_several_proxies_add_is_counted_together_where_they_count_alike() {
        let counts =
            |requests, bound| Counts { requests, errors: 0, seconds: 1.0, buckets: vec![(bound, requests)] };
        let of = |overhead| Counted { flows: Vec::new(), overhead };
        let mut all = Flows::of(of(None));
        for (overhead, expected) in [
            (None, None),
            (Some(counts(3, 0.1)), Some((3, 3))),
            (None, Some((3, 3))),
            (Some(counts(2, 0.1)), Some((5, 5))),
            (Some(counts(7, 0.2)), Some((5, 5))),
        ] {
            all.add(of(overhead));
            assert_eq!(all.overhead.as_ref().map(|sum| (sum.requests, sum.buckets[0].1)), expected);
        }
    }

    #[test]
    fn a_request_that_several_proxies_count_is_served_once() {
        let flows = [
            flow("alice", Side::Sent, "", "web", 5),
            flow("alice", Side::Delivered, "", "web", 4),
            flow("alice", Side::Sent, "web", "api", 3),
            flow("alice", Side::Passed, "", "api", 3),
        ];
        let stats = Stats::of(String::new(), 3, Vec::new(), counted(&flows));
        let served: Vec<_> = stats.services.iter().map(|one| (&*one.service, one.counts.requests)).collect();
        assert_eq!(served, [("api", 3), ("web", 4)]);
        let edges: Vec<_> =
            stats.edges.iter().map(|one| (&*one.from, &*one.to, one.counts.requests)).collect();
        assert_eq!(edges, [("", "web", 5), ("web", "api", 3)]);
    }

    #[test]
    fn a_service_whose_callers_nobody_sees_is_called_from_outside() {
        let flows = [flow("", Side::Delivered, "", "web", 2)];
        let stats = Stats::of(String::new(), 1, Vec::new(), counted(&flows));
        assert_eq!((&*stats.edges[0].from, &*stats.edges[0].to), ("", "web"));
    }

    #[test]
    fn buckets_are_cumulative_and_those_of_several_proxies_are_added() {
        let flows = [flow("", Side::Sent, "", "web", 3), flow("", Side::Sent, "", "web", 2)];
        let stats = Stats::of(String::new(), 2, Vec::new(), counted(&flows));
        let summed = Flows::of(counted(&flows)).into_all();
        assert_eq!((summed.flows.len(), Stats::of(String::new(), 2, Vec::new(), summed)), (1, stats.clone()));
        let counts = &stats.services[0].counts;
        assert_eq!((counts.requests, counts.errors, counts.seconds), (5, 2, 1.0));
        let at = |bound: f64| counts.buckets.iter().find(|(le, _)| *le == bound).map(|(_, count)| *count);
        assert_eq!([at(0.0005), at(0.001), at(0.0025), at(0.005), at(10.0)], [0, 3, 3, 5, 5].map(Some));
    }
}
