#!/usr/bin/env python3
"""Which HTTP clients of others go through a sidecar when they are told of it by `HTTP_PROXY`, as `overlane inject` tells them.

    python3 tests/peers/clients/check.py BINARY [--write docs/kubernetes.md]

Each client asks `http://ledger/`, a name that leads nowhere on this machine, with the key of an overlay. Who asks the proxy gets the overlay's answer; who
does not cannot find the name. What each does is held against what the page says (`--write` writes that). Wants Python 3.11 and Node 20 with npm; Java, PHP, Ruby,
Perl, wget and cargo where they are: what is not there is said. Packages are installed beside the build (CARGO_TARGET_DIR).
"""

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from harness.processes import Failed, Port, Together, clean
from peers import installed

BEGIN, END = "<!-- results: made by tests/peers/clients -->", "<!-- end of results -->"
SECONDS = 120
KEY, ANSWER = "alice", "ledger@alice"
# How clients say that nobody knows a name. Anything else is a failure of the check.
NO_SUCH_NAME = re.compile(r"resol|getaddrinfo|ENOTFOUND|EAI_AGAIN|UnknownHost|name or service|name lookup|dns", re.I)


class Case:
    """A client, how it is told of the proxy besides `HTTP_PROXY`, and whether it goes through it."""

    def __init__(self, client, asks, command, told="", **environment):
        self.client, self.asks, self.command, self.told, self.environment = client, asks, command, told, environment


def shell(version, ask):
    return ["sh", "-c", f"{version}; {ask}"]


def cases(programs, proxy):
    """Every case whose language is here."""
    host, port = proxy.rsplit(":", 1)
    python, node, java, rust = (programs.get(name) for name in ("python", "node", "java", "rust"))
    yield Case("curl", True, shell("curl --version | cut -d' ' -f2 | head -1", f"curl --silent --show-error -H 'x-overlay-id: {KEY}' http://ledger/"))
    if shutil.which("wget"):
        yield Case("wget", True, shell("wget --version | cut -d' ' -f3 | head -1", f"wget -q -O - --header 'x-overlay-id: {KEY}' http://ledger/ || wget -O - http://ledger/"))
    for name, asks in [("urllib", True), ("urllib3", False), ("requests", True), ("httpx", True), ("aiohttp", False)]:
        yield Case(f"Python `{name}`", asks, [*python, name])
    yield Case("Python `urllib3`", True, [*python, "urllib3", f"http://{proxy}"], "`ProxyManager`")
    yield Case("Python `aiohttp`", True, [*python, "aiohttp", "trust_env"], "`ClientSession(trust_env=True)`")
    yield Case("Python `grpcio`", True, [*python, "grpc"])
    for name, asks in [("http", False), ("fetch", False), ("undici", False), ("axios", True), ("got", False)]:
        yield Case(f"Node `{name}`", asks, [*node, name])
    yield Case("Node `fetch`, `undici`", True, [*node, "agent"], "undici's `setGlobalDispatcher(new EnvHttpProxyAgent())`")
    yield Case("Node `@grpc/grpc-js`", True, [*node, "grpc"])
    if java:
        of_java = [f"-Dhttp.proxyHost={host}", f"-Dhttp.proxyPort={port}"]
        for name, what in [("connection", "`HttpURLConnection`"), ("client", "`java.net.http`")]:
            yield Case(f"Java {what}", False, ["java", java, name])
            yield Case(f"Java {what}", True, ["java", *of_java, java, name], "`-Dhttp.proxyHost=… -Dhttp.proxyPort=…`")
    if shutil.which("php"):
        yield Case("PHP `curl`", True, ["php", HERE / "php/client.php", "curl"])
        yield Case("PHP `file_get_contents`", False, ["php", HERE / "php/client.php", "streams"])
        yield Case("PHP `file_get_contents`", True, ["php", HERE / "php/client.php", "streams", f"tcp://{proxy}"], "the context's `proxy`")
    if shutil.which("ruby"):
        yield Case("Ruby `Net::HTTP`", True, ["ruby", HERE / "ruby/client.rb"])
    if shutil.which("perl"):
        perl = f"$a = HTTP::Tiny->new->get('http://ledger/', {{headers => {{'x-overlay-id' => '{KEY}'}}}}); print HTTP::Tiny->VERSION . \"\\n\" . $a->{{content}}"
        yield Case("Perl `HTTP::Tiny`", True, ["perl", "-MHTTP::Tiny", "-e", perl])
    if rust:
        for name, asks in [("reqwest", True), ("ureq", True), ("hyper", False)]:
            yield Case(f"Rust `{name}`", asks, [rust, name])


class Service(BaseHTTPRequestHandler):
    """Who is asked in the end; a server of this is of one environment."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"ledger@{self.server.environment}\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def service(environment):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.environment = environment
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class Sidecar(Together):
    """An outbound listener, and a service of two environments that it leads to, by HTTP and by gRPC."""

    def __init__(self, binary, folder, python, services):
        super().__init__(binary, folder)
        self.python, self.services = python, services
        self.outbound, self.admin = Port(), Port()

    def bring_up(self):
        store = self.folder / "store"
        store.mkdir()
        for environment, routing in [("base", "{mode: baseline}"), (KEY, "{mode: overlay, baselineId: base}")]:
            grpc = Port()
            self.start(f"grpc@{environment}", [*self.python, "serve", grpc.number, environment], clean({}))
            (store / f"{environment}.yaml").write_text(
                f"name: {environment}\nrouting: {routing}\nservices:\n"
                f"  - {{name: ledger, url: 'http://127.0.0.1:{self.services[environment]}'}}\n"
                f"  - {{name: ledger-grpc, url: 'h2c://127.0.0.1:{grpc.number}'}}\n")
        command = [self.binary, "run", "--store", store, "--outbound", self.outbound.address, "--admin", self.admin.address]
        self.start("sidecar", command, clean({}))
        self.wait_for(self.admin, "/readyz")


def asked(case, proxy):
    """What a client does: its version, and whether it goes through the proxy."""
    told = {"HTTP_PROXY": f"http://{proxy}", "http_proxy": f"http://{proxy}", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    done = subprocess.run(list(map(str, case.command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          errors="replace", env=clean(told | case.environment), timeout=SECONDS)
    version, _, answer = done.stdout.partition("\n")
    if answer.strip() == ANSWER:
        return version, True
    if not NO_SUCH_NAME.search(done.stdout + done.stderr):
        raise Failed(f"{case.client} ended with {done.returncode}, and not for want of a name:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return version, False


def rows(all_cases, proxy):
    for case in all_cases:
        version, asks = asked(case, proxy)
        print(f"{case.client} {version} {case.told}: {'asks the proxy' if asks else 'does not'}", flush=True)
        if asks != case.asks:
            raise Failed(f"{case.client} {version} {case.told}: was to {'ask' if case.asks else 'pass by'} the proxy, and does not: look at docs/kubernetes.md")
        yield f"| {case.client} | {version} | {case.told or 'nothing'} | {'yes' if asks else '**no**'} |"


def program_of_rust(cache):
    """The program of the Rust clients, if there is a cargo that builds it."""
    if not shutil.which("cargo"):
        return None
    target = cache / "rust"
    installed.run(["cargo", "build", "--quiet", "--locked", "--manifest-path", HERE / "rust/Cargo.toml", "--target-dir", target], HERE)
    return target / "debug/overlane-clients-peer"


def programs(cache):
    cache.mkdir(parents=True, exist_ok=True)
    return {"python": [installed.python(cache, HERE / "python/requirements.txt") / "python", HERE / "python/client.py"],
            "node": ["node", installed.node(cache, HERE / "node/client.mjs")],
            "java": HERE / "java/Client.java" if shutil.which("javac") else None,
            "rust": program_of_rust(cache)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE.md", help="write what was seen between the marks of a page")
    options = parser.parse_args()
    binary = options.binary.resolve(strict=True)
    of = programs(pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target"), "clients").resolve())
    with tempfile.TemporaryDirectory(prefix="overlane-clients-") as folder, service("base") as base, service(KEY) as alice:
        try:
            with Sidecar(binary, pathlib.Path(folder), of["python"], {"base": base, KEY: alice}) as sidecar:
                proxy = sidecar.outbound.address
                seen = list(rows(cases(of, proxy), proxy))
        except Failed as failed:
            sys.exit(str(failed))
    missing = [name for name, there in [("wget", "wget"), ("java", "javac"), ("php", "php"), ("ruby", "ruby"), ("rust", "cargo")] if not shutil.which(there)]
    print(f"{len(seen)} clients do as the page says" + (f"; not here: {', '.join(missing)}" if missing else ""))
    if options.write and not missing:
        head, rest = options.write.read_text().split(BEGIN)
        table = "\n".join(["| client | version | told besides | asks the sidecar |", "|---|---|---|---|", *seen])
        options.write.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
