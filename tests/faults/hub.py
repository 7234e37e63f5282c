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
import pathlib
import sys
import tempfile
import time

from fleet import BASELINE, Hub, Pressure, all_descriptors, ended, etcd, followers, percentile, put, upstream


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
    with Pressure(proxies[0], at, port, what) as pressure:
        time.sleep(3)
        server.kill()
        time.sleep(away)
        begun = time.time()
        server.again()
        while not put(at(), f"last-{what}", port):
            time.sleep(0.05)
        back = [proxy.knows(f"last-{what}") - begun for proxy in proxies]
        time.sleep(2)
    missing = pressure.lost([at(), *(proxy.address("admin") for proxy in proxies)])
    print(f"{what} away for {away:.0f} s: requests {pressure.requests}, requests failed {pressure.failed}, "
          f"writes acknowledged {len(pressure.acknowledged)}, writes refused {pressure.refused}, "
          f"acknowledged writes lost {len(missing)}, all follow again s after its start {max(back):.1f}", flush=True)
    return not pressure.failed and not missing


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
