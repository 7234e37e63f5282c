//! `overlane bench`.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use overlane_config::time::parse_duration;
use serde_json::json;

use super::output::{CliError, Output};
use crate::bench::pace::Pace;
use crate::bench::tally::Tally;
use crate::bench::target::{Header, Target, TargetUrl};
use crate::bench::{Control, Load, measure};

/// `overlane bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// What to measure, such as http://127.0.0.1:8080/path; repeatable
    #[arg(long, value_name = "URL")]
    url: Vec<TargetUrl>,
    /// A url with a name and, if need be, a header of its own: 'NAME=URL [header: value]'; repeatable
    #[arg(long, value_name = "CASE")]
    case: Vec<Case>,
    /// A header of every request, 'name: value'; repeatable
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    header: Vec<Header>,
    /// Requests per second, on a fixed schedule; without it as many as the connections carry
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<NonZeroU32>,
    /// Connections, which stay open
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count)]
    connections: usize,
    /// How long each is measured
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    duration: Duration,
    /// How long each is loaded before it is measured
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    warmup: Duration,
    /// The longest that a request may wait for its answer
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    timeout: Duration,
    /// Threads that send
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    threads: usize,
    /// Send a POST with a body of so many bytes instead of a GET
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(..=64 << 20))]
    body_size: Option<u64>,
    /// Print one JSON object per measurement instead of a table
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<NonZeroU32, String> {
    match text.parse() {
        Ok(0) => Err("nothing would be sent; leave `--rate` out to measure saturation".to_owned()),
        Ok(number) => NonZeroU32::new(number).ok_or_else(String::new),
        Err(_) => Err("a whole number of requests per second".to_owned()),
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=65_536) => Ok(number),
        _ => Err("a number between 1 and 65536".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(duration) if duration.is_zero() => {
            Err("nothing would be measured; write `10s` or `500ms`".to_owned())
        }
        Ok(duration) if duration > Duration::from_secs(86_400) => Err("at most a day".to_owned()),
        other => other.map_err(|why| why.to_string()),
    }
}

/// Something to measure that has a name.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    url: TargetUrl,
    header: Option<Header>,
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("write NAME=URL, or 'NAME=URL header: value'")?;
        let (url, header) = rest.split_once(' ').map_or((rest, None), |(url, header)| (url, Some(header)));
        let header = header.map(str::parse).transpose()?;
        Ok(Self { name: name.trim().to_owned(), url: url.parse()?, header })
    }
}

/// One measurement of a url.
struct Measured<'c> {
    case: &'c Case,
    load: &'c Load,
    tally: Tally,
}

impl Measured<'_> {
    fn to_json(&self) -> serde_json::Value {
        let (mode, rate) = match self.load.pace {
            Pace::Rate(rate) => ("rate", Some(rate.get())),
            Pace::Saturation => ("saturation", None),
        };
        let mut map = self.tally.to_json();
        map.insert("name".to_owned(), json!(self.case.name));
        map.insert("url".to_owned(), json!(self.case.url.to_string()));
        map.insert("mode".to_owned(), json!(mode));
        map.insert("rate".to_owned(), json!(rate));
        map.insert("connections".to_owned(), json!(self.load.connections));
        map.insert("threads".to_owned(), json!(self.load.threads));
        map.into()
    }
}

/// Measures.
///
/// # Errors
/// A target cannot be reached or answers nothing.
pub fn run(args: &Bench, out: &mut Output<'_>) -> Result<(), CliError> {
    let unnamed = args.url.iter().map(|url| Case { name: url.to_string(), url: url.clone(), header: None });
    let cases: Vec<_> = unnamed.chain(args.case.iter().cloned()).collect();
    let load = Load {
        pace: args.rate.map_or(Pace::Saturation, Pace::Rate),
        connections: args.connections,
        threads: args.threads,
        warmup: args.warmup,
        duration: args.duration,
        timeout: args.timeout,
    };
    if args.threads > args.connections {
        return Err(CliError::usage(format!(
            "{} threads for {} connections",
            args.threads, args.connections
        ))
        .hint("each thread needs a connection of its own"));
    }
    if cases.is_empty() {
        return Err(CliError::usage("nothing to measure").hint("name it: `--url http://127.0.0.1:8080/`"));
    }
    let control = Arc::new(Control::default());
    let mut measurements = Vec::new();
    stop_on_interrupt(control.clone())?;
    for case in &cases {
        let headers: Vec<_> = args.header.iter().chain(&case.header).cloned().collect();
        let body = args.body_size.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        let target = Target::new(&case.url, &headers, body).map_err(CliError::failure)?;
        let tally = one(&case.name, &target, &load, &control)?;
        let measured = Measured { case, load: &load, tally };
        if args.json {
            out.line(measured.to_json())?;
        }
        measurements.push(measured);
        if control.stopped() {
            out.note("interrupted: this is what was measured so far");
            break;
        }
    }
    if !args.json {
        table(&measurements, out)?;
    }
    for measured in &measurements {
        warn(measured, out);
    }
    match measurements.iter().all(|measured| measured.tally.requests() == 0) {
        true => Err(CliError::failure("no request was answered")),
        false => Ok(()),
    }
}

fn table(measurements: &[Measured<'_>], out: &mut Output<'_>) -> Result<(), CliError> {
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), micros);
    let rows: Vec<_> = measurements
        .iter()
        .map(|Measured { case, tally, .. }| {
            let mut row = vec![case.name.clone(), format!("{:.0}", tally.rps())];
            row.extend([50.0, 90.0, 99.0, 99.9].map(|percentile| shown(tally.percentile(percentile))));
            row.extend([shown(tally.max()), tally.requests().to_string(), tally.errors().to_string()]);
            row
        })
        .collect();
    out.table(&["CASE", "REQ/S", "P50", "P90", "P99", "P99.9", "MAX", "ANSWERS", "ERRORS"], &rows)
}

/// A latency for people.
fn micros(micros: f64) -> String {
    match micros {
        ..1_000.0 => format!("{micros:.0} µs"),
        ..1_000_000.0 => format!("{:.2} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

/// Says what makes a measurement worth less than it looks.
fn warn(Measured { case, tally, .. }: &Measured<'_>, out: &mut Output<'_>) {
    let name = &case.name;
    if tally.unsent > 0 {
        out.note(format_args!(
            "warning: {name}: {} requests were due and never sent, the target does not keep up with the rate; the latencies are at least these",
            tally.unsent
        ));
    }
    if tally.errors() > 0 {
        let kinds: Vec<_> =
            tally.failures.iter().map(|(failure, count)| format!("{count} {}", failure.name())).collect();
        out.note(format_args!("warning: {name}: {} requests failed: {}", tally.errors(), kinds.join(", ")));
    }
    let others: Vec<_> = tally
        .status
        .iter()
        .filter(|(status, _)| !(200..300).contains(*status))
        .map(|(status, count)| format!("{count} × {status}"))
        .collect();
    if !others.is_empty() {
        out.note(format_args!("warning: {name}: answers other than 2xx: {}", others.join(", ")));
    }
}

fn one(name: &str, target: &Target, load: &Load, control: &Arc<Control>) -> Result<Tally, CliError> {
    let terminal = io::stderr().is_terminal();
    let whole = load.warmup + load.duration;
    let measured = measure(target, load, control, |elapsed, answered| {
        if terminal {
            let _ = write!(
                io::stderr(),
                "\r\x1b[K{name}: {:.1} of {:.1} s, {answered} answers",
                elapsed.as_secs_f64(),
                whole.as_secs_f64()
            );
        }
    });
    if terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    measured.map_err(|error| {
        CliError::failure(format!("cannot connect to {}: {error}", target.address))
            .hint("is it listening there?")
    })
}

/// Ctrl-C ends the measurement; what was measured so far is told.
fn stop_on_interrupt(control: Arc<Control>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                control.stop();
            }
        });
    })?;
    Ok(())
}
