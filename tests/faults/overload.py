#!/usr/bin/env python3
"""One overlay sends ten times what a shared service can take: what the others notice, with limits and without.

    cargo build --profile dist -p overlane
    python3 tests/faults/overload.py target/dist/overlane [--rounds N] [--seconds N]

Three parts, each a rule that this program ends with an error for where it does not hold:

shared  `web` of the baseline answers 8 requests at once, each in 80 ms. The overlay `bob` and the baseline ask it now and then;
        the overlay `alice` sends ten times its capacity. In turn, round by round: nobody but them; with alice, and
        `maxRequests: 8` in the blueprint; with alice, and no limits. With limits all requests of the others succeed.
dead    alice's own service refuses connections, and she sends 1,000 requests a second that wait 2 s each. How often is it
        tried to connect to it, per request? `bob` notices nothing.
memory  carol opens 12,000 streams of HTTP/2 to a service that never answers, as fast as she can. How much memory does that
        take, with limits and without? Wants h2load (nghttp2).

Everything is on loopback; wants `ulimit -n` 20000.
"""

import asyncio
import contextlib
import json
import multiprocessing
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness import figures
from harness.processes import all_descriptors, command_line, running, until

SHARED, DEAD, SILENT, GATEWAYS, ADMINS = 18700, 18701, 18702, 18710, 18730
AT_ONCE, TAKES = 8, 0.08
CAPACITY = int(AT_ONCE / TAKES)
HEAD_END = b"\r\n\r\n"
UNLIMITED = "maxRequests: 4294967295\nmaxUpstreamRequests: 4294967295\nmaxHeld: 4294967295\n"


def upstream(port, answers):
    """A service that takes so many at once, the others waiting in its queue; or one that never answers."""
    room = asyncio.Semaphore(AT_ONCE)

    async def serve(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(HEAD_END)
                async with room:
                    await asyncio.sleep(TAKES)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        writer.close()

    async def silent(reader, writer):
        with contextlib.suppress(OSError):
            while await reader.read(4096):
                pass
        writer.close()

    async def run():
        await (await asyncio.start_server(serve if answers else silent, "127.0.0.1", port, backlog=4096)).serve_forever()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(run())


def store(folder, limited):
    folder.mkdir()
    most = f", maxRequests: {AT_ONCE}" if limited else ""
    (folder / "base.yaml").write_text(
        "name: base\nrouting: {mode: baseline, holdFor: 2s}\nservices:\n"
        f"- {{name: web, hosts: [web], url: 'http://127.0.0.1:{SHARED}'{most}}}\n"
        f"- {{name: sick, hosts: [sick], url: 'http://127.0.0.1:{SHARED}'}}\n")
    for name, port in [("alice", DEAD), ("bob", SHARED), ("carol", SILENT)]:
        (folder / f"{name}.yaml").write_text(
            f"name: {name}\nrouting: {{mode: overlay, baselineId: base}}\n"
            f"services: [{{name: sick, url: 'http://127.0.0.1:{port}'}}]\n")


@contextlib.contextmanager
def gateway(binary, folder, number, limited):
    store(folder / f"store{number}", limited)
    settings = folder / f"settings{number}.yaml"
    settings.write_text("workers: 2\n" + ("" if limited else UNLIMITED))
    command = [binary, "run", "--config", settings, "--store", folder / f"store{number}", "--gateway",
               f"127.0.0.1:{GATEWAYS + number}", "--admin", f"127.0.0.1:{ADMINS + number}"]
    with running(f"gateway{number}", folder, *command, port=ADMINS + number, ends=signal.SIGKILL) as process:
        yield process.child.pid


def metric(number, name):
    return figures.metric(ADMINS + number, name)


def bench(binary, number, key, rate, connections, seconds, host="web"):
    """An open loop: requests leave when they are meant to, whatever became of the others."""
    headers = ["-H", f"host: {host}"] + (["-H", f"x-overlay-id: {key}"] if key else [])
    command = [binary, "bench", "--url", f"http://127.0.0.1:{GATEWAYS + number}/", *headers, "--rate", str(rate),
               "--connections", str(connections), "--duration", f"{seconds}s", "--warmup", "500ms", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def result(process):
    told, _ = process.communicate()
    return json.loads(told.splitlines()[0])


def asked(one):
    """How many requests were to be sent, and how many of them were not answered as they should."""
    requests = one["errors"] + one["unsent"] + sum(one["status"].values())
    return requests, requests - one["status"].get("200", 0)


def others(binary, number, seconds):
    """Two others ask ten times in a second each."""
    asking = [bench(binary, number, key, 10, 20, seconds) for key in ["bob", ""]]
    answers = [result(one) for one in asking]
    requests, lost = (sum(counts) for counts in zip(*map(asked, answers)))
    return requests, lost, max(one["latency_us"]["p99"] for one in answers) / 1000


def shared(options, binary):
    """Rounds in turn, so that whatever else this machine does hits all of them."""
    cases = {"alone": (0, False), "limits": (0, True), "no limits": (1, True)}
    seen = {name: [] for name in cases}
    refused = []
    for _ in range(options.rounds):
        for name, (number, floods) in cases.items():
            flood = floods and bench(binary, number, "alice", 10 * CAPACITY, 1000, options.seconds + 2)
            time.sleep(1.5 if floods else 0)
            seen[name].append(others(binary, number, options.seconds))
            if floods:
                status = result(flood)["status"]
                if name == "limits":
                    refused.append(status.get("503", 0) / max(sum(status.values()), 1))
                until("nothing is under way", lambda: metric(number, "overlane_active_requests") == 0, 30)
    print(f"shared: {CAPACITY} requests/s are what it can take, alice sends {10 * CAPACITY}")
    for name, rounds in seen.items():
        requests, lost = sum(one[0] for one in rounds), sum(one[1] for one in rounds)
        print(f"  {name:9} others: {requests - lost} of {requests} answered, "
              f"p99 {statistics.median(one[2] for one in rounds):.0f} ms")
    print(f"  of alice's requests {statistics.median(refused):.0%} were refused")
    lost = sum(one[1] for name in ["alone", "limits"] for one in seen[name])
    ratio = statistics.median(limits[2] / alone[2] for alone, limits in zip(seen["alone"], seen["limits"]))
    print(f"  p99 with limits beside alone: {ratio:.2f}")
    return [f"{lost} requests of others were lost with limits"] if lost else []


def dead(options, binary):
    before = [metric(0, name) for name in ["overlane_upstream_connect_failures_total", "overlane_held_requests_total"]]
    flood = bench(binary, 0, "alice", 1000, 3000, options.seconds + 2, "sick")
    time.sleep(1.5)
    requests, lost, p99 = others(binary, 0, options.seconds)
    sent = result(flood)
    until("nothing is under way", lambda: metric(0, "overlane_active_requests") == 0, 30)
    now = [metric(0, name) for name in ["overlane_upstream_connect_failures_total", "overlane_held_requests_total"]]
    attempts, held = (after - old for after, old in zip(now, before))
    print(f"dead: {sum(sent['status'].values())} requests, {held:.0f} of them waited; {attempts:.0f} attempts to connect: "
          f"{attempts / max(held, 1):.3f} per request that waited")
    print(f"  others: {requests - lost} of {requests} answered, p99 {p99:.0f} ms")
    problems = [f"{lost} requests of others were lost beside a dead upstream"] if lost else []
    return problems + ([f"{attempts:.0f} attempts for {held:.0f} requests"] if attempts > 0.2 * held else [])


def memory(options, binary, pids):
    if not shutil.which("h2load"):
        print("memory: h2load is not here: apt install nghttp2-client")
        return []
    problems = []
    for number, name in [(0, "limits"), (1, "no limits")]:
        before = figures.memory(pids[number])
        flood = subprocess.Popen(
            ["h2load", "-n", "12000", "-c", "120", "-m", "100", "-T", "4s", "-H", "x-overlay-id: carol", "-H", ":authority: sick",
             f"http://127.0.0.1:{GATEWAYS + number}/"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(2)
        flying = metric(number, 'overlane_requests_in_flight{limit="requests"}')
        requests, lost, _ = others(binary, number, 2)
        peak = figures.memory(pids[number], "VmHWM")
        flood.kill()
        flood.wait()
        until("nothing is under way", lambda: metric(number, "overlane_active_requests") == 0, 30)
        print(f"memory: {name}: {before:.0f} MiB before, {peak:.0f} at most with {flying:.0f} in flight, {figures.memory(pids[number]):.0f} after; "
              f"others: {requests - lost} of {requests} answered")
        if number == 0 and (lost or peak - before > 128):
            problems.append(f"{lost} of others lost, {peak - before:.0f} MiB more")
    return problems


def main():
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    options = parser.parse_args()
    binary = options.binary
    all_descriptors()
    # Each has a process of its own: what is thrown at one slows no other.
    services = [multiprocessing.Process(target=upstream, args=one, daemon=True) for one in [(SHARED, True), (SILENT, False)]]
    for service in services:
        service.start()
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            folder = pathlib.Path(folder)
            pids = [stack.enter_context(gateway(binary, folder, number, limited))
                    for number, limited in enumerate([True, False])]
            problems = shared(options, binary) + dead(options, binary) + memory(options, binary, pids)
    finally:
        for service in services:
            service.terminate()
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
