#!/usr/bin/env python3
"""Clients that are slow, one kind after the other: when they are cut, what each costs, and what others notice.

    python3 tests/faults/slow.py BINARY [--connections N] [--kinds NAME;…]

The proxy runs with its default deadlines, so a run of all kinds takes some minutes. Memory is the growth of the process's
resident memory, per connection, at its highest. Meanwhile somebody else asks all the time; the 99th percentile of what it
waited for stands beside that of the seconds before the attack. Exit code 1: a kind was not cut, costs more than it may, or
somebody else got no answer. Wants openssl, and file descriptors: `ulimit -n`.
"""

import asyncio
import contextlib
import json
import multiprocessing
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness.figures import memory, metric, percentile
from harness.http2 import PREFACE, SETTINGS, frame, head
from harness.processes import all_descriptors, command_line, running

UPSTREAM, LARGES, GATEWAY, ENCRYPTED, ADMIN, ADMIN_TLS = 18680, 18682, 18690, 18691, 18692, 18693
MOST_KIB = 16.0
# How often a slow client moves a byte, and for how long somebody else asks before.
TICK, BEFORE = 1.0, 5.0
# More than lies between.
LARGE = 2_000_000
# Segments as networks have them: with those of loopback, kernels hold megabytes for each connection.
SEGMENT = 1400


NO_WINDOW = frame(4, 0, 0, struct.pack(">HI", 4, 0))
# The beginning of a ClientHello: a record of 512 bytes, of which there are 64.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 53


class Kind:
    """A kind of slow client: what it says at first, what it says every second, whether it reads."""

    def __init__(self, name, says, goes_on=b"", *, reads=False, byte_by_byte=False, ends=False, limit, what="connections",
                 encrypted=False):
        self.name, self.says, self.goes_on, self.reads, self.byte_by_byte = name, says, goes_on, reads, byte_by_byte
        self.ends, self.limit, self.what, self.encrypted = ends, limit, what, encrypted

    def connect(self):
        client = socket.socket()
        if self.byte_by_byte:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        client.connect(("127.0.0.1", ENCRYPTED if self.encrypted else GATEWAY))
        client.sendall(self.says)
        if self.ends:
            client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        return client

    def step(self, client):
        """What it does every second."""
        with contextlib.suppress(OSError):
            if self.goes_on:
                client.send(self.goes_on)
            if self.reads:
                client.recv(1 if self.byte_by_byte else 65536)


# `limit` is the deadline in seconds after which the last has to be gone, by the default settings; who is told why (408) is
# listened to for another ten, so that it reads that.
KINDS = [
    Kind("silent", b"", limit=10),
    Kind("slow heads", b"GET / HTTP/1.1\r\nHost: web\r\n", b"a", limit=20),
    Kind("half a head, half-closed", b"GET / HTTP/1.1\r\nHost: web\r\n", ends=True, limit=1),
    Kind("slow bodies", b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\n", b"a", limit=60, what="requests"),
    Kind("slow bodies, HTTP/1.0", b"POST / HTTP/1.0\r\nHost: web\r\nContent-Length: 1000000\r\n\r\n", b"a", limit=60,
         what="requests"),
    Kind("slow bodies in chunks", b"POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", limit=60,
         what="requests"),
    Kind("slow readers", b"GET / HTTP/1.1\r\nHost: large\r\n\r\n", reads=True, byte_by_byte=True, limit=30, what="requests"),
    Kind("idle after a request", b"GET / HTTP/1.1\r\nHost: web\r\n\r\n", reads=True, limit=75),
    Kind("half a TLS handshake", HELLO, limit=10, encrypted=True),
    Kind("half an h2 preface", PREFACE[:12], limit=10),
    Kind("h2, silent", PREFACE + SETTINGS, reads=True, limit=76),
    Kind("h2, half a head", PREFACE + SETTINGS + head(1, 1), frame(9, 0, 1), limit=10),
    Kind("h2, slow bodies", PREFACE + SETTINGS + head(1, 4, method=b"POST"), frame(0, 0, 1, b"a"), reads=True, limit=60,
         what="requests"),
    Kind("h2, slow readers", PREFACE + NO_WINDOW + head(1, 5, host=b"large"), frame(8, 0, 1, struct.pack(">I", 1)), reads=True,
         limit=30, what="requests"),
]


async def answer(reader, writer):
    """What is behind the proxy: a small answer, or a large one."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                while await reader.read(65536):
                    pass
                break
            size = LARGE if b"large" in head else 1024
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for at in range(0, size, 16384):
                writer.write(b"x" * min(16384, size - at))
                await writer.drain()
    writer.close()


def upstream(port):
    async def serve():
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        listener.bind(("127.0.0.1", port))
        server = await asyncio.start_server(answer, sock=listener, backlog=4096)
        await server.serve_forever()
    asyncio.run(serve())


@contextlib.contextmanager
def upstreams():
    """One for small answers, so that these do not wait for its large ones; and two for those."""
    running = [multiprocessing.Process(target=upstream, args=(port,), daemon=True) for port in (UPSTREAM, LARGES, LARGES)]
    for one in running:
        one.start()
    try:
        yield
    finally:
        for one in running:
            one.kill()


SERVICES = (f"- {{name: web, expose: true, hosts: [web], url: 'http://127.0.0.1:{UPSTREAM}'}}\n"
            f"- {{name: large, expose: true, hosts: [large], url: 'http://127.0.0.1:{LARGES}'}}\n")


def somebody(stop, told):
    """Asks again and again; tells what it waited for, and how often in vain."""
    waited, failed, client = [], 0, None
    while not stop.is_set():
        began = time.perf_counter()
        try:
            if client is None:
                client = socket.create_connection(("127.0.0.1", GATEWAY), timeout=10)
            client.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            came = b""
            while b"\r\n\r\n" not in came or len(came.split(b"\r\n\r\n", 1)[1]) < 1024:
                more = client.recv(65536)
                if not more:
                    raise ConnectionError("closed")
                came += more
            if not came.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(came[:20])
        except OSError:
            failed, client = failed + 1, None
        waited.append((began, time.perf_counter() - began))
        time.sleep(0.005)
    told.send((waited, failed))


def attack(kind, count, pid):
    """Runs one kind; says when the first and the last were cut, what one costs in KiB, and what others waited."""
    admin = ADMIN_TLS if kind.encrypted else ADMIN
    measure = {"connections": "overlane_connections", "requests": "overlane_active_requests"}[kind.what]
    stop, (here, there) = multiprocessing.Event(), multiprocessing.Pipe()
    other = multiprocessing.Process(target=somebody, args=(stop, there))
    other.start()
    time.sleep(BEFORE)
    others, before, began = metric(admin, measure), memory(pid), time.perf_counter()
    clients = []
    for _ in range(count):
        clients.append(kind.connect())
    opened = time.perf_counter()
    peak, first, last = before, None, None
    most = 0
    while last is None and time.perf_counter() < opened + kind.limit * 1.5 + 30:
        round_began = time.perf_counter()
        for client in clients:
            kind.step(client)
        peak = max(peak, memory(pid))
        # Somebody else's own may or may not be open just now.
        is_open, now = metric(admin, measure) - others, time.perf_counter() - began
        most = max(most, is_open)
        if first is None and is_open < most - 1:
            first = now
        if is_open <= 1 and (most > 1 or now > 5):
            last = now
        time.sleep(max(0.0, TICK - (time.perf_counter() - round_began)))
    for client in clients:
        client.close()
    stop.set()
    waited, failed = here.recv()
    other.join()
    quiet = [wait for at, wait in waited if at < began]
    meanwhile = [wait for at, wait in waited if at >= began]
    return {
        "kind": kind.name, "opened_s": round(opened - began, 1), "open": int(most), "first_cut_s": first and round(first, 1),
        "last_cut_s": last and round(last, 1), "kib_each": round((peak - before) * 1024 / count, 1),
        "others": len(meanwhile), "others_failed": failed, "p99_before_ms": round(percentile(quiet, 0.99) * 1000, 2),
        "p99_ms": round(percentile(meanwhile, 0.99) * 1000, 2),
    }


def settled(pid, before):
    """Memory some seconds after, as far as it goes back."""
    now = memory(pid)
    for _ in range(10):
        if now <= before * 1.2:
            break
        time.sleep(1)
        now = memory(pid)
    return now


@contextlib.contextmanager
def proxy(binary, folder, gateway, admin, *more):
    command = [binary, "run", "--store", folder / "store", "--gateway", f"127.0.0.1:{gateway}", "--trust", "none",
               "--admin", f"127.0.0.1:{admin}", *more]
    with running(f"proxy-{gateway}", folder, *command, port=admin, ends=signal.SIGKILL) as process:
        yield process.child.pid


def main():
    parser = command_line(__doc__)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--kinds", default="")
    options = parser.parse_args()
    most = all_descriptors()
    if most < 2 * options.connections + 500:
        sys.exit(f"ulimit -n is {most}: too few for {options.connections} connections")
    wanted = [kind for kind in KINDS if not options.kinds or kind.name in options.kinds.split(";")]
    bad = []
    with tempfile.TemporaryDirectory() as folder, upstreams():
        folder = pathlib.Path(folder)
        (folder / "store").mkdir()
        (folder / "store/base.yaml").write_text(
            f"name: base\nrouting: {{mode: baseline}}\nservices:\n{SERVICES}")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-days", "1", "-subj", "/CN=web", "-keyout", str(folder / "key"), "-out", str(folder / "cert")],
                       check=True, stderr=subprocess.DEVNULL)
        for kind in wanted:
            # Each begins with a process that has served nobody but somebody else.
            with contextlib.ExitStack() as stack:
                pid = stack.enter_context(proxy(options.binary, folder, GATEWAY, ADMIN))
                if kind.encrypted:
                    pid = stack.enter_context(proxy(options.binary, folder, ENCRYPTED, ADMIN_TLS, "--tls-cert",
                                                    str(folder / "cert"), "--tls-key", str(folder / "key")))
                before = memory(pid)
                came = attack(kind, options.connections, pid)
                came["mib_before"] = round(before, 1)
                came["mib_after"] = round(settled(pid, before), 1)
            print(json.dumps(came), flush=True)
            late = came["last_cut_s"] is None or came["last_cut_s"] > kind.limit + came["opened_s"] + 10
            if late or came["kib_each"] > MOST_KIB or came["others_failed"]:
                bad.append(kind.name)
    if bad:
        sys.exit(f"too late, too much memory, or somebody else was not served: {', '.join(bad)}")


if __name__ == "__main__":
    main()
