"""What is measured: processor time by /proc, memory by /proc, load by wrk or by `overlane bench`."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time

from harness import figures
from harness.processes import all_descriptors

CONNECTIONS = 32


def cpu(peer):
    """User and system time of a proxy and its children, in seconds."""
    return sum(map(figures.cpu, figures.family(peer.process.child.pid)))


def resident(peer):
    """Resident memory of a proxy and its children, in MiB."""
    return sum(map(figures.memory, figures.family(peer.process.child.pid)))


def saturate(binary, port, key, path, seconds):
    """As many requests as the connections carry; returns how many there were, and per second."""
    url = f"http://127.0.0.1:{port}{path}"
    if shutil.which("wrk"):
        command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
        command += ["-H", f"x-overlay-id: {key}"] if key else []
        out = subprocess.run([*command, url], check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in out or "Socket errors" in out:
            sys.exit(out)
        return int(re.search(r"(\d+) requests in", out).group(1)), float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1))
    found = bench(binary, url, key, ["--duration", f"{seconds}s", "--warmup", "0s"])
    return found["requests"], found["rps"]


def bench(binary, url, key, flags):
    command = ["taskset", "-c", "1", binary, "bench", "--url", url, "--json", "--connections", str(CONNECTIONS)]
    command += ["--header", f"x-overlay-id: {key}"] if key else []
    out = subprocess.run([*command, *flags], check=True, capture_output=True, text=True).stdout
    found = json.loads(out)
    if found["errors"]:
        sys.exit(f"{url}: {found['errors']} errors")
    return found


def latency(binary, port, key, rate, seconds):
    """Latencies in µs at a fixed rate, from when each request was due (no coordinated omission)."""
    flags = ["--rate", str(int(rate)), "--duration", f"{seconds}s", "--warmup", "300ms"]
    return bench(binary, f"http://127.0.0.1:{port}/", key, flags)["latency_us"]


def idle_connections(peer, count):
    """What an idle keep-alive connection costs: KiB of resident memory, over `count` that each made one request."""
    all_descriptors()
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    held = []
    try:
        before = resident(peer)
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", peer.port), timeout=10)
            connection.sendall(request)
            if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                sys.exit(f"{peer.name} refuses a connection")
            held.append(connection)
        # What is kept for a moment after a request is no part of being idle.
        time.sleep(3)
        return (resident(peer) - before) * 1024 / count
    finally:
        for connection in held:
            connection.close()
