//! What became of one request: its hops in the order in which they were decided, who called whom, and where its key went.

use std::collections::{BTreeMap, BTreeSet};

use overlane_config::route::Reason;
use serde::{Deserialize, Serialize};

use super::{Decision, KeyFrom};

/// The most hops that are shown of one request.
const HOPS: usize = 256;
/// Where it is written what services must do.
const FORWARD: &str = "README, \"Your services must forward one header\"";

/// One request, as the proxies decided it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// The id by which it was looked for.
    pub id: String,
    /// Its hops, in the order of time; each has a name, and that of the hop that called it where that is known.
    pub hops: Vec<Decision>,
    /// What is to be said of them, in sentences.
    pub findings: Vec<String>,
}

/// The ids by which more of a request may be found than by the one that is known: its traces and its own ids.
#[must_use]
pub fn ids<'d>(hops: impl IntoIterator<Item = &'d Decision>) -> BTreeSet<String> {
    hops.into_iter().flat_map(|hop| [&hop.trace, &hop.request_id]).flatten().cloned().collect()
}

impl Story {
    /// The story that these decisions tell; those that several proxies tell twice count once.
    #[must_use]
    pub fn of(id: String, mut hops: Vec<Decision>) -> Self {
        hops.sort_by(|a, b| a.order().cmp(&b.order()));
        hops.dedup();
        let left_out = hops.len().saturating_sub(HOPS);
        hops.drain(..left_out);
        let callers = callers(&hops);
        for (at, caller) in callers.iter().enumerate() {
            if hops[at].hop.is_none() {
                hops[at].hop = Some(format!("h{}", at + 1));
            }
            // Callers are named as well: the names are given once all have one.
            hops[at].parent =
                caller.map(|caller| hops[caller].hop.clone().unwrap_or(format!("h{}", caller + 1)));
        }
        let mut findings = findings(&hops, &callers);
        if left_out > 0 {
            findings.push(format!("{left_out} older hops are left out: many requests have this id"));
        }
        Self { id, hops, findings }
    }

    /// The hops as they are drawn: a caller before those that it called, each with the branch that it hangs on.
    #[must_use]
    pub fn tree(&self) -> Vec<(String, &Decision)> {
        let mut below: BTreeMap<Option<&str>, Vec<&Decision>> = BTreeMap::new();
        let names: BTreeSet<_> = self.hops.iter().filter_map(|hop| hop.hop.as_deref()).collect();
        for hop in &self.hops {
            // Hops of another version may name callers that are not here.
            let parent = hop.parent.as_deref().filter(|parent| names.contains(parent));
            below.entry(parent).or_default().push(hop);
        }
        let mut rows = Vec::with_capacity(self.hops.len());
        for root in below.remove(&None).unwrap_or_default() {
            add_rows(root, ["", ""], &mut below, &mut rows);
        }
        rows
    }
}

fn add_rows<'h>(
    hop: &'h Decision,
    [branch, under]: [&str; 2],
    below: &mut BTreeMap<Option<&'h str>, Vec<&'h Decision>>,
    rows: &mut Vec<(String, &'h Decision)>,
) {
    rows.push((branch.to_owned(), hop));
    // Taken out, so that it ends also where somebody says that he called himself.
    let calls = below.remove(&hop.hop.as_deref()).unwrap_or_default();
    for (number, call) in calls.iter().enumerate() {
        let [own, next] = if number + 1 == calls.len() { ["└─ ", "   "] } else { ["├─ ", "│  "] };
        add_rows(call, [&format!("{under}{own}"), &format!("{under}{next}")], below, rows);
    }
}

/// Whose service received the request, where it was delivered or sent to one.
fn receiver(hop: &Decision) -> Option<&str> {
    hop.service.as_deref()
}

/// For each hop the one that caused it. An outbound call is of the service that it stands beside; what comes to a
/// sidecar was sent by who called its service.
fn callers(hops: &[Decision]) -> Vec<Option<usize>> {
    let mut callers: Vec<Option<usize>> = vec![None; hops.len()];
    // Who was called by a hop that sends one request: that has one receiver.
    let mut taken = BTreeSet::new();
    for (at, hop) in hops.iter().enumerate() {
        let earlier = || (0..at).rev();
        let found = match &*hop.role {
            "inbound" => earlier().find(|other| {
                let sends = hops[*other].role != "inbound" || hops[*other].environment != hop.environment;
                sends
                    && receiver(&hops[*other]) == hop.service.as_deref().or(hop.caller.as_deref())
                    && !taken.contains(other)
            }),
            "outbound" => match &hop.caller {
                Some(caller) => {
                    let received = |other: &usize| receiver(&hops[*other]) == Some(caller);
                    let inbound = |other: &usize| hops[*other].role == "inbound";
                    earlier()
                        .find(|other| inbound(other) && received(other))
                        .or_else(|| earlier().find(received))
                }
                None => {
                    earlier().find(|other| hops[*other].role == "inbound" && hops[*other].proxy == hop.proxy)
                }
            },
            _ => None,
        };
        if hop.role == "inbound" {
            taken.extend(found);
        }
        callers[at] = found;
    }
    callers
}

/// Where a hop is, in words.
fn place(hop: &Decision) -> String {
    let to = hop.service.as_deref().unwrap_or(&hop.authority);
    match (&*hop.role, &hop.caller) {
        ("inbound", Some(own)) => own.clone(),
        ("outbound", Some(caller)) => format!("{caller}'s call to {to}"),
        ("outbound", None) => format!("a call to {to}"),
        _ => "the gateway".to_owned(),
    }
}

fn findings(hops: &[Decision], callers: &[Option<usize>]) -> Vec<String> {
    let mut said = Vec::new();
    for (at, hop) in hops.iter().enumerate() {
        let above = std::iter::successors(callers[at], |caller| callers[*caller]).map(|caller| &hops[caller]);
        of_key(hop, above, &mut said);
        said.extend(of_reason(hop));
    }
    if hops.iter().all(|hop| hop.key.is_none()) && !hops.iter().any(|hop| hop.key_from == KeyFrom::Untrusted)
    {
        said.push("no hop saw a key: the request came without one, and was for the baseline; send `x-overlay-id: ID` to choose an overlay".to_owned());
    }
    said.extend(summary(hops));
    // One thing that is so at several hops is said once.
    let mut seen = BTreeSet::new();
    said.retain(|sentence| seen.insert(sentence.clone()));
    said
}

/// What became of the key on the way to a hop.
fn of_key<'h>(hop: &Decision, mut above: impl Iterator<Item = &'h Decision>, said: &mut Vec<String>) {
    let here = place(hop);
    match hop.key_from {
        KeyFrom::Restored => {
            let who = hop.caller.as_deref().filter(|_| hop.role == "outbound").unwrap_or("its caller");
            said.push(format!("{here} came without the key, and its trace gave it back: {who} forwards the trace only ({FORWARD})"));
        }
        KeyFrom::Contradicting => said.push(format!(
            "{here} names different keys in different places: the first carrier counts, and a call's own key before that of its trace (docs/carriers.md)"
        )),
        KeyFrom::Untrusted => said.push(format!(
            "the key was removed at {here}: its sender may not choose an overlay there; trust it with `--trust`, or give it a token (docs/operating.md, Trust)"
        )),
        KeyFrom::Unclear => said.push(format!(
            "{here} has no key and a trace of its own that is not known: it may be a call of a request without a key"
        )),
        KeyFrom::Absent | KeyFrom::Lost => {
            // Below the hop that lost it, it is gone anyhow.
            let Some(caller) = above.next().filter(|caller| caller.key.is_some()) else {
                if hop.key_from == KeyFrom::Lost {
                    said.push(format!(
                        "{here} has no key, and was made while requests with one were served: it may be a call of one of them ({FORWARD})"
                    ));
                }
                return;
            };
            let key = caller.key.as_deref().unwrap_or_default();
            let came_to = receiver(caller).map_or_else(|| place(caller), str::to_owned);
            let at = hop.service.as_deref().unwrap_or(&hop.authority);
            let whose = match hop.key_from {
                KeyFrom::Lost => ", in a call that was made while this request was served and does not say whose it is",
                _ => "",
            };
            said.push(format!(
                "the key `{key}` arrived at {came_to}, and was absent at {at}{whose}: {came_to} does not forward it; forward `x-overlay-id`, `baggage`, or the trace, by which its sidecar can restore the key ({FORWARD})"
            ));
        }
        KeyFrom::Arrived | KeyFrom::Stamped => {}
    }
}

/// Why it went where it went, where that is no matter of course.
fn of_reason(hop: &Decision) -> Option<String> {
    let key = hop.key.as_deref().unwrap_or_default();
    let (service, environment) = (hop.service.as_deref()?, hop.environment.as_deref().unwrap_or("nobody"));
    let is = |reason: Reason| hop.reason.as_deref() == Some(reason.as_str());
    let here = place(hop);
    let failed = hop.status == 0 || hop.status >= 500;
    Some(match () {
        () if is(Reason::NotOwned) => format!("`{key}` does not own {service}: `{environment}` served it"),
        () if is(Reason::Unknown) => format!(
            "`{key}` is not known at {here}, so `{environment}` served {service}: it was never created there, or is deleted; `overlane status` says who is STALE"
        ),
        () if is(Reason::Expired) => format!(
            "`{key}` has expired at {here}, so `{environment}` served {service}: `overlane overlay extend {key}` would have kept it"
        ),
        () if is(Reason::Pending) => format!(
            "{service} of `{environment}` has no address yet: `overlane attach {environment} {service} --url URL` gives it one"
        ),
        () if is(Reason::Refused) && failed => {
            format!("{service} of `{environment}` refuses connections{}: is it running?", at_upstream(hop))
        }
        () if is(Reason::Unhealthy) && failed => {
            format!("{service} of `{environment}` does not answer{}", at_upstream(hop))
        }
        () if failed && hop.reason.as_deref() == Some("timeout") => {
            format!("{service} of `{environment}` did not answer in time at {here}")
        }
        () if failed && hop.status != 0 => {
            format!("{service} of `{environment}` answered {}{}", hop.status, at_upstream(hop))
        }
        () => return None,
    })
}

fn at_upstream(hop: &Decision) -> String {
    hop.upstream.as_ref().map_or_else(String::new, |upstream| format!(" at {upstream}"))
}

/// Who served what of a request with a key.
fn summary(hops: &[Decision]) -> Option<String> {
    let key = hops.iter().find_map(|hop| hop.key.as_deref())?;
    let mut by: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for hop in hops.iter().filter(|hop| (1..500).contains(&hop.status)) {
        if let (Some(environment), Some(service)) = (hop.environment.as_deref(), hop.service.as_deref()) {
            by.entry(environment).or_default().insert(service);
        }
    }
    let own = by.remove(key);
    let list = |services: BTreeSet<&str>| services.into_iter().collect::<Vec<_>>().join(", ");
    let others: Vec<_> = by
        .into_iter()
        .map(|(environment, services)| format!("`{environment}` served {}", list(services)))
        .collect();
    let own = own.map_or_else(
        || format!("`{key}` served nothing"),
        |services| format!("`{key}` served {}", list(services)),
    );
    Some(std::iter::once(own).chain(others).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `role caller service key-from key`, `-` for none.
    fn hop(at: u32, line: &str) -> Decision {
        let words: Vec<_> = line.split(' ').map(|word| (word != "-").then(|| word.to_owned())).collect();
        let text = |at: usize| words.get(at).cloned().flatten();
        Decision {
            at: format!("2026-11-28T12:00:00.{at:06}Z"),
            role: text(0).unwrap_or_default(),
            caller: text(1),
            service: text(2),
            key_from: KeyFrom::ALL
                .into_iter()
                .find(|from| Some(from.as_str()) == words[3].as_deref())
                .expect("a word"),
            key: text(4),
            environment: Some("staging".to_owned()),
            reason: text(5),
            status: 200,
            ..Decision::default()
        }
    }

    fn story(lines: &[&str]) -> Story {
        let hops = lines.iter().enumerate().map(|(at, line)| hop(at as u32, line)).collect();
        Story::of("id".to_owned(), hops)
    }

    fn drawn(story: &Story) -> Vec<String> {
        story.tree().into_iter().map(|(branch, hop)| branch + &place(hop)).collect()
    }

    fn says(story: &Story, part: &str) {
        assert!(
            story.findings.iter().any(|sentence| sentence.contains(part)),
            "{part}: {:#?}",
            story.findings
        );
    }

    const MESH: [&str; 6] = [
        "gateway - web arrived alice",
        "inbound web web arrived alice",
        "outbound web api absent -",
        "inbound api api absent -",
        "outbound api ledger absent -",
        "inbound ledger ledger absent -",
    ];

    #[test]
    fn each_hop_stands_under_the_one_that_called_it() {
        let story = story(&MESH);
        let expected = [
            "the gateway",
            "└─ web",
            "   └─ web's call to api",
            "      └─ api",
            "         └─ api's call to ledger",
            "            └─ ledger",
        ];
        assert_eq!(drawn(&story), expected);
        let again = Story::of("id".to_owned(), story.hops.clone());
        assert_eq!(again, story, "of what was told already it is the same");
    }

    #[test]
    fn two_calls_of_one_service_stand_side_by_side() {
        let story = story(&[
            "inbound web web arrived alice",
            "outbound web api arrived alice",
            "outbound web ledger arrived alice",
            "inbound api api arrived alice",
            "inbound ledger ledger arrived alice",
        ]);
        let expected =
            ["web", "├─ web's call to api", "│  └─ api", "└─ web's call to ledger", "   └─ ledger"];
        assert_eq!(drawn(&story), expected);
    }

    #[test]
    fn where_the_key_went_is_named_once_and_at_the_service_that_dropped_it() {
        let story = story(&MESH);
        says(&story, "the key `alice` arrived at web, and was absent at api: web does not forward it");
        assert_eq!(
            story.findings.iter().filter(|sentence| sentence.contains("absent at")).count(),
            1,
            "{:#?}",
            story.findings
        );
    }

    #[test]
    fn what_else_becomes_of_keys_is_said() {
        says(
            &story(&["outbound web api restored alice"]),
            "web's call to api came without the key, and its trace gave it back",
        );
        says(&story(&["outbound web api contradicting alice"]), "names different keys");
        says(&story(&["gateway - web untrusted -"]), "the key was removed at the gateway");
        says(&story(&["gateway - web absent -"]), "no hop saw a key");
        says(
            &story(&["gateway - web arrived alice unknown"]),
            "`alice` is not known at the gateway, so `staging` served web",
        );
        says(
            &story(&["gateway - web arrived alice not-owned"]),
            "`alice` does not own web: `staging` served it",
        );
        says(&story(&["gateway - web arrived alice pending"]), "overlane attach staging web --url URL");
        says(&story(&["gateway - web arrived alice"]), "`alice` served nothing; `staging` served web");
    }

    #[test]
    fn a_request_of_which_nothing_is_known_has_no_story() {
        assert_eq!(story(&[]).hops, []);
        assert!(ids([]).is_empty());
    }
}
