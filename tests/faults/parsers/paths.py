#!/usr/bin/env python3
"""Spellings of paths before readers of others: nginx, Node's URL, and Python's http.server and WSGI.

    python3 tests/faults/parsers/paths.py BINARY [--engine auto|pingora] [--random N] [--seed N]

A gateway leads `/public`, `/public/deep`, `/private` and `/.x` to services, all of them before one reader that says which of these a
path is below for it. Each path of `config/tests/paths.txt`, and so many random ones, is asked for: whoever gets it must read in it
what the gateway read in it. Asked without the gateway, by a proxy that compares prefixes, it says how many would have reached another.
"""

import argparse
import contextlib
import http.server
import json
import pathlib
import posixpath
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wsgiref.simple_server

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Without a slash at their ends: Python, for one, reads `/private/.` as `/private` (docs/decisions/0029-paths.md).
EXPOSED = {"/public/deep": "deep", "/public": "open", "/private": "shut", "/.x": "dotted"}
PIECES = ("/ / /public /private /deep deep /.x x .. .. . %2e %2E %2f %2F %5c \\ %252f %25 %2 ; ;a=b %3b %00 %09 %3f %23 %c0%af %c0%ae "
          "%e0%80%af %u002f // %70ublic %c3%a4 %20 : @").split(" ")


def below(path):
    """The service of the longest prefix that ends where a segment does."""
    for prefix, service in EXPOSED.items():
        if path.startswith(prefix) if prefix.endswith("/") else path == prefix or path.startswith(prefix + "/"):
            return service
    return "none"


def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    sys.exit(f"nobody listens on {port}")


@contextlib.contextmanager
def running(command, port):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        listening(port)
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def nginx(port, folder):
    """Decodes once, merges slashes, removes dot segments; what it cannot decode is a 400."""
    def place(match, service):
        return f'location {match} {{ return 200 "$server_port {service}"; }}\n'
    # `location /public` begins texts, not segments.
    places = "".join(place(f"{prefix.rstrip('/')}/", service) + ("" if prefix.endswith("/") else place(f"= {prefix}", service))
                     for prefix, service in EXPOSED.items()) + place("/", "none")
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log /dev/null;\nevents {{}}\nhttp {{ access_log off;\n"
        + "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
        + f"server {{ listen 127.0.0.1:{port}; {places} }} }}\n")
    with running(["nginx", "-p", folder, "-c", folder / "nginx.conf"], port):
        yield


@contextlib.contextmanager
def node(port, _):
    """`new URL(request.url, …).pathname`, and that decoded, as `decodeURIComponent` before a look at it is usual: both."""
    script = """
const exposed = JSON.parse(process.argv[2]);
const below = (path) => (exposed.find(([prefix]) => prefix.endsWith("/") ? path.startsWith(prefix)
  : path === prefix || path.startsWith(prefix + "/")) || ["", "none"])[1];
require("http").createServer((request, response) => {
  const readings = new Set();
  try {
    const path = new URL("http://x" + request.url).pathname;
    readings.add(below(path));
    const decoded = decodeURIComponent(path);
    readings.add(below(decoded)).add(below(require("path").posix.normalize(decoded)));
  } catch { }
  response.setHeader("Connection", "close");
  response.end([process.argv[1], ...readings].join(" "));
}).listen(Number(process.argv[1]), "127.0.0.1");
"""
    with running(["node", "-e", script, str(port), json.dumps(list(EXPOSED.items()))], port):
        yield


class Files(http.server.SimpleHTTPRequestHandler):
    """Where Python's own file server would look."""

    def do_GET(self):
        path = self.translate_path(self.path)[len(self.directory.rstrip("/")):] or "/"
        said = f"{self.server.server_port} {below(path)}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


def wsgi(environ, start):
    """`PATH_INFO`, which is decoded, as it is and without dot segments."""
    path = environ["PATH_INFO"]
    normal = posixpath.normpath(path) + "/" * path.endswith("/")
    said = " ".join([environ["SERVER_PORT"], *{below(path), below(normal)}]).encode()
    start("200 OK", [("Content-Length", str(len(said)))])
    return [said]


@contextlib.contextmanager
def served(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def python(port, _):
    return served(http.server.ThreadingHTTPServer(("127.0.0.1", port), Files))


def python_wsgi(port, _):
    return served(wsgiref.simple_server.make_server("127.0.0.1", port, wsgi, handler_class=Quiet))


READERS = {"nginx": nginx, "node": node, "http.server": python, "wsgi": python_wsgi}


def ask(port, path):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while more := client.recv(65536):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body.decode("latin-1")


def paths(options):
    listed = [line.split("  ")[0].strip() for line in (ROOT / "config/tests/paths.txt").read_text().splitlines() if line]
    generator = random.Random(options.seed)
    starts = ["/", *(prefix.rstrip("/") + "/" for prefix in EXPOSED), "/public", "/%70ublic"]
    made = [generator.choice(starts) + "".join(generator.choices(PIECES, k=generator.randrange(1, 8))) for _ in range(options.random)]
    return [path for path in listed + made if path.isascii()]


def check(kind, options, folder):
    """Each service has a port of its own, and the same reader behind it: who was led to is told by the port."""
    ports = {service: free() for service in EXPOSED.values()}
    gateway, admin = free(), free()
    (folder / "store").mkdir()
    services = ", ".join(f"{{name: {service}, url: 'http://127.0.0.1:{ports[service]}', path: {prefix}}}" for prefix, service in EXPOSED.items())
    (folder / "store/base.yaml").write_text(f"name: base\nrouting: {{mode: baseline}}\nservices: [{services}]\n")
    proxy = [options.binary.resolve(), "run", "--store", folder / "store", "--gateway", f"127.0.0.1:{gateway}", "--admin",
             f"127.0.0.1:{admin}", "--workers", "1", "--engine", options.engine]
    total, led, wrong, naive = 0, 0, [], 0
    with contextlib.ExitStack() as stack:
        for service, port in ports.items():
            own = folder / service
            own.mkdir()
            stack.enter_context(READERS[kind](port, own))
        stack.enter_context(running(proxy, admin))
        for path in paths(options):
            total += 1
            by_prefix = below(path.split("?")[0])
            status, itself = ask(next(iter(ports.values())), path)
            naive += by_prefix != "none" and status == 200 and bool(set(itself.split()[1:]) - {by_prefix})
            status, answer = ask(gateway, path)
            if status != 200:
                continue
            led += 1
            port, *readings = answer.split()
            service = next(name for name, own in ports.items() if own == int(port))
            if set(readings) - {service}:
                wrong.append(f"{kind}: {path!r} was led to {service}, and read as {readings}")
    print(f"{kind}: of {total} paths {led} were led to a service, {len(wrong)} of them to another than it reads; "
          f"{naive} would have been by a proxy that compares prefixes", flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--engine", choices=["auto", "pingora"], default="auto")
    parser.add_argument("--random", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    wrong = []
    for kind in READERS:
        with tempfile.TemporaryDirectory() as folder:
            wrong += check(kind, options, pathlib.Path(folder))
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
