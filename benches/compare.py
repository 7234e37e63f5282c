#!/usr/bin/env python3
"""CPU per request of overlane and of nginx at the same job, as a ratio in one run.

    cargo build --profile dist -p overlane && python3 benches/compare.py target/dist/overlane

Both route by the header x-overlay-id among 10,000 overlays to one of two upstreams: nginx by `map`, overlane by
its table. Each proxy gets one worker on one core; load (wrk) and upstreams (nginx) share the other. Rounds are
interleaved, and the figure is the proxies' own user and system time from /proc, divided by the requests that
wrk counted. Everything is on loopback, bounded in time, and ended by process id.
"""

import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

OVERLAYS = 10_000
ROUNDS = 7
SECONDS = 4
CONNECTIONS = 32
UPSTREAMS, NGINX, OVERLANE, ADMIN = 18080, 18090, 18091, 18092
TICK = os.sysconf("SC_CLK_TCK")
CASES = {"known key": "overlay-7777", "unknown key": "nobody", "no key": None}

NGINX_HEAD = """
worker_processes 1;
daemon off;
pid {folder}/{name}.pid;
error_log {folder}/{name}.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy;
  fastcgi_temp_path {folder}/{name}-f; uwsgi_temp_path {folder}/{name}-u; scgi_temp_path {folder}/{name}-s;
  keepalive_requests 1000000000;
"""

UPSTREAM = NGINX_HEAD + """
  server {{ listen 127.0.0.1:{base}; location / {{ return 200 "baseline\\n"; }} }}
  server {{ listen 127.0.0.1:{overlay}; location / {{ return 200 "overlay\\n"; }} }}
}}
"""

PROXY = NGINX_HEAD + """
  map_hash_max_size 65536; map_hash_bucket_size 128;
  upstream base {{ server 127.0.0.1:{base}; keepalive 128; keepalive_requests 1000000000; }}
  upstream overlay {{ server 127.0.0.1:{overlay}; keepalive 128; keepalive_requests 1000000000; }}
  map $http_x_overlay_id $pool {{ default base; include {folder}/map; }}
  server {{
    listen 127.0.0.1:{port} reuseport;
    location / {{
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_buffers 16 32k; proxy_buffer_size 32k;
      proxy_pass http://$pool;
    }}
  }}
}}
"""


def nginx(folder, name, text):
    path = folder / f"{name}.conf"
    path.write_text(text)
    return ["nginx", "-c", str(path), "-p", str(folder)]


def write_store(folder):
    store = folder / "store"
    store.mkdir()
    baseline = f"name: staging\nrouting: {{mode: baseline}}\nservices:\n  - {{name: web, expose: true, url: 'http://127.0.0.1:{UPSTREAMS}'}}\n"
    (store / "staging.yaml").write_text(baseline)
    overlay = "name: overlay-{0}\nrouting: {{mode: overlay, baselineId: staging}}\nservices:\n  - {{name: web, url: 'http://127.0.0.1:{1}'}}\n"
    documents = "---\n".join(overlay.format(number, UPSTREAMS + 1) for number in range(OVERLAYS))
    (store / "overlays.yaml").write_text(documents)
    return store


def family(pid):
    """A process and its children (nginx's workers)."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [int(child) for child in children]


def cpu(pid):
    total = 0
    for each in family(pid):
        fields = pathlib.Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def answer(port, key):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"x-overlay-id": key} if key else {})
    with urllib.request.urlopen(request, timeout=5) as response:
        return response.read().decode().strip()


def ready(port):
    for _ in range(200):
        try:
            return answer(port, None)
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing answers on port {port}")


def load(port, key):
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s"]
    command += ["-H", f"x-overlay-id: {key}"] if key else []
    out = subprocess.run(command + [f"http://127.0.0.1:{port}/"], check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(out)
    return int(re.search(r"(\d+) requests in", out).group(1))


def main():
    binary = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix="overlane-compare-") as name:
        folder = pathlib.Path(name)
        ports = {"folder": folder, "base": UPSTREAMS, "overlay": UPSTREAMS + 1}
        (folder / "map").write_text("".join(f"overlay-{number} overlay;\n" for number in range(OVERLAYS)))
        store = write_store(folder)
        commands = {
            "upstream": ["taskset", "-c", "1"] + nginx(folder, "upstream", UPSTREAM.format(name="upstream", **ports)),
            "nginx": ["taskset", "-c", "0"] + nginx(folder, "proxy", PROXY.format(name="proxy", port=NGINX, **ports)),
            "overlane": ["taskset", "-c", "0", str(binary), "run", "--store", str(store), "--workers", "1",
                         "--gateway", f"127.0.0.1:{OVERLANE}", "--admin", f"127.0.0.1:{ADMIN}"],
        }
        running = {key: subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(folder / f"{key}.err", "wb"))
                   for key, command in commands.items()}
        try:
            compare(running)
        finally:
            for process in running.values():
                process.send_signal(signal.SIGTERM)
            for process in running.values():
                process.wait(timeout=40)


def compare(running):
    proxies = {"overlane": (OVERLANE, running["overlane"].pid), "nginx": (NGINX, running["nginx"].pid)}
    for port, _ in proxies.values():
        ready(port)
        for key in CASES.values():
            expected = "overlay" if key == CASES["known key"] else "baseline"
            if answer(port, key) != expected:
                raise SystemExit(f"port {port} answers {answer(port, key)!r} to {key!r}")
    print(f"{OVERLAYS} overlays, {CONNECTIONS} connections, {ROUNDS} rounds of {SECONDS} s, one worker each")
    for case, key in CASES.items():
        micros = {proxy: [] for proxy in proxies}
        for _ in range(ROUNDS):
            for proxy, (port, pid) in proxies.items():
                before = cpu(pid)
                requests = load(port, key)
                micros[proxy].append((cpu(pid) - before) * 1e6 / requests)
        ratios = sorted(ours / theirs for ours, theirs in zip(micros["overlane"], micros["nginx"]))
        shown = ", ".join(f"{proxy} {statistics.median(values):.1f} µs" for proxy, values in micros.items())
        print(f"{case:12} CPU per request, overlane / nginx: {statistics.median(ratios):.2f} "
              f"({ratios[0]:.2f}–{ratios[-1]:.2f})   medians: {shown}")


if __name__ == "__main__":
    main()
