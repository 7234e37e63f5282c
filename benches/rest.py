#!/usr/bin/env python3
"""What a process costs before anybody asks it anything: how soon it routes, what a sidecar holds at rest, how large it is.

    python3 benches/rest.py target/dist/overlane [--overlays 1,1000,10000] [--starts 20] [--write docs/sizing.md]

A start is the time from the process's beginning until a request with an overlay's key has its answer from that overlay's service: a gateway
that trusts loopback, asked again and again until it is there. The files of the store were read before, as those of a ConfigMap or of a process that
starts again.

At rest is a sidecar as `overlane inject` makes it, with its service before it and 20 services to call: an inbound and an outbound listener, probes, one
worker. It has answered one request on each way, and then nothing, until its memory has not shrunk for 10 s. `VmRSS` is what the kernel counts; in
brackets is what is its own (`RssAnon`), without the pages of the binary, which sidecars of one node share. Each overlay owns one service, and is a file.

`--write` puts the table into the page, between its marks.
"""

import http.client
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

from harness.figures import memory, processor, put_into
from harness.processes import START, command_line, free_ports, running
from harness.service import answering

BEGIN, END = "<!-- results: made by benches/rest.py -->", "<!-- end of results -->"
SERVICES = 20
QUIET, LONGEST = 10, 120


def store(folder, overlays, port):
    """A baseline of some services, and overlays of one service each, a file for each."""
    path = folder / "store"
    path.mkdir()
    services = "".join(f"  - {{name: service-{number}, url: 'http://127.0.0.1:{port}'}}\n" for number in range(1, SERVICES))
    (path / "staging.yaml").write_text("name: staging\nrouting: {mode: baseline}\nservices:\n"
                                       f"  - {{name: web, expose: true, url: 'http://127.0.0.1:{port}'}}\n{services}")
    for number in range(overlays):
        (path / f"overlay-{number}.yaml").write_text(f"name: overlay-{number}\nrouting: {{mode: overlay, baselineId: staging}}\n"
                                                     f"services:\n  - {{name: web, url: 'http://127.0.0.1:{port}'}}\n")
    for file in path.iterdir():
        file.read_bytes()
    return path


def receipt(port, target, headers):
    """The receipt of one request; nothing where nobody listens yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        response.read()
        return response.getheader("x-overlay-route") if response.status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


def answered(process, port, target, headers, wanted):
    """Asks until an answer has this receipt."""
    until = time.monotonic() + START
    while wanted not in (receipt(port, target, headers) or ""):
        if process.child.poll() is not None or time.monotonic() > until:
            sys.exit(f"no answer by `{wanted}` on port {port}:\n{process.tail()}")


def start(options, path, overlays):
    """Seconds from the process's beginning until the last of the overlays answers."""
    gateway, admin = free_ports(2)
    key = f"overlay-{overlays - 1}"
    begun = time.perf_counter()
    with running("gateway", path.parent, options.binary, "run", "--store", path, "--gateway", f"127.0.0.1:{gateway}",
                 "--admin", f"127.0.0.1:{admin}") as process:
        answered(process, gateway, "/", {"x-overlay-id": key}, f"env={key}")
        return time.perf_counter() - begun


def rested(pid):
    """Its memory once that has not shrunk for a while, and what of that is its own, in MiB."""
    least, since, begun = memory(pid), time.monotonic(), time.monotonic()
    while time.monotonic() - since < QUIET and time.monotonic() - begun < LONGEST:
        time.sleep(0.5)
        now = memory(pid)
        if now < least - 0.1:
            least, since = now, time.monotonic()
    return memory(pid), memory(pid, "RssAnon")


def sidecar(options, path, overlays, port):
    inbound, outbound, admin, probes = free_ports(4)
    words = ["--service", "web", "--inbound", f"127.0.0.1:{inbound}", "--app", f"http://127.0.0.1:{port}", "--outbound", f"127.0.0.1:{outbound}",
             "--admin", f"127.0.0.1:{admin}", "--probes", f"127.0.0.1:{probes}", "--workers", "1"]
    with running("sidecar", path.parent, options.binary, "run", "--store", path, *words) as process:
        key = f"overlay-{overlays - 1}"
        answered(process, inbound, "/", {"x-overlay-id": "staging"}, "web;env=staging")
        answered(process, outbound, "http://web/", {"host": "web", "x-overlay-id": key}, f"web;env={key}")
        return rested(process.child.pid)


def rows(options):
    for overlays in options.overlays:
        with tempfile.TemporaryDirectory(prefix="overlane-rest-") as folder:
            port = answering()
            path = store(pathlib.Path(folder), overlays, port)
            times = [start(options, path, overlays) * 1000 for _ in range(options.starts)]
            whole, own = sidecar(options, path, overlays, port)
            yield (f"| {overlays:,} | {statistics.median(times):.0f} ms ({min(times):.0f}–{max(times):.0f}) "
                   f"| {whole:.1f} MiB ({own:.1f}) |")


def size(options):
    """Megabytes of the binary as it is released."""
    if not shutil.which("strip"):
        return "strip (binutils) is not here: the binary's size as released is not known"
    with tempfile.TemporaryDirectory() as folder:
        stripped = pathlib.Path(folder, "overlane")
        subprocess.run(["strip", options.binary, "-o", stripped], check=True)
        return f"The binary that was measured has {stripped.stat().st_size / 1e6:.1f} MB, stripped."


def table(options):
    load = pathlib.Path("/proc/loadavg").read_text().split()[0]
    yield f"{time.strftime('%Y-%m-%d')}, {processor()}, Linux {platform.release()}, load {load} at the beginning; {options.starts} starts each: the median, the least and the greatest."
    yield from ("", "| overlays | start until the first routed answer | sidecar at rest: resident (its own) |", "|---|---|---|")
    yield from rows(options)
    yield from ("", size(options))


def main():
    parser = command_line(__doc__)
    parser.add_argument("--overlays", type=lambda text: [int(count) for count in text.split(",")], default=[1, 1000, 10000])
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE.md", help="replace the results in a document")
    options = parser.parse_args()
    text = "\n".join(table(options))
    print(text)
    if options.write:
        put_into(options.write, BEGIN, END, text)


if __name__ == "__main__":
    main()
