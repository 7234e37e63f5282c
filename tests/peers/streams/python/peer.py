"""grpcio and websockets, as server and as client. Calls are generic: messages are bytes.

    python3 peer.py serve NAME GRPC_PORT WEBSOCKET_PORT
    python3 peer.py grpc TARGET AUTHORITY
    python3 peer.py websockets HOST:PORT AUTHORITY
"""

import asyncio
import sys

import grpc
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

# A key, and who serves it.
KEYS = {"alice": "alice", "nobody": "base", "bob": "base"}


class Echo:
    def __init__(self, name):
        self.name, self.cancelled = name, 0

    async def greet(self, context):
        metadata = dict(context.invocation_metadata())
        await context.send_initial_metadata([("who", self.name), ("key", metadata.get("x-overlay-id", "none"))])

    async def unary(self, request, context):
        await self.greet(context)
        context.set_trailing_metadata([("length", str(len(request)))])
        if request == b"fail":
            await context.abort(grpc.StatusCode.DATA_LOSS, "as asked: ä", (("detail", "kept"),))
        if request == b"sleep":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return b"%d" % self.cancelled if request == b"cancelled" else request

    async def out(self, request, context):
        await self.greet(context)
        for number in range(int(request)):
            yield b"%d" % number

    async def into(self, requests, context):
        await self.greet(context)
        return b"%d" % sum([len(message) async for message in requests])

    async def both(self, requests, context):
        await self.greet(context)
        async for message in requests:
            yield message


async def grpc_server(name, port):
    echo = Echo(name)
    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(echo.unary), "Out": grpc.unary_stream_rpc_method_handler(echo.out),
                "In": grpc.stream_unary_rpc_method_handler(echo.into), "Both": grpc.stream_stream_rpc_method_handler(echo.both)}
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server


async def websocket_server(name, port):
    async def answer(socket):
        # It speaks at once.
        await socket.send(f"{name} {socket.request.headers.get('x-overlay-id', 'none')}")
        async for message in socket:
            if message == "close":
                return await socket.close(4321, "as asked")
            await socket.send(message)

    return await serve(answer, "127.0.0.1", port, max_size=None, compression=None, reuse_port=True)


async def served(name, grpc_port, websocket_port):
    kept = [await grpc_server(name, grpc_port), await websocket_server(name, websocket_port)]
    print("ready", flush=True)
    await asyncio.Event().wait()
    del kept


async def check_grpc(target, authority):
    async with grpc.aio.insecure_channel(target, options=[("grpc.default_authority", authority)]) as channel:
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

        async def cancelled(more_than):
            while int(await unary(b"cancelled")) <= more_than:
                await asyncio.sleep(0.05)

        # The deadline, and a client that goes away.
        before = int(await unary(b"cancelled"))
        try:
            await unary(b"sleep", timeout=0.3)
            raise AssertionError("it is to be late")
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        await asyncio.wait_for(cancelled(before), 10)
        call = unary(b"sleep")
        await asyncio.sleep(0.3)
        call.cancel()
        await asyncio.wait_for(cancelled(before + 1), 10)


async def check_websockets(address, authority):
    host, port = address.split(":")

    def dial(key):
        # The host of the url is the service, and the connection goes to the gateway.
        return connect(f"ws://{authority}/", host=host, port=int(port), additional_headers={"x-overlay-id": key}, max_size=None)

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

    for start in range(0, 300, 50):
        await asyncio.gather(*(greet(number) for number in range(start, start + 50)))


WAYS = {"serve": served, "grpc": check_grpc, "websockets": check_websockets}

if __name__ == "__main__":
    asyncio.run(WAYS[sys.argv[1]](*sys.argv[2:]))
