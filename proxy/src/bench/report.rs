//! The report: one page of HTML with everything in it.

use std::fmt::Write as _;

use super::machine::Machine;
use super::mesh::{Path, Size};
use super::pace::Pace;
use super::plot::{Bar, Curve, bars, curves, escape};
use super::series::Measured;
use super::summary::{self, micros, thousands};

/// Colours that the style knows.
const SLOTS: usize = 6;

/// The whole page.
#[must_use]
pub fn page(all: &[Measured], machine: &Machine) -> String {
    let mesh = all.iter().any(|one| one.case.path.is_some());
    let title = if mesh { "What overlay routing costs" } else { "Latencies" };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{title} · overlane bench</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n",
        include_str!("report.css")
    );
    for sentence in findings(all) {
        let _ = writeln!(page, "<p class=\"lead\">{sentence}</p>");
    }
    let _ = writeln!(page, "<p class=\"meta\">{}.", escape(&summary::machine(machine)));
    let _ = writeln!(page, "{}.", escape(&summary::settings(all)));
    page.push_str("</p>\n");
    page.push_str(&caution(all, machine, mesh));
    for pace in summary::paces(all) {
        section(&mut page, all, pace);
    }
    if mesh {
        glossary(&mut page);
    }
    page.push_str(
        "<footer>Latencies count from the time at which a request was meant to leave, to the end of its answer; requests \
         that were not sent or not answered in time are in them with the time that they had waited. At saturation each \
         connection sends its next request when the last is answered, so latencies there say how full the queue was.\
         </footer>\n</main>\n</body>\n</html>\n",
    );
    page
}

/// What the figures say, in a sentence or two: of the largest table.
fn findings(all: &[Measured]) -> Vec<String> {
    let size = all.iter().filter_map(|one| one.case.size).max_by_key(|size| (size.overlays, size.depth));
    let find = |path, saturated| {
        all.iter().find(|one| {
            one.case.path == Some(path)
                && (one.load.pace == Pace::Saturation) == saturated
                && (one.case.size == size || path == Path::Direct)
        })
    };
    let median = |path| {
        let one = find(path, false)?;
        Some((one.whole.percentile(50.0)?, one.spread(50.0)?))
    };
    let cpu = |path| find(path, true)?.cpu_per_answer();
    let hop = median(Path::Baseline).zip(median(Path::Direct)).map(|(baseline, direct)| {
        format!(
            "At the median, a request through the gateway takes {} without the hop.",
            difference(baseline, direct)
        )
    });
    let key = size.zip(cpu(Path::Overlay).zip(cpu(Path::Baseline))).map(|(size, (overlay, baseline))| {
        format!(
            "With the key of one of {} overlays, in lineages of {}, the gateway computes {} without a key.",
            thousands(size.overlays as f64),
            size.depth,
            difference(overlay, baseline)
        )
    });
    hop.into_iter().chain(key).collect()
}

/// How much more one is than the other, where their rounds differ by less.
fn difference((one, spread): (f64, f64), (other, other_spread): (f64, f64)) -> String {
    let doubt = spread.max(other_spread);
    let (more, way) = if one < other { (other - one, "less") } else { (one - other, "more") };
    let both = (micros(one), micros(other), micros(doubt));
    match more > doubt {
        true => format!(
            "<strong>{} {way}</strong> ({} instead of {}; rounds differ by up to {}) than",
            micros(more),
            both.0,
            both.1,
            both.2
        ),
        false => format!(
            "<strong>about as long</strong> ({} and {}; rounds differ by up to {}) as",
            both.0, both.1, both.2
        ),
    }
}

/// What to keep in mind.
fn caution(all: &[Measured], machine: &Machine, mesh: bool) -> String {
    let mut points = Vec::new();
    let cores = machine.cores;
    points.push(match mesh {
        true => format!(
            "The generator, the gateway and the upstreams share the {cores} cores of one machine, over loopback: read the \
             differences between the paths, not the absolute figures."
        ),
        false => format!(
            "The generator ran on a machine with {cores} cores; what it shares with the target is taken from the target."
        ),
    });
    points.extend(summary::lag(all));
    if !machine.optimised {
        points.push("This build was not optimised: the figures say nothing.".to_owned());
    }
    points.extend(summary::doubts(all).into_iter().map(|doubt| format!("{doubt}.")));
    let items: String = points.iter().map(|point| format!("<li>{}</li>", escape(point))).collect();
    format!("<div class=\"note\" role=\"note\"><strong>Read with care</strong><ul>{items}</ul></div>\n")
}

fn section(page: &mut String, all: &[Measured], pace: Pace) {
    let heading = summary::heading(pace);
    let of_pace: Vec<_> = all.iter().filter(|one| one.load.pace == pace).collect();
    let _ = writeln!(page, "<section>\n<h2>{heading}</h2>");
    if pace == Pace::Saturation {
        throughput(page, &of_pace);
    }
    // The latencies of a closed loop only say how full its queue is; with a mesh there is more to show.
    if pace == Pace::Saturation && of_pace.iter().any(|one| one.case.path.is_some()) {
        table(page, all, pace, &heading);
        page.push_str("</section>\n");
        return;
    }
    let mut sizes: Vec<Option<Size>> = of_pace.iter().map(|one| one.case.size).collect();
    sizes.dedup();
    if sizes.len() > 1 {
        sizes.retain(Option::is_some);
    }
    for size in sizes {
        // Each figure has the path without a proxy to compare with.
        let shown: Vec<_> = of_pace
            .iter()
            .filter(|one| one.case.size == size || one.case.path == Some(Path::Direct))
            .copied()
            .collect();
        figure(page, &heading, size, &shown);
    }
    table(page, all, pace, &heading);
    page.push_str("</section>\n");
}

fn figure(page: &mut String, heading: &str, size: Option<Size>, shown: &[&Measured]) {
    let title = size.map_or_else(|| "Latency by percentile".to_owned(), summary::size);
    let lines: Vec<_> = shown
        .iter()
        .enumerate()
        .map(|(at, one)| Curve { name: short_name(one), slot: slot(one, at), latency: &one.whole.latency })
        .collect();
    let name = format!("Latency by percentile, {}, {title}", heading.to_lowercase());
    let description: Vec<_> = shown
        .iter()
        .map(|one| {
            let shown =
                |percentile| one.whole.percentile(percentile).map_or_else(|| "none".to_owned(), micros);
            format!("{}: median {}, p99 {}", short_name(one), shown(50.0), shown(99.0))
        })
        .collect();
    let legend: String = lines
        .iter()
        .map(|line| {
            let sample = format!("<path class=\"curve s{}\" d=\"M1 5H33\"/>", line.slot);
            format!(
                "<li><svg viewBox=\"0 0 34 10\" aria-hidden=\"true\">{sample}</svg>{}</li>",
                escape(&line.name)
            )
        })
        .collect();
    let _ = writeln!(
        page,
        "<figure>\n<h3>{}</h3>\n<ul class=\"legend\">{legend}</ul>\n{}<figcaption>Both axes are logarithmic; the figures are in \
         the table below.</figcaption>\n</figure>",
        escape(&title),
        curves(&name, &description.join("; "), &lines)
    );
}

/// Bars of what was carried, and of what that cost the gateway where it is known.
fn throughput(page: &mut String, of_pace: &[&Measured]) {
    let bar = |at: usize, one: &Measured, value: f64| {
        let name = match one.case.size {
            Some(Size { overlays, depth }) => {
                format!("{} · {} / {depth}", short_name(one), thousands(overlays as f64))
            }
            None => short_name(one),
        };
        Bar { name, slot: slot(one, at), value }
    };
    let each = || of_pace.iter().copied().enumerate();
    let rates: Vec<_> = each().map(|(at, one)| bar(at, one, one.whole.rps())).collect();
    let costs = each().filter_map(|(at, one)| Some(bar(at, one, one.cpu_per_answer()?.0)));
    let costs: Vec<_> = costs.collect();
    let caption = match of_pace.iter().any(|one| one.case.size.is_some()) {
        true => "<figcaption>Behind each path: overlays / depth of their lineages.</figcaption>\n",
        false => "",
    };
    for (title, rows, shown) in [
        ("Requests per second", rates, (|value| format!("{} req/s", thousands(value))) as fn(f64) -> String),
        ("Processor time of the gateway per request", costs, micros),
    ] {
        if !rows.is_empty() {
            let drawn = bars(title, "The figures are in the table below.", shown, &rows);
            let _ = writeln!(page, "<figure>\n<h3>{title}</h3>\n{drawn}{caption}</figure>");
        }
    }
}

fn table(page: &mut String, all: &[Measured], pace: Pace, heading: &str) {
    let (header, rows) = summary::rows(all, pace);
    let _ = writeln!(
        page,
        "<div class=\"table\" tabindex=\"0\">\n<table>\n<caption>{heading}</caption>\n<thead><tr>"
    );
    for name in header {
        let _ = write!(page, "<th scope=\"col\">{name}</th>");
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        for (at, cell) in row.iter().enumerate() {
            let cell = escape(cell);
            let _ = match at {
                0 => write!(page, "<th scope=\"row\">{cell}</th>"),
                _ => write!(page, "<td>{cell}</td>"),
            };
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
}

fn glossary(page: &mut String) {
    page.push_str("<h2>The paths</h2>\n<dl>\n");
    for path in Path::ALL {
        let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", path.name(), escape(path.meaning()));
    }
    page.push_str("</dl>\n");
}

/// The name of a case where its size is said elsewhere.
fn short_name(one: &Measured) -> String {
    one.case.path.map_or_else(|| one.case.name.clone(), |path| path.name().to_owned())
}

/// The colour of a case: a path has the same everywhere.
fn slot(one: &Measured, at: usize) -> usize {
    one.case.path.and_then(|path| Path::ALL.iter().position(|other| *other == path)).unwrap_or(at % SLOTS)
}
