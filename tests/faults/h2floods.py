#!/usr/bin/env python3
"""Floods of HTTP/2, by clients and by upstreams: what they cost, what is given back, and whether others are served.

    python3 tests/faults/h2floods.py BINARY [--connections N] [--seconds S] [--kinds NAME;…]

One attack after the other, each on a process of its own with one worker, over N connections at once that are opened again where
they are cut. Meanwhile others ask in HTTP/1.1 and in HTTP/2. Exit code 1: one of them got no answer, the process took more
than 64 MiB more, or kept more than 16 of them. All of it is on loopback.
"""

import contextlib
import json
import multiprocessing
import pathlib
import signal
import socket
import struct
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness.figures import memory, metric, percentile
from harness.http2 import PREFACE, SETTINGS, frame, frames, head, literal
from harness.processes import command_line, running
from slow import SERVICES, settled, upstreams

HOSTILE, GATEWAY, ADMIN = 18681, 18690, 18692
MOST_MIB, KEPT_MIB = 64, 16
NO_WINDOW = frame(4, 0, 0, struct.pack(">HI", 4, 0))
MANY = 10_000


def number(value):
    return struct.pack(">I", value)


def streams(each, count=MANY):
    return b"".join(each(1 + 2 * at) for at in range(count))


# A field of 4,000 bytes that is remembered as the first of the dynamic table (RFC 7541, section 6.2.1).
REMEMBERED = b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000
BREAKING = literal(b"connection", b"close")

# What an attacker sends, again and again, after the preface; and whether it reads.
ATTACKS = {
    "rapid reset": streams(lambda stream: head(stream, 5) + frame(3, 0, stream, number(8))),
    "MadeYouReset": streams(lambda stream: head(stream, 5) + frame(8, 0, stream, number(0x7FFF_FFFF))),
    "SETTINGS": SETTINGS * MANY,
    "SETTINGS, read by nobody": SETTINGS * MANY,
    "PING": frame(6, 0, 0, b"12345678") * MANY,
    "PING, read by nobody": frame(6, 0, 0, b"12345678") * MANY,
    "PRIORITY": streams(lambda stream: frame(2, 0, stream, number(0) + b"\1")),
    "WINDOW_UPDATE": frame(8, 0, 0, number(1)) * MANY,
    "unknown frames": frame(200, 0, 0, b"whatever") * MANY,
    "CONTINUATION": head(1, 1) + frame(9, 0, 1, literal(b"x", b"y")) * MANY,
    "CONTINUATION, 16 KiB each": head(1, 1) + frame(9, 0, 1, literal(b"x", b"y" * 120) * 120) * 200,
    "empty DATA": head(1, 4, method=b"POST") + frame(0, 0, 1) * MANY,
    "DATA byte by byte": head(1, 4, method=b"POST") + frame(0, 0, 1, b"x") * 30_000,
    "HPACK bomb": head(1, 5, more=REMEMBERED) + streams(lambda stream: head(stream + 2, 5, more=b"\xbe" * 4000), 200),
    "HPACK bomb, within the limit": head(1, 5, more=REMEMBERED) + streams(
        lambda stream: head(stream + 2, 5, more=b"\xbe" * 15), 100),
    "heads that break the rules": streams(lambda stream: head(stream, 5, more=BREAKING)),
    "requests beyond the limit": streams(lambda stream: head(stream, 5, host=b"large")),
    "zero window": NO_WINDOW + streams(lambda stream: head(stream, 5, host=b"large"), 100),
}
SILENT = {"SETTINGS, read by nobody", "PING, read by nobody", "zero window"}


def answered(stream, flags, status, more=b""):
    return frame(1, flags, stream, literal(b":status", status) + more)


# What an upstream sends in place of an answer.
UPSTREAMS = {
    "upstream: SETTINGS": SETTINGS * MANY,
    "upstream: PING": frame(6, 0, 0, b"12345678") * MANY,
    "upstream: interim responses": answered(1, 4, b"103") * MANY,
    "upstream: CONTINUATION": answered(1, 0, b"200") + frame(9, 0, 1, literal(b"x", b"y" * 120) * 120) * 200,
    "upstream: pushes": frame(5, 4, 1, number(2) + literal(b":method", b"GET") + b"\x86" + literal(b":path", b"/")),
    "upstream: HPACK bomb": answered(1, 4, b"103", REMEMBERED) + answered(1, 4, b"200", b"\xbe" * 4000) * 100,
    "upstream: window overflow": frame(8, 0, 0, number(0x7FFF_FFFF)),
    "upstream: GOAWAY": frame(7, 0, 0, number(0x7FFF_FFFF) + number(0)) * MANY,
    "upstream: empty DATA": answered(1, 4, b"200") + frame(0, 0, 1) * MANY,
    "upstream: more than its window": answered(1, 4, b"200") + frame(0, 0, 1, b"x" * 16384) * 64,
}


def read_all(client):
    with contextlib.suppress(OSError):
        while client.recv(65536):
            pass


def attack(name, until, told):
    """One attacker: says the same again and again, over a new connection where it is cut."""
    opened, sent = 0, 0
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", GATEWAY), timeout=5) as client:
            client.settimeout(max(0.1, until - time.monotonic()))
            opened += 1
            if name not in SILENT:
                threading.Thread(target=read_all, args=(client,), daemon=True).start()
            client.sendall(PREFACE + (b"" if name == "zero window" else SETTINGS))
            client.sendall(ATTACKS[name])
            sent += len(ATTACKS[name])
            # Whoever was not cut stays.
            while time.monotonic() < until and client.fileno() >= 0:
                if client.send(frame(6, 0, 0, b"12345678")) == 0:
                    break
                time.sleep(0.2)
    told.put((opened, sent))


def ask_hostile(until, told):
    """Asks for what the hostile upstream is to answer."""
    asked = 0
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", GATEWAY), timeout=5) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: bad\r\nConnection: close\r\n\r\n")
            asked += 1
            read_all(client)
    told.put((asked, 0))


def hostile(name):
    """An upstream that attacks whoever connects."""
    def serve(client):
        with contextlib.suppress(OSError), client:
            client.settimeout(5)
            client.recv(65536)
            client.sendall(SETTINGS + UPSTREAMS[name])
            read_all(client)
    with socket.create_server(("127.0.0.1", HOSTILE), backlog=1024) as server:
        while True:
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()


class Http1:
    """Somebody who asks in HTTP/1.1."""

    def __init__(self):
        self.client = socket.create_connection(("127.0.0.1", GATEWAY), timeout=10)

    def ask(self):
        self.client.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        came = b""
        while b"\r\n\r\n" not in came or len(came.split(b"\r\n\r\n", 1)[1]) < 1024:
            more = self.client.recv(65536)
            if not more:
                raise ConnectionError("closed")
            came += more
        if not came.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(came[:20])


class Http2:
    """Somebody who asks in HTTP/2, one request at a time."""

    def __init__(self):
        self.client = socket.create_connection(("127.0.0.1", GATEWAY), timeout=10)
        self.client.sendall(PREFACE + SETTINGS)
        self.stream, self.frames = 1, frames(self.client)

    def ask(self):
        self.client.sendall(head(self.stream, 5))
        for kind, flags, stream, payload in self.frames:
            if kind == 4 and not flags & 1:
                self.client.sendall(frame(4, 1, 0))
            if kind in (3, 7):
                raise ConnectionError(f"frame {kind}")
            if kind == 0 and payload:
                self.client.sendall(frame(8, 0, 0, number(len(payload))))
            if stream == self.stream and flags & 1 and kind in (0, 1):
                break
        else:
            raise ConnectionError("closed")
        self.stream += 2


def somebody(kind, stop, told):
    """Asks again and again; tells what it waited for, and how often in vain."""
    waited, failed, client = [], 0, None
    while not stop.is_set():
        began = time.monotonic()
        try:
            client = client or kind()
            client.ask()
        except OSError:
            failed, client = failed + 1, None
        waited.append((began, time.monotonic() - began))
        time.sleep(0.005)
    told.put((waited, failed))


def run(name, options, folder):
    command = [options.binary, "run", "--store", folder / "store", "--workers", "1", "--gateway", f"127.0.0.1:{GATEWAY}",
               "--admin", f"127.0.0.1:{ADMIN}"]
    of_upstream = name in UPSTREAMS
    stop, told, attackers_told = multiprocessing.Event(), multiprocessing.Queue(), multiprocessing.Queue()
    started = []

    def start(target, *arguments):
        started.append(multiprocessing.Process(target=target, args=arguments, daemon=True))
        started[-1].start()

    try:
        if of_upstream:
            start(hostile, name)
        with running("proxy", folder, *command, port=ADMIN, ends=signal.SIGKILL) as process:
            pid = process.child.pid
            for kind in (Http1, Http2):
                start(somebody, kind, stop, told)
            time.sleep(3)
            before, began = memory(pid), time.monotonic()
            until, peak = began + options.seconds, before
            count = 8 if of_upstream else options.connections
            for _ in range(count):
                if of_upstream:
                    start(ask_hostile, until, attackers_told)
                else:
                    threading.Thread(target=attack, args=(name, until, attackers_told), daemon=True).start()
            while time.monotonic() < until:
                peak = max(peak, memory(pid))
                time.sleep(0.05)
            attackers = [attackers_told.get(timeout=60) for _ in range(count)]
            stop.set()
            others = [told.get(timeout=60) for _ in range(2)]
            cut = sum(metric(ADMIN, f'overlane_http2_floods_total{{reason="{reason}",side="{side}"}}')
                      for side in ("client", "upstream") for reason in REASONS)
            time.sleep(1)
            after, alive = settled(pid, before), process.child.poll() is None
    finally:
        for one in started:
            one.kill()
    waits = [wait for waited, _ in others for at, wait in waited if at >= began]
    quiet = [wait for waited, _ in others for at, wait in waited if at < began]
    return {
        "attack": name, "connections": sum(opened for opened, _ in attackers), "floods_counted": int(cut),
        "mib_before": round(before, 1), "mib_peak": round(peak, 1), "mib_after": round(after, 1),
        "others": len(waits), "others_failed": sum(failed for _, failed in others),
        "p99_before_ms": round(percentile(quiet, 0.99) * 1000, 2), "p99_ms": round(percentile(waits, 0.99) * 1000, 2),
        "alive": alive,
    }


REASONS = ["continuation", "data", "errors", "goaway", "header-list", "headers", "other", "ping", "priority", "reset", "settings",
           "slow", "window-update"]


def main():
    parser = command_line(__doc__)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--kinds", default="")
    options = parser.parse_args()
    names = [name for name in [*ATTACKS, *UPSTREAMS] if not options.kinds or name in options.kinds.split(";")]
    bad = []
    with tempfile.TemporaryDirectory() as folder, upstreams():
        folder = pathlib.Path(folder)
        (folder / "store").mkdir()
        (folder / "store/base.yaml").write_text(
            f"name: base\nrouting: {{mode: baseline}}\nservices:\n{SERVICES}"
            f"- {{name: bad, expose: true, hosts: [bad], url: 'h2c://127.0.0.1:{HOSTILE}'}}\n")
        for name in names:
            came = run(name, options, folder)
            print(json.dumps(came), flush=True)
            much = came["mib_peak"] - came["mib_before"] > MOST_MIB or came["mib_after"] - came["mib_before"] > KEPT_MIB
            if much or came["others_failed"] or not came["alive"]:
                bad.append(name)
    if bad:
        sys.exit(f"too much memory, or somebody else was not served: {', '.join(bad)}")


if __name__ == "__main__":
    main()
