#!/usr/bin/env python3
"""The Autobahn fuzzing suite with and without the gateway between: not one case may be worse.

    python3 tests/peers/streams/autobahn.py BINARY WSTEST [CASE…]

WSTEST is the program of `autobahntestsuite` 25.10.1 from PyPI, which wants Python 2.7. The server is `websockets`. Cases of
performance and compression (9, 12, 13) are left out where none are named.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import check

# How often a case that ended otherwise is tried without the gateway.
TRIES = 20


async def echo(port):
    from websockets import ConnectionClosed
    from websockets.asyncio.server import serve

    async def answer(socket):
        # What is sent to it is mostly wrong, as it should be.
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                await socket.send(message)

    return await serve(answer, "127.0.0.1", port, max_size=None)


async def fuzz(wstest, servers, cases, folder):
    """How each case ended with each server."""
    (folder / "fuzz.json").write_text(json.dumps({
        "outdir": str(folder / "reports"), "servers": servers, "cases": cases or ["*"],
        "exclude-cases": [] if cases else ["9.*", "12.*", "13.*"], "exclude-agent-cases": {}}))
    fuzzing = await asyncio.create_subprocess_exec(wstest, "-m", "fuzzingclient", "-s", str(folder / "fuzz.json"),
                                                   cwd=folder, stdout=subprocess.DEVNULL)
    try:
        await asyncio.wait_for(fuzzing.wait(), 1800)
    finally:
        with contextlib.suppress(ProcessLookupError):
            fuzzing.kill()
    told = json.loads((folder / "reports/index.json").read_text())
    return {agent: {case: (own["behavior"], own["behaviorClose"]) for case, own in cases.items()}
            for agent, cases in told.items()}


async def run(binary, wstest, cases, folder):
    held = [check.Port() for _ in range(4)]
    gateway, outbound, admin, server = (port.number for port in held)
    running = await echo(server)
    services = {"chat": dict.fromkeys(["base", "alice", "bob"], f"http://127.0.0.1:{server}")}
    servers = [{"agent": "direct", "url": f"ws://127.0.0.1:{server}"},
               {"agent": "overlane", "url": f"ws://localhost:{gateway}"}]
    with check.overlane(binary, folder, gateway, outbound, admin, services, hosts=["localhost"]):
        ends = await fuzz(wstest, servers, cases, folder)
        direct = {case: {end} for case, end in ends["direct"].items()}
        others = {case: ends["overlane"].get(case) for case in direct}
        # Some end by chance: a server that reads a message and a bad frame in one go answers neither. So what
        # ended otherwise is tried again, until it was seen to end so without the gateway as well.
        for _ in range(TRIES):
            others = {case: end for case, end in others.items() if end not in direct[case]}
            if not others:
                break
            for case, end in (await fuzz(wstest, servers[:1], list(others), folder))["direct"].items():
                direct[case].add(end)
        others = {case: end for case, end in others.items() if end not in direct[case]}
    running.close()
    print(f"Autobahn: {len(direct)} cases, {len(others)} end otherwise through the gateway", *others)
    sys.exit(1 if others or not direct else 0)


if __name__ == "__main__":
    python = check.python()
    if pathlib.Path(sys.prefix) != python.parent.parent:
        os.execv(python, [str(python), *sys.argv])
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(run(pathlib.Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3:], pathlib.Path(temporary)))
