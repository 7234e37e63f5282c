#!/usr/bin/env python3
"""What HTTP/2 and gRPC cost beside nginx and Envoy: CPU per request.

    cargo build --profile dist -p overlane
    python3 benches/http2.py target/dist/overlane [--also NAME=BINARY] [--envoy PATH] [--requests N] [--rounds N]

All in one run, in turn, each with one worker; clients and the upstream are nghttp2's h2load and nghttpd. The job is that of
benches/compare: a header names one of two upstreams. `ratio` is of CPU time per request, user and system, to Overlane's: over
1 the other one costs more. nginx speaks HTTP/2 to upstreams only as gRPC, so for plain requests its upstream is HTTP/1.1.
"""

import contextlib
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

from harness import figures
from harness.processes import command_line, program, running

BASE, OVERLAY, HTTP1, FIRST = 18380, 18381, 18382, 18390
KEY = "alice"
# A message of gRPC: a flag, a length, and 64 bytes.
MESSAGE = b"\0\0\0\0\x40" + b"m" * 64
CASES = {
    "GET 1 KiB": (["/small"], []),
    "gRPC echo": (["/echo"], ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", "{message}"]),
}

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream http1 {{ server 127.0.0.1:{http1}; keepalive 128; keepalive_requests 1000000000; }}
  upstream base {{ server 127.0.0.1:{base}; keepalive 128; keepalive_requests 1000000000; }}
  upstream overlay {{ server 127.0.0.1:{overlay}; keepalive 128; keepalive_requests 1000000000; }}
  map $http_x_overlay_id $pool {{ default base; {key} overlay; }}
  server {{ listen 127.0.0.1:{http1}; location = /small {{ root {folder}; }} }}
  server {{
    listen 127.0.0.1:{port} http2; http2_max_concurrent_streams 128;
    location / {{ proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_pass http://http1; }}
    location /echo {{ grpc_pass grpc://$pool; }}
  }}
}}
"""

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          codec_type: AUTO
          generate_request_id: false
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, dynamic_stats: false}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {{match: {{prefix: "/", headers: [{{name: x-overlay-id, string_match: {{exact: {key}}}}}]}}, route: {{cluster: overlay, timeout: 0s}}}}
              - {{match: {{prefix: "/"}}, route: {{cluster: base, timeout: 0s}}}}
  clusters:
{clusters}
"""
CLUSTER = """  - name: {name}
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}
"""


def overlane(folder, binary, port):
    store = folder / f"store-{port}"
    store.mkdir()
    services = "services: [{name: web, expose: true, url: 'h2c://127.0.0.1:%d'}]\n"
    (store / "base.yaml").write_text("name: base\nrouting: {mode: baseline}\n" + services % BASE)
    routing = "routing: {mode: overlay, baselineId: base}\n"
    (store / f"{KEY}.yaml").write_text(f"name: {KEY}\n" + routing + services % OVERLAY)
    return [binary, "run", "--store", str(store), "--workers", "1", "--gateway", f"127.0.0.1:{port}",
            "--admin", f"127.0.0.1:{port + 100}"]


def commands(folder, options):
    ports = {"folder": folder, "base": BASE, "overlay": OVERLAY, "http1": HTTP1, "key": KEY}
    yield "overlane", FIRST, overlane(folder, options.binary, FIRST)
    if shutil.which("nginx"):
        (folder / "nginx.conf").write_text(NGINX.format(port=FIRST + 1, **ports))
        yield "nginx", FIRST + 1, ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    if options.envoy:
        clusters = "".join(CLUSTER.format(name=name, port=ports[name]) for name in ["base", "overlay"])
        (folder / "envoy.yaml").write_text(ENVOY.format(port=FIRST + 2, clusters=clusters, **ports))
        yield "envoy", FIRST + 2, [options.envoy, "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "-l", "error",
                                   "--use-dynamic-base-id"]
    for port, (name, binary) in enumerate(options.also, FIRST + 3):
        yield name, port, overlane(folder, program(binary), port)


def cpu_of_all(pid):
    """Of a process and its children, in seconds."""
    return sum(map(figures.cpu, figures.family(pid)))


def load(port, requests, paths, flags):
    """So many requests over 8 connections with 16 streams each; how many succeeded."""
    command = ["h2load", "-n", str(requests), "-c", "8", "-m", "16", "-t", "1", "-H", f"x-overlay-id: {KEY}", *flags]
    told = subprocess.run([*command, *(f"http://127.0.0.1:{port}{path}" for path in paths)],
                          check=True, capture_output=True, text=True).stdout
    return int(told.split(" succeeded")[0].rsplit(" ", 1)[1])


def compare(options, folder):
    message = folder / "message"
    message.write_bytes(MESSAGE)
    for case, (paths, flags) in CASES.items():
        flags = [flag.format(message=message) for flag in flags]
        costs = {}
        with contextlib.ExitStack() as stack:
            peers = []
            for name, port, command in commands(folder, options):
                process = stack.enter_context(running(name, folder, *command, port=port))
                peers.append((name, port, process.child.pid))
            for _, port, _ in peers:
                load(port, options.requests // 10, paths, flags)
            for _ in range(options.rounds):
                for name, port, pid in peers:
                    before = cpu_of_all(pid)
                    succeeded = load(port, options.requests, paths, flags)
                    if succeeded != options.requests:
                        raise SystemExit(f"{name}: {succeeded} of {options.requests} succeeded")
                    costs.setdefault(name, []).append((cpu_of_all(pid) - before) / succeeded * 1e6)
        for store in folder.glob("store-*"):
            shutil.rmtree(store)
        print(case)
        for name, own in costs.items():
            ratio = statistics.median(other / ours for other, ours in zip(own, costs["overlane"]))
            print(f"  {name:9} {statistics.median(own):7.1f} µs CPU per request   ratio {ratio:.2f}")


def main():
    parser = command_line(__doc__)
    parser.add_argument("--envoy", type=program)
    parser.add_argument("--also", action="append", default=[], type=lambda text: text.split("=", 1), metavar="NAME=BINARY",
                        help="another build of it")
    parser.add_argument("--requests", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for tool in ["h2load", "nghttpd"]:
        if not shutil.which(tool):
            sys.exit(f"{tool} is not here: apt install nghttp2")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        # The upstreams' files; nginx's worker is another user.
        folder.chmod(0o755)
        (folder / "small").write_bytes(b"x" * 1024)
        for port in [BASE, OVERLAY]:
            echoing = ["nghttpd", "--no-tls", "--echo-upload", "-m", "1000", "-d", str(folder), str(port)]
            stack.enter_context(running(f"upstream-{port}", folder, *echoing, port=port))
        compare(options, folder)


if __name__ == "__main__":
    main()
