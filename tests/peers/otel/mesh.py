"""A gateway, and services of several environments, each an application between the two listeners of its sidecar."""

import http.client
import os
import pathlib
import re
import socket
import subprocess
import time

HERE = pathlib.Path(__file__).parent
BASELINE = "staging"
# Each overlay's parent, and the services that it owns.
OVERLAYS = {"first": (BASELINE, ["web"]), "middle": (BASELINE, ["api"]), "last": (BASELINE, ["ledger"]),
            "nested": ("middle", ["ledger"])}
SERVICES = ["web", "api", "ledger"]
INSTANCES = [(service, BASELINE) for service in SERVICES] + [
    (service, overlay) for overlay, (_, owned) in OVERLAYS.items() for service in owned]
START = 60


class Failed(Exception):
    """What was expected and not seen."""


class Port:
    """A port that nobody else gets. It stays bound, unheard, while who listens to it shares it (SO_REUSEADDR)."""

    def __init__(self):
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        self.number = self.held.getsockname()[1]
        self.address = f"127.0.0.1:{self.number}"


class Process:
    """A process of ours with its log."""

    def __init__(self, name, command, log, environment, folder):
        self.name, self.log = name, log
        with open(log, "wb") as out:
            self.child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          env=environment, cwd=folder)

    def tail(self):
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"-- the end of what {self.name} wrote:", *(f"   {line[:400]}" for line in lines)])

    def end(self, until):
        try:
            self.child.wait(timeout=max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def clean(extra):
    """This process's own variables without those that would tell an application or a proxy something."""
    told = re.compile(r"(?i)(.*_proxy|OTEL_.*|OVERLANE_.*|RUST_LOG|PYTHONPATH|NODE_OPTIONS)")
    return {name: value for name, value in os.environ.items() if not told.fullmatch(name)} | extra


class Sidecar:
    """An instance of a service: who it is, and where what belongs to it listens."""

    def __init__(self, service, environment):
        self.service, self.environment = service, environment
        self.app, self.inbound, self.outbound, self.admin = Port(), Port(), Port(), Port()

    def arguments(self):
        whose = [] if self.environment == BASELINE else ["--environment", self.environment]
        return ["--service", self.service, *whose, "--app", f"http://{self.app.address}",
                "--inbound", self.inbound.address, "--outbound", self.outbound.address, "--admin", self.admin.address]


class Mesh:
    """Everything that runs; used with `with`, at whose end nothing runs any more."""

    def __init__(self, binary, folder, packages, tracing):
        self.binary, self.folder, self.packages, self.tracing = binary, folder, packages, tracing
        self.gateway, self.admin = Port(), Port()
        self.sidecars = [Sidecar(*instance) for instance in INSTANCES]
        self.processes = []

    def __enter__(self):
        try:
            self.write_store()
            self.start_proxy("gateway", ["--gateway", self.gateway.address, "--admin", self.admin.address])
            for sidecar in self.sidecars:
                name = f"{sidecar.service}@{sidecar.environment}"
                self.start_proxy(f"the sidecar of {name}", sidecar.arguments())
                self.start_app(name, sidecar)
            for admin in [self.admin, *(sidecar.admin for sidecar in self.sidecars)]:
                self.wait_for(admin, "/readyz")
            for sidecar in self.sidecars:
                self.wait_for(sidecar.app, "/")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def write_store(self):
        (self.folder / "store").mkdir()
        for environment in [BASELINE, *OVERLAYS]:
            services = [f"  - {{name: {sidecar.service}, url: 'http://{sidecar.inbound.address}'"
                        f"{', expose: true' if sidecar.service == 'web' else ''}}}"
                        for sidecar in self.sidecars if sidecar.environment == environment]
            routing = "mode: baseline"
            if environment != BASELINE:
                routing = f"mode: overlay, baselineId: {OVERLAYS[environment][0]}"
            (self.folder / f"store/{environment}.yaml").write_text(
                "\n".join([f"name: {environment}", f"routing: {{{routing}}}", "services:", *services, ""]))

    def start(self, name, command, environment, folder=None):
        log = self.folder / f"{len(self.processes)}.log"
        self.processes.append(Process(name, command, log, environment, folder))

    def start_proxy(self, name, arguments):
        self.start(name, [self.binary, "run", "--store", self.folder / "store", "--workers", "2", *arguments], clean({}))

    def start_app(self, name, sidecar):
        """The application as its users start it: with a tracer or without, and with its sidecar as proxy."""
        python, node = self.packages
        command = {"web": [python / "python", HERE / "python/web.py"], "api": ["node", "api.js"],
                   "ledger": [python / "python", HERE / "python/ledger.py"]}[sidecar.service]
        if self.tracing is not None and sidecar.service == "api":
            command[1:1] = ["--require", "@opentelemetry/auto-instrumentations-node/register"]
        elif self.tracing is not None:
            command.insert(0, python / "opentelemetry-instrument")
        proxy = f"http://{sidecar.outbound.address}"
        self.start(name, command, clean({
            "PORT": str(sidecar.app.number), "ENVIRONMENT": sidecar.environment, "HTTP_PROXY": proxy, "http_proxy": proxy,
            "OTEL_SERVICE_NAME": sidecar.service, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none", **(self.tracing or {})}), node if sidecar.service == "api" else None)

    def wait_for(self, port, path):
        """Until the port answers that path, whatever it is: 503 is an answer of who is not ready yet."""
        until = time.monotonic() + START
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port.number, timeout=5)
                connection.request("GET", path)
                if connection.getresponse().status != 503:
                    return connection.close()
            except (OSError, http.client.HTTPException):
                pass
            ended = [process for process in self.processes if process.child.poll() is not None]
            if ended or time.monotonic() > until:
                raise Failed(f"{port.address} does not answer {path}" + "".join(
                    f"\n{one.name} ended with {one.child.returncode}\n{one.tail()}" for one in ended))
            time.sleep(0.05)

    def tails(self, service):
        """What the processes of a service wrote at last, and the gateway."""
        mine = [process for process in self.processes if f"{service}@" in process.name or process.name == "gateway"]
        return "\n".join(process.tail() for process in mine)

    def overlane(self, *arguments):
        """The exit code of a command, and what it prints."""
        done = subprocess.run([self.binary, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, env=clean({}), timeout=60)
        return done.returncode, done.stdout

    def end(self):
        """Ends each process that was started here, by its id."""
        for process in self.processes:
            process.child.terminate()
        # An instrumented Node catches SIGTERM and goes on.
        until = time.monotonic() + 2
        for process in self.processes:
            process.end(until)
