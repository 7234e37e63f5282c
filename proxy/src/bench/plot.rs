//! Curves and bars as SVG, without scripts; colours come from the page's style.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::summary::micros;

/// The drawing area of a plot: left, top, right, bottom.
const LEFT: f64 = 64.0;
const TOP: f64 = 14.0;
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 340.0;
const BOTTOM: f64 = HEIGHT - 44.0;
const RIGHT: f64 = WIDTH - 18.0;

/// One line of a plot.
pub struct Curve<'h> {
    /// Its name.
    pub name: String,
    /// Which of the page's colours it has.
    pub slot: usize,
    /// The latencies, in nanoseconds.
    pub latency: &'h Histogram<u64>,
}

/// Where a plot's values lie on the page. Both axes are logarithmic: percentiles by their nines.
struct Scale {
    nines: f64,
    low: f64,
    high: f64,
}

impl Scale {
    fn around(curves: &[Curve<'_>]) -> Self {
        let longest = curves.iter().map(|curve| curve.latency.len()).max().unwrap_or_default();
        let lowest = curves.iter().map(|curve| curve.latency.min()).min().unwrap_or(1);
        let highest = curves.iter().map(|curve| curve.latency.max()).max().unwrap_or(1);
        Self {
            nines: (longest.max(100) as f64).log10(),
            low: below(lowest.max(1) as f64 / 1000.0),
            high: above(highest.max(1) as f64 / 1000.0),
        }
    }

    fn x(&self, nines: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * nines / self.nines
    }

    fn y(&self, micros: f64) -> f64 {
        let part = (micros.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        BOTTOM - (BOTTOM - TOP) * part
    }
}

/// 1, 2 or 5 times a power of ten, in order, around `value`.
fn round_values(value: f64) -> impl Iterator<Item = f64> {
    let power = value.log10().floor();
    (-1..=1).flat_map(move |step| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powf(power + f64::from(step))))
}

fn below(value: f64) -> f64 {
    round_values(value).filter(|round| *round <= value).last().unwrap_or(value)
}

fn above(value: f64) -> f64 {
    round_values(value).find(|round| *round > value).unwrap_or(value)
}

/// Latency by percentile, one curve each; `name` and `description` are for those who cannot see it.
#[must_use]
pub fn curves(name: &str, description: &str, curves: &[Curve<'_>]) -> String {
    let scale = Scale::around(curves);
    let mut svg = open(HEIGHT, name, description);
    grid(&mut svg, &scale);
    for curve in curves.iter().filter(|curve| !curve.latency.is_empty()) {
        let _ = writeln!(
            svg,
            "<path class=\"curve s{}\" d=\"{}\"><title>{}</title></path>",
            curve.slot,
            steps(&scale, curve.latency),
            escape(&curve.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn open(height: f64, name: &str, description: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\"><title>{}</title><desc>{}</desc>\n",
        escape(name),
        escape(name),
        escape(description)
    )
}

fn grid(svg: &mut String, scale: &Scale) {
    let mut value = scale.low;
    while value <= scale.high * 1.001 {
        let y = scale.y(value);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/><text class=\"tick end\" x=\"{}\" y=\"{:.1}\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            axis(value)
        );
        value = above(value * 1.001);
    }
    for (nines, name) in [
        (0.0, "0"),
        (2_f64.log10(), "50"),
        (1.0, "90"),
        (2.0, "99"),
        (3.0, "99.9"),
        (4.0, "99.99"),
        (5.0, "99.999"),
    ] {
        if nines <= scale.nines + 0.001 {
            let x = scale.x(nines);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{BOTTOM}\"/><text class=\"tick middle\" x=\"{x:.1}\" y=\"{}\">{name}</text>",
                BOTTOM + 18.0
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text class=\"label middle\" x=\"{:.1}\" y=\"{}\">percentile</text>",
        (LEFT + RIGHT) / 2.0,
        HEIGHT - 6.0
    );
}

/// A round latency at an axis.
fn axis(value: f64) -> String {
    micros(value).replace(".00", "").replace(".0", "")
}

fn steps(scale: &Scale, latency: &Histogram<u64>) -> String {
    let whole = (latency.len() as f64).log10();
    let steps = 160;
    let mut path = String::new();
    for step in 0..=steps {
        let nines = whole * f64::from(step) / f64::from(steps);
        let value = latency.value_at_quantile(1.0 - 10_f64.powf(-nines)) as f64 / 1000.0;
        let command = if step == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", scale.x(nines), scale.y(value));
    }
    path
}

/// One bar of a chart.
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Which of the page's colours it has.
    pub slot: usize,
    /// Its length.
    pub value: f64,
}

/// Horizontal bars from zero, each with its value.
#[must_use]
pub fn bars(name: &str, description: &str, shown: fn(f64) -> String, bars: &[Bar]) -> String {
    const ROW: f64 = 26.0;
    const NAMES: f64 = 230.0;
    const VALUES: f64 = 110.0;
    let longest = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = open(ROW * bars.len() as f64 + 4.0, name, description);
    for (at, bar) in bars.iter().enumerate() {
        let top = ROW * at as f64 + 4.0;
        let length = (WIDTH - NAMES - VALUES) * (bar.value / longest);
        let _ = writeln!(
            svg,
            "<text class=\"name end\" x=\"{}\" y=\"{:.1}\">{}</text><rect class=\"bar s{}\" x=\"{NAMES}\" y=\"{top:.1}\" \
             width=\"{length:.1}\" height=\"{}\" rx=\"2\"/><text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            NAMES - 10.0,
            top + 14.0,
            escape(&bar.name),
            bar.slot,
            ROW - 7.0,
            NAMES + length + 8.0,
            top + 14.0,
            shown(bar.value)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Text that is text in HTML and in its attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_begin_and_end_at_round_values() {
        for (value, expected) in [(37.0, (20.0, 50.0)), (1.0, (1.0, 2.0)), (999.0, (500.0, 1000.0))] {
            let (low, high) = (below(value), above(value));
            assert!(
                (low - expected.0).abs() < 1e-6 && (high - expected.1).abs() < 1e-6,
                "{value}: {low} {high}"
            );
        }
    }

    #[test]
    fn a_curve_rises_from_the_lowest_value_to_the_highest() {
        let mut latency = Histogram::new(3).unwrap();
        (1..=1000_u64).for_each(|value| latency.record(value * 1000).unwrap());
        let scale = Scale::around(&[Curve { name: String::new(), slot: 0, latency: &latency }]);
        let path = steps(&scale, &latency);
        let points: Vec<(f64, f64)> = path
            .split(['M', 'L'])
            .skip(1)
            .map(|point| {
                point.split_once(' ').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap()
            })
            .collect();
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 >= pair[1].1), "{path}");
        let last = points.last().unwrap();
        assert!((last.0 - RIGHT).abs() < 1.0 && (last.1 - scale.y(1000.0)).abs() < 1.0, "{path}");
        // Half the requests are faster than half the range: that is where 50 % is on the axis.
        let middle = points.iter().find(|point| point.0 >= scale.x(2_f64.log10())).unwrap();
        assert!((middle.1 - scale.y(500.0)).abs() < 4.0, "{path}");
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
