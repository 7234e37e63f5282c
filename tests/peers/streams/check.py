#!/usr/bin/env python3
"""gRPC, WebSockets and server-sent events of others through the gateway, with keys.

    python3 check.py BINARY

grpcio and websockets (Python), @grpc/grpc-js and ws (Node), tonic and tokio-tungstenite (Rust): each is client and server, and
each client talks with each server; they are installed and built beside the build (CARGO_TARGET_DIR). There is the baseline, an
overlay that owns the services, and one whose services are not there and that falls back. Calls go through a gateway, and those of
gRPC also through an outbound listener as the client's HTTP proxy, where it knows proxies. Each server says who it is.
"""

import asyncio
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from harness.processes import Port, command_line, free_ports, running
from peers import installed

# What a check of one client and one server may take; they wait on purpose.
SECONDS = 90


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
    return running("overlane", folder, *command, port=admin)


@contextlib.contextmanager
def server(peer, name):
    """A peer's servers, and their ports."""
    ports = free_ports(2)
    process = subprocess.Popen(list(map(str, [*peer, "serve", name, *ports])), stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{peer[-1]} does not serve")
        yield ports
    finally:
        process.kill()
        process.wait()


def converse(peer, *words, **environment):
    done = subprocess.run(list(map(str, [*peer, *words])), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, **environment}, timeout=SECONDS)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, [peer[-1], *words]))} ended with {done.returncode}:\n{done.stdout[-4000:]}")


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


async def check_events(gateway, port):
    asked = asyncio.Queue()
    kept = await events_server(port, asked)
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
    kept.close()
    print("server-sent events: each arrived before the next was sent, and silence cut nothing")


def check(binary, folder, peers):
    held = [Port() for _ in range(5)]
    gateway, outbound, admin, nowhere, events = (port.number for port in held)

    def urls(scheme, own):
        return {name: f"{scheme}://127.0.0.1:{own.get(name, nowhere)}" for name in ["base", "alice", "bob"]}

    with contextlib.ExitStack() as stack:
        services = {"events": urls("http", {"base": events})}
        for language, peer in peers.items():
            own = {name: stack.enter_context(server(peer, name)) for name in ["base", "alice"]}
            services[f"echo-{language}"] = urls("h2c", {name: ports[0] for name, ports in own.items()})
            services[f"chat-{language}"] = urls("http", {name: ports[1] for name, ports in own.items()})
        stack.enter_context(overlane(binary, folder, gateway, outbound, admin, services))
        for client, peer in peers.items():
            for other in peers:
                converse(peer, "grpc", f"127.0.0.1:{gateway}", f"echo-{other}")
                print(f"gRPC, {client} to {other}: all kinds of calls, metadata, errors, deadlines, cancellation")
                converse(peer, "websockets", f"127.0.0.1:{gateway}", f"chat-{other}")
                print(f"WebSockets, {client} to {other}: greetings, fragments, large messages, pings, silence, close codes, 300 at 50 a time")
        # tonic knows no proxies.
        for client in ["python", "node"]:
            proxy = f"http://127.0.0.1:{outbound}"
            converse(peers[client], "grpc", "dns:///echo-python:50051", "echo-python", grpc_proxy=proxy)
            print(f"gRPC, {client} to python through the outbound listener as its proxy: the same")
        asyncio.run(check_events(gateway, events))


def python():
    """The interpreter with the packages."""
    return installed.python(installed.cache("streams"), HERE / "python/requirements.txt") / "python"


def peers():
    """How each peer is called."""
    rust = installed.cache("streams") / "rust"
    installed.run(["cargo", "build", "--locked", "--quiet", "--target-dir", rust], HERE / "rust")
    return {"python": [python(), HERE / "python/peer.py"], "node": ["node", installed.node(installed.cache("streams"), HERE / "node/peer.js")],
            "rust": [rust / "debug/overlane-streams-peer"]}


def main():
    options = command_line(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check(options.binary, pathlib.Path(folder), peers())


if __name__ == "__main__":
    main()
