//! Measurements in words and rows: what the terminal and the report both show.

use super::machine::Machine;
use super::mesh::Size;
use super::pace::Pace;
use super::series::{Measured, reference};

/// The percentiles of a row.
const PERCENTILES: [(&str, f64); 4] = [("P50", 50.0), ("P90", 90.0), ("P99", 99.0), ("P99.9", 99.9)];
/// In microseconds: a generator that is later than this is worth a warning.
const LATE: f64 = 500.0;

/// A latency or a difference of two.
#[must_use]
pub fn micros(micros: f64) -> String {
    match micros.abs() {
        ..99.95 => format!("{micros:.1} µs"),
        ..1_000.0 => format!("{micros:.0} µs"),
        ..1_000_000.0 => format!("{:.2} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

/// A latency, and what it may be off by, in one unit.
fn plus_minus(value: f64, off: f64) -> String {
    match value.abs().max(off) {
        ..1_000.0 => format!("{value:.0} ± {off:.0} µs"),
        ..1_000_000.0 => format!("{:.2} ± {:.2} ms", value / 1e3, off / 1e3),
        _ => format!("{:.2} ± {:.2} s", value / 1e6, off / 1e6),
    }
}

/// A whole number with its thousands apart.
#[must_use]
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What the machine is.
#[must_use]
pub fn machine(machine: &Machine) -> String {
    let processor = machine.processor.as_ref().map_or_else(String::new, |name| format!(" of {name}"));
    let cores = machine.cores;
    let plural = if cores == 1 { "" } else { "s" };
    let load = machine.load_average.map_or_else(String::new, |load| format!(", load average before {load}"));
    format!(
        "overlane {}, {cores} core{plural}{processor}, {}{load}, {}",
        machine.version, machine.kernel, machine.at
    )
}

/// How it was measured; empty where nothing was.
#[must_use]
pub fn settings(all: &[Measured]) -> String {
    let Some(measured) = all.first() else { return String::new() };
    let engine = all.iter().find_map(|one| one.case.engine_name());
    let engine = engine.map_or_else(String::new, |engine| format!(", engine {engine}"));
    let load = &measured.load;
    let rounds = match measured.rounds.len() {
        1 => String::new(),
        rounds => format!(" in {rounds} rounds, in which the cases take turns"),
    };
    format!(
        "{} connections, {} sending thread{}, {:?} each{rounds}, after {:?} of warmup{engine}",
        load.connections,
        load.threads,
        if load.threads == 1 { "" } else { "s" },
        load.duration,
        load.warmup
    )
}

/// How large a table is.
#[must_use]
pub fn size(size: Size) -> String {
    let plural = if size.overlays == 1 { "" } else { "s" };
    format!("{} overlay{plural}, lineages of {}", thousands(size.overlays as f64), size.depth)
}

/// What is measured at this pace.
#[must_use]
pub fn heading(pace: Pace) -> String {
    match pace {
        Pace::Rate(rate) => format!("At {} requests/s", thousands(rate.get().into())),
        Pace::Saturation => "At saturation".to_owned(),
    }
}

/// The paces that were measured, in order.
#[must_use]
pub fn paces(all: &[Measured]) -> Vec<Pace> {
    let mut paces: Vec<_> = all.iter().map(|one| one.load.pace).collect();
    paces.dedup();
    paces
}

/// One line per measurement at this pace, and what its columns are.
#[must_use]
pub fn rows(all: &[Measured], pace: Pace) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let some: Vec<_> = all.iter().filter(|one| one.load.pace == pace).collect();
    let mesh = some.iter().any(|one| one.case.path.is_some());
    let compared = some.len() > 1 && matches!(pace, Pace::Rate(_));
    let cpu = some.iter().any(|one| one.cpu_per_answer().is_some());
    let mut header = if mesh { vec!["PATH", "OVERLAYS", "DEPTH"] } else { vec!["CASE"] };
    header.push("REQ/S");
    header.extend(PERCENTILES.map(|(name, _)| name));
    header.push("MAX");
    if compared {
        header.extend(["P50 ADDS", "P99 ADDS"]);
    }
    if cpu {
        header.push("CPU/REQ");
    }
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), micros);
    let row =
        |one: &Measured| {
            let mut row = if mesh { path(one) } else { vec![one.case.name.clone()] };
            row.push(thousands(one.whole.rps()));
            row.extend(PERCENTILES.map(|(_, percentile)| shown(known_percentile(one, percentile))));
            row.push(shown(one.whole.max()));
            if compared {
                let base = reference(all, one).filter(|base| !std::ptr::eq(*base, one));
                row.extend([50.0, 99.0].map(|percentile| {
                    base.map_or_else(|| "–".to_owned(), |base| added(one, base, percentile))
                }));
            }
            if cpu {
                row.push(shown(one.cpu_per_answer().map(|(cpu, _)| cpu)));
            }
            row
        };
    (header, some.into_iter().map(row).collect())
}

/// How much more a percentile is, and by how much the rounds differ about it.
fn added(one: &Measured, base: &Measured, percentile: f64) -> String {
    let Some(added) = one.added(base, percentile) else { return "–".to_owned() };
    match one.spread(percentile).zip(base.spread(percentile)).map(|(own, other)| own.max(other)) {
        Some(spread) if one.rounds.len() > 1 => plus_minus(added, spread),
        _ => micros(added),
    }
}

fn path(one: &Measured) -> Vec<String> {
    let name = one.case.path.map_or(one.case.name.as_str(), |path| path.name());
    let size = one.case.size;
    let number = |number: Option<usize>| number.map_or_else(|| "–".to_owned(), |n| thousands(n as f64));
    vec![name.to_owned(), number(size.map(|size| size.overlays)), number(size.map(|size| size.depth))]
}

/// A percentile, where there are enough requests to know it.
fn known_percentile(one: &Measured, percentile: f64) -> Option<f64> {
    let beyond = one.whole.latency.len() as f64 * (1.0 - percentile / 100.0);
    one.whole.percentile(percentile).filter(|_| beyond >= 0.99)
}

/// What makes measurements worth less than they look.
#[must_use]
pub fn doubts(all: &[Measured]) -> Vec<String> {
    let name = |one: &Measured| format!("{} {}", one.case.name, heading(one.load.pace).to_lowercase());
    let own = all
        .iter()
        .flat_map(|one| own_doubts(one).into_iter().map(move |doubt| format!("{}: {doubt}", name(one))));
    let mut doubts: Vec<_> = own.collect();
    let lag = |one: &Measured| one.whole.lag.value_at_percentile(99.0) as f64 / 1000.0;
    let late: Vec<_> = all.iter().filter(|one| lag(one) > LATE).collect();
    if let Some(worst) = late.iter().max_by(|a, b| lag(a).total_cmp(&lag(b))) {
        doubts.push(format!(
            "The machine is busy: in {} of {} measurements the generator itself was later than {} (p99), at worst {} for {}, \
             and that is in the latencies",
            late.len(),
            all.len(),
            micros(LATE),
            micros(lag(worst)),
            name(worst)
        ));
    }
    doubts
}

fn own_doubts(one: &Measured) -> Vec<String> {
    let tally = &one.whole;
    let mut doubts = Vec::new();
    if tally.unsent > 0 {
        doubts.push(format!(
            "{} of {} requests that were due found no free connection until the end; they count with the time that they had waited",
            thousands(tally.unsent as f64),
            thousands(tally.latency.len() as f64)
        ));
    }
    if tally.errors() > 0 {
        let kinds = tally.failures.iter().map(|(failure, count)| format!("{count} {}", failure.name()));
        doubts.push(format!("{} requests failed: {}", tally.errors(), kinds.collect::<Vec<_>>().join(", ")));
    }
    let others = tally.status.iter().filter(|(status, _)| !(200..300).contains(*status));
    let others: Vec<_> = others.map(|(status, count)| format!("{count} × {status}")).collect();
    if !others.is_empty() {
        doubts.push(format!("answers other than 2xx: {}", others.join(", ")));
    }
    doubts
}

/// What the generator's own lateness is in the latencies of a schedule, where there is one.
#[must_use]
pub fn lag(all: &[Measured]) -> Option<String> {
    let late = all.iter().find(|one| !one.whole.lag.is_empty())?;
    let middle = late.whole.lag.value_at_percentile(50.0) as f64 / 1000.0;
    Some(format!(
        "Latencies at a constant rate count from the time at which a request was meant to leave; {} of them (median of the \
         first case) is the generator waking up, much the same in every case.",
        micros(middle)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_with_three_digits_or_so() {
        for (value, shown) in
            [(2.75, "2.8 µs"), (-3.1, "-3.1 µs"), (314.15, "314 µs"), (3141.5, "3.14 ms"), (3.1e6, "3.10 s")]
        {
            assert_eq!(micros(value), shown);
        }
        for (value, off, shown) in
            [(65.3, 40.4, "65 ± 40 µs"), (-286.0, 1680.0, "-0.29 ± 1.68 ms"), (3.1e6, 2.0e6, "3.10 ± 2.00 s")]
        {
            assert_eq!(plus_minus(value, off), shown);
        }
        for (value, shown) in [(0.4, "0"), (999.0, "999"), (1000.0, "1,000"), (1234567.0, "1,234,567")] {
            assert_eq!(thousands(value), shown);
        }
    }
}
