#!/usr/bin/env python3
"""How much memory clients of HTTP/2 can hold that open 100 streams each and read nothing, and how much is kept when they are gone.

    python3 benches/stalled.py BINARY [--connections N] [--upstream h2c|http]

One worker; each stream asks for a megabyte. nghttpd or nginx is the upstream. Wants file descriptors: `ulimit -n`.
"""

import contextlib
import pathlib
import socket
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

from harness.figures import memory
from harness.http2 import PREFACE, SETTINGS, head
from harness.processes import command_line, running

UPSTREAM, GATEWAY, ADMIN, STREAMS = 18580, 18590, 18591, 100
NGINX = """
worker_processes 1; daemon off; pid {0}/pid; error_log {0}/log crit; worker_rlimit_nofile 65536;
events {{ worker_connections 60000; }}
http {{ access_log off; server {{ listen 127.0.0.1:{1} backlog=4096; root {0}; }} }}
"""


ASKS = b"".join(head(1 + 2 * number, 5, b"/large") for number in range(STREAMS))


def stalled():
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", GATEWAY))
    client.sendall(PREFACE + SETTINGS + ASKS)
    return client


def settled(pid):
    """Memory once it does not grow any more, in MiB."""
    before = 0.0
    while (now := memory(pid)) > before + 1:
        before = now
        time.sleep(2)
    return now


def main():
    parser = command_line(__doc__)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--upstream", choices=["h2c", "http"], default="h2c")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        (folder / "large").write_bytes(b"x" * 1_000_000)
        (folder / "nginx.conf").write_text(NGINX.format(folder, UPSTREAM))
        (folder / "store").mkdir()
        (folder / "store/base.yaml").write_text(
            "name: base\nrouting: {mode: baseline}\n"
            f"services: [{{name: web, expose: true, url: '{options.upstream}://127.0.0.1:{UPSTREAM}'}}]\n")
        upstream = {"h2c": ["nghttpd", "--no-tls", "-m", "100000", "-d", str(folder), str(UPSTREAM)],
                    "http": ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]}[options.upstream]
        stack.enter_context(running("upstream", folder, *upstream, port=UPSTREAM))
        command = [options.binary, "run", "--store", str(folder / "store"), "--workers", "1",
                   "--gateway", f"127.0.0.1:{GATEWAY}", "--admin", f"127.0.0.1:{ADMIN}"]
        pid = stack.enter_context(running("gateway", folder, *command, port=ADMIN)).child.pid
        before = memory(pid)
        clients = [stalled() for _ in range(options.connections)]
        after = settled(pid)
        print(f"{len(clients)} connections with {STREAMS} stalled streams each, {options.upstream} upstream: "
              f"{before:.0f} -> {after:.0f} MiB")
        for client in clients:
            client.close()
        # Nobody asks anything meanwhile.
        time.sleep(10)
        print(f"10 s after they are gone: {memory(pid):.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
