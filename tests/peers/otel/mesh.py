"""A gateway, and services of several environments, each an application between the two listeners of its sidecar."""

import pathlib

from harness.processes import Port, Together, clean

HERE = pathlib.Path(__file__).parent
BASELINE = "staging"
# Each overlay's parent, and the services that it owns.
OVERLAYS = {"first": (BASELINE, ["web"]), "middle": (BASELINE, ["api"]), "last": (BASELINE, ["ledger"]),
            "nested": ("middle", ["ledger"])}
SERVICES = ["web", "api", "ledger"]
INSTANCES = [(service, BASELINE) for service in SERVICES] + [
    (service, overlay) for overlay, (_, owned) in OVERLAYS.items() for service in owned]


class Sidecar:
    """An instance of a service: who it is, and where what belongs to it listens."""

    def __init__(self, service, environment):
        self.service, self.environment = service, environment
        self.app, self.inbound, self.outbound, self.admin = Port(), Port(), Port(), Port()

    def arguments(self):
        whose = [] if self.environment == BASELINE else ["--environment", self.environment]
        return ["--service", self.service, *whose, "--app", f"http://{self.app.address}",
                "--inbound", self.inbound.address, "--outbound", self.outbound.address, "--admin", self.admin.address]


class Mesh(Together):
    """Everything that runs."""

    def __init__(self, binary, folder, packages, tracing):
        super().__init__(binary, folder)
        self.packages, self.tracing = packages, tracing
        self.gateway, self.admin = Port(), Port()
        self.sidecars = [Sidecar(*instance) for instance in INSTANCES]

    def bring_up(self):
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
