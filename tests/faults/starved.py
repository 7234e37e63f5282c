#!/usr/bin/env python3
"""What a gateway does when its machine gives less than it needs.

    python3 tests/faults/starved.py BINARY [descriptors|names|clock|admin|memory ...]

descriptors: 64 file descriptors, and more clients than that. Wants nothing; with strace calls of accept are counted.
names:       a name server that answers, falls silent, and answers again. Wants root (a mount namespace).
clock:       the wall's clock jumps by an hour and a year, there and back. Wants faketime (libfaketime).
admin:       2,000 slow clients, and a flood, at the admin listener.
memory:      4,000 idle and 4,000 slow clients, and 5,000 stalled streams of HTTP/2, within 256 MiB. Wants root (a cgroup)
             and 20,000 file descriptors.
"""

import contextlib
import http.client
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness import figures
from harness.http2 import PREFACE, SETTINGS, head
from harness.processes import all_descriptors, command_line, free_port, free_ports, running, until
from stop import read_until

WRONG = []


def check(what, right, figure=""):
    print(f"{'ok   ' if right else 'WRONG'} {what}{': ' + str(figure) if figure != '' else ''}", flush=True)
    if not right:
        WRONG.append(what)


class Service:
    """Answers every request with its name, at once; `/slow` after a second."""

    def __init__(self, name="web", host="127.0.0.1", port=0):
        self.name, self.socket = name.encode(), socket.create_server((host, port), backlog=4096)
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            stream, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()

    def serve(self, stream):
        with stream, contextlib.suppress(OSError):
            while True:
                head = read_until(stream, b"\r\n\r\n")
                if b" /large" in head:
                    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
                    continue
                if b" /slow" in head:
                    time.sleep(1)
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(self.name), self.name))


@contextlib.contextmanager
def gateway(binary, services, *, before=(), settings="", env=None, workers=1, extra=()):
    """A gateway; `before` is what its command begins with."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "store").mkdir()
        (folder / "store/base.yaml").write_text(f"name: base\nrouting: {{mode: baseline, holdFor: 500ms}}\nservices: {services}\n")
        (folder / "settings.yaml").write_text(settings)
        port, admin = free_ports(2)
        command = [*before, binary, "run", "--store", folder / "store", "--config", folder / "settings.yaml",
                   "--gateway", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", "--workers", workers, *extra]
        with running("gateway", folder, *command, environment=env, ends=signal.SIGKILL) as process:
            child = process.child
            child.port, child.admin, child.folder = port, admin, folder
            until("it is ready", lambda: get(admin, "/readyz", "localhost") == (200, "ok\n"), 20)
            yield child


def get(port, path="/", host="web", limit=10):
    """Status and body; (0, why) where there is no answer."""
    try:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
        client.request("GET", path, headers={"Host": host, "Connection": "close"})
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)


def descriptors(binary):
    service = Service()
    limited = ["prlimit", "--nofile=64:64"]
    with gateway(binary, f"[{{name: web, expose: true, url: 'http://127.0.0.1:{service.port}'}}]", before=limited) as child:
        kept = http.client.HTTPConnection("127.0.0.1", child.port, timeout=20)
        answers, stop = [], threading.Event()

        def ask_on():
            while not stop.is_set():
                try:
                    kept.request("GET", "/")
                    answer = kept.getresponse()
                    answers.append((answer.status, answer.read().decode()))
                except (OSError, http.client.HTTPException) as error:
                    answers.append((0, repr(error)))
                time.sleep(0.05)

        asking = threading.Thread(target=ask_on)
        asking.start()
        until("requests are served", lambda: answers)
        # They have begun to ask, so that nobody may close them before their deadline.
        hogs = []
        for _ in range(200):
            hog = socket.create_connection(("127.0.0.1", child.port))
            hog.sendall(b"GET / HT")
            hogs.append(hog)
        # One may be left for a moment: the connection to the upstream that nobody uses is closed.
        until("there is no descriptor left", lambda: figures.descriptors(child.pid) >= 63)
        traced = None
        if shutil.which("strace"):
            traced = subprocess.Popen(["strace", "-f", "-c", "-e", "trace=accept4,accept", "-p", str(child.pid)],
                                      stderr=subprocess.PIPE, text=True)
            time.sleep(1)
        began, before = time.monotonic(), figures.cpu(child.pid)
        time.sleep(4)
        took = time.monotonic() - began
        busy = (figures.cpu(child.pid) - before) / took
        if traced:
            traced.send_signal(signal.SIGINT)
            counted = re.search(r"(\d+)\s+(\d+)?\s*accept4?", traced.communicate()[1])
            calls = int(counted[1]) if counted else 0
            check("calls of accept without descriptors are few", calls / (took + 1) < 100, f"{calls / (took + 1):.0f} in a second")
        stop.set()
        asking.join()
        statuses = {status: sum(1 for other, _ in answers if other == status) for status, _ in answers}
        said = all(status == 200 or (status == 503 and "descriptors" in body) for status, body in answers)
        check("on a connection that is there a request goes on, or is told why not", said, statuses)
        check("it does not spin", busy < 0.2, f"{busy:.1%} of a core")
        (child.folder / "store/alice.yaml").write_text(
            "name: alice\nrouting: {mode: overlay, baselineId: base}\nservices: [{name: web}]\n")
        for hog in hogs:
            hog.close()
        until("new connections are served", lambda: get(child.port) == (200, "web"))
        check("it recovers", True)
        until("what changed in the store meanwhile is in force", lambda: figures.metric(child.admin, "overlane_overlays") == 1)
        failures = figures.metric(child.admin, "overlane_accept_failures_total")
        check("it was counted", bool(failures), failures)
        # Who keeps a connection and asks nothing makes room.
        idle = [http.client.HTTPConnection("127.0.0.1", child.port, timeout=5) for _ in range(60)]
        for client in idle[:40]:
            client.request("GET", "/")
            client.getresponse().read()
        time.sleep(1.5)
        for client in idle[40:]:
            with contextlib.suppress(OSError):
                client.connect()
        began = time.monotonic()
        served = get(child.port) == (200, "web")
        check("unused connections make room for a new one", served, f"{time.monotonic() - began:.2f} s")


class NameServer:
    """Answers every question for an address with 127.0.0.1, unless it is silent."""

    def __init__(self):
        self.silent, self.asked = False, 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.53", 53))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            question, peer = self.socket.recvfrom(4096)
            self.asked += 1
            if self.silent:
                continue
            end = question.index(b"\0", 12) + 5
            wants_address = question[end - 4:end - 2] == b"\0\1"
            head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if wants_address else b"\0\0") + b"\0\0\0\0"
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + bytes([127, 0, 0, 1]) if wants_address else b""
            self.socket.sendto(head + question[12:end] + answer, peer)


def names(binary):
    if os.geteuid() != 0:
        return print("not root: a silent name server is not tried")
    if os.environ.get("OVERLANE_APART") != "1":
        # A mount namespace, in which the resolver's settings are our own.
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, __file__, binary, "names"]
        if subprocess.run(command, env={**os.environ, "OVERLANE_APART": "1"}).returncode != 0:
            WRONG.append("names")
        return None
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "resolv.conf").write_text("nameserver 127.0.0.53\noptions timeout:5 attempts:2\n")
    subprocess.run(["mount", "--bind", str(folder / "resolv.conf"), os.path.realpath("/etc/resolv.conf")], check=True)
    server, service = NameServer(), Service()
    services = f"[{{name: web, expose: true, url: 'http://web.example:{service.port}'}}]"
    outbound = free_port()
    with gateway(binary, services, extra=["--outbound", f"127.0.0.1:{outbound}"], workers=2) as child:
        until("the name is resolved", lambda: get(child.port) == (200, "web"))
        server.silent = True
        began, lost, slowest = time.monotonic(), 0, 0.0
        # Long enough for the names to be looked for again.
        threads_before = len(os.listdir(f"/proc/{child.pid}/task"))

        def unknown(number):
            status, _ = get(outbound, "/", f"host-{number}.example", 30)
            statuses.append((status, time.monotonic()))

        statuses, most = [], 0
        crowd = [threading.Thread(target=unknown, args=(number,)) for number in range(500)]
        for thread in crowd:
            thread.start()
        while time.monotonic() - began < 15:
            asked = time.monotonic()
            lost += get(child.port) != (200, "web")
            slowest = max(slowest, time.monotonic() - asked)
            most = max(most, len(os.listdir(f"/proc/{child.pid}/task")))
            time.sleep(0.02)
        for thread in crowd:
            thread.join()
        check("addresses that were known serve on while the name server is silent", lost == 0, f"slowest {slowest * 1000:.0f} ms")
        check("500 requests for unknown names are answered 503", all(status == 503 for status, _ in statuses), len(statuses))
        last = max(ended for _, ended in statuses) - began
        check("and wait no longer than they may", last < 10, f"{last:.1f} s")
        check("threads are bounded", most - threads_before <= 70, f"{threads_before} -> {most}")
        (child.folder / "store/alice.yaml").write_text(
            f"name: alice\nrouting: {{mode: overlay, baselineId: base}}\nservices: [{{name: web, url: 'http://127.0.0.1:{service.port}'}}]\n")
        began = time.monotonic()
        until("a reload is in force while the name server is silent", lambda: figures.metric(child.admin, "overlane_overlays") == 1, 5)
        check("a reload is in force while the name server is silent", True, f"{time.monotonic() - began:.2f} s")
        server.silent = False
        until("new names resolve again", lambda: get(outbound, "/", f"new.example:{service.port}", 30) == (200, "web"), 40)
        check("new names resolve again", True)
        server.silent = True
        threading.Thread(target=get, args=(outbound, "/", "last.example", 30), daemon=True).start()
        time.sleep(0.5)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        child.wait(30)
        # The request that waits for a name has up to 5 s.
        check("a stop waits for requests, and for no name server", time.monotonic() - began < 7, f"{time.monotonic() - began:.1f} s")
    return None


def clock(binary):
    library = next(iter(pathlib.Path("/usr/lib").glob("**/faketime/libfaketime.so.1")), None)
    if library is None:
        return print("no libfaketime: jumps of the clock are not tried (apt-get install faketime)")
    service = Service()
    with tempfile.TemporaryDirectory() as folder:
        offset = pathlib.Path(folder) / "offset"
        offset.write_text("+0")
        env = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
               "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        settings = "timeouts: {grace: 5s, head: 3s, idle: 4s}\n"
        with gateway(binary, f"[{{name: web, expose: true, url: 'http://127.0.0.1:{service.port}'}}]", env=env, settings=settings) as child:
            expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 600))
            alice = Service("alice")
            (child.folder / "store/alice.yaml").write_text(
                f"name: alice\nrouting: {{mode: overlay, baselineId: base, expiresAt: '{expires}'}}\n"
                f"services: [{{name: web, url: 'http://127.0.0.1:{alice.port}'}}]\n")

            def who():
                client = http.client.HTTPConnection("127.0.0.1", child.port, timeout=10)
                client.request("GET", "/", headers={"x-overlay-id": "alice"})
                answer = client.getresponse()
                return answer.read().decode(), answer.headers["x-overlay-route"].split("reason=")[1].split(";")[0]

            until("the overlay is in force", lambda: who()[0] == "alice")
            failures, asked, stop = [], [0], threading.Event()

            def load():
                client = http.client.HTTPConnection("127.0.0.1", child.port, timeout=10)
                while not stop.is_set():
                    try:
                        client.request("GET", "/")
                        if client.getresponse().read() != b"web":
                            failures.append("another answer")
                        asked[0] += 1
                    except (OSError, http.client.HTTPException) as error:
                        failures.append(repr(error))
                        client = http.client.HTTPConnection("127.0.0.1", child.port, timeout=10)

            threads = [threading.Thread(target=load) for _ in range(4)]
            for thread in threads:
                thread.start()
            before = figures.cpu(child.pid)
            lapsed = False
            for jump in ["+3600", "-3600", "+31536000", "-31536000", "+0"] * 3:
                offset.write_text(jump)
                time.sleep(1.5)
                # An overlay that has expired by the clock has expired (docs/decisions/0024).
                lapsed |= jump == "+3600"
                expected = ("web", "expired") if lapsed else ("alice", "owned")
                if who() != expected:
                    failures.append(f"after {jump}: {who()}")
            # Deadlines are of the other clock: a slow head is cut after its three seconds, whatever the wall says.
            slow = socket.create_connection(("127.0.0.1", child.port))
            slow.sendall(b"GET / HT")
            began = time.monotonic()
            offset.write_text("+31536000")
            time.sleep(0.5)
            offset.write_text("-31536000")
            slow.settimeout(20)
            slow.recv(1)
            took = time.monotonic() - began
            offset.write_text("+0")
            stop.set()
            for thread in threads:
                thread.join()
            check("no request notices jumps of an hour and a year", not failures, f"{asked[0]} requests {failures[:3]}")
            check("deadlines do not either", 2.9 <= took < 5, f"{took:.2f} s of 3 s")
            check("it does not spin after them", figures.cpu(child.pid) - before < 60, f"{figures.cpu(child.pid) - before:.1f} s of computing")
            until("the store is still followed", lambda: touch(child) or figures.metric(child.admin, "overlane_overlays") == 2, 10)
            check("the store is still followed", True)
    return None


def touch(child):
    (child.folder / "store/bob.yaml").write_text("name: bob\nrouting: {mode: overlay, baselineId: base}\nservices: [{name: web}]\n")


def admin(binary):
    service = Service()
    with gateway(binary, f"[{{name: web, expose: true, url: 'http://127.0.0.1:{service.port}'}}]", workers=2) as child:

        def latencies(seconds):
            took = []
            client = http.client.HTTPConnection("127.0.0.1", child.port, timeout=20)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.monotonic()
                client.request("GET", "/")
                if client.getresponse().read() != b"web":
                    WRONG.append("another answer")
                took.append(time.monotonic() - began)
            return len(took), sorted(took)[len(took) * 99 // 100] * 1000

        quiet = latencies(3)
        slow = []
        for _ in range(2000):
            with contextlib.suppress(OSError):
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", child.admin))
                slow.append(client)
        time.sleep(1)
        for client in slow:
            with contextlib.suppress(OSError):
                client.send(b"GET /metrics HTTP/1.1\r\nHost: local")
        loud = latencies(5)
        held = figures.descriptors(child.pid)
        check("2,000 slow clients of the admin listener hold 128 descriptors at most", held < 200, held)
        check("requests notice nothing of them", loud[0] > quiet[0] / 3, f"{quiet[0] / 3:.0f} -> {loud[0] / 5:.0f} requests per second, p99 {quiet[1]:.1f} -> {loud[1]:.1f} ms")
        for client in slow:
            client.close()
        until("the admin listener answers", lambda: get(child.admin, "/readyz", "localhost")[0] == 200, 30)
        began = time.monotonic()
        one = socket.create_connection(("127.0.0.1", child.admin))
        one.sendall(b"GET /metrics HTTP/1.1\r\nHost: local")
        one.settimeout(30)
        while one.recv(4096):
            pass
        took = time.monotonic() - began
        check("a slow head is cut", 9 < took < 13, f"{took:.1f} s")
        stop = threading.Event()

        def flood():
            while not stop.is_set():
                get(child.admin, "/metrics", "localhost")

        threads = [threading.Thread(target=flood) for _ in range(16)]
        for thread in threads:
            thread.start()
        flooded = latencies(5)
        stop.set()
        for thread in threads:
            thread.join()
        check("requests go on in a flood of scrapes", flooded[0] > 100, f"{flooded[0] / 5:.0f} requests per second, p99 {flooded[1]:.1f} ms")


def memory(binary):
    service = Service()
    limit, before = 256, ()
    root = pathlib.Path("/sys/fs/cgroup")
    second = (root / "cgroup.controllers").exists()
    group = (root if second else root / "memory") / f"overlane-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(f"{limit}M")
        before = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    except OSError as error:
        print(f"no cgroup of our own ({error}): the peak is shown, and nothing is bounded")
        group = None
    with gateway(binary, f"[{{name: web, expose: true, url: 'http://127.0.0.1:{service.port}'}}]", before=before, workers=2) as child:
        clients = []
        held = {"start": figures.memory(child.pid)}
        for what, count, words in [("idle", 4_000, b""), ("slow heads", 4_000, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 1000)]:
            for _ in range(count):
                client = socket.create_connection(("127.0.0.1", child.port))
                client.sendall(words)
                clients.append(client)
            held[what] = figures.memory(child.pid)
        stalled = PREFACE + SETTINGS + b"".join(head(1 + 2 * number, 5, b"/large") for number in range(100))
        for _ in range(50):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", child.port))
            client.sendall(stalled)
            clients.append(client)
        time.sleep(8)
        held["stalled streams"] = figures.memory(child.pid)
        alive = child.poll() is None and get(child.port, limit=60) == (200, "web")
        held["peak"] = figures.memory(child.pid, "VmHWM")
        bound = f"with {limit} MiB" if group else "unbounded"
        check(f"4,000 idle, 4,000 slow and 50 × 100 stalled ({bound}) do not end it, and others are served", alive,
              ", ".join(f"{what} {mib:.0f} MiB" for what, mib in held.items()))
        if group:
            told = (group / ("memory.events" if second else "memory.oom_control")).read_text()
            events = dict(line.split() for line in told.splitlines())
            check("nothing was killed", events["oom_kill"] == "0", events)
        for client in clients:
            client.close()
    if group:
        with contextlib.suppress(OSError):
            group.rmdir()


ALL = {"descriptors": descriptors, "names": names, "clock": clock, "admin": admin, "memory": memory}


def main():
    parser = command_line(__doc__)
    parser.add_argument("what", nargs="*", default=list(ALL), choices=[*ALL, list(ALL)])
    options = parser.parse_args()
    all_descriptors()
    for what in options.what:
        ALL[what](options.binary)
    return 1 if WRONG else 0


if __name__ == "__main__":
    sys.exit(main())
