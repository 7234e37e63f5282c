#!/usr/bin/env python3
"""A hub before many proxies: how soon a change is everywhere, what a restart of all costs, and a hub that dies under load.

    tests/faults/hub.py target/release/overlane [--proxies 50] [--restarts 200] [--away 60]

1. Create to routed: overlays are created at the hub one after the other; each proxy logs when it publishes. p50 and p99 over
   all proxies and creations, from the request that creates.
2. Restart of all at once: until the last one routes.
3. The hub is killed for a while and started again, while requests go through one of the proxies without a pause and overlays
   are created now and then. No request may fail, and whatever was acknowledged must be there at the end, everywhere.

Exits with 1 where 3 is not so.
"""

import argparse
import datetime
import http.client
import http.server
import json
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

BASELINE = """name: staging
routing: {{mode: baseline}}
services: [{{name: web, expose: true, url: 'http://127.0.0.1:{port}'}}]
"""


def overlay(name, port):
    return json.dumps({"name": name, "routing": {"mode": "overlay", "baselineId": "staging"},
                       "services": [{"name": "web", "url": f"http://127.0.0.1:{port}"}]})


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Proxy:
    """A process, and what it logs."""

    def __init__(self, binary, *arguments):
        self.began = time.time()
        self.process = subprocess.Popen(
            [binary, "run", "--workers", "1", "--admin", "127.0.0.1:0", *arguments],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.addresses = {}
        self.published = []  # (time, what changed)
        self.told = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stderr:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            at = datetime.datetime.fromisoformat(told["timestamp"].replace("Z", "+00:00")).timestamp()
            with self.told:
                if told.get("message") == "listening":
                    self.addresses[told["role"]] = told["address"]
                if told.get("message") == "reloaded":
                    self.published.append((at, told["changes"]))
                self.told.notify_all()

    def until(self, holds, what, patience=120):
        with self.told:
            if not self.told.wait_for(lambda: holds(self), patience):
                raise SystemExit(f"{what}: not within {patience} s ({self.published[-3:]})")

    def address(self, role):
        self.until(lambda own: role in own.addresses, f"a listener {role}")
        return self.addresses[role]

    def when(self, name):
        """When it published a change of this overlay first."""
        def at():
            return next((at for at, changes in self.published if f"+{name} " in changes + " "), None)
        self.until(lambda own: at() is not None, f"{name} is published")
        return at()

    def first(self):
        """When it published what is in the store first; none until then."""
        return next((at for at, changes in self.published if changes != "nothing"), None)

    def first_after(self, moment):
        """When it published something first after a moment."""
        def at():
            return next((at for at, _ in self.published if at > moment), None)
        self.until(lambda own: at() is not None, "something is published")
        return at()

    def stop(self, how=signal.SIGINT):
        self.process.send_signal(how)
        self.process.wait()


def put(hub, name, port):
    """Creates an overlay; true where that was acknowledged."""
    try:
        connection = http.client.HTTPConnection(hub, timeout=20)
        connection.request("PUT", f"/api/v1/overlays/{name}", overlay(name, port), {"content-type": "application/json"})
        return connection.getresponse().status in (200, 201)
    except OSError:
        return False


def listed(address):
    """The overlays that are in force at a hub or an admin listener."""
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", "/api/v1/overlays")
    return {one["id"] for one in json.load(connection.getresponse())["items"]}


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


def followers(binary, hub, count):
    return [Proxy(binary, "--store", f"hub:http://{hub}", "--gateway", "127.0.0.1:0") for _ in range(count)]


def started(proxies):
    """How long each took until it had read the store."""
    took = []
    for proxy in proxies:
        proxy.until(lambda own: own.first() is not None, "a start")
        took.append(proxy.first() - proxy.began)
    return took


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--proxies", type=int, default=50)
    arguments.add_argument("--creations", type=int, default=40)
    arguments.add_argument("--restarts", type=int, default=200)
    arguments.add_argument("--away", type=float, default=60)
    told = arguments.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    echo = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=echo.serve_forever, daemon=True).start()
    upstream = echo.server_address[1]
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder, "store")
        store.mkdir()
        (store / "staging.yaml").write_text(BASELINE.format(port=upstream))
        at = f"127.0.0.1:{free_port()}"
        start = lambda: Proxy(told.binary, "--store", str(store), "--hub", at, "--gateway", "127.0.0.1:0")
        hub = start()
        hub.address("hub")

        proxies = followers(told.binary, at, told.proxies)
        started(proxies)
        latencies = []
        for number in range(told.creations):
            begun = time.time()
            assert put(at, f"a{number}", upstream), "a creation is refused"
            latencies += [proxy.when(f"a{number}") - begun for proxy in proxies]
        print(f"create to routed, {told.proxies} proxies, {told.creations} creations: "
              f"p50 {percentile(latencies, 0.5) * 1000:.1f} ms, p99 {percentile(latencies, 0.99) * 1000:.1f} ms, "
              f"most {max(latencies) * 1000:.1f} ms")

        failures = under_load(told, proxies[0], proxies, at, hub, start, upstream)
        hub = failures.pop("hub")
        print("hub away: " + ", ".join(f"{what} {count}" for what, count in failures.items()))

        for proxy in proxies:
            proxy.process.kill()
            proxy.process.wait()
        begun = time.time()
        proxies = followers(told.binary, at, told.restarts)
        took = started(proxies)
        last = max(proxy.first() for proxy in proxies)
        print(f"{told.restarts} proxies restarted at once: the last routes after {last - begun:.1f} s; "
              f"each takes p50 {percentile(took, 0.5):.2f} s, most {max(took):.2f} s from its own start")
        for proxy in proxies:
            proxy.process.kill()
            proxy.process.wait()
        hub.stop()
    return 1 if failures["requests failed"] or failures["acknowledged writes lost"] else 0


def under_load(told, gateway, proxies, at, hub, start, upstream):
    """Kills the hub, lets requests and writes go on, and starts it again."""
    counts = {"requests": 0, "requests failed": 0, "writes acknowledged": 0, "writes refused": 0}
    over, acknowledged = threading.Event(), []

    def load():
        connection = http.client.HTTPConnection(gateway.address("gateway"), timeout=10)
        while not over.is_set():
            try:
                connection.request("GET", "/", headers={"x-overlay-id": "a0"})
                response = connection.getresponse()
                response.read()
                good = response.status == 200
            except (OSError, http.client.HTTPException):
                good = False
                connection.close()
            counts["requests"] += 1
            counts["requests failed"] += not good
            time.sleep(0.001)

    def write():
        number = 0
        while not over.is_set():
            name, number = f"w{number}", number + 1
            if put(at, name, upstream):
                acknowledged.append(name)
            else:
                counts["writes refused"] += 1
            time.sleep(0.05)

    threads = [threading.Thread(target=load), threading.Thread(target=write)]
    [thread.start() for thread in threads]
    time.sleep(3)
    hub.process.kill()
    hub.process.wait()
    time.sleep(told.away)
    begun = time.time()
    hub = start()
    hub.address("hub")
    while not put(at, "last", upstream):
        time.sleep(0.05)
    back = [proxy.first_after(begun) - begun for proxy in proxies]
    time.sleep(2)
    over.set()
    [thread.join() for thread in threads]
    counts["writes acknowledged"] = len(acknowledged)
    deadline = time.time() + 30
    lost = lambda: [name for address in [at, *(proxy.address("admin") for proxy in proxies)]
                    for name in set(acknowledged) - listed(address)]
    while (missing := lost()) and time.time() < deadline:
        time.sleep(0.2)
    counts["acknowledged writes lost"] = len(missing)
    counts["all follow again s after its start"] = round(max(back), 1)
    counts["hub"] = hub
    return counts


if __name__ == "__main__":
    sys.exit(main())
