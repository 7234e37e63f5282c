#!/usr/bin/env python3
"""Applications as users write them, with OpenTelemetry's own instrumentation, behind real gateways and sidecars.

    cargo build -p overlane
    python3 tests/peers/otel/check.py target/debug/overlane [--only NAME]

gateway → web (Flask, requests and httpx) → api (Express, fetch) → ledger (FastAPI). None of them knows of Overlane: a
tracer forwards the trace, and sidecars restore the key by it. Overlays own different services of them. Every hop must
be answered by the environment that should, whatever is asked at the same time; without a tracer the key is lost, and
that must be said. Wants Python 3.11 and Node 20, and installs what is pinned here beside the binary's build.
"""

import argparse
import concurrent.futures
import http.client
import itertools
import json
import pathlib
import signal
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from harness.processes import Failed
from mesh import BASELINE, OVERLAYS, SERVICES, Mesh
from peers import installed

HERE = pathlib.Path(__file__).resolve().parent
REQUESTS, AT_ONCE = 200, 16
MINUTES = 10
ENDINGS = (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PATHS = ["/requests", "/httpx"]
# The propagators of each run, as a user sets them; without them OpenTelemetry has its own. `None`: no tracer.
RUNS = {
    "as it comes": {},
    "trace context alone": {"OTEL_PROPAGATORS": "tracecontext"},
    "b3": {"OTEL_PROPAGATORS": "b3"},
    "b3multi": {"OTEL_PROPAGATORS": "b3multi"},
    "jaeger": {"OTEL_PROPAGATORS": "jaeger"},
    "without a tracer": None,
}
KEYED = [*OVERLAYS, "last, middle"]
# Those, and no key at all.
KEYS = ["", *KEYED]


def expected(key):
    """The environment that must answer for each service: the nearest owner in the lineage of the first id that has one."""
    def owner(service, environment):
        while environment != BASELINE and service not in OVERLAYS[environment][1]:
            environment = OVERLAYS[environment][0]
        return environment

    def answers(service):
        owners = [owner(service, one) for one in key.split(", ") if one]
        return next((one for one in owners if one != BASELINE), BASELINE)

    return [answers(service) for service in SERVICES]


def ask(mesh, path, key, require=None):
    """The status of an answer, and its body."""
    headers = {"x-overlay-id": key} if key else {}
    connection = http.client.HTTPConnection("127.0.0.1", mesh.gateway.number, timeout=30)
    connection.request("GET", path, headers=headers | ({"x-overlay-require": require} if require else {}))
    response = connection.getresponse()
    body = response.read().decode(errors="replace")
    connection.close()
    return response.status, body


def hops(body):
    """Who says that he answered, from the entrance on."""
    answer = json.loads(body)
    while answer:
        yield answer["service"], answer["environment"]
        answer = answer["next"]


def check_request(mesh, path, key):
    status, body = ask(mesh, path, key, require="*" if key in OVERLAYS else None)
    asked = f"{path} with the key `{key}`"
    if status != 200:
        raise Failed(f"{asked}: {status} instead of 200\n{body}\n{mesh.tails('web')}")
    seen = dict(hops(body))
    for service, environment in zip(SERVICES, expected(key)):
        if seen.get(service) != environment:
            raise Failed(f"{asked}: {service} was to be answered by {environment}, and was by "
                         f"{seen.get(service, 'nobody')}\n{body}\n{mesh.tails(service)}")


def check_requests(mesh, keys, count, at_once):
    """Requests of these keys in turn, so many of them at once."""
    turns = itertools.islice(itertools.cycle(itertools.product(keys, PATHS)), count)
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(check_request, mesh, path, key) for key, path in turns]:
            done.result()


def check_trace(mesh, key):
    """`overlane trace` draws every hop, each under its caller, and knows of no call that is missing."""
    code, text = mesh.overlane("trace", f"http://{mesh.gateway.address}/requests", "--key", key.replace(" ", ""))
    tree = [line.replace("└─", "  ") for line in text.splitlines()[1:1 + len(SERVICES)]]
    for depth, (service, environment) in enumerate(zip(SERVICES, expected(key))):
        line = tree[depth] if depth < len(tree) else ""
        if line.split()[:2] != [service, environment] or len(line) - len(line.lstrip()) != 3 * depth:
            raise Failed(f"the tree of `{key}` lacks {service} by {environment} at depth {depth}:\n{text}")
    if code != 0 or "partial" in text:
        raise Failed(f"`overlane trace` ended with {code}, or calls are missing from it:\n{text}")


def doctor(mesh):
    admins = itertools.chain(*(("--admin", sidecar.admin.address) for sidecar in mesh.sidecars))
    return mesh.overlane("doctor", *admins)


def check_nothing_lost(mesh):
    code, text = doctor(mesh)
    rows = [line.split() for line in text.splitlines()[1:3]]
    if code != 0 or "Nothing is lost." not in text or sorted(row[:2] for row in rows) != [["api", "ledger"], ["web", "api"]]:
        raise Failed(f"`overlane doctor` ended with {code}:\n{text}")
    return text.splitlines()[:3]


def check_traced(mesh):
    check_requests(mesh, KEYS, REQUESTS // 2, 1)
    check_requests(mesh, KEYS, REQUESTS // 4, AT_ONCE)
    check_requests(mesh, KEYED, REQUESTS // 4, AT_ONCE)
    for key in KEYED:
        check_trace(mesh, key)
    return check_nothing_lost(mesh)


def check_untraced(mesh):
    """Who owns the entrance alone is reached without a key, and gives its own to its calls; all others lose theirs."""
    for key in OVERLAYS:
        for path in PATHS:
            status, body = ask(mesh, path, key, require="*")
            wanted = 200 if OVERLAYS[key][1] == ["web"] else 412
            if status != wanted:
                raise Failed(f"{path} with the key `{key}`, which web drops: {status} instead of {wanted}\n{body}")
    code, text = doctor(mesh)
    for losing in ["web loses the key towards api", "api loses the key towards ledger", "opentelemetry-instrument python",
                   "--require @opentelemetry/auto-instrumentations-node/register"]:
        if code != 1 or losing not in text:
            raise Failed(f"`overlane doctor` ended with {code}, and is to say `{losing}`:\n{text}")
    return text.splitlines()[:3]


def check(binary, packages, name):
    with tempfile.TemporaryDirectory(prefix="overlane-otel-") as folder:
        with Mesh(binary, pathlib.Path(folder), packages, RUNS[name]) as mesh:
            told = check_untraced(mesh) if RUNS[name] is None else check_traced(mesh)
    print(f"{name}: as it should be", *told, sep="\n  ", flush=True)


def give_up(number, _):
    # Once is enough: what ends the processes is not to be interrupted.
    for other in ENDINGS:
        signal.signal(other, signal.SIG_IGN)
    raise Failed(f"after {MINUTES} minutes it is not done" if number == signal.SIGALRM else f"ended by signal {number}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--only", choices=RUNS, help="one of the runs")
    options = parser.parse_args()
    if not options.binary.is_file():
        parser.error(f"there is no {options.binary}: cargo build -p overlane")
    cache = installed.cache("otel")
    packages = installed.python(cache, HERE / "python/requirements.txt"), installed.node(cache, HERE / "node/api.js").parent
    # However it ends, what was started here ends before.
    for number in ENDINGS:
        signal.signal(number, give_up)
    signal.alarm(60 * MINUTES)
    for name in [options.only] if options.only else RUNS:
        try:
            check(options.binary.resolve(), packages, name)
        except Failed as failed:
            sys.exit(f"{name}: {failed}")


if __name__ == "__main__":
    main()
