//! `overlane doctor`: which services lose the key, how often, and what to add.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Request, header};
use http_body_util::Full;
use serde_json::{Value, json};

use super::output::{CliError, Format, Output};
use super::status::{Asked, ask_all};
use crate::client;
use crate::settings::DEFAULT_ADMIN;
use crate::store::StoreAddress;

/// The metric that it reads.
const CALLS: &str = "overlane_calls_total";

/// `overlane doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// An admin or probes address, `host:port`, where no hub is asked (`--server`); repeatable, one for each sidecar
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: Vec<String>,
    /// Look only at what happens within this time from now on, such as `30s`
    #[arg(long, value_name = "TIME", value_parser = overlane_config::time::parse_duration)]
    watch: Option<Duration>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Who calls whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    service: String,
    peer: String,
}

/// What became of the key in the calls of a pair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Calls {
    kept: u64,
    restored: u64,
    stamped: u64,
    lost: u64,
    unclear: u64,
    contradicting: u64,
    /// The languages that losing calls came from, as far as they can be told.
    languages: BTreeMap<String, u64>,
}

impl Calls {
    /// Calls that had a key, or should have had one.
    fn all(&self) -> u64 {
        self.kept + self.restored + self.stamped + self.lost + self.contradicting
    }

    fn add(&mut self, result: &str, language: &str, count: u64) {
        let cell = match result {
            "kept" => &mut self.kept,
            "restored" => &mut self.restored,
            "stamped" => &mut self.stamped,
            "lost" => &mut self.lost,
            "unclear" => &mut self.unclear,
            "contradicting" => &mut self.contradicting,
            // A later version may know more.
            _ => return,
        };
        *cell += count;
        if result == "lost" && !language.is_empty() && count > 0 {
            *self.languages.entry(language.to_owned()).or_default() += count;
        }
    }
}

/// What is known of all pairs.
type Known = BTreeMap<Pair, Calls>;

/// Reads the metrics, and says what is lost.
///
/// # Errors
/// An address does not answer or is no listener of ours (exit code 2); something is lost (1).
pub fn run(args: &Doctor, store: Option<&StoreAddress>, out: &mut Output<'_>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let known = runtime.block_on(async {
        let before = known(args, store, out).await?;
        let Some(time) = args.watch else {
            return Ok(before);
        };
        tokio::time::sleep(time).await;
        let mut after = known(args, store, out).await?;
        subtract(&mut after, &before);
        Ok::<_, CliError>(after)
    })?;
    match args.output {
        Format::Json | Format::Yaml => out.value(&value(&known), args.output)?,
        _ => tell(&known, out)?,
    }
    let losing = known.values().filter(|calls| calls.lost > 0).count();
    match losing {
        0 => Ok(()),
        1 => Err(CliError::failure("one service loses the key towards another")),
        losing => Err(CliError::failure(format!("the key is lost between {losing} pairs of services"))),
    }
}

/// What a hub knows of those who report to it, or what each listener says.
async fn known(args: &Doctor, store: Option<&StoreAddress>, out: &mut Output<'_>) -> Result<Known, CliError> {
    if store.and_then(StoreAddress::hub).is_none() {
        return read_all(&args.admin).await;
    }
    let (status, faults) =
        ask_all(&Asked::all(store, &[])).await.map_err(|error| CliError { exit: 2, ..error })?;
    faults.iter().for_each(|fault| out.note(format_args!("warning: {fault}")));
    let mut known = Known::new();
    for calls in status.instances.iter().flat_map(|seen| &seen.instance.calls) {
        let pair = Pair { service: calls.service.clone(), peer: calls.peer.clone() };
        known.entry(pair).or_default().add(&calls.result, &calls.language, calls.count);
    }
    Ok(known)
}

async fn read_all(addresses: &[String]) -> Result<Known, CliError> {
    let mut known = Known::new();
    for address in addresses {
        let text = fetch(address).await?;
        for (pair, result, language, count) in text.lines().filter_map(sample) {
            known.entry(pair).or_default().add(&result, &language, count);
        }
    }
    Ok(known)
}

async fn fetch(address: &str) -> Result<String, CliError> {
    let wrong = |why: String| {
        CliError::usage(why)
            .hint("name the admin or probes address of a proxy that runs: `--admin HOST:PORT`")
    };
    // Listeners of ours take addresses and `localhost`, whatever the name was that led there.
    let request = Request::get("/metrics").header(header::HOST, "localhost");
    let request = request.body(Full::new(Bytes::new())).map_err(|error| wrong(error.to_string()))?;
    let response = client::send(address, request).await.map_err(wrong)?;
    let text = String::from_utf8_lossy(response.body()).into_owned();
    match response.status().is_success() && text.contains("overlane_build_info") {
        true => Ok(text),
        false => Err(wrong(format!("{address}: no metrics of Overlane ({})", response.status()))),
    }
}

/// A sample of [`CALLS`]: its labels in any order, none of which holds an escape: they are names.
fn sample(line: &str) -> Option<(Pair, String, String, u64)> {
    let rest = line.strip_prefix(CALLS)?.strip_prefix('{')?;
    let (labels, count) = rest.split_once("} ")?;
    let label = |name: &str| {
        let pairs = labels.split(',').filter_map(|label| label.split_once('='));
        pairs.into_iter().find(|(own, _)| *own == name).map(|(_, value)| value.trim_matches('"').to_owned())
    };
    let pair = Pair { service: label("service")?, peer: label("peer")? };
    // Counters are written as numbers that may have a point or an exponent.
    let count = count.trim().parse::<f64>().ok().filter(|count| count.is_finite() && *count >= 0.0)?;
    Some((pair, label("result")?, label("language").unwrap_or_default(), count as u64))
}

/// What was counted in between. Who was started anew counts from 0.
fn subtract(after: &mut Known, before: &Known) {
    for (pair, calls) in after.iter_mut() {
        let Some(earlier) = before.get(pair).filter(|earlier| earlier.all() <= calls.all()) else {
            continue;
        };
        for (now, then) in [
            (&mut calls.kept, earlier.kept),
            (&mut calls.restored, earlier.restored),
            (&mut calls.stamped, earlier.stamped),
            (&mut calls.lost, earlier.lost),
            (&mut calls.unclear, earlier.unclear),
            (&mut calls.contradicting, earlier.contradicting),
        ] {
            *now = now.saturating_sub(then);
        }
        for (language, count) in &mut calls.languages {
            *count = count.saturating_sub(earlier.languages.get(language).copied().unwrap_or(0));
        }
        calls.languages.retain(|_, count| *count > 0);
    }
    after.retain(|_, calls| calls.all() + calls.unclear > 0);
}

fn value(known: &Known) -> Value {
    let pair = |(pair, calls): (&Pair, &Calls)| {
        json!({
            "service": pair.service,
            "peer": pair.peer,
            "kept": calls.kept,
            "restored": calls.restored,
            "stamped": calls.stamped,
            "lost": calls.lost,
            "unclear": calls.unclear,
            "contradicting": calls.contradicting,
            "languages": calls.languages,
        })
    };
    json!({ "calls": known.iter().map(pair).collect::<Vec<_>>() })
}

fn tell(known: &Known, out: &mut Output<'_>) -> Result<(), CliError> {
    if known.is_empty() {
        return out.line(
            "No calls were counted. Calls are seen where services call through the outbound listener of their sidecar.",
        );
    }
    let name = |service: &str| if service.is_empty() { "?".to_owned() } else { service.to_owned() };
    let row = |(pair, calls): (&Pair, &Calls)| {
        let counts = [calls.kept, calls.restored, calls.stamped, calls.lost, calls.contradicting];
        [name(&pair.service), name(&pair.peer)]
            .into_iter()
            .chain(counts.map(|count| count.to_string()))
            .collect()
    };
    let rows: Vec<Vec<String>> = known.iter().map(row).collect();
    out.table(&["SERVICE", "CALLS", "KEPT", "RESTORED", "STAMPED", "LOST", "CONTRADICTING"], &rows)?;
    for (pair, calls) in known {
        let (service, peer) = (name(&pair.service), name(&pair.peer));
        if calls.lost > 0 {
            out.line(format_args!(
                "\n{service} loses the key towards {peer}: {} of {} calls ({:.1} %).",
                calls.lost,
                calls.all(),
                calls.lost as f64 * 100.0 / calls.all() as f64
            ))?;
            out.line(remedy(
                calls.languages.iter().max_by_key(|(_, count)| **count).map(|(name, _)| name.as_str()),
            ))?;
        }
        if calls.unclear > 0 {
            out.line(format_args!(
                "\n{} calls from {service} to {peer} have no key and a trace that came with none: they were made while a request with a key was served, and one without, or messages were consumed; they may be either's.",
                calls.unclear
            ))?;
        }
        if calls.contradicting > 0 {
            out.line(format_args!(
                "\n{service} contradicts itself towards {peer}, in {} of {} calls: the call names another key than its trace, or one trace has two keys.\n  Look for a trace id that is used for several requests, or a key that is kept from another one.",
                calls.contradicting,
                calls.all()
            ))?;
        }
        if pair.service.is_empty() {
            out.line("\n?: a sidecar that was not told its service; start it with `--service NAME`.")?;
        }
    }
    if known.values().all(|calls| calls.lost == 0) {
        out.line("\nNothing is lost.")?;
    }
    Ok(())
}

/// What to add, in the language of the application where it is known. Package names as of 2026-11.
fn remedy(language: Option<&str>) -> &'static str {
    match language {
        Some("node") => {
            "  Node: let OpenTelemetry forward the trace, from which the key is restored:
    npm install @opentelemetry/auto-instrumentations-node
    node --require @opentelemetry/auto-instrumentations-node/register app.js
  or forward the key by hand: fetch(url, { headers: { 'x-overlay-id': req.headers['x-overlay-id'] ?? '' } })"
        }
        Some("python") => {
            "  Python: let OpenTelemetry forward the trace, from which the key is restored:
    pip install 'opentelemetry-distro[otlp]' && opentelemetry-bootstrap -a install
    opentelemetry-instrument python app.py
  or forward the key by hand: requests.get(url, headers={'x-overlay-id': request.headers.get('x-overlay-id', '')})"
        }
        Some("java") => {
            "  Java: let the OpenTelemetry agent forward the trace, from which the key is restored:
    java -javaagent:opentelemetry-javaagent.jar -jar app.jar
  or forward the key by hand: HttpRequest.newBuilder(uri).header(\"x-overlay-id\", key)"
        }
        Some("go") => {
            "  Go: let OpenTelemetry forward the trace, from which the key is restored:
    go get go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp
    otel.SetTextMapPropagator(propagation.TraceContext{})
    http.Client{Transport: otelhttp.NewTransport(http.DefaultTransport)} and otelhttp.NewHandler(mux, \"app\"),
    with the request's context: http.NewRequestWithContext(r.Context(), …)
  or forward the key by hand: out.Header.Set(\"x-overlay-id\", r.Header.Get(\"x-overlay-id\"))"
        }
        Some("dotnet") => {
            "  .NET: HttpClient forwards the trace by itself while an Activity runs, as ASP.NET Core starts one for each
  request; a client with an ActivityHeadersPropagator of its own, or none, does not. Or forward the key by hand:
    request.Headers.Add(\"x-overlay-id\", context.Request.Headers[\"x-overlay-id\"].ToString())"
        }
        Some("ruby") => {
            "  Ruby: let OpenTelemetry forward the trace, from which the key is restored:
    bundle add opentelemetry-sdk opentelemetry-instrumentation-all
    OpenTelemetry::SDK.configure { |c| c.use_all }
  or forward the key by hand: request['x-overlay-id'] = env['HTTP_X_OVERLAY_ID']"
        }
        _ => {
            "  Forward `traceparent` from the request to the calls that it causes (a tracer does), and the key is restored;
  or forward `x-overlay-id` itself."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{Demo, Forwards};

    fn known(text: &str) -> Known {
        let mut known = Known::new();
        for (pair, result, language, count) in text.lines().filter_map(sample) {
            known.entry(pair).or_default().add(&result, &language, count);
        }
        known
    }

    fn told(known: &Known) -> String {
        let mut text = Vec::new();
        tell(known, &mut Output::to(&mut text, std::io::sink())).expect("memory");
        String::from_utf8(text).expect("text")
    }

    const BEFORE: &str = r#"# TYPE overlane_calls_total counter
overlane_calls_total{language="",peer="api",result="kept",service="web"} 5
overlane_calls_total{language="python",peer="api",result="lost",service="web"} 2
overlane_calls_total{result="restored",language="",peer="ledger",service="api"} 1e3
overlane_other_total{service="web"} 3"#;
    const AFTER: &str = r#"overlane_calls_total{language="",peer="api",result="kept",service="web"} 8
overlane_calls_total{language="python",peer="api",result="lost",service="web"} 2
overlane_calls_total{language="",peer="api",result="lost",service="web"} 1
overlane_calls_total{language="",peer="ledger",result="restored",service="api"} 1000
overlane_calls_total{language="",peer="new",result="to-come",service="api"} 4"#;

    #[test]
    fn what_is_lost_is_told_with_its_share_and_the_remedy_for_its_language() {
        let told = told(&known(BEFORE));
        assert!(told.contains("web loses the key towards api: 2 of 7 calls (28.6 %)"), "{told}");
        assert!(told.contains("opentelemetry-instrument python"), "{told}");
        assert!(told.contains("api       ledger   0      1000"), "{told}");
    }

    #[test]
    fn only_what_happened_meanwhile_is_told_of_a_watch() {
        let mut after = known(AFTER);
        subtract(&mut after, &known(BEFORE));
        let pair = Pair { service: "web".to_owned(), peer: "api".to_owned() };
        assert_eq!(after, Known::from([(pair, Calls { kept: 3, lost: 1, ..Calls::default() })]));
        let told = told(&after);
        assert!(told.contains("1 of 4 calls (25.0 %)") && told.contains("Forward `traceparent`"), "{told}");
    }

    #[test]
    fn who_was_started_anew_counts_from_nothing() {
        let mut after = known(BEFORE);
        subtract(&mut after, &known(AFTER));
        assert_eq!(after.len(), 1);
        assert!(after.values().all(|calls| calls.all() == 7));
    }

    #[test]
    fn the_service_of_the_demo_that_forwards_nothing_is_named() {
        for (forwards, losing) in [(Forwards::Nothing, true), (Forwards::Trace, false)] {
            let demo = Demo::start(forwards).expect("ports");
            assert!(demo.check().1);
            let admin = vec![demo.running().admin().to_string()];
            let args = Doctor { admin, watch: None, output: Format::Table };
            let mut text = Vec::new();
            let found = run(&args, None, &mut Output::to(&mut text, std::io::sink()));
            let text = String::from_utf8(text).expect("text");
            assert_eq!(found.is_err(), losing, "{text}");
            assert_eq!(text.contains("web loses the key towards payments-api: 3 of 3"), losing, "{text}");
            demo.stop();
        }
    }

    #[test]
    fn nothing_lost_is_said_plainly() {
        let told = told(&known("overlane_calls_total{peer=\"api\",result=\"restored\",service=\"web\"} 1"));
        assert!(told.ends_with("Nothing is lost.\n"), "{told}");
        assert!(self::told(&Known::new()).starts_with("No calls were counted"));
    }
}
