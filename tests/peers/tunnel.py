#!/usr/bin/env python3
"""A laptop that nothing can reach, in its overlay through a hub.

    python3 tests/peers/tunnel.py BINARY

As root, with nftables: two network namespaces, of which the laptop's accepts no connection and reaches nothing but the
hub's port. Its service is called through the gateway beside the hub, and calls the baseline's. The way is cut and mended.
"""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness.processes import START, program, running, until

HERE = pathlib.Path(__file__).resolve()
APP = HERE.parents[2] / "proxy" / "tests" / "app.py"
HUB, LAPTOP = "overlane-hub", "overlane-laptop"
# The hub's side of the way between them; and where services are, which the laptop has no route to.
AT_HUB, AT_LAPTOP, SERVICES = "10.99.0.1", "10.99.0.2", "10.98.0.1"
PORTS = {"gateway": 7480, "hub": 7600, "admin": 7481, "web": 8001, "ledger": 8002}
TOKEN = "a-token-of-this-test-that-is-long-enough"


def run(*words, **named):
    return subprocess.run(words, check=True, **named)


def inside(namespace, *words):
    return ["ip", "netns", "exec", namespace, *map(str, words)]


@contextlib.contextmanager
def namespaces():
    for name in (HUB, LAPTOP):
        subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)
        run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", "to-laptop", "netns", HUB, "type", "veth", "peer", "name", "to-hub", "netns", LAPTOP)
        for name, link, address in ((HUB, "to-laptop", AT_HUB), (LAPTOP, "to-hub", AT_LAPTOP)):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", link)
            run("ip", "-n", name, "link", "set", link, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", HUB, "address", "add", f"{SERVICES}/32", "dev", "lo")
        for rule in (
            "add table inet t",
            "add chain inet t in { type filter hook input priority 0 ; policy drop ; }",
            "add rule inet t in iif lo accept",
            "add rule inet t in ct state established accept",
        ):
            run(*inside(LAPTOP, "nft", rule))
        yield
    finally:
        for name in (HUB, LAPTOP):
            subprocess.run(["ip", "netns", "delete", name])


SERVICE = """
import http.server, sys
class S(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (sys.argv[3] + ' ' + (self.headers.get('x-overlay-id') or 'none')).encode()
        self.send_response(200); self.send_header('content-length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), S).serve_forever()
"""

ASK = """
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
request = urllib.request.Request(sys.argv[1], headers={'x-overlay-id': sys.argv[2]} if sys.argv[2] else {})
print(opener.open(request, timeout=5).read().decode(), end='')
"""


def ask(path, key):
    """What the gateway answers, to somebody beside it; an empty text where it does not."""
    url = f"http://{AT_HUB}:{PORTS['gateway']}{path}"
    asked = subprocess.run(inside(HUB, sys.executable, "-c", ASK, url, key), capture_output=True, text=True)
    return asked.stdout


def reaches(namespace, address, port):
    code = f"import socket; socket.create_connection(({address!r}, {port}), timeout=1)"
    return subprocess.run(inside(namespace, sys.executable, "-c", code), stderr=subprocess.DEVNULL).returncode == 0


def main(binary):
    with tempfile.TemporaryDirectory() as folder, namespaces(), contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        store = folder / "store"
        store.mkdir()
        services = "\n".join(
            f"- {{name: {name}, url: 'http://{SERVICES}:{PORTS[name]}'{', expose: true' if name == 'web' else ''}}}"
            for name in ("web", "ledger")
        )
        (store / "staging.yaml").write_text(f"name: staging\nrouting: {{mode: baseline}}\nservices:\n{services}\n")
        (folder / "alice.yaml").write_text(
            "name: alice\nrouting: {mode: overlay, baselineId: staging}\nservices: [{name: web}]\n"
        )
        (folder / "tokens").write_text(TOKEN + "\n")
        for name in ("web", "ledger"):
            words = inside(HUB, sys.executable, "-c", SERVICE, SERVICES, PORTS[name], name)
            stack.enter_context(running(name, folder, *words))
        at = lambda name: f"{AT_HUB}:{PORTS[name]}"
        hub = ["run", "--store", store, "--gateway", at("gateway"), "--trust", "any", "--admin", f"127.0.0.1:{PORTS['admin']}"]
        hub += ["--hub", at("hub"), "--hub-tokens", folder / "tokens", "--hub-tunnels", f"{AT_HUB}:20000-20009"]
        environment = {"OVERLANE_LOG": "warn"}
        stack.enter_context(running("hub", folder, *inside(HUB, binary, *hub), environment=environment))
        until("the gateway serves", lambda: ask("/", "") == "web none", START)

        assert not reaches(LAPTOP, SERVICES, PORTS["ledger"]), "the laptop has no way to the services"
        laptop = ["overlay", "run", "--server", f"http://{at('hub')}", "--file", folder / "alice.yaml"]
        words = inside(LAPTOP, binary, *laptop, "--", sys.executable, APP)
        local = stack.enter_context(running("laptop", folder, *words, environment=environment | {"OVERLANE_SERVER_TOKEN": TOKEN})).child
        told = json.loads(until("the laptop's service answers", lambda: ask("/", "alice").startswith("{") and ask("/", "alice"), START))
        assert not reaches(HUB, AT_LAPTOP, told["PORT"]), "the laptop accepts no connection"
        assert ask("/", "") == "web none", "others are not concerned"
        called = ask("/call", "alice")
        assert called == "ledger alice", f"the laptop's service calls the baseline's: {called!r}"
        print("in the overlay from a machine that accepts no connection: ok")

        run("ip", "-n", HUB, "link", "set", "to-laptop", "down")
        # Longer than it takes to notice that nothing comes back.
        time.sleep(25)
        run("ip", "-n", HUB, "link", "set", "to-laptop", "up")
        until("it comes back after the way was cut", lambda: ask("/call", "alice") == "ledger alice", START)
        print("cut off for 25 s, and back: ok")

        # All of its processes are in this group's reach by the first of them: `ip netns exec` is replaced by the command.
        local.send_signal(signal.SIGTERM)
        assert local.wait(20) == 128 + signal.SIGTERM, local.returncode
        until("nothing is left of it", lambda: ask("/", "alice") == "web alice", START)
        assert [entry.name for entry in store.glob("[!.]*")] == ["staging.yaml"], list(store.iterdir())
        print("ended, and nothing left behind: ok")


if __name__ == "__main__":
    main(program(sys.argv[1]))
