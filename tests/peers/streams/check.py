#!/usr/bin/env python3
"""gRPC, WebSockets and server-sent events of others through the gateway, with keys.

    python3 tests/peers/streams/check.py BINARY

grpcio and websockets are clients and servers, installed beside the build (CARGO_TARGET_DIR). The baseline, an overlay that owns
the service, and one whose service is not there and that falls back; over a gateway, and gRPC also through an outbound listener
as its HTTP proxy. Each server says who it is.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
# A key, and who serves it.
KEYS = {"alice": "alice", "nobody": "base", "bob": "base"}


def packages(cache):
    """The interpreter of an environment with the packages, made anew where what is pinned has changed."""
    folder, pinned = cache / "python", HERE / "requirements.txt"
    mark, wanted = folder / "installed", hashlib.sha256(sys.version.encode() + pinned.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "-r", pinned], check=True)
        mark.write_text(wanted)
    return folder / "bin/python"


class Ports:
    """Ports that nobody else gets: they stay bound, unheard, while who listens to them shares them."""

    def __init__(self):
        self.held = []

    def take(self):
        held = socket.socket()
        for shared in [socket.SO_REUSEADDR, socket.SO_REUSEPORT]:
            held.setsockopt(socket.SOL_SOCKET, shared, 1)
        held.bind(("127.0.0.1", 0))
        self.held.append(held)
        return held.getsockname()[1]


@contextlib.contextmanager
def overlane(binary, folder, gateway, outbound, admin, services, hosts=()):
    """A gateway and an outbound listener before services: each a name, and its urls by environment."""
    store = folder / "store"
    store.mkdir()
    routing = {"base": "mode: baseline, holdFor: 0s", "alice": "mode: overlay, baselineId: base",
               "bob": "mode: overlay, baselineId: base, holdFor: 0s, onUnavailable: fallback"}
    for environment, how in routing.items():
        lines = [f"  - {{name: {name}, hosts: [{', '.join([name, *hosts])}], url: '{urls[environment]}'}}"
                 if environment == "base" else f"  - {{name: {name}, url: '{urls[environment]}'}}"
                 for name, urls in services.items()]
        (store / f"{environment}.yaml").write_text(
            "\n".join([f"name: {environment}", f"routing: {{{how}}}", "services:", *lines, ""]))
    # Shorter than the silence of the streams.
    (folder / "settings.yaml").write_text("timeouts: {body: 500ms, upstreamRead: 500ms}\n")
    command = [binary, "run", "--config", folder / "settings.yaml", "--store", store, "--gateway", f"127.0.0.1:{gateway}",
               "--outbound", f"127.0.0.1:{outbound}", "--admin", f"127.0.0.1:{admin}"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", admin), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=40)


# -- gRPC, without generated code: messages are bytes.

async def grpc_server(name, port, seen):
    import grpc

    async def unary(request, context):
        metadata = dict(context.invocation_metadata())
        await context.send_initial_metadata([("who", name), ("key", metadata.get("x-overlay-id", "none"))])
        context.set_trailing_metadata([("length", str(len(request)))])
        if request == b"fail":
            await context.abort(grpc.StatusCode.DATA_LOSS, "as asked: ä", (("detail", "kept"),))
        if request == b"sleep":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen["cancelled"].set()
                raise
        return request

    async def stream_out(request, context):
        await context.send_initial_metadata([("who", name)])
        for number in range(int(request)):
            yield b"%d" % number

    async def stream_in(requests, context):
        await context.send_initial_metadata([("who", name)])
        return b"%d" % sum([len(message) async for message in requests])

    async def both(requests, context):
        await context.send_initial_metadata([("who", name)])
        async for message in requests:
            yield message

    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(unary), "Out": grpc.unary_stream_rpc_method_handler(stream_out),
                "In": grpc.stream_unary_rpc_method_handler(stream_in), "Both": grpc.stream_stream_rpc_method_handler(both)}
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server


async def check_grpc(channel, seen, way):
    import grpc
    unary, out = channel.unary_unary("/test.Echo/Unary"), channel.unary_stream("/test.Echo/Out")
    into, both = channel.stream_unary("/test.Echo/In"), channel.stream_stream("/test.Echo/Both")
    for key, who in KEYS.items():
        metadata = [("x-overlay-id", key)]
        call = unary(b"hello", metadata=metadata)
        assert await call == b"hello"
        initial = dict(await call.initial_metadata())
        assert (initial["who"], initial["key"]) == (who, key), initial
        assert f"env={who}" in initial["x-overlay-route"], initial
        assert dict(await call.trailing_metadata())["length"] == "5"
        large = b"x" * 3_000_000
        assert await unary(large, metadata=metadata) == large
        assert [message async for message in out(b"500", metadata=metadata)] == [b"%d" % n for n in range(500)]
        assert await into(iter([b"ab"] * 300), metadata=metadata) == b"600"
        stream = both(metadata=metadata)
        for number in range(50):
            # Each is answered before the next one is sent, after silence longer than deadlines, once.
            await asyncio.sleep(1 if number == 1 else 0)
            await stream.write(b"%d" % number)
            assert await stream.read() == b"%d" % number
        await stream.done_writing()
        assert await stream.read() == grpc.aio.EOF
    try:
        await unary(b"fail")
        raise AssertionError("it is to fail")
    except grpc.aio.AioRpcError as error:
        told = (error.code(), error.details(), dict(error.trailing_metadata()).get("detail"))
        assert told == (grpc.StatusCode.DATA_LOSS, "as asked: ä", "kept"), told
    for metadata, code in [([("x-overlay-id", "no key!")], grpc.StatusCode.INVALID_ARGUMENT),
                           ([("x-overlay-id", "alice"), ("x-overlay-require", "other")], grpc.StatusCode.FAILED_PRECONDITION)]:
        try:
            await unary(b"hello", metadata=metadata)
            raise AssertionError(f"{metadata} is to be refused")
        except grpc.aio.AioRpcError as error:
            assert error.code() == code and "overlane" in error.details(), error
    # The deadline, and a client that goes away.
    seen["cancelled"].clear()
    try:
        await unary(b"sleep", timeout=0.3)
        raise AssertionError("it is to be late")
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    await asyncio.wait_for(seen["cancelled"].wait(), 10)
    seen["cancelled"].clear()
    call = unary(b"sleep")
    await asyncio.sleep(0.3)
    call.cancel()
    await asyncio.wait_for(seen["cancelled"].wait(), 10)
    print(f"gRPC {way}: unary, streams of all kinds, metadata, errors, deadlines and cancellation as they should be")


# -- WebSockets.

async def websocket_server(name, port):
    from websockets.asyncio.server import serve

    async def answer(socket):
        # It speaks at once.
        await socket.send(f"{name} {socket.request.headers.get('x-overlay-id', 'none')}")
        async for message in socket:
            if message == "close":
                return await socket.close(4321, "as asked")
            await socket.send(message)

    return await serve(answer, "127.0.0.1", port, max_size=None, compression=None)


async def check_websockets(gateway):
    import websockets
    from websockets.asyncio.client import connect

    def dial(key):
        # The host of the url is the service, and the connection goes to the gateway.
        return connect("ws://chat/", host="127.0.0.1", port=gateway, additional_headers={"x-overlay-id": key}, max_size=None)

    for key, who in KEYS.items():
        async with dial(key) as socket:
            assert await socket.recv() == f"{who} {key}"
            assert f"env={who}" in socket.response.headers["x-overlay-route"]
            for message in ["text", b"\0\1", "ä" * 500_000, b"x" * 1_000_000]:
                await socket.send(message)
                assert await socket.recv() == message
            await socket.send(["in ", "frag", "ments"])
            assert await socket.recv() == "in fragments"
            # Longer than deadlines.
            await asyncio.sleep(1)
            await asyncio.wait_for(await socket.ping(), 10)
            await socket.send("close")
            try:
                await socket.recv()
                raise AssertionError("it is to be closed")
            except websockets.ConnectionClosed as closed:
                assert (closed.rcvd.code, closed.rcvd.reason) == (4321, "as asked"), closed

    async def greet(number):
        key = list(KEYS)[number % len(KEYS)]
        async with dial(key) as socket:
            assert await socket.recv() == f"{KEYS[key]} {key}"

    for start in range(0, 1000, 50):
        await asyncio.gather(*(greet(number) for number in range(start, start + 50)))
    print("WebSockets: greetings, fragments, large messages, pings, silence, close codes; 1,000 handshakes, none lost")


# -- Server-sent events.

async def events_server(port, asked):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        while (number := await asked.get()) is not None:
            writer.write(b"data: %d\n\n" % number)
            await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port)


async def check_events(gateway, asked):
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway)
    writer.write(b"GET / HTTP/1.1\r\nHost: events\r\nx-overlay-id: nobody\r\nAccept: text/event-stream\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert " 200 " in head and "env=base" in head, head
    for number in range(20):
        # The next one is only sent when this one was seen; once after a silence longer than deadlines.
        await asyncio.sleep(1.5 if number == 10 else 0)
        asked.put_nowait(number)
        await asyncio.wait_for(reader.readuntil(b"data: %d\n\n" % number), 10)
    asked.put_nowait(None)
    writer.close()
    print("server-sent events: each arrived before the next was sent, and silence cut nothing")


async def check(binary, folder):
    import grpc
    ports, seen, asked = Ports(), {"cancelled": asyncio.Event()}, asyncio.Queue()
    gateway, outbound, admin, nowhere = (ports.take() for _ in range(4))
    echo, chat, events = ({name: ports.take() for name in ["base", "alice"]} for _ in range(3))

    def urls(scheme, own):
        return {name: f"{scheme}://127.0.0.1:{own.get(name, nowhere)}" for name in ["base", "alice", "bob"]}

    servers = [await grpc_server(name, port, seen) for name, port in echo.items()]
    kept = [await websocket_server(name, port) for name, port in chat.items()]
    kept += [await events_server(port, asked) for port in events.values()]
    services = {"echo": urls("h2c", echo), "chat": urls("http", chat), "events": urls("http", events)}
    with overlane(binary, folder, gateway, outbound, admin, services):
        authority = [("grpc.default_authority", "echo")]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway}", options=authority) as channel:
            await check_grpc(channel, seen, "through the gateway")
        os.environ["grpc_proxy"] = f"http://127.0.0.1:{outbound}"
        async with grpc.aio.insecure_channel("dns:///echo:50051") as channel:
            await check_grpc(channel, seen, "through the outbound listener as its proxy")
        del os.environ["grpc_proxy"]
        await check_websockets(gateway)
        await check_events(gateway, asked)
    for server in servers:
        await server.stop(None)
    for server in kept:
        server.close()


def with_packages():
    """Goes on in the environment with the packages."""
    cache = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")).resolve() / "peers/streams"
    cache.mkdir(parents=True, exist_ok=True)
    python = packages(cache)
    if pathlib.Path(sys.prefix) != cache / "python":
        os.execv(python, [str(python), *sys.argv])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    options = parser.parse_args()
    with_packages()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(asyncio.wait_for(check(options.binary.resolve(), pathlib.Path(folder)), 180))


if __name__ == "__main__":
    main()
