#!/usr/bin/env python3
"""What is lost when a gateway is told to stop under load, and how long it takes.

    python3 tests/faults/stop.py BINARY [--rounds N] [--engine auto|pingora]

For each of 1, 20 and 200 in flight of each kind (answers that take their time, uploads, server-sent events, WebSockets,
streams of HTTP/2), and with clients that ask on and on, on kept connections and on new ones: SIGTERM. Nothing that was
accepted may be lost; not ready at once; exit code 0 within 1 s of the last answer. Then what never ends: closed at the bound.
A request counts as lost where its connection was made and no whole answer came; a connection that is refused is none.
"""

import collections
import contextlib
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness.http2 import PREFACE, SETTINGS, frame, frames, head
from harness.processes import command_line, free_ports, running, until

KINDS = ["answers", "uploads", "events", "websockets", "http2"]
LAME_DUCK, DRAIN = 1.0, 8.0
TIMEOUTS = f"timeouts: {{lameDuck: {int(LAME_DUCK * 1000)}ms, drain: {int(DRAIN)}s}}\n"


def read_until(stream, end):
    read = b""
    while end not in read:
        more = stream.recv(65536)
        if not more:
            raise ConnectionError(f"closed after {read!r}")
        read += more
    return read


class Upstream:
    """Answers `/` at once, all else when `go` is set: bodies, events and echoed bytes end with `end`."""

    def __init__(self):
        self.go = threading.Event()
        self.arrived = collections.Counter()
        self.lock = threading.Lock()
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
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
                self.answer(stream, head)

    def wait(self, kind):
        with self.lock:
            self.arrived[kind] += 1
        self.go.wait(60)

    def answer(self, stream, head):
        path = head.split()[1]
        ok = b"HTTP/1.1 200 OK\r\n"
        if path == b"/":
            stream.sendall(ok + b"Content-Length: 3\r\n\r\nend")
        elif path == b"/events":
            stream.sendall(ok + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nopen\r\n")
            self.wait("events")
            stream.sendall(b"3\r\nend\r\n0\r\n\r\n")
        elif path == b"/websockets":
            stream.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            stream.sendall(b"open")
            self.wait("websockets")
            stream.sendall(b"end")
            stream.shutdown(socket.SHUT_WR)
            stream.recv(1)
        elif path == b"/uploads":
            body = head.split(b"\r\n\r\n", 1)[1]
            with self.lock:
                self.arrived["uploads"] += 1
            while len(body) < 10:
                body += stream.recv(65536)
            stream.sendall(ok + b"Content-Length: 3\r\n\r\nend")
        else:
            self.wait(path[1:].decode())
            stream.sendall(ok + b"Content-Length: 3\r\n\r\nend")


def ask(port, kind, go):
    """One request that is in flight until `go`; what came of it."""
    with socket.create_connection(("127.0.0.1", port)) as stream:
        stream.settimeout(60)
        if kind == "http2":
            return ask_http2(stream)
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n" if kind == "websockets" else ""
        method, length = ("POST", "Content-Length: 10\r\n") if kind == "uploads" else ("GET", "")
        stream.sendall(f"{method} /{kind} HTTP/1.1\r\nHost: x\r\n{upgrade}{length}\r\n".encode())
        if kind == "uploads":
            stream.sendall(b"12345")
            go.wait(60)
            stream.sendall(b"67890")
        read = read_until(stream, b"end")
        # All that is told to end ends.
        while more := stream.recv(65536):
            read += more
        return read


def ask_http2(stream):
    stream.sendall(PREFACE + SETTINGS + head(1, 5, b"/http2", b"x"))
    told, body = [], b""
    for kind, flags, number, payload in frames(stream):
        if kind == 4 and not flags & 1:
            stream.sendall(frame(4, 1, 0))
        if kind == 6 and not flags & 1:
            stream.sendall(frame(6, 1, 0, payload))
        if kind == 7:
            told.append(int.from_bytes(payload[:4]))
        if kind == 0 and number == 1:
            body += payload
    # First that no stream should be opened any more, then which were taken (RFC 9113, section 6.8).
    if body != b"end" or told[:2] != [2**31 - 1, 1]:
        raise ConnectionError(f"body {body!r}, GOAWAY {told}")
    return body


class Clients:
    """Clients that ask on and on: on connections that they keep, and on new ones."""

    def __init__(self, port):
        self.port, self.stop = port, threading.Event()
        self.lost, self.asked, self.after, self.refused = [], 0, 0, 0
        self.lock, self.told = threading.Lock(), None
        self.threads = [threading.Thread(target=self.run, args=(keep,)) for keep in [True] * 8 + [False] * 8]
        for thread in self.threads:
            thread.start()

    def run(self, keep):
        stream = None
        while not self.stop.is_set():
            try:
                stream = stream or socket.create_connection(("127.0.0.1", self.port), 30)
            except ConnectionRefusedError:
                with self.lock:
                    self.refused += 1
                time.sleep(0.01)
                continue
            except OSError as error:
                with self.lock:
                    self.lost.append(f"connect: {error!r}")
                continue
            began = time.monotonic()
            try:
                close = "" if keep else "Connection: close\r\n"
                stream.sendall(f"GET / HTTP/1.1\r\nHost: x\r\n{close}\r\n".encode())
                head = read_until(stream, b"end")
                with self.lock:
                    self.asked += 1
                    self.after += self.told is not None and began > self.told
                if b"onnection: close" in head:
                    stream.close()
                    stream = None
                else:
                    time.sleep(0.005)
            except OSError as error:
                with self.lock:
                    self.lost.append(f"{'kept' if keep else 'new'}: {error!r}")
                stream = None

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def readyz(admin):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/readyz", timeout=5) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        return error.read().decode().strip()
    except OSError:
        return None


@contextlib.contextmanager
def gateway(binary, engine, upstream):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "store").mkdir()
        (folder / "store/base.yaml").write_text(
            "name: base\nrouting: {mode: baseline}\n"
            f"services: [{{name: web, expose: true, url: 'http://127.0.0.1:{upstream}'}}]\n")
        (folder / "settings.yaml").write_text(TIMEOUTS)
        port, admin = free_ports(2)
        command = [binary, "run", "--store", folder / "store", "--config", folder / "settings.yaml",
                   "--gateway", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}", "--workers", "2", "--engine", engine]
        with running("gateway", folder, *command, ends=signal.SIGKILL) as process:
            until("it is ready", lambda: readyz(admin) == "ok")
            yield process.child, port, admin


def stopped(binary, engine, kind, count, load):
    """Stops a gateway with `count` of a kind in flight; what is wrong, and how long the exit took."""
    upstream = Upstream()
    wrong, done, last = [], [], []

    def one():
        try:
            done.append(ask(port, kind, upstream.go))
        except OSError as error:
            wrong.append(f"in flight: {error!r}")
        last.append(time.monotonic())

    with gateway(binary, engine, upstream.port) as (child, port, admin):
        clients = Clients(port) if load else None
        threads = [threading.Thread(target=one) for _ in range(count)]
        for thread in threads:
            thread.start()
        until("all are in flight", lambda: upstream.arrived[kind] >= count)
        child.send_signal(signal.SIGTERM)
        told = time.monotonic()
        if clients:
            clients.told = told
        until("it is not ready", lambda: readyz(admin) == "draining", 1)
        time.sleep(LAME_DUCK + 1)
        if child.poll() is not None:
            wrong.append("it did not wait for what was in flight")
        upstream.go.set()
        for thread in threads:
            thread.join()
        child.wait(30)
        took = time.monotonic() - max(last)
        if clients:
            clients.end()
            wrong += clients.lost
            if clients.after == 0:
                wrong.append("nothing was served after the signal")
        if child.returncode != 0:
            wrong.append(f"exit code {child.returncode}")
        if took > 1:
            wrong.append(f"it took {took:.2f} s after the last answer")
        if len(done) != count:
            wrong.append(f"{len(done)} of {count} were finished")
    asked = f", {clients.asked} requests beside, {clients.after} of them after the signal" if clients else ""
    print(f"{engine:8} {kind:11} {count:4} in flight{asked}: {len(wrong)} lost or wrong, "
          f"exit {took * 1000:.0f} ms after the last answer", flush=True)
    return wrong


def bounded(binary, engine):
    """What never ends is closed at the bound."""
    upstream = Upstream()
    with gateway(binary, engine, upstream.port) as (child, port, _):
        streams = []
        for kind in ["answers", "events", "websockets"]:
            stream = socket.create_connection(("127.0.0.1", port))
            upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n" if kind == "websockets" else ""
            stream.sendall(f"GET /{kind} HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n".encode())
            streams.append(stream)
        until("all are in flight", lambda: sum(upstream.arrived.values()) == len(streams))
        child.send_signal(signal.SIGTERM)
        told = time.monotonic()
        child.wait(30)
        took = time.monotonic() - told
    print(f"{engine:8} what never ends: exit code {child.returncode} after {took:.2f} s "
          f"(lameDuck {LAME_DUCK:.0f} s and drain {DRAIN:.0f} s)")
    right = child.returncode == 0 and LAME_DUCK + DRAIN <= took < LAME_DUCK + DRAIN + 1
    return [] if right else ["the bound was not kept"]


def main():
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engine", choices=["auto", "pingora"], action="append")
    options = parser.parse_args()
    wrong = []
    for engine in options.engine or ["auto", "pingora"]:
        for _ in range(options.rounds):
            for kind in KINDS:
                for count in [1, 20, 200]:
                    wrong += stopped(options.binary, engine, kind, count, load=count != 200)
        wrong += bounded(options.binary, engine)
    for line, times in collections.Counter(wrong).most_common(20):
        print(f"WRONG {times} times: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
