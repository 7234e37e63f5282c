//! `overlane top`: requests per second, how many went well, and how long they took, by overlay and service.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::environment::FormatArg;
use super::output::{CliError, Format, Output};
use super::status::Asked;
use crate::settings::DEFAULT_ADMIN;
use crate::stats::{Counted, Counts, Flows, Stats};
use crate::store::StoreAddress;
use crate::store::shared::Fault;

/// `overlane top`.
#[derive(Debug, Args)]
pub struct Top {
    /// The admin address of a proxy, where no hub is asked (`--server`); repeatable
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: Vec<String>,
    /// Only requests whose key names this overlay
    #[arg(long, value_name = "ID")]
    overlay: Option<String>,
    /// Over how long it is counted
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = overlane_config::time::parse_duration)]
    interval: Duration,
    /// Once, also on a terminal, where it is shown again and again
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    format: FormatArg,
}

/// Requests of an overlay to a service within a time.
#[derive(Debug, PartialEq)]
struct Rate {
    overlay: String,
    service: String,
    via: String,
    rps: f64,
    ok: f64,
    /// In seconds: half of them, 95 and 99 of a hundred took at most so long.
    quantiles: [f64; 3],
}

/// What is shown of times.
const QUANTILES: [f64; 3] = [0.5, 0.95, 0.99];

/// Shows rates.
///
/// # Errors
/// Nobody answers.
pub fn run(args: &Top, store: Option<&StoreAddress>, out: &mut Output<'_>) -> Result<(), CliError> {
    if args.interval.is_zero() {
        return Err(CliError::usage("`--interval` is 0").hint("write a time such as `1s`"));
    }
    let asked = Asked::all(store, &args.admin);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let again = !args.once && out.is_terminal() && args.format.output == Format::Table;
    runtime.block_on(async {
        let (mut before, mut begun) = (ask_all(&asked, out).await?, Instant::now());
        loop {
            sleep(args.interval).await;
            let (after, now) = (ask_all(&asked, out).await?, Instant::now());
            let added = added(&before, &after);
            let mut rates = rates(&before, &after, now - begun);
            rates.retain(|rate| args.overlay.as_ref().is_none_or(|overlay| rate.overlay == *overlay));
            if again {
                // The top of a screen without anything on it.
                out.result().write_all(b"\x1b[H\x1b[J")?;
            }
            show(args, &after, &rates, added, out)?;
            out.result().flush()?;
            if !again {
                return Ok(());
            }
            (before, begun) = (after, now);
        }
    })
}

/// What all of them know. Of a proxy that a request passed on its way to another it counts once, whoever is asked.
async fn ask_all(asked: &[Asked], out: &mut Output<'_>) -> Result<Stats, CliError> {
    #[derive(serde::Deserialize)]
    struct Raw {
        at: String,
        proxies: usize,
        #[serde(default)]
        silent: Vec<String>,
        #[serde(flatten)]
        counted: Counted,
    }
    let (mut all, mut sum, mut faults) = (None::<Raw>, Flows::default(), Vec::new());
    for one in asked {
        match one.get::<Raw>("/api/v1/stats?flows=true").await {
            Ok(stats) => {
                sum.add(stats.counted);
                match &mut all {
                    None => all = Some(Raw { counted: Counted::default(), ..stats }),
                    Some(all) => {
                        all.proxies += stats.proxies;
                        all.silent.extend(stats.silent);
                    }
                }
            }
            Err(refused) => faults.push(Fault::from(refused).0),
        }
    }
    match all {
        None => Err(CliError::failure(faults.join("\n"))
            .hint("name a hub with `--server URL`, or a proxy's admin listener with `--admin HOST:PORT`")),
        Some(Raw { at, proxies, silent, .. }) => {
            faults.iter().for_each(|fault| out.note(format_args!("warning: {fault}")));
            Ok(Stats::of(at, proxies, silent, sum.into_all()))
        }
    }
}

type Key = (String, String, String);

fn by_key(stats: &Stats) -> BTreeMap<Key, &Counts> {
    let key = |one: &crate::stats::Served| {
        (one.overlay.clone(), one.service.clone(), one.via.clone().unwrap_or_default())
    };
    stats.services.iter().map(|one| (key(one), &one.counts)).collect()
}

fn rates(before: &Stats, after: &Stats, within: Duration) -> Vec<Rate> {
    let before = by_key(before);
    let rate = |((overlay, service, via), now): (Key, &Counts)| {
        let then = before.get(&(overlay.clone(), service.clone(), via.clone()));
        let counts = since(now, then.copied());
        (counts.requests > 0).then(|| Rate {
            rps: counts.requests as f64 / within.as_secs_f64(),
            ok: (counts.requests - counts.errors.min(counts.requests)) as f64 * 100.0
                / counts.requests as f64,
            quantiles: QUANTILES.map(|share| quantile(&counts, share)),
            overlay,
            service,
            via,
        })
    };
    by_key(after).into_iter().filter_map(rate).collect()
}

/// What the proxies added, in seconds: half of the requests, 95 and 99 of a hundred got at most so much.
fn added(before: &Stats, after: &Stats) -> Option<[f64; 3]> {
    let counts = since(after.overhead.as_ref()?, before.overhead.as_ref());
    (counts.requests > 0).then(|| QUANTILES.map(|share| quantile(&counts, share)))
}

/// What was counted in between. Who was started anew counts from 0.
fn since(now: &Counts, then: Option<&Counts>) -> Counts {
    let Some(then) = then.filter(|then| then.requests <= now.requests && then.errors <= now.errors) else {
        return now.clone();
    };
    let buckets = now.buckets.iter().zip(&then.buckets);
    Counts {
        requests: now.requests - then.requests,
        errors: now.errors - then.errors,
        seconds: (now.seconds - then.seconds).max(0.0),
        buckets: buckets.map(|((le, now), (_, then))| (*le, now.saturating_sub(*then))).collect(),
    }
}

/// How long this share of the requests took at most, in seconds: evenly spread within a bucket, as Prometheus has it.
fn quantile(counts: &Counts, share: f64) -> f64 {
    let wanted = share * counts.requests as f64;
    let (mut from, mut below) = (0.0, 0.0);
    for (to, cumulative) in &counts.buckets {
        let cumulative = *cumulative as f64;
        if cumulative >= wanted && cumulative > below {
            return from + (to - from) * (wanted - below) / (cumulative - below);
        }
        (from, below) = (*to, cumulative);
    }
    // Longer than the last bound; how long is not known.
    from
}

fn show(
    args: &Top,
    stats: &Stats,
    rates: &[Rate],
    added: Option<[f64; 3]>,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let silent = &stats.silent;
    if !silent.is_empty() {
        out.note(format_args!("warning: {} did not answer: the sums are without them", silent.join(", ")));
    }
    let all = |rate: &Rate| {
        let [p50, p95, p99] = rate.quantiles.map(millis);
        let overlay = if rate.overlay.is_empty() { "-" } else { &rate.overlay };
        let via = if rate.via.is_empty() { "-" } else { &rate.via };
        let [rps, ok] = [format!("{:.1}", rate.rps), format!("{:.1}", rate.ok)];
        vec![overlay.to_owned(), rate.service.clone(), via.to_owned(), rps, ok, p50, p95, p99]
    };
    match args.format.output {
        Format::Json | Format::Yaml => {
            let rates: Vec<_> = rates.iter().map(value).collect();
            let added = added.map(|[p50, p95, p99]| json!({ "p50": p50, "p95": p95, "p99": p99 }));
            let value = json!({
                "at": stats.at, "proxies": stats.proxies, "silent": silent, "rates": rates, "added": added,
            });
            out.value(&value, args.format.output)
        }
        Format::Name => {
            let mut overlays: Vec<_> =
                rates.iter().map(|rate| &*rate.overlay).filter(|id| !id.is_empty()).collect();
            overlays.dedup();
            overlays.into_iter().try_for_each(|overlay| out.line(overlay))
        }
        Format::Table | Format::Wide if rates.is_empty() => {
            out.line(format_args!("no requests within {}", overlane_config::time::written(args.interval)))
        }
        Format::Table | Format::Wide => {
            let header = ["OVERLAY", "SERVICE", "VIA", "RPS", "OK %", "P50 MS", "P95 MS", "P99 MS"];
            out.table(&header, &rates.iter().map(all).collect::<Vec<_>>())?;
            let Some([p50, p95, p99]) = added.map(|added| added.map(|at| format!("{:.2}", at * 1000.0)))
            else {
                return Ok(());
            };
            out.line(format_args!("\nadded by each proxy: P50 {p50} ms, P95 {p95} ms, P99 {p99} ms"))
        }
    }
}

fn millis(seconds: f64) -> String {
    format!("{:.1}", seconds * 1000.0)
}

fn value(rate: &Rate) -> Value {
    let [p50, p95, p99] = rate.quantiles;
    json!({
        "overlay": rate.overlay, "service": rate.service, "via": rate.via,
        "rps": rate.rps, "okPercent": rate.ok, "p50": p50, "p95": p95, "p99": p99,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(requests: u64, errors: u64, buckets: &[(f64, u64)]) -> Counts {
        Counts { requests, errors, seconds: 1.0, buckets: buckets.to_vec() }
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let all = counts(100, 0, &[(0.001, 50), (0.01, 90), (0.1, 99)]);
        let at = |share| (quantile(&all, share) * 1e6).round();
        assert_eq!([at(0.5), at(0.7), at(0.95), at(0.99)], [1000.0, 5500.0, 60_000.0, 100_000.0]);
        assert_eq!(at(1.0), 100_000.0, "what is longer than the last bound is shown as that");
        assert_eq!(quantile(&counts(0, 0, &[]), 0.5), 0.0);
    }

    #[test]
    fn who_was_started_anew_counts_from_nothing() {
        let (old, new) = (counts(10, 2, &[(0.1, 10)]), counts(14, 3, &[(0.1, 13)]));
        let between = since(&new, Some(&old));
        assert_eq!((between.requests, between.errors, &*between.buckets), (4, 1, &[(0.1, 3)][..]));
        assert_eq!(since(&old, Some(&new)), old);
        assert_eq!(since(&new, None), new);
    }
}
