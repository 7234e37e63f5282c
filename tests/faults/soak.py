#!/usr/bin/env python3
"""Mixed load, reloads and chaos for as long as is asked: answers, memory and descriptors.

    cargo build --profile dist -p overlane
    python3 tests/faults/soak.py target/dist/overlane [--minutes 30] [--write FOLDER] [--seed N]

One proxy with a gateway and a sidecar's two listeners. Clients of HTTP/1.1 that keep their connections and that do not,
HTTP/2 with cancelled streams, calls of gRPC, uploads, slow readers and writers, heads that never end, idle connections,
cancelled requests, tunnels, and calls whose key only their trace knows; keys of 64 overlays and of 2,000 that inherit from
them. Meanwhile overlays are changed, deleted, made again and written wrong, files that are none appear, upstreams are killed
and restarted on the same ports, and stopped for a while; some overlays are at names that nobody knows.

Every answer says who gave it. It is wrong if that is another than the key's environment at some moment of the request, and
a failure is wrong unless that environment's upstream was down. Memory must be flat after the first quarter, and descriptors
must be what they were once the load is over. Exits with 1 otherwise. The curve is written as CSV and SVG.
"""

import argparse
import asyncio
import collections
import contextlib
import pathlib
import random
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness.figures import descriptors, memory
from harness.http2 import PREFACE, frame, literal
from harness.processes import free_ports, running

GROUPS, PER_GROUP, CROWD = 4, 16, 2000
NAMELESS = 4
# Memory may grow by so much from the second quarter to the last: what allocators keep is not flat to the byte.
ROOM, ROOM_MIB = 1.10, 4
# A server that came back is known to be there after so many seconds: failed endpoints are passed over for 0.2 s.
RECOVERY = 1.0
# Unused connections to upstreams of HTTP/2 are kept for a minute.
SETTLE = 75
# Seconds for a request's head.
HEAD = 2
SETTINGS = f"""
resync: 5s
timeouts: {{head: {HEAD}s, idle: 5s, body: 5s, write: 5s, upstreamRead: 10s, grace: 2s, drain: 5s}}
correlation: {{traces: 4096}}
"""


async def frames(reader):
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        yield head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, payload


def message(text):
    return b"\0" + struct.pack(">I", len(text)) + text


# Upstreams: a process for each group, a port for each environment.

class Upstream:
    """Answers with the environment's name: `NAME LENGTH` after a body, NAME and x's where so many bytes are asked for."""

    def __init__(self, name):
        self.name = name.encode()

    async def connection(self, reader, writer):
        try:
            first = await reader.readexactly(4)
            if first == PREFACE[:4]:
                await self.http2(reader, writer)
            else:
                await self.http1(first, reader, writer)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def http1(self, first, reader, writer):
        while True:
            head = first + await reader.readuntil(b"\r\n\r\n")
            first = b""
            fields = {name.lower(): value.strip() for name, _, value in
                      (line.partition(b":") for line in head.split(b"\r\n")[1:])}
            path = head.split(b" ")[1]
            if b"upgrade" in fields:
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
                             + self.name + b"\n")
                while some := await reader.read(65536):
                    writer.write(some)
                    await writer.drain()
                return
            length = 0
            if fields.get(b"transfer-encoding") == b"chunked":
                while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    await reader.readexactly(size + 2)
                    length += size
                await reader.readuntil(b"\r\n")
            elif left := int(fields.get(b"content-length", 0)):
                length = left
                while left:
                    left -= len(await reader.readexactly(min(left, 65536)))
            if path.startswith(b"/slow/"):
                await asyncio.sleep(int(path[6:]) / 1000)
            body = self.name + (b" %d" % length if length else b"")
            if path.startswith(b"/bytes/"):
                body += b"x" * int(path[7:])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()

    async def http2(self, reader, writer):
        await reader.readexactly(len(PREFACE) - 4)
        writer.write(frame(4, 0, 0))
        async for kind, flags, stream, payload in frames(reader):
            if kind == 4 and not flags & 1:
                writer.write(frame(4, 1, 0))
            elif kind == 6 and not flags & 1:
                writer.write(frame(6, 1, 0, payload))
            elif kind == 0 and payload:
                update = struct.pack(">I", len(payload))
                writer.write(frame(8, 0, 0, update) + frame(8, 0, stream, update))
            if kind in (0, 1) and flags & 1:
                writer.write(frame(1, 4, stream, b"\x88" + literal(b"content-type", b"application/grpc")))
                for _ in range(3):
                    writer.write(frame(0, 0, stream, message(self.name)))
                    await asyncio.sleep(0)
                writer.write(frame(1, 5, stream, literal(b"grpc-status", b"0")))
            await writer.drain()


async def serve_group(environments):
    servers = []
    for pair in environments:
        name, port = pair.split("=")
        servers.append(await asyncio.start_server(Upstream(name).connection, "127.0.0.1", int(port), backlog=512))
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


class Group:
    """The upstreams of some environments, in a process that can be killed."""

    def __init__(self, environments):
        self.environments, self.process, self.down_since, self.up_since = environments, None, None, 0.0
        self.start()

    def start(self):
        pairs = [f"{name}={port}" for name, port in self.environments.items()]
        self.process = subprocess.Popen([sys.executable, __file__, "--serve", *pairs], stdout=subprocess.PIPE)
        self.process.stdout.readline()

    async def restart(self, pause):
        self.down_since = time.monotonic()
        self.process.kill()
        self.process.wait()
        await asyncio.sleep(pause)
        await asyncio.to_thread(self.start)
        self.up_since, self.down_since = time.monotonic(), None

    async def stop_for(self, pause):
        self.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(pause)
        self.process.send_signal(signal.SIGCONT)

    def was_down(self, since):
        return self.down_since is not None or since < self.up_since + RECOVERY

    def end(self):
        self.process.kill()
        self.process.wait()


# The store, and who may answer for a key.

class World:
    def __init__(self, folder):
        self.store = folder / "store"
        self.store.mkdir()
        names = [f"o{number:02}" for number in range(GROUPS * PER_GROUP)]
        ports = free_ports(len(names) + 1)
        self.port = dict(zip(["base", *names], ports))
        self.groups = [Group({"base": ports[0]})]
        self.groups += [Group({name: self.port[name] for name in names[at::GROUPS]}) for at in range(GROUPS)]
        self.group = {name: group for group in self.groups for name in group.environments}
        # The first half is changed and written wrong, the other half is deleted and made again as well.
        self.lasting, self.passing = names[:len(names) // 2], names[len(names) // 2:]
        self.nameless = [f"nowhere-{number}" for number in range(NAMELESS)]
        # Who may answer for a key, and since when.
        self.allowed = {name: [(0.0, {name})] for name in names}
        self.version = 0
        self.write("base", "name: base\nrouting: {mode: baseline, holdFor: 300ms}\nservices:\n"
                   f"- {{name: web, expose: true, hosts: [web.test], url: 'http://127.0.0.1:{ports[0]}'}}\n"
                   f"- {{name: rpc, expose: true, hosts: [rpc.test], url: 'h2c://127.0.0.1:{ports[0]}'}}\n"
                   f"- {{name: api, url: 'http://127.0.0.1:{ports[0]}'}}\n"
                   "- {name: other}\n")
        for name in names:
            self.write(name, self.overlay(name))
        for name in self.nameless:
            self.write(name, f"name: {name}\nrouting: {{mode: overlay, baselineId: base}}\n"
                             f"services: [{{name: web, url: 'http://{name}.invalid:80'}}]\n")
        self.crowd = {f"crowd-{number}": self.lasting[number % len(self.lasting)] for number in range(CROWD)}
        self.write("crowd", "---\n".join(
            f"name: {name}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: other, url: 'http://127.0.0.1:1'}}]\n"
            for name, parent in self.crowd.items()))

    def allow(self, name, *answering):
        self.allowed[name].append((time.monotonic(), set(answering)))

    def is_there(self, name):
        return self.allowed[name][-1][1] == {name}

    def overlay(self, name):
        self.version += 1
        # Names and addresses; falling back and failing.
        host = "localhost" if int(name[1:]) % 5 == 0 else "127.0.0.1"
        policy = ", onUnavailable: fallback" if self.falls_back(name) else ""
        return (f"name: {name}\nrouting: {{mode: overlay, baselineId: base{policy}}}\nservices:\n"
                f"- {{name: web, image: 'v{self.version}', url: 'http://{host}:{self.port[name]}'}}\n"
                f"- {{name: rpc, url: 'h2c://127.0.0.1:{self.port[name]}'}}\n")

    @staticmethod
    def falls_back(name):
        return int(name[1:]) % 3 == 0

    def write(self, name, text):
        beside = self.store / f".{name}.new"
        beside.write_text(text)
        beside.rename(self.store / f"{name}.yaml")

    def pick(self, random):
        """A key, and the environment that is to serve it."""
        dice = random.random()
        if dice < 0.1:
            return None, "base"
        if dice < 0.4:
            return random.choice(list(self.crowd.items()))
        name = random.choice(self.lasting + self.passing)
        return name, name

    def may_answer(self, owner, since):
        """Who may have answered a request that began then; and whether it may have failed."""
        times = [(0.0, {"base"})] if owner == "base" else self.allowed[owner]
        # What was in force as it began, and whatever came since.
        begin = max(at for at, (when, _) in enumerate(times) if when <= since)
        allowed = set().union(*(answering for _, answering in times[begin:]))
        down = any(name in self.group and self.group[name].was_down(since) for name in allowed)
        if owner != "base" and down and self.falls_back(owner):
            allowed.add("base")
        return allowed, down


class Wrong(Exception):
    """What must not happen."""


class Cut(Exception):
    """The connection ended where an answer was due."""


# Clients.

class Client:
    """A connection of HTTP/1.1."""

    def __init__(self, port):
        self.port, self.reader, self.writer, self.used = port, None, None, 0.0

    async def open(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        self.used = time.monotonic()

    def close(self):
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None

    async def answer(self, slowly=False):
        """Status and body."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                if line[:15].lower() == b"content-length:":
                    length = int(line[15:])
            body = b""
            while len(body) < length:
                some = await self.reader.read(min(length - len(body), 8192 if slowly else 1 << 18))
                if not some:
                    raise Cut(f"{len(body)} of {length} bytes")
                body += some
                if slowly:
                    await asyncio.sleep(0.005)
        except (OSError, EOFError) as why:
            raise Cut(repr(why)) from why
        self.used = time.monotonic()
        if b"connection: close" in head.lower():
            self.close()
        return int(head.split(b" ")[1]), body


def head(method, path, key, host="web.test", more=""):
    key = f"x-overlay-id: {key}\r\n" if key else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{key}{more}\r\n".encode()


class Soak:
    def __init__(self, world, ports, seed):
        self.world, self.random = world, random.Random(seed)
        self.gateway, self.inbound, self.outbound, self.admin = ports
        self.count, self.wrong = collections.Counter(), []
        self.over = False

    def tell(self, what, wrong):
        self.count["wrong"] += 1
        if len(self.wrong) < 50:
            self.wrong.append(f"{what}: {wrong}")

    def judge(self, what, owner, since, status, body):
        """Whether an answer may be."""
        allowed, down = self.world.may_answer(owner, since)
        if status == 200:
            name = body.split(b" ")[0].rstrip(b"x").decode(errors="replace")
            if name not in allowed:
                raise Wrong(f"`{name}` answered for `{owner}`, not one of {sorted(allowed)}")
            self.count[what] += 1
        elif down and status in (502, 503, 504):
            self.count["refused while the upstream was down"] += 1
        else:
            raise Wrong(f"{status} for `{owner}`: {body[:200]!r}")

    def cut(self, owner, since, why):
        if not self.world.may_answer(owner, since)[1]:
            raise Wrong(f"cut off for `{owner}`: {why}")
        self.count["cut off while the upstream was down"] += 1

    async def ask(self, client, what, request, owner, slowly=False):
        """One request on a connection that is open or is opened."""
        since = time.monotonic()
        try:
            if client.writer is None:
                await client.open()
            client.writer.write(request)
            await client.writer.drain()
            status, body = await client.answer(slowly)
        except (Cut, OSError) as why:
            client.close()
            return self.cut(owner, since, why)
        self.judge(what, owner, since, status, body)

    # Each of these is one step of an endless load.

    async def kept(self, client):
        key, owner = self.world.pick(self.random)
        await self.ask(client, "kept connections", head("GET", "/", key), owner)
        await asyncio.sleep(self.random.random() * 0.01)

    async def closed(self, client):
        key, owner = self.world.pick(self.random)
        await self.ask(client, "connections for one request", head("GET", "/", key, more="Connection: close\r\n"), owner)
        client.close()
        await asyncio.sleep(0.01)

    async def upload(self, client):
        key, owner = self.world.pick(self.random)
        body = b"u" * int(10 ** (self.random.random() * 5.7))
        if self.random.random() < 0.5:
            request = head("POST", "/", key, more=f"Content-Length: {len(body)}\r\n") + body
        else:
            request = head("POST", "/", key, more="Transfer-Encoding: chunked\r\n")
            request += b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        await self.ask(client, "uploads", request, owner)
        await asyncio.sleep(0.05)

    async def slow_reader(self, client):
        key, owner = self.world.pick(self.random)
        await self.ask(client, "slow readers", head("GET", "/bytes/300000", key), owner, slowly=True)

    async def slow_writer(self, client):
        """A head that comes in time, in pieces."""
        key, owner = self.world.pick(self.random)
        since = time.monotonic()
        client.close()
        await client.open()
        request = head("GET", "/", key)
        try:
            for at in range(0, len(request), 16):
                client.writer.write(request[at:at + 16])
                await asyncio.sleep(0.02)
            in_time = time.monotonic() < since + HEAD
            status, body = await client.answer()
        except (Cut, OSError) as why:
            return self.cut(owner, since, why)
        if in_time or status != 408:
            self.judge("slow writers", owner, since, status, body)

    async def endless_head(self, client):
        """A head that never ends is cut off."""
        await client.open()
        client.writer.write(head("GET", "/", None)[:-2])
        await self.ends(client, "endless heads cut off")

    async def idle(self, client):
        await self.ask(client, "kept connections", head("GET", "/", None), "base")
        if client.writer:
            await self.ends(client, "idle connections cut off")

    async def ends(self, client, what):
        async def read():
            with contextlib.suppress(OSError):
                while await client.reader.read(4096):
                    pass
        try:
            await asyncio.wait_for(read(), 10)
        except TimeoutError:
            raise Wrong("it is not cut off within 10 s") from None
        finally:
            client.close()
        self.count[what] += 1

    async def cancelled(self, client):
        """Gone before the answer comes."""
        key, _ = self.world.pick(self.random)
        await client.open()
        client.writer.write(head("GET", "/slow/300", key))
        with contextlib.suppress(OSError):
            await client.writer.drain()
        await asyncio.sleep(self.random.random() * 0.2)
        if self.random.random() < 0.5:
            client.writer.transport.abort()
        client.close()
        self.count["cancelled requests"] += 1

    async def nameless(self, client):
        """An overlay at a name that nobody knows never falls to somebody else."""
        since = time.monotonic()
        await client.open()
        client.writer.write(head("GET", "/", self.random.choice(self.world.nameless)))
        status, body = await client.answer()
        client.close()
        if status != 503:
            raise Wrong(f"{status} for a name that nobody knows: {body[:100]!r}")
        if time.monotonic() - since > 5:
            raise Wrong("held for more than 5 s")
        self.count["names that nobody knows"] += 1
        await asyncio.sleep(0.5)

    async def tunnel(self, client):
        key, owner = self.world.pick(self.random)
        since = time.monotonic()
        await client.open()
        client.writer.write(head("GET", "/", key, more="Connection: Upgrade\r\nUpgrade: websocket\r\n"))
        allowed, down = self.world.may_answer(owner, since)
        try:
            answer = await client.reader.readuntil(b"\r\n\r\n")
            if b" 101 " not in answer:
                client.close()
                return self.judge("tunnels", owner, since, int(answer.split(b" ")[1]), answer)
            name = (await client.reader.readline()).strip().decode()
            now, _ = self.world.may_answer(owner, since)
            if name and name not in allowed | now:
                raise Wrong(f"a tunnel of `{name}` for `{owner}`")
            for number in range(20):
                said = b"%d " % number * self.random.randrange(1, 500)
                client.writer.write(said)
                if await client.reader.readexactly(len(said)) != said:
                    raise Wrong("a tunnel says something else")
                await asyncio.sleep(0.05)
            self.count["tunnels"] += 1
        except (EOFError, OSError) as why:
            # It ends after its environment is changed or gone, as well.
            if owner == "base":
                raise Wrong(f"a tunnel of the baseline was cut off: {why!r}") from why
            self.count["tunnels cut off with their environment"] += 1
        finally:
            client.close()

    async def traced(self, client):
        """Calls whose key only their trace knows, after the request that told it, and while another one is served."""
        key = owner = self.random.choice(self.world.lasting)
        trace = f"traceparent: 00-{self.random.getrandbits(128) | 1:032x}-b7ad6b7169203331-01\r\n"
        since, call = time.monotonic(), Client(self.outbound)
        try:
            await client.open()
            for path in ("/", "/slow/100"):
                client.writer.write(head("GET", path, key, "api", trace))
                if path == "/":
                    self.judge("requests at the sidecar", "base", since, *await client.answer())
                await self.ask(call, "calls with their trace alone", head("GET", "/", None, "web", trace), owner)
            self.judge("requests at the sidecar", "base", since, *await client.answer())
        except (Cut, OSError) as why:
            self.cut("base", since, why)
        finally:
            client.close()
            call.close()

    async def http2(self, _):
        """A connection with streams of which some are cancelled; half of them calls of gRPC."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway)
        # No table for the fields of answers, and room for what comes.
        writer.write(PREFACE + frame(4, 0, 0, struct.pack(">HIHI", 1, 0, 4, 1 << 20)))
        streams = {}
        for number in range(20):
            key, owner = self.world.pick(self.random)
            grpc = self.random.random() < 0.5
            fields = (b"\x83" if grpc else b"\x82") + b"\x86" + literal(b":path", b"/") + literal(
                b":authority", b"rpc.test" if grpc else b"web.test")
            fields += literal(b"x-overlay-id", key.encode()) if key else b""
            fields += literal(b"content-type", b"application/grpc") + literal(b"te", b"trailers") if grpc else b""
            identity = 1 + 2 * number
            writer.write(frame(1, 4 if grpc else 5, identity, fields))
            if grpc:
                writer.write(frame(0, 1, identity, message(b"ask")))
            streams[identity] = {"owner": owner, "since": time.monotonic(), "body": b"", "ok": False, "grpc": grpc}
            if self.random.random() < 0.1:
                writer.write(frame(3, 0, identity, struct.pack(">I", 8)))
                del streams[identity]
                self.count["cancelled streams"] += 1
        try:
            await asyncio.wait_for(self.streams(reader, writer, streams), 15)
        except TimeoutError:
            raise Wrong(f"{len(streams)} streams without an answer within 15 s: {list(streams.values())[:2]}") from None
        except (EOFError, OSError) as why:
            for stream in streams.values():
                self.cut(stream["owner"], stream["since"], why)
        finally:
            writer.close()
        await asyncio.sleep(0.02)

    async def streams(self, reader, writer, streams):
        async for kind, flags, number, payload in frames(reader):
            if kind == 4 and not flags & 1:
                writer.write(frame(4, 1, 0))
            elif kind == 6 and not flags & 1:
                writer.write(frame(6, 1, 0, payload))
            elif kind == 7:
                raise Cut("GOAWAY")
            stream = streams.get(number)
            if stream is None:
                continue
            if kind == 1 and not stream["ok"]:
                # 200 is in the static table; before it stands that the table has no room.
                block = payload.lstrip(b"\x20")
                stream["ok"] = block[:1] == b"\x88"
            elif kind == 0:
                stream["body"] += payload
            if kind == 3:
                self.cut(stream["owner"], stream["since"], f"a stream was reset: {payload!r}")
                del streams[number]
            elif kind in (0, 1) and flags & 1:
                self.stream_ended(streams.pop(number))
            if not streams:
                return

    def stream_ended(self, stream):
        owner, since, body = stream["owner"], stream["since"], stream["body"]
        if stream["grpc"]:
            messages = body.split(b"\0\0\0\0")
            if len(messages) == 4:
                return self.judge("calls of gRPC", owner, since, 200, messages[1][1:])
            return self.cut(owner, since, f"{len(messages) - 1} messages of a call")
        self.judge("requests of HTTP/2", owner, since, 200 if stream["ok"] else 503, body)

    async def forever(self, step, port):
        client = Client(port)
        while not self.over:
            try:
                await step(client)
            except Wrong as wrong:
                self.tell(step.__name__, wrong)
                client.close()
            except Exception as why:  # A proxy that is gone refuses connections: that is told once for each step.
                self.tell(step.__name__, repr(why))
                client.close()
                await asyncio.sleep(0.5)
        client.close()

    # Chaos.

    async def until_answered(self, key, name):
        """The new store is live: this environment answers for the key."""
        since, client = time.monotonic(), Client(self.gateway)
        while time.monotonic() < since + 10:
            await client.open()
            client.writer.write(head("GET", "/", key, more="Connection: close\r\n"))
            with contextlib.suppress(Cut, OSError):
                status, body = await client.answer()
                if status == 200 and body == name.encode():
                    client.close()
                    self.count["reloads"] += 1
                    return time.monotonic() - since
            client.close()
            await asyncio.sleep(0.01)
        raise Wrong(f"`{key}` is not served by `{name}` 10 s after its file said so")

    async def change(self):
        name = self.random.choice(self.world.lasting + [name for name in self.world.passing if self.world.is_there(name)])
        self.world.write(name, self.world.overlay(name))
        self.count["files changed"] += 1

    async def delete_and_make_again(self):
        world, name = self.world, self.random.choice(self.world.passing)
        world.allow(name, name, "base")
        (world.store / f"{name}.yaml").unlink()
        await self.until_answered(name, "base")
        # Requests that were under way have their snapshot.
        await asyncio.sleep(0.5)
        world.allow(name, "base")
        await asyncio.sleep(self.random.random())
        world.allow(name, name, "base")
        world.write(name, world.overlay(name))
        await self.until_answered(name, name)
        await asyncio.sleep(0.5)
        world.allow(name, name)
        self.count["overlays deleted and made again"] += 1

    async def wrong_file(self):
        """Whatever is wrong with a file, what it said last goes on."""
        name = self.random.choice(self.world.lasting)
        self.world.write(name, self.random.choice(["name: [", "\0\1\2", "a: &x [1]\nb: *x\n", "", "[" * 200_000,
                                                   f"name: {name}\nrouting: {{mode: overlay, baselineId: {name}}}\nservices: []\n"]))
        await asyncio.sleep(self.random.random())
        self.world.write(name, self.world.overlay(name))
        self.count["files written wrong"] += 1

    async def junk(self):
        path = self.world.store / f"junk-{self.random.randrange(10)}.yaml"
        path.write_bytes(self.random.randbytes(1000))
        await asyncio.sleep(0.2)
        path.unlink()
        self.count["files of junk"] += 1

    async def kill(self):
        await self.random.choice(self.world.groups[1:]).restart(self.random.random())
        self.count["upstreams killed and restarted"] += PER_GROUP
        await asyncio.sleep(RECOVERY)

    async def silence(self):
        await self.random.choice(self.world.groups[1:]).stop_for(self.random.random() * 0.8)
        self.count["upstreams silent for a while"] += PER_GROUP

    async def burst(self):
        clients = [Client(self.gateway) for _ in range(200)]
        opened = await asyncio.gather(*(client.open() for client in clients), return_exceptions=True)
        for client in clients:
            client.close()
        self.count["connections in bursts"] += sum(1 for one in opened if one is None)

    async def chaos(self):
        acts = [self.change] * 6 + [self.delete_and_make_again] * 2 + [self.wrong_file, self.junk, self.kill, self.silence, self.burst]
        while not self.over:
            act = self.random.choice(acts)
            try:
                await act()
            except Wrong as wrong:
                self.tell(act.__name__, wrong)
            except OSError as why:
                self.tell(act.__name__, repr(why))
            await asyncio.sleep(0.1)

    def tasks(self):
        steps = [(self.kept, 24), (self.closed, 4), (self.upload, 4), (self.slow_reader, 2), (self.slow_writer, 4),
                 (self.endless_head, 2), (self.idle, 2), (self.cancelled, 4), (self.nameless, 2), (self.tunnel, 4),
                 (self.http2, 4), (self.traced, 4)]
        tasks = [asyncio.create_task(self.forever(step, self.inbound if step == self.traced else self.gateway))
                 for step, times in steps for _ in range(times)]
        return [*tasks, asyncio.create_task(self.chaos())]


# What is measured.

def settled_descriptors(pid, most=0):
    """Once connections that nobody uses are closed: as soon as there are no more than `most`, or when they had their time."""
    until = time.monotonic() + SETTLE
    while time.monotonic() < until and descriptors(pid) > most:
        time.sleep(0.5)
    return descriptors(pid)


def slope(samples):
    """MiB per hour, by least squares."""
    return statistics.linear_regression(*zip(*((at / 3600, memory) for at, memory, _ in samples))).slope


def svg(samples, title):
    """Two curves: memory, and descriptors."""
    width, height, left = 900, 160, 60
    last = samples[-1][0] or 1
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{2 * height + 70}" font-family="sans-serif" '
             f'font-size="12"><rect width="100%" height="100%" fill="white"/><text x="{left}" y="18">{title}</text>']
    for row, (name, column) in enumerate([("MiB resident", 1), ("descriptors", 2)]):
        top, most = 35 + row * (height + 15), max(sample[column] for sample in samples) or 1
        points = " ".join(f"{left + (width - left - 10) * sample[0] / last:.1f},{top + height - height * sample[column] / most:.1f}"
                          for sample in samples)
        parts.append(f'<text x="{left}" y="{top - 3}">{name}</text><text x="5" y="{top + 10}">{most:.0f}</text>'
                     f'<text x="5" y="{top + height}">0</text><path d="M{left} {top}v{height}h{width - left - 10}" stroke="#999" '
                     f'fill="none"/><polyline points="{points}" fill="none" stroke="#06c"/>')
    parts.append(f'<text x="{left}" y="{2 * height + 65}">0 to {last / 60:.1f} min</text></svg>')
    return "\n".join(parts)


async def load(soak, pid, seconds):
    """Samples of the time, the memory and the descriptors; the load ends with it."""
    begin, tasks, samples = time.monotonic(), soak.tasks(), []
    while (at := time.monotonic() - begin) < seconds:
        samples.append((at, memory(pid), descriptors(pid)))
        if len(samples) % 30 == 0:
            print(f"{at:5.0f} s  {samples[-1][1]:6.1f} MiB  {samples[-1][2]:4} descriptors  "
                  f"{sum(soak.count.values())} done, {soak.count['wrong']} wrong", flush=True)
        await asyncio.sleep(2)
    soak.over = True
    await asyncio.wait(tasks, timeout=30)
    for task in tasks:
        task.cancel()
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["auto", "pingora"], default="auto")
    parser.add_argument("--write", type=pathlib.Path, help="where soak.csv and soak.svg go; a temporary folder by default")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve_group(options.serve))
    folder = options.write or pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        return run(options, pathlib.Path(scratch), folder)


def run(options, scratch, folder):
    world = World(scratch)
    ports = free_ports(4)
    gateway, inbound, outbound, admin = (f"127.0.0.1:{port}" for port in ports)
    (scratch / "settings.yaml").write_text(SETTINGS)
    log = folder / "soak.log"
    command = [options.binary, "run", "--config", str(scratch / "settings.yaml"), "--store", str(world.store), "--engine", options.engine,
               "--gateway", gateway, "--inbound", inbound, "--app", f"http://127.0.0.1:{world.port['base']}", "--service", "api",
               "--outbound", outbound, "--admin", admin]
    try:
        with running("soak", folder, *command, port=ports[3]) as process:
            pid, soak = process.child.pid, Soak(world, ports, options.seed)
            time.sleep(2)
            before = descriptors(pid)
            samples = asyncio.run(load(soak, pid, options.minutes * 60))
            if process.child.poll() is not None:
                sys.exit(f"the proxy ended with {process.child.returncode}; see {log}")
            after, resting = settled_descriptors(pid, before), memory(pid)
            process.child.terminate()
            code = process.child.wait(20)
    finally:
        for group in world.groups:
            group.end()
    (folder / "soak.csv").write_text("seconds,mib,descriptors\n" + "".join(f"{at:.0f},{mib:.2f},{count}\n" for at, mib, count in samples))
    (folder / "soak.svg").write_text(svg(samples, f"{options.minutes:g} minutes of load, reloads and chaos"))
    return summary(soak, samples, before, after, resting, code, log)


def summary(soak, samples, before, after, resting, code, log):
    for what, count in sorted(soak.count.items()):
        print(f"{count:9} {what}")
    quarter = max(1, len(samples) // 4)
    early, late = ([memory for _, memory, _ in part] for part in (samples[quarter:2 * quarter], samples[-quarter:]))
    early, late = statistics.median(early or [0]), statistics.median(late)
    panics = log.read_text(errors="replace").count("panicked at")
    print(f"memory: {samples[0][1]:.1f} MiB at first, {early:.1f} in the second quarter, {late:.1f} in the last "
          f"({slope(samples[quarter:]):+.1f} MiB per hour), at most {max(memory for _, memory, _ in samples):.1f}, {resting:.1f} at rest")
    print(f"descriptors: {before} before, at most {max(count for _, _, count in samples)}, {after} after")
    faults = list(soak.wrong)
    faults += [f"memory grew from {early:.1f} to {late:.1f} MiB"] if late > early * ROOM + ROOM_MIB else []
    faults += [f"{after} descriptors where there were {before}"] if after > before else []
    faults += [f"{panics} panics"] if panics else []
    faults += [f"exit code {code}"] if code else []
    print("\n".join(["", *faults]) if faults else "flat, and every answer right")
    print(f"the curve: {log.parent}/soak.csv, soak.svg")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
