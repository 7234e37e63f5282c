"""The shop: five services in three languages, a queue, and Overlane's gateway and sidecars around them."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness.processes import Port, Together, clean
from peers import installed

# What is changed in the instances of overlays, as a variable of theirs.
CHANGES = {("cart", "free-shipping"): {"SHIPPING": "0"}, ("catalog", "new-prices"): {"DISCOUNT": "10"},
           ("mailer", "new-prices-mail"): {"GREETING": "Thank you so much"}}


def target():
    """Where what is built and installed is."""
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()


def shown(path):
    """A path as somebody here would write it."""
    try:
        return path.relative_to(pathlib.Path.cwd())
    except ValueError:
        return path


class Packages:
    """What the services need, installed and built once, beside the build."""

    def __init__(self):
        folder = target() / "shop"
        folder.mkdir(parents=True, exist_ok=True)
        self.catalog = folder / "rust/debug/shop-catalog"
        with concurrent.futures.ThreadPoolExecutor() as pool:
            cargo = ["cargo", "build", "--locked", "--quiet", "--target-dir", folder / "rust"]
            built = pool.submit(installed.run, cargo, HERE / "catalog")
            python = pool.submit(installed.python, folder, HERE / "python/requirements.txt")
            node = pool.submit(installed.modules, folder, HERE / "node")
        built.result()
        self.python, self.node = python.result(), node.result() / "node_modules"


class Fixed:
    """A port that is given, and not held."""

    def __init__(self, number):
        self.number, self.address = number, f"127.0.0.1:{number}"


class Instance:
    """A service of an environment: the ports of its application, and of its sidecar."""

    def __init__(self, service, environment, scheme, inbound):
        self.service, self.environment, self.scheme, self.inbound = service, environment, scheme, inbound
        self.name = f"{service}@{environment}"
        self.app, self.outbound, self.admin = Port(), Port(), Port()

    def sidecar(self):
        whose = [] if self.environment == "shop" else ["--environment", self.environment]
        return ["--service", self.service, *whose, "--app", f"{self.scheme}://{self.app.address}",
                "--inbound", self.inbound.address, "--outbound", self.outbound.address, "--admin", self.admin.address]


class Shop(Together):
    """Everything that runs. `fixed`: the ports that the blueprints say, and the gateway's and admin's own; else free ones."""

    def __init__(self, binary, folder, packages, fixed):
        super().__init__(binary, folder)
        self.packages, self.store = packages, folder / "environments"
        self.gateway, self.admin = (Fixed(7480), Fixed(7481)) if fixed else (Port(), Port())
        self.queue = Port()
        self.instances = list(self.copy_store(fixed))

    def copy_store(self, fixed):
        """Copies the blueprints, so that what is changed while the shop runs stays here; gives the instances that they name."""
        self.store.mkdir()
        for file in sorted((HERE / "environments").glob("*.yaml")):
            text = file.read_text()
            for service, scheme, number in re.findall(r"- name: (\S+)(?:\n    (?!url).*)*\n    url: (\w+)://127\.0\.0\.1:(\d+)", text):
                inbound = Fixed(int(number)) if fixed else Port()
                text = text.replace(number, str(inbound.number))
                yield Instance(service, file.stem, scheme, inbound)
            (self.store / file.name).write_text(text)

    def bring_up(self):
        self.start("the queue", [self.packages.python / "nats-server", "--addr", "127.0.0.1", "--port", self.queue.number,
                                 "--jetstream", "--store_dir", self.folder / "queue"], clean({}))
        self.start_proxy("gateway", ["--gateway", self.gateway.address, "--admin", self.admin.address])
        for instance in self.instances:
            self.start_proxy(f"the sidecar of {instance.name}", instance.sidecar())
            self.start_app(instance)
        for admin in [self.admin, *(instance.admin for instance in self.instances)]:
            self.wait_for(admin, "/readyz")
        for instance in self.instances:
            if instance.scheme == "http":
                self.wait_for(instance.app, "/healthz")

    def start_proxy(self, name, arguments):
        self.start(name, [self.binary, "run", "--store", self.store, "--workers", "1", *arguments], clean({}))

    def start_app(self, instance):
        """An application as its users start it: with its language's tracer, and its sidecar as proxy."""
        self.start(instance.name, self.command(instance.service), self.variables(instance))

    def command(self, service):
        python, node = self.packages.python, ["node", "--require", "@opentelemetry/auto-instrumentations-node/register"]
        return {"web": [python / "opentelemetry-instrument", python / "python", HERE / "python/web.py"],
                "payments": [python / "opentelemetry-instrument", python / "python", HERE / "python/payments.py"],
                "cart": [*node, HERE / "node/cart.js"], "mailer": [*node, HERE / "node/mailer.js"],
                "catalog": [self.packages.catalog]}[service]

    def variables(self, instance):
        proxy = f"http://{instance.outbound.address}"
        return clean({"PORT": str(instance.app.number), "ENVIRONMENT": instance.environment,
                      "HTTP_PROXY": proxy, "http_proxy": proxy, "OVERLANE_ADMIN": instance.admin.address,
                      "NATS_URL": f"nats://{self.queue.address}", "NODE_PATH": str(self.packages.node),
                      "OTEL_SERVICE_NAME": instance.service, "OTEL_TRACES_EXPORTER": "none",
                      "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none", "OTEL_NODE_RESOURCE_DETECTORS": "none",
                      **CHANGES.get((instance.service, instance.environment), {})})


def binary(given):
    """Overlane: as given, else as it was built here, else as it is installed."""
    built = [target() / profile / "overlane" for profile in ("release", "dist", "debug")]
    found = given or next((path for path in built if path.is_file()), None) or shutil.which("overlane")
    if not found or not pathlib.Path(found).is_file():
        sys.exit(f"there is no {found or 'overlane'}: `cargo build --release` builds it, --binary PATH names it")
    return pathlib.Path(found).resolve()
