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
    """A member of etcd; what it holds survives its being killed."""

    def __init__(self, folder, name="one"):
        self.folder, self.name, self.at = folder, name, f"{HOST}:{free_port(HOST)}"
        self.peer = f"http://{HOST}:{free_port(HOST)}"
        self.members = [self]

    @property
    def store(self):
        return "etcd:" + ",".join(f"http://{member.at}" for member in self.members)

    def again(self):
        self.begin()
        self.until_healthy()

    def begin(self):
        client = f"http://{self.at}"
        members = ",".join(f"{member.name}={member.peer}" for member in self.members)
        self.process = subprocess.Popen(
            ["etcd", "--name", self.name, "--initial-cluster", members, "--data-dir", self.folder,
             "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", self.peer,
             "--initial-advertise-peer-urls", self.peer, "--logger", "zap", "--log-level", "error"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def until_healthy(self):
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

    def pause(self):
        """It answers nothing from now on, and its connections stay."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def is_leader(self):
        status = self.asked("POST", "/v3/maintenance/status", {})
        return status["leader"] == status["header"]["member_id"]

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
def cluster(count):
    """Members of one etcd."""
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(count)]
        members = [Etcd(folder, f"m{number}") for number, folder in enumerate(folders)]
        for member in members:
            member.members = members
            member.begin()
            stack.callback(member.kill)
        for member in members:
            member.until_healthy()
        yield members


@contextlib.contextmanager
def etcd():
    """An etcd of one member."""
    with cluster(1) as [member]:
        yield member


class Pressure:
    """Requests through a proxy without a pause, and overlays that are created now and then, for as long as it lasts."""

    def __init__(self, proxy, at, port, prefix):
        self.proxy, self.at, self.port, self.prefix = proxy, at, port, prefix
        self.requests = self.failed = self.refused = 0
        self.acknowledged = []  # (time, name)
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.ask), threading.Thread(target=self.write)]

    def __enter__(self):
        [thread.start() for thread in self.threads]
        return self

    def __exit__(self, *_):
        self.over.set()
        [thread.join() for thread in self.threads]

    def ask(self):
        connection = http.client.HTTPConnection(self.proxy.address("gateway"), timeout=10)
        while not self.over.is_set():
            try:
                connection.request("GET", "/", headers={"x-overlay-id": "a0"})
                response = connection.getresponse()
                response.read()
                good = response.status == 200 and "via=overlay" in response.headers.get("x-overlay-route", "")
            except (OSError, http.client.HTTPException):
                good = False
                connection.close()
            self.requests += 1
            self.failed += not good
            time.sleep(0.001)

    def write(self):
        number = 0
        while not self.over.is_set():
            name, number = f"{self.prefix}{number}", number + 1
            if put(self.at(), name, self.port):
                self.acknowledged.append((time.time(), name))
            else:
                self.refused += 1
            time.sleep(0.05)

    def longest_without_a_write(self):
        times = [at for at, _ in self.acknowledged]
        return max((later - sooner for sooner, later in zip(times, times[1:])), default=float("inf"))

    def lost(self, addresses, patience=30):
        """What was acknowledged and is not in force at one of these, a while after."""
        names, deadline = {name for _, name in self.acknowledged}, time.time() + patience
        while (missing := [name for at in addresses for name in names - listed(at)]) and time.time() < deadline:
            time.sleep(0.2)
        return missing


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
