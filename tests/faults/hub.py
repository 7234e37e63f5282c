#!/usr/bin/env python3
"""A shared store before many proxies: how soon a change is everywhere, what a restart of all costs, and a hub and a store that
die under load.

    tests/faults/hub.py target/release/overlane [--store directory|etcd] [--direct] [--proxies 50] [--restarts 200] [--away 60]

Proxies follow a hub of the store; with `--direct` they follow the etcd itself, and overlays are created at one of them.

1. Create to routed: overlays are created one after the other; each proxy logs when it publishes. p50 and p99 over
   all proxies and creations, from the request that creates.
2. The hub, and then the etcd, is killed for a while and started again, while requests go through one of the proxies without a pause
   and overlays are created now and then. No request may fail, and whatever was acknowledged must be there at the end, everywhere.
3. Restart of all at once: until the last one routes.

Exits with 1 where 2 is not so. `--store etcd` wants etcd-server.
"""

import argparse
import contextlib
import http.client
import pathlib
import sys
import tempfile
import threading
import time

from fleet import BASELINE, Hub, all_descriptors, ended, etcd, followers, listed, percentile, put, upstream


@contextlib.contextmanager
def store(told, port):
    """A store with a baseline: where it is, and what can be killed of it."""
    if told.store == "etcd":
        with etcd() as member:
            member.put(("staging.yaml", BASELINE.format(port=port)))
            yield member.store, {"etcd": member}
    else:
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "staging.yaml").write_text(BASELINE.format(port=port))
            yield folder, {}


def started(proxies):
    """How long each took until it had read the store."""
    took = []
    for proxy in proxies:
        proxy.until(lambda own: own.first() is not None, "a start")
        took.append(proxy.first() - proxy.began)
    return took


def create_to_routed(told, proxies, at, port):
    latencies = []
    for number in range(told.creations):
        begun = time.time()
        assert put(at, f"a{number}", port), "a creation is refused"
        latencies += [proxy.when(f"a{number}") - begun for proxy in proxies]
    print(f"create to routed, {told.proxies} proxies, {told.creations} creations: "
          f"p50 {percentile(latencies, 0.5) * 1000:.1f} ms, p99 {percentile(latencies, 0.99) * 1000:.1f} ms, "
          f"most {max(latencies) * 1000:.1f} ms", flush=True)


def under_load(away, what, server, proxies, at, port):
    """Kills a server, lets requests and writes go on, and starts it again; true where nothing was lost."""
    counts = {"requests": 0, "requests failed": 0, "writes acknowledged": 0, "writes refused": 0}
    over, acknowledged = threading.Event(), []

    def load():
        connection = http.client.HTTPConnection(proxies[0].address("gateway"), timeout=10)
        while not over.is_set():
            try:
                connection.request("GET", "/", headers={"x-overlay-id": "a0"})
                response = connection.getresponse()
                response.read()
                good = response.status == 200 and "via=overlay" in response.headers.get("x-overlay-route", "")
            except (OSError, http.client.HTTPException):
                good = False
                connection.close()
            counts["requests"] += 1
            counts["requests failed"] += not good
            time.sleep(0.001)

    def write():
        number = 0
        while not over.is_set():
            name, number = f"{what}{number}", number + 1
            if put(at(), name, port):
                acknowledged.append(name)
            else:
                counts["writes refused"] += 1
            time.sleep(0.05)

    threads = [threading.Thread(target=load), threading.Thread(target=write)]
    try:
        [thread.start() for thread in threads]
        time.sleep(3)
        server.kill()
        time.sleep(away)
        begun = time.time()
        server.again()
        while not put(at(), f"last-{what}", port):
            time.sleep(0.05)
        back = [proxy.knows(f"last-{what}") - begun for proxy in proxies]
        time.sleep(2)
    finally:
        over.set()
        [thread.join() for thread in threads]
    counts["writes acknowledged"] = len(acknowledged)
    deadline = time.time() + 30
    lost = lambda: [name for address in [at(), *(proxy.address("admin") for proxy in proxies)]
                    for name in set(acknowledged) - listed(address)]
    while (missing := lost()) and time.time() < deadline:
        time.sleep(0.2)
    counts["acknowledged writes lost"] = len(missing)
    counts["all follow again s after its start"] = round(max(back), 1)
    print(f"{what} away for {away:.0f} s: " + ", ".join(f"{what} {count}" for what, count in counts.items()), flush=True)
    return not counts["requests failed"] and not missing


def restart(told, followed):
    begun = time.time()
    with ended(followers(told.binary, followed, told.restarts)) as proxies:
        took = started(proxies)
        last = max(proxy.first() for proxy in proxies)
        print(f"{told.restarts} proxies restarted at once: the last routes after {last - begun:.1f} s; "
              f"each takes p50 {percentile(took, 0.5):.2f} s, most {max(took):.2f} s from its own start", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("binary")
    arguments.add_argument("--store", choices=["directory", "etcd"], default="directory")
    arguments.add_argument("--direct", action="store_true", help="proxies follow the etcd, and there is no hub")
    arguments.add_argument("--proxies", type=int, default=50)
    arguments.add_argument("--creations", type=int, default=40)
    arguments.add_argument("--restarts", type=int, default=200)
    arguments.add_argument("--away", type=float, default=60)
    told = arguments.parse_args()
    if told.direct and told.store != "etcd":
        arguments.error("--direct: only an etcd is followed by many machines; add --store etcd")
    all_descriptors()
    port = upstream()
    with store(told, port) as (followed, servers), ended([]) as running:
        if not told.direct:
            hub = Hub(told.binary, followed)
            followed, servers = f"hub:http://{hub.at}", {"hub": hub, **servers}
            running.append(hub)
        proxies = followers(told.binary, followed, told.proxies)
        running += proxies
        started(proxies)
        at = lambda: hub.at if not told.direct else proxies[0].address("admin")
        create_to_routed(told, proxies, at(), port)
        good = [under_load(told.away, what, server, proxies, at, port) for what, server in servers.items()]
        for proxy in proxies:
            proxy.kill()
        if told.restarts:
            restart(told, followed)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
