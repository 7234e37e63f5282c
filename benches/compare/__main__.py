#!/usr/bin/env python3
"""Overlane beside nginx, HAProxy and Envoy at the same job, as ratios in one run.

    cargo build --profile dist -p overlane
    python3 benches/compare target/dist/overlane [--quick] [--also NAME=BINARY] [--envoy PATH] [--write docs/benchmarks.md]

Installs nothing and uses what it finds: nginx (needed: it is the upstream too), haproxy, envoy, wrk. Everything is on
loopback, bounded in time, and ended by process id. The proxy has core 0; load and upstream share core 1.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests"))

from harness.processes import command_line, listening, program
import measure
import peers
import report

#: What is asked at each size of the table: the case, its key (of the last overlay, of nobody, none) and its path.
CASES = {
    10_000: [("known key", "last", "/"), ("unknown key", "nobody", "/"), ("no key", None, "/"),
             ("64 KiB", "last", "/64k"), ("1 MiB", "last", "/1m")],
    1: [("1 overlay", "last", "/")],
    1_000: [("1,000 overlays", "last", "/")],
    100_000: [("100,000 overlays", "last", "/")],
}


def main():
    options = arguments()
    if not shutil.which("nginx"):
        sys.exit("nginx is not there: it is the upstream of all, and what is compared with")
    results = {"cases": {}, "rates": {}, "latency": {}, "memory": {}, "idle": {}, "workers": {}, "rounds": options.rounds}
    for count in options.overlays:
        with tempfile.TemporaryDirectory(prefix="overlane-compare-") as name:
            compare(options, pathlib.Path(name), count, results)
    for count in (1, 2):
        with tempfile.TemporaryDirectory(prefix="overlane-compare-") as name:
            workers(options, pathlib.Path(name), count, results)
    text = report.markdown(results)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.write:
        report.write(options.write, text, results)


def arguments():
    parser = command_line(__doc__)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=BINARY", help="a further build of overlane")
    parser.add_argument("--envoy", type=program, default=shutil.which("envoy"), help="the envoy binary, if it is not on the PATH")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=2, help="of load per measurement")
    parser.add_argument("--overlays", type=lambda text: [int(each) for each in text.split(",")], default=list(CASES))
    parser.add_argument("--quick", action="store_true", help="two rounds of a second, one table: to try it out")
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE.md", help="replace the results in a document")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.overlays = 2, 1, [10_000]
    builds = [tuple(each.split("=", 1)) for each in options.also]
    options.binaries = [("overlane", options.binary, []), ("overlane, pingora", options.binary, ["--engine", "pingora"])]
    options.binaries += [(name, program(path), []) for name, path in builds]
    options.workers, options.pinned = 1, True
    return options


@contextlib.contextmanager
def running(options, folder, count):
    """All peers, checked; ended whatever happens."""
    started = [peers.upstream(folder)]
    try:
        listening(started[0].port, started[0].process)
        cores = ["taskset", "-c", "0"] if options.pinned else []
        for name, port, command in peers.commands(folder, options.binaries, count, options.envoy, options.workers):
            started.append(peers.Peer(name, port, [*cores, *command], folder))
        for peer in started[1:]:
            peers.check(peer, count)
        yield started[1:]
    finally:
        for peer in started:
            peer.stop()


def compare(options, folder, count, results):
    with running(options, folder, count) as found:
        if count == 1_000:
            memory(found, results)
        keys = {"last": peers.overlay(count - 1), "nobody": "nobody", None: None}
        for case, key, path in CASES[count]:
            for number in range(options.rounds):
                note(f"{case}: round {number + 1} of {options.rounds}")
                for peer in found:
                    before = measure.cpu(peer)
                    requests, rate = measure.saturate(options.binary, peer.port, keys[key], path, options.seconds)
                    micros = (measure.cpu(peer) - before) * 1e6 / requests
                    results["cases"].setdefault(case, {}).setdefault(peer.name, []).append(micros)
                    results["rates"].setdefault(case, {}).setdefault(peer.name, []).append(rate)
        if count == 10_000:
            latencies(options, found, keys["last"], results)


def latencies(options, found, key, results):
    """At half of nginx's saturation, the same for all."""
    rate = statistics.median(results["rates"]["known key"]["nginx"]) / 2
    results["rate"] = rate
    for number in range(options.rounds):
        note(f"latency: round {number + 1} of {options.rounds}")
        for peer in found:
            # Who cannot carry the rate has no latency at it.
            if statistics.median(results["rates"]["known key"][peer.name]) < rate:
                continue
            row = measure.latency(options.binary, peer.port, key, rate, max(2, options.seconds))
            results["latency"].setdefault(peer.name, []).append(row)


def memory(found, results):
    for peer in found:
        note(f"memory of {peer.name}")
        results["memory"][peer.name] = measure.resident(peer)
        results["idle"][peer.name] = measure.idle_connections(peer, 5000)


def workers(options, folder, count, results):
    """What a request costs with so many workers, on both cores beside the load."""
    only = argparse.Namespace(binaries=options.binaries[:1], envoy=None, workers=count, pinned=False)
    with running(only, folder, 10_000) as found:
        for _ in range(options.rounds):
            before = measure.cpu(found[0])
            requests, _ = measure.saturate(options.binary, found[0].port, peers.overlay(7), "/", options.seconds)
            results["workers"].setdefault(str(count), []).append((measure.cpu(found[0]) - before) * 1e6 / requests)


def note(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
