"""What harnesses of stores share: proxies and what they log, an etcd, a hub, an upstream, and the API of environments."""

import base64
import contextlib
import datetime
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# What who imports this takes from here as well.
from harness.figures import memory, percentile
from harness.processes import all_descriptors, free_port
from harness.service import answering

# Where servers are that are killed and come back: nobody's connections begin there, so their ports are not taken meanwhile.
_PID = os.getpid()
HOST = f"127.{64 + (_PID >> 16) % 64}.{_PID >> 8 & 255}.{max(_PID & 255, 1)}"
# What a member of etcd takes in one transaction, by default: 128.
AT_ONCE = 100

BASELINE = """name: staging
routing: {{mode: baseline}}
services: [{{name: web, expose: true, url: 'http://127.0.0.1:{port}'}}]
"""


def overlay(name, port):
    return json.dumps({"name": name, "routing": {"mode": "overlay", "baselineId": "staging"},
                       "services": [{"name": "web", "url": f"http://127.0.0.1:{port}"}]})


class Proxy:
    """A process, and what it logs."""

    def __init__(self, binary, *arguments):
        self.began = time.time()
        self.process = subprocess.Popen(
            [binary, "run", "--workers", "1", "--admin", "127.0.0.1:0", *arguments],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.addresses = {}
        self.published = []  # (time, what changed)
        self.told = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stderr:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            at = datetime.datetime.fromisoformat(told["timestamp"].replace("Z", "+00:00")).timestamp()
            with self.told:
                if told.get("message") == "listening":
                    self.addresses[told["role"]] = told["address"]
                if told.get("message") == "reloaded":
                    self.published.append((at, told["changes"]))
                self.told.notify_all()

    def until(self, holds, what, patience=120):
        with self.told:
            if not self.told.wait_for(lambda: holds(self), patience):
                raise SystemExit(f"{what}: not within {patience} s ({self.published[-3:]})")

    def address(self, role):
        self.until(lambda own: role in own.addresses, f"a listener {role}")
        return self.addresses[role]

    def when(self, name):
        """When it published a change of this overlay first."""
        def at():
            return next((at for at, changes in self.published if f"+{name} " in changes + " "), None)
        self.until(lambda own: at() is not None, f"{name} is published")
        return at()

    def knows(self, name, patience=120):
        """When this overlay is found in force first. What is published together is not named one by one in the log."""
        deadline = time.time() + patience
        while time.time() < deadline:
            connection = http.client.HTTPConnection(self.address("admin"), timeout=20)
            with contextlib.closing(connection):
                connection.request("GET", f"/api/v1/overlays/{name}")
                if connection.getresponse().status == 200:
                    return time.time()
            time.sleep(0.02)
        raise SystemExit(f"{name} is not in force within {patience} s")

    def first(self):
        """When it published what is in the store first; none until then."""
        return next((at for at, changes in self.published if changes != "nothing"), None)

    def memory(self):
        """What it holds, and the most that it ever held, in MiB."""
        return memory(self.process.pid), memory(self.process.pid, "VmHWM")

    def stop(self, how=signal.SIGINT):
        self.process.send_signal(how)
        self.process.wait()

    def kill(self):
        self.stop(signal.SIGKILL)


def followers(binary, store, count):
    return [Proxy(binary, "--store", store, "--gateway", "127.0.0.1:0") for _ in range(count)]


class Hub:
    """A hub that can be killed, and comes back at the same address."""

    def __init__(self, binary, store):
        self.at = f"{HOST}:{free_port(HOST)}"
        self.arguments = (binary, "--store", store, "--hub", self.at, "--gateway", "127.0.0.1:0")
        self.again()

    def again(self):
        self.proxy = Proxy(*self.arguments)
        self.proxy.address("hub")

    @property
    def process(self):
        return self.proxy.process

    def kill(self):
        self.proxy.kill()


class Etcd:
    """A member of etcd, alone; what it holds survives its being killed."""

    def __init__(self, folder):
        self.folder, self.at = folder, f"{HOST}:{free_port(HOST)}"
        self.peer = f"http://{HOST}:{free_port(HOST)}"
        self.again()

    @property
    def store(self):
        return f"etcd:http://{self.at}"

    def again(self):
        client = f"http://{self.at}"
        self.process = subprocess.Popen(
            ["etcd", "--name", "one", "--initial-cluster", f"one={self.peer}", "--data-dir", self.folder,
             "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", self.peer,
             "--initial-advertise-peer-urls", self.peer, "--logger", "zap", "--log-level", "error"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit("etcd ended: `etcd` of etcd-server is needed")
            with contextlib.suppress(OSError):
                if self.asked("GET", "/health").get("health") == "true":
                    return
            time.sleep(0.05)
        raise SystemExit("etcd does not start")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def asked(self, method, path, body=None):
        """Its JSON gateway's answer."""
        connection = http.client.HTTPConnection(self.at, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body) if body is not None else None)
            response = connection.getresponse()
            text = response.read()
            if path != "/health" and response.status != 200:
                raise SystemExit(f"etcd: {path}: {text.decode()}")
            return json.loads(text)

    def put(self, *entries):
        """Writes entries, which are names and texts, so many at once as it takes."""
        coded = lambda text: base64.b64encode(text.encode()).decode()
        for begin in range(0, len(entries), AT_ONCE):
            puts = [{"requestPut": {"key": coded(f"/overlane/{name}"), "value": coded(text)}}
                    for name, text in entries[begin:begin + AT_ONCE]]
            self.asked("POST", "/v3/kv/txn", {"success": puts})

    def size(self):
        """The bytes of its database."""
        return int(self.asked("POST", "/v3/maintenance/status", {})["dbSize"])


@contextlib.contextmanager
def etcd():
    with tempfile.TemporaryDirectory() as folder:
        member = Etcd(folder)
        try:
            yield member
        finally:
            member.kill()


@contextlib.contextmanager
def ended(running):
    """Ends the proxies and hubs of a list at the end, whatever happened."""
    try:
        yield running
    finally:
        for one in running:
            if one.process.poll() is None:
                one.kill()


def put(address, name, port):
    """Creates an overlay; true where that was acknowledged."""
    try:
        connection = http.client.HTTPConnection(address, timeout=20)
        with contextlib.closing(connection):
            connection.request("PUT", f"/api/v1/overlays/{name}", overlay(name, port), {"content-type": "application/json"})
            return connection.getresponse().status in (200, 201)
    except (OSError, http.client.HTTPException):
        return False


def listed(address):
    """The overlays that are in force at a hub or an admin listener."""
    connection = http.client.HTTPConnection(address, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/api/v1/overlays")
        return {one["id"] for one in json.load(connection.getresponse())["items"]}


def upstream():
    """The port of a service that answers."""
    return answering("ok")
