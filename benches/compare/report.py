"""What was found, as text: ratios first, then the figures behind them, and plots."""

import datetime
import os
import platform
import statistics

from harness.figures import processor, put_into

OURS = "overlane"
BEGIN, END = "<!-- results: made by benches/compare -->", "<!-- end of results -->"
#: The most that a request may cost beside each, and in which case.
TARGETS = [("known key", "nginx", 0.92), ("known key", "haproxy", 0.88), ("known key", "envoy tree", 0.42),
           ("64 KiB", "nginx", 0.9), ("1 MiB", "nginx", 0.47)]
COLOURS = {"overlane": "#1a7f5a", "overlane, pingora": "#7a8b99", "nginx": "#2f6fb0", "haproxy": "#b0632f"}


def ratios(ours, theirs):
    """The median of the rounds' ratios, the least and the greatest."""
    each = sorted(one / other for one, other in zip(ours, theirs))
    return statistics.median(each), each[0], each[-1]


def shown(ours, theirs):
    middle, least, greatest = ratios(ours, theirs)
    return f"{middle:.2f} ({least:.2f}–{greatest:.2f})"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def markdown(results):
    cases = results["cases"]
    names = list(dict.fromkeys(name for case in cases.values() for name in case))
    others = [name for name in names if name != OURS]
    parts = [machine(results)]
    rows = [[case, *(shown(found[OURS], found[name]) if name in found else "–" for name in others)]
            for case, found in cases.items()]
    parts.append("**CPU per request, Overlane's as a multiple of theirs** (median of the rounds' ratios, least and greatest):\n\n"
                 + table(["case", *others], rows))
    rows = [[case, *(f"{statistics.median(found[name]):.1f}" if name in found else "–" for name in names)]
            for case, found in cases.items()]
    parts.append("CPU µs per request (medians):\n\n" + table(["case", *names], rows))
    rows = [[case, *(f"{statistics.median(found[name]):,.0f}" if name in found else "–" for name in names)]
            for case, found in results["rates"].items()]
    parts.append("Requests per second on one core, 32 connections (medians):\n\n" + table(["case", *names], rows))
    parts.extend(latency(results, names))
    if results["memory"]:
        rows = [[name, f"{results['memory'][name]:.1f}", f"{results['idle'][name]:.2f}"] for name in results["memory"]]
        parts.append("Memory with 1,000 overlays, and what each of 5,000 idle keep-alive connections adds:\n\n"
                     + table(["", "RSS, MiB", "KiB per idle connection"], rows))
    if results["workers"]:
        one, two = (statistics.median(results["workers"][count]) for count in ("1", "2"))
        parts.append(f"Two workers: a request costs {two / one:.2f} × the CPU that it costs with one, so two cores carry "
                     f"{2 * one / two:.2f} × what one does (load and upstream share the two cores: the rate itself says nothing).")
    parts.append(targets(results))
    return "\n\n".join(parts)


def latency(results, names):
    if not results["latency"]:
        return
    rows = []
    for name in (name for name in names if name in results["latency"]):
        found = results["latency"][name]
        rows.append([name, *(f"{statistics.median(row[at] for row in found):,.0f}" for at in ("p50", "p99", "p99.9", "max"))])
    yield (f"Latency in µs at {results['rate']:,.0f} requests per second, half of nginx's saturation (medians of the rounds):\n\n"
           + table(["", "p50", "p99", "p99.9", "max"], rows))


def targets(results):
    rows = []
    for case, peer, most in TARGETS:
        found = results["cases"].get(case, {})
        if peer in found:
            ratio = ratios(found[OURS], found[peer])[0]
            rows.append([f"CPU per request, {case}, × {peer}", f"≤ {most}", f"{ratio:.2f}", "yes" if ratio <= most else "**no**"])
    if OURS in results["memory"]:
        for what, value, most in (("RSS, MiB", results["memory"][OURS], 15), ("KiB per idle connection", results["idle"][OURS], 6)):
            rows.append([what, f"≤ {most}", f"{value:.1f}", "yes" if value <= most else "**no**"])
    for at in ("p50", "p99", "p99.9") if results["latency"] else ():
        middle = {name: statistics.median(row[at] for row in found) for name, found in results["latency"].items()}
        best = min(middle[name] for name in ("nginx", "haproxy") if name in middle)
        rows.append([f"{at} at the fixed rate, µs", f"≤ {best:,.0f}", f"{middle[OURS]:,.0f}", "yes" if middle[OURS] <= best else "**no**"])
    return "Targets:\n\n" + table(["", "wanted", "found", "reached"], rows)


def machine(results):
    return (f"{datetime.date.today()}, {os.cpu_count()} cores ({processor()}), Linux {platform.release()}, "
            f"{results['rounds']} interleaved rounds.")


def write(path, text, results):
    """Replaces the results in a document, and the plot beside it."""
    if not path.exists():
        path.write_text(f"{BEGIN}\n{END}\n")
    picture = path.with_suffix(".svg")
    picture.write_text(plot(results))
    put_into(path, BEGIN, END, f"![CPU per request]({picture.name})\n\n{text}")


def plot(results):
    """CPU per request as bars, each case as a multiple of nginx's."""
    width, bar, gap, left = 760, 14, 22, 170
    marks, y = [], 40
    for case, found in results["cases"].items():
        if "nginx" not in found:
            continue
        marks.append(f'<text x="{left - 10}" y="{y + bar}" text-anchor="end" class="case">{case}</text>')
        for name in found:
            value = ratios(found[name], found["nginx"])[0]
            length = min(value, 3.0) / 3.0 * (width - left - 190)
            colour = COLOURS.get(name, "#8a5fb0" if name.startswith("envoy") else "#4fb38a")
            beyond = " →" if value > 3 else ""
            marks.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" fill="{colour}"/>'
                         f'<text x="{left + length + 6:.1f}" y="{y + bar - 3}">{value:.2f}{beyond} {name}</text>')
            y += bar
        y += gap
    one = left + (width - left - 190) / 3
    marks.append(f'<line x1="{one:.1f}" y1="30" x2="{one:.1f}" y2="{y - gap}" stroke="#888" stroke-dasharray="3 3"/>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" role="img" aria-label="CPU per request beside nginx">'
            "<style>text{font:11px system-ui,sans-serif;fill:#444}.case{font-weight:600}.title{font-size:13px;font-weight:600}"
            "@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>"
            '<text x="10" y="20" class="title">CPU per request, as a multiple of nginx’s (less is better)</text>'
            + "".join(marks) + "</svg>\n")
