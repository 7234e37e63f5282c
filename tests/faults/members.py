#!/usr/bin/env python3
"""An etcd of three members under load: its leader is killed, its leader falls silent, and most of it is gone.

    tests/faults/members.py target/release/overlane [--proxies 10] [--away 20]

Proxies follow the etcd itself, each beginning at a member of its own, while requests go through one of them without a pause and overlays are
created at another one. After each fault it is told

- how long no write was acknowledged at most,
- how long it took from the fault until every proxy routed an overlay that was created after it (where most members are left),
- and the same from the end of the fault.

Exits with 1 where a request failed, or something that was acknowledged is not in force everywhere at the end. Wants etcd-server.
"""

import argparse
import sys
import time

from fleet import BASELINE, Pressure, all_descriptors, cluster, ended, followers, put, upstream


def leader(members):
    return next(member for member in members if member.is_leader())


def leader_killed(members):
    struck = leader(members)
    struck.kill()
    return struck.again


def leader_silent(members):
    struck = leader(members)
    struck.pause()
    return lambda: (struck.go_on(), struck.until_healthy())


def most_killed(members):
    struck = members[:len(members) // 2 + 1]
    [member.kill() for member in struck]
    return lambda: ([member.begin() for member in struck], [member.until_healthy() for member in struck])


def everywhere(name, proxies, at, port, begun):
    """How long after `begun` an overlay that is created now is in force at every proxy."""
    while not put(at(), name, port):
        time.sleep(0.05)
    return max(proxy.knows(name) for proxy in proxies) - begun


def struck(told, what, strike, members, proxies, port):
    """True where nothing was lost."""
    at, name = (lambda: proxies[-1].address("admin")), strike.__name__.replace("_", "-")
    figures = []
    with Pressure(proxies[0], at, port, f"{name}-") as pressure:
        time.sleep(2)
        begun = time.time()
        end = strike(members)
        if strike is not most_killed:
            figures.append(f"all follow {everywhere(f'{name}-during', proxies, at, port, begun):.1f} s after it")
        time.sleep(max(0, begun + told.away - time.time()))
        begun = time.time()
        end()
        figures.append(f"all follow {everywhere(f'{name}-after', proxies, at, port, begun):.1f} s after its end")
        time.sleep(2)
    missing = pressure.lost([proxy.address("admin") for proxy in proxies])
    print(f"{what}: requests {pressure.requests}, failed {pressure.failed}, writes acknowledged {len(pressure.acknowledged)}, "
          f"refused {pressure.refused}, acknowledged and lost {len(missing)}, no write for {pressure.longest_without_a_write():.1f} s "
          f"at most, {', '.join(figures)}", flush=True)
    return not pressure.failed and not missing


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("binary")
    arguments.add_argument("--proxies", type=int, default=10)
    arguments.add_argument("--away", type=float, default=20)
    told = arguments.parse_args()
    all_descriptors()
    port = upstream()
    with cluster(3) as members, ended([]) as running:
        members[0].put(("staging.yaml", BASELINE.format(port=port)))
        proxies = followers(told.binary, members[0].store, told.proxies)
        running += proxies
        assert put(proxies[0].address("admin"), "a0", port), "a creation is refused"
        [proxy.knows("a0") for proxy in proxies]
        faults = {"the leader killed": leader_killed, "the leader silent": leader_silent, "two of three killed": most_killed}
        good = [struck(told, what, strike, members, proxies, port) for what, strike in faults.items()]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
