"""Clients of Python: prints its version, and what `http://ledger/` answers. `client.py NAME [HOW]`; `client.py serve PORT ENVIRONMENT` is a server of gRPC."""

import asyncio
import concurrent.futures
import importlib.metadata
import platform
import sys

KEY = {"x-overlay-id": "alice"}
URL = "http://ledger/"


def urllib(_):
    from urllib.request import Request, urlopen
    print(platform.python_version())
    return urlopen(Request(URL, headers=KEY), timeout=20).read().decode()


def urllib3(proxy):
    import urllib3
    pool = urllib3.ProxyManager(proxy) if proxy else urllib3.PoolManager()
    return pool.request("GET", URL, headers=KEY, retries=False, timeout=20).data.decode()


def requests(_):
    import requests
    return requests.get(URL, headers=KEY, timeout=20).text


def httpx(_):
    import httpx
    return httpx.get(URL, headers=KEY, timeout=20).text


def aiohttp(trusting):
    import aiohttp

    async def ask():
        async with aiohttp.ClientSession(trust_env=bool(trusting)) as session, session.get(URL, headers=KEY) as response:
            return await response.text()

    return asyncio.run(ask())


def grpc(_):
    import grpc
    with grpc.insecure_channel("ledger-grpc:80") as channel:
        return channel.unary_unary("/peer.Ledger/Who")(b"", metadata=tuple(KEY.items()), timeout=20).decode()


def serve(port, environment):
    import grpc
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    who = grpc.unary_unary_rpc_method_handler(lambda *_: f"ledger@{environment}".encode())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peer.Ledger", {"Who": who}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


name, *how = sys.argv[1:]
if name == "serve":
    serve(*how)
if name != "urllib":
    print(importlib.metadata.version({"grpc": "grpcio"}.get(name, name)))
print(globals()[name](how[0] if how else None))
