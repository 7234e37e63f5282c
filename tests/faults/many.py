#!/usr/bin/env python3
"""Many overlays in an etcd: how long a proxy takes to start, what it holds, and how soon one change is routed.

    tests/faults/many.py target/release/overlane [--overlays 100000] [--changes 20]

Everything is measured at the proxy's gateway: a request with the key of an overlay is answered by that overlay, and says so. A start is
from the process' own beginning: with the store alone, with a cache beside it, and with the cache alone. A change is
written to etcd itself, at the proxy's API and by a command at its hub (which check it against what the proxy follows), and by a command at the
etcd (which lists the whole store).

Exits with 1 where something is not routed within two minutes. Wants etcd-server.
"""

import argparse
import http.client
import subprocess
import sys
import tempfile
import time

from fleet import BASELINE, Proxy, all_descriptors, ended, etcd, overlay, percentile, put, upstream

PATIENCE = 120


class Asked:
    """A gateway that is asked again and again who answers, until it is the overlay."""

    def __init__(self, proxy):
        self.connection = http.client.HTTPConnection(proxy.address("gateway"), timeout=10)
        self.others = 0  # answers that were not the overlay's

    def until_routed(self, name):
        deadline = time.time() + PATIENCE
        while not self.is_routed(name):
            self.others += 1
            if time.time() > deadline:
                raise SystemExit(f"{name} is not routed within {PATIENCE} s")
            time.sleep(0.0005)
        return time.time()

    def is_routed(self, name):
        try:
            self.connection.request("GET", "/", headers={"x-overlay-id": name})
            response = self.connection.getresponse()
            response.read()
            return response.status == 200 and "via=overlay" in response.headers.get("x-overlay-route", "")
        except (OSError, http.client.HTTPException):
            self.connection.close()
            return False


def start(told, store, last, what, *arguments):
    """Starts a proxy, and says how long that takes until the last overlay is routed."""
    proxy = Proxy(told.binary, "--store", store, "--gateway", "127.0.0.1:0", *arguments)
    try:
        asked = Asked(proxy)
        served = time.time() - proxy.began
        took = asked.until_routed(last) - proxy.began
    except BaseException:
        proxy.kill()
        raise
    print(f"start, {what}: routed after {took:.2f} s; listens after {served:.2f} s, {asked.others} answers before were others'",
          flush=True)
    return proxy


def changes(told, proxy, what, write):
    """How soon each of some changes is routed, from before it is written."""
    asked, took = Asked(proxy), []
    for number in range(told.changes):
        name, begun = f"{what.split()[-1]}{number}", time.time()
        write(name)
        took.append(asked.until_routed(name) - begun)
    print(f"one change, {what}: p50 {percentile(took, 0.5) * 1000:.1f} ms, most {max(took) * 1000:.1f} ms", flush=True)


def memory(told, proxy, empty):
    """What a proxy holds once it has nothing to do, beside one without overlays."""
    time.sleep(5)
    now, most = proxy.memory()
    alone, _ = empty.memory()
    print(f"memory: {now:.1f} MiB, most {most:.1f} MiB, {alone:.1f} MiB without overlays: "
          f"{(now - alone) * 1024 * 1024 / told.overlays:.0f} bytes for each", flush=True)


def command(binary, store, port):
    def create(name):
        subprocess.run([binary, "overlay", "create", "--store", store, "--file", "-"], input=overlay(name, port), text=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return create


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("binary")
    arguments.add_argument("--overlays", type=int, default=100_000)
    arguments.add_argument("--changes", type=int, default=20)
    told = arguments.parse_args()
    all_descriptors()
    port, last = upstream(), f"o{told.overlays - 1}"
    with etcd() as member, tempfile.TemporaryDirectory() as cache, ended([]) as running:
        member.put(("staging.yaml", BASELINE.format(port=port)))
        empty = Proxy(told.binary, "--store", f"{member.store}/empty", "--gateway", "127.0.0.1:0")
        running.append(empty)
        member.put(*((f"o{number}.yaml", overlay(f"o{number}", port)) for number in range(told.overlays)))
        print(f"{told.overlays} overlays, {member.size() / 2**20:.0f} MiB in etcd", flush=True)

        proxy = start(told, member.store, last, "by the store", "--hub", "127.0.0.1:0")
        running.append(proxy)
        memory(told, proxy, empty)
        changes(told, proxy, "written to etcd", lambda name: member.put((f"{name}.yaml", overlay(name, port))))
        admin = proxy.address("admin")
        changes(told, proxy, "put at the api", lambda name: accepted(put(admin, name, port)))
        changes(told, proxy, "by a command at the hub", command(told.binary, f"hub:http://{proxy.address('hub')}", port))
        changes(told, proxy, "by a command", command(told.binary, member.store, port))
        memory(told, proxy, empty)
        proxy.stop()

        for what in ("by the store, and a cache is written", "by the cache and the store"):
            kept = start(told, member.store, last, what, "--cache", cache)
            running.append(kept)
            kept.stop()
        member.kill()
        running.append(start(told, member.store, last, "by the cache, etcd is away", "--cache", cache))
    return 0


def accepted(acknowledged):
    assert acknowledged, "a creation is refused"


if __name__ == "__main__":
    sys.exit(main())
