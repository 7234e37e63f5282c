"""The proxies that are compared: what each is started with, so that all do the same job.

The job: among N overlays, the header x-overlay-id leads to one of two upstreams; the header travels on; connections
are kept on both sides; nothing is logged. Each proxy has one worker.
"""

import contextlib
import os
import shutil
import sys
import time
import urllib.request

from harness.processes import START, Process, clean, listening, until

BASE, OVERLAY, FIRST = 18080, 18081, 18090
SIZES = {"/": 8, "/64k": 64 * 1024, "/1m": 1024 * 1024}

NGINX = """
worker_processes 1;
daemon off;
pid {folder}/{name}.pid;
error_log {folder}/{name}.log warn;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  client_body_temp_path {folder}/{name}-b; proxy_temp_path {folder}/{name}-p;
  fastcgi_temp_path {folder}/{name}-f; uwsgi_temp_path {folder}/{name}-u; scgi_temp_path {folder}/{name}-s;
  keepalive_requests 1000000000; keepalive_timeout 300s;
{rest}
}}
"""

UPSTREAM = """
  open_file_cache max=10 inactive=1h; sendfile on; tcp_nodelay on;
  server {{
    listen 127.0.0.1:{base}; listen 127.0.0.1:{overlay};
    location = / {{ return 200 "$server_port   "; }}
    location / {{ root {folder}/files; }}
  }}
"""

# Without the larger buffers nginx's large bodies cost two to three times as much.
MAP = """
  map_hash_max_size 262144; map_hash_bucket_size 128;
  upstream base {{ server 127.0.0.1:{base}; keepalive 128; keepalive_requests 1000000000; }}
  upstream overlay {{ server 127.0.0.1:{overlay}; keepalive 128; keepalive_requests 1000000000; }}
  map $http_x_overlay_id $pool {{ default base; include {folder}/map; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_buffers 16 32k; proxy_buffer_size 32k; proxy_busy_buffers_size 64k;
      proxy_pass http://$pool;
    }}
  }}
"""

HAPROXY = """
global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  http-reuse always
frontend front
  bind 127.0.0.1:{port}
  default_backend base
  use_backend %[req.hdr(x-overlay-id),map_str({folder}/haproxy.map,base)]
backend base
  server one 127.0.0.1:{base}
backend overlay
  server one 127.0.0.1:{overlay}
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
          generate_request_id: false
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, dynamic_stats: false}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
{routes}
  clusters:
  - {{name: base, type: STATIC, connect_timeout: 5s, load_assignment: {{cluster_name: base, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {base}}}}}}}}}]}}]}}}}
  - {{name: overlay, type: STATIC, connect_timeout: 5s, load_assignment: {{cluster_name: overlay, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {overlay}}}}}}}}}]}}]}}}}
"""


def overlay(number):
    return f"overlay-{number}"


def envoy_linear(count):
    """One route per overlay, which is how overlays are mostly built on Envoy."""
    route = '              - {{match: {{prefix: "/", headers: [{{name: x-overlay-id, string_match: {{exact: {}}}}}]}}, route: {{cluster: overlay}}}}'
    rows = [route.format(overlay(number)) for number in range(count)]
    return "\n".join(["              routes:", *rows, '              - {match: {prefix: "/"}, route: {cluster: base}}'])


def envoy_tree(count):
    """One exact-match map: the best that Envoy can do."""
    action = ('{{action: {{name: route, typed_config: {{"@type": type.googleapis.com/envoy.config.route.v3.Route, '
              'match: {{prefix: "/"}}, route: {{cluster: {}}}}}}}}}')
    head = ['              matcher:', '                matcher_tree:',
            '                  input: {name: key, typed_config: {"@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-overlay-id}}',
            '                  exact_match_map:', '                    map:']
    rows = [f"                      {overlay(number)}: {action.format('overlay')}" for number in range(count)]
    return "\n".join([*head, *rows, f"                on_no_match: {action.format('base')}"])


class Peer:
    """A proxy that runs: its port and its process."""

    def __init__(self, name, port, command, folder):
        self.name, self.port = name, port
        self.process = Process(name, command, folder / f"{name}.out", clean({}), folder)

    def stop(self):
        self.process.child.terminate()
        self.process.end(time.monotonic() + START)


def nginx(folder, name, rest, **values):
    path = folder / f"{name}.conf"
    path.write_text(NGINX.format(folder=folder, name=name, rest=rest.format(folder=folder, **values)))
    return ["nginx", "-c", str(path), "-p", str(folder)]


def upstream(folder):
    """Answers on both upstreams' ports; which one it was is in the small body."""
    files = folder / "files"
    files.mkdir()
    for path, size in SIZES.items():
        if size > 8:
            (files / path[1:]).write_bytes(b"x" * size)
    os.chmod(folder, 0o755)
    command = nginx(folder, "upstream", UPSTREAM, base=BASE, overlay=OVERLAY)
    return Peer("upstream", BASE, ["taskset", "-c", "1", *command], folder)


def store(folder, count):
    path = folder / "store"
    path.mkdir()
    (path / "staging.yaml").write_text(
        f"name: staging\nrouting: {{mode: baseline}}\nservices:\n"
        f"  - {{name: web, expose: true, url: 'http://127.0.0.1:{BASE}'}}\n")
    text = ("name: {0}\nrouting: {{mode: overlay, baselineId: staging}}\nservices:\n"
            f"  - {{{{name: web, url: 'http://127.0.0.1:{OVERLAY}'}}}}\n")
    (path / "overlays.yaml").write_text("---\n".join(text.format(overlay(number)) for number in range(count)))
    return path


def commands(folder, binaries, count, envoy, workers=1):
    """What is compared among `count` overlays: name, port and command of each."""
    (folder / "map").write_text("".join(f"{overlay(number)} overlay;\n" for number in range(count)))
    (folder / "haproxy.map").write_text("".join(f"{overlay(number)} overlay\n" for number in range(count)))
    ports = {"base": BASE, "overlay": OVERLAY}
    path = store(folder, count)
    found, port = [], FIRST
    for name, binary, flags in binaries:
        command = [binary, "run", "--store", str(path), "--workers", str(workers), "--gateway", f"127.0.0.1:{port}",
                   "--admin", f"127.0.0.1:{port + 100}", *flags]
        found.append((name, port, command))
        port += 1
    if shutil.which("nginx"):
        found.append(("nginx", port, nginx(folder, "nginx", MAP, port=port, **ports)))
        port += 1
    if shutil.which("haproxy"):
        config = folder / "haproxy.cfg"
        config.write_text(HAPROXY.format(folder=folder, port=port, **ports))
        found.append(("haproxy", port, ["haproxy", "-db", "-f", str(config)]))
        port += 1
    for form, routes in (("envoy tree", envoy_tree), ("envoy linear", envoy_linear)) if envoy else ():
        # Linear matching among 100,000 takes milliseconds a request: nothing is learnt by waiting for it.
        if form == "envoy linear" and count > 10_000:
            continue
        config = folder / f"{form.replace(' ', '-')}.yaml"
        config.write_text(ENVOY.format(port=port, routes=routes(count), **ports))
        found.append((form, port, [envoy, "-c", str(config), "--concurrency", "1", "-l", "error",
                                   "--disable-hot-restart"]))
        port += 1
    return found


def get(port, key, path="/"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"x-overlay-id": key} if key else {})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read()


def answers(peer):
    with contextlib.suppress(OSError):
        return get(peer.port, None)


def check(peer, count):
    """A peer that does another job is not worth measuring."""
    listening(peer.port, peer.process)
    until(f"{peer.name} answers", lambda: answers(peer), START)
    for key, port in ((overlay(count - 1), OVERLAY), ("nobody", BASE), (None, BASE)):
        body = get(peer.port, key).decode().strip()
        if body != str(port):
            sys.exit(f"{peer.name} sends {key} to {body} instead of {port}")
    for path, size in SIZES.items():
        if len(get(peer.port, None, path)) != size:
            sys.exit(f"{peer.name} answers {path} with a wrong body")
