#!/usr/bin/env python3
"""What metrics cost in memory, and what a scrape takes, where every overlay's key was seen at every service.

    cargo build --profile dist -p overlane
    python3 benches/metrics.py target/dist/overlane [--overlays 10000] [--services 20] [--labels 1000,10000]

One worker of a gateway; each overlay owns one service, and each key asks all of them once. Told are the process's resident memory with the
table alone, after the requests, while it was scraped (its peak) and a while after that, and the size and time of a scrape: once for each bound of
overlays that have series of their own (`--overlay-labels`). Decisions are not kept: they would be in the figures.
"""

import asyncio
import contextlib
import multiprocessing
import pathlib
import re
import socket
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

from harness.figures import memory
from harness.processes import command_line, free_ports, running, until

# Requests that are under way at once.
CONNECTIONS = 32
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\noverlay\n"
SCRAPES = 5


class Upstream(asyncio.Protocol):
    """Answers every head."""

    def connection_made(self, transport):
        self.transport, self.read = transport, b""

    def data_received(self, data):
        *heads, self.read = (self.read + data).split(b"\r\n\r\n")
        self.transport.write(ANSWER * len(heads))


def serve(listener):
    async def until_ended():
        server = await asyncio.get_running_loop().create_server(Upstream, sock=listener)
        await server.serve_forever()

    asyncio.run(until_ended())


def store(folder, overlays, services, port):
    folder.mkdir()
    url = f"http://127.0.0.1:{port}"
    (folder / "staging.yaml").write_text("name: staging\nrouting: {mode: baseline}\nservices:\n" + "".join(
        f"- {{name: service-{at}, expose: true, hosts: [service-{at}], url: '{url}'}}\n" for at in range(services)))
    (folder / "overlays.yaml").write_text("---\n".join(
        f"name: overlay-{at}\nrouting: {{mode: overlay, baselineId: staging}}\nservices: [{{name: service-{at % services}, url: '{url}'}}]\n"
        for at in range(overlays)))


async def ask(port, heads):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for head in heads:
        writer.write(head)
        line = await reader.readuntil(b"\r\n\r\n")
        if not line.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"answered with {line!r}")
        await reader.readexactly(8)
    writer.close()


async def ask_all(port, overlays, services):
    """Each key at each service, once."""
    heads = (f"GET / HTTP/1.1\r\nHost: service-{service}\r\nx-overlay-id: overlay-{overlay}\r\n\r\n".encode()
             for overlay in range(overlays) for service in range(services))
    await asyncio.gather(*(ask(port, heads) for _ in range(CONNECTIONS)))


def settled(pid):
    """Once the allocator gave back what nobody uses."""
    before = memory(pid)
    for _ in range(30):
        time.sleep(2)
        now = memory(pid)
        if abs(now - before) < 0.5:
            break
        before = now
    return now


def ready(admin):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=5).read()


def measured(options, labels, upstream):
    with tempfile.TemporaryDirectory(prefix="overlane-metrics-") as folder:
        folder = pathlib.Path(folder)
        store(folder / "store", options.overlays, options.services, upstream)
        port, admin = free_ports(2)
        command = [options.binary, "run", "--store", folder / "store", "--workers", "1", "--decisions", "0", "--overlay-labels", labels,
                   "--gateway", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
        with running("gateway", folder, *command, port=port) as process:
            pid = process.child.pid
            until("it is ready", lambda: ready(admin), 60)
            alone = settled(pid)
            asyncio.run(ask_all(port, options.overlays, options.services))
            counted = settled(pid)
            # The peak counts from here.
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
            times, text = [], b""
            for _ in range(SCRAPES):
                began = time.monotonic()
                text = urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=60).read()
                times.append(time.monotonic() - began)
            peak, after = memory(pid, "VmHWM"), settled(pid)
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    requests = re.findall(rb"^overlane_requests_total\{.*\} (\d+)$", text, re.M)
    if sum(map(int, requests)) != options.overlays * options.services:
        raise SystemExit(f"{sum(map(int, requests))} requests were counted")
    print(f"{labels:>6,} overlays with series: {alone:.0f} MiB with the table, {counted:.0f} MiB with what was counted; a scrape of {series:,} series, "
          f"{len(text) / 2**20:.1f} MiB, takes {sorted(times)[SCRAPES // 2] * 1000:.0f} ms (median of {SCRAPES}); {peak:.0f} MiB meanwhile, "
          f"{after:.0f} MiB after it", flush=True)


def main():
    parser = command_line(__doc__)
    parser.add_argument("--overlays", type=int, default=10_000)
    parser.add_argument("--services", type=int, default=20)
    parser.add_argument("--labels", type=lambda text: [int(each) for each in text.split(",")], default=[1000, 10_000])
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    upstream = multiprocessing.Process(target=serve, args=(listener,), daemon=True)
    upstream.start()
    print(f"{options.overlays:,} overlays, {options.services} services: {options.overlays * options.services:,} pairs")
    try:
        for labels in options.labels:
            measured(options, labels, listener.getsockname()[1])
    finally:
        upstream.terminate()


if __name__ == "__main__":
    sys.exit(main())
