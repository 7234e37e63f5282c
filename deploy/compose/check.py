#!/usr/bin/env python3
"""The compose file without an engine: what its services run, as processes, each where its files are and in a network of its own.

    PYTHON deploy/compose/check.py target/debug/overlane       # root, ip (iproute2) and prometheus; PyYAML

A service is a network namespace at one bridge, with the names of all services in its /etc/hosts; who has `network_mode: service:X` is in X's. Its
volumes are copied into a folder, which stands for its root. What is held: requests and receipts through the names of the compose file, Prometheus with
its own configuration and rules seeing every proxy and alice's requests, and that Grafana's files fit together. Grafana itself and the images are not run.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SECONDS = 60
NOT_RUN = {"grafana"}


def fail(what):
    sys.exit(f"deploy/compose: {what}")


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Network:
    """A bridge in a namespace, and a namespace for each name at it."""

    def __init__(self, names, folder):
        self.prefix = f"ovl{os.getpid() % 100000}"
        self.names = {name: f"10.211.0.{number}" for number, name in enumerate(names, 2)}
        self.hosts, self.made = folder / "hosts", []
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in self.names.items()))

    def namespace(self, name):
        return f"{self.prefix}-{name}"

    def __enter__(self):
        switch = self.namespace("switch")
        self.add(switch)
        ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge0", "up")
        for number, (name, address) in enumerate(self.names.items()):
            own = self.namespace(name)
            self.add(own)
            ip("-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
            ip("-n", switch, "link", "set", f"port{number}", "master", "bridge0", "up")
            ip("-n", own, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", own, "link", "set", "eth0", "up")
        return self

    def add(self, namespace):
        ip("netns", "add", namespace)
        self.made.append(namespace)
        ip("-n", namespace, "link", "set", "lo", "up")

    def __exit__(self, *_):
        for namespace in self.made:
            ip("netns", "delete", namespace)

    def within(self, name, command):
        """The command there, which finds the others by their names."""
        here = f"mount --bind {shlex.quote(str(self.hosts))} /etc/hosts && exec {shlex.join(map(str, command))}"
        return ["ip", "netns", "exec", self.namespace(name), "sh", "-c", here]

    def ask(self, name, *words):
        command = self.within(name, ["curl", "--silent", "--max-time", "10", *words])
        return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout


def mapped(word, root):
    """An argument of a container, whose paths are below the folder that stands for its root."""
    return re.sub(r"^(|--[^=]+=)/", rf"\g<1>{root}/", word)


def copied(service, root):
    """Copies what is mounted; what is not there is a mistake of the file."""
    for volume in service.get("volumes", []):
        outside, inside, *mode = volume.split(":")
        source = (HERE / outside).resolve()
        if not source.exists() or mode != ["ro"]:
            fail(f"{volume} is not there, or can be written to")
        target = pathlib.Path(f"{root}{inside}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)


def command(service, binary, root):
    copied(service, root)
    words = [mapped(word, root) for word in service["command"]]
    environment = {**service.get("environment", {}), "PATH": os.environ["PATH"], "NO_COLOR": "1"}
    if "overlane" in service["image"]:
        return [binary, *words], environment | {"OVERLANE_STORE": f"{root}/etc/overlane/environments"}
    if service["image"].startswith("prom/prometheus:"):
        return ["prometheus", *words], environment
    return [sys.executable if word == "python" else word for word in words], environment


def check_file(services):
    for name, service in services.items():
        for other in [*service.get("depends_on", []), *([service["network_mode"].removeprefix("service:")] if "network_mode" in service else [])]:
            if other not in services:
                fail(f"{name}: there is no service {other}")
        if ":" not in service["image"] or service["image"].endswith(":latest"):
            fail(f"{name}: {service['image']} has no version")
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                fail(f"{name}: {port} is open to everybody")


def check_grafana(services):
    """Grafana's files lead to each other, and its dashboard to a kind of data source that there is."""
    sources = yaml.safe_load((HERE / "grafana/datasource.yaml").read_text())["datasources"]
    for source in sources:
        host = urllib.parse.urlsplit(source["url"]).hostname
        if host not in services:
            fail(f"grafana/datasource.yaml: there is no service {host}")
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    for provider in yaml.safe_load((HERE / "grafana/dashboards.yaml").read_text())["providers"]:
        if provider["options"]["path"] not in mounts:
            fail(f"grafana/dashboards.yaml: nothing is mounted at {provider['options']['path']}")
    dashboard = json.loads((ROOT / "deploy/grafana/overlane.json").read_text())
    wanted = {each["query"] for each in dashboard["templating"]["list"] if each["type"] == "datasource"}
    if not wanted <= {source["type"] for source in sources}:
        fail(f"the dashboard wants {wanted}, which grafana/datasource.yaml does not have")


def wait(what, true, logs):
    until = time.monotonic() + SECONDS
    while not (seen := true()):
        if time.monotonic() > until:
            tails = "\n".join(f"-- {name}\n{log.read_text(errors='replace')[-600:]}" for name, log in logs.items())
            fail(f"after {SECONDS} s not to be seen: {what}\n{tails}")
        time.sleep(0.2)
    return seen


def query(network, expression):
    told = network.ask("prometheus", "--get", "--data-urlencode", f"query={expression}", "http://prometheus:9090/api/v1/query")
    return json.loads(told)["data"]["result"] if told else []


def check_running(network, logs):
    gateway = "http://gateway:7480/"
    wait("staging's answer", lambda: network.ask("load", gateway) == "web@staging → payments-api@staging → ledger@staging\n", logs)
    wait("alice's answer", lambda: network.ask("load", "-H", "x-overlay-id: alice", gateway) == "web@staging → payments-api@alice → ledger@staging\n", logs)
    told = network.ask("load", "--include", "-H", "x-overlay-id: alice", "-H", "x-overlay-require: *", gateway)
    for word in ("200 OK", "payments-api;env=alice;via=overlay;reason=owned", "ledger;env=staging;via=baseline;reason=not-owned"):
        if word not in told:
            fail(f"alice's receipts do not say `{word}`:\n{told}")
    targets = yaml.safe_load((HERE / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]["targets"]
    wait(f"{len(targets)} proxies that Prometheus sees", lambda: len(query(network, "up{job='overlane'} == 1")) == len(targets), logs)
    wait("alice's requests, by the load, in Prometheus", lambda: query(network, "sum(overlane_requests_total{overlay='alice',via='overlay'}) > 20"), logs)
    rules = json.loads(network.ask("prometheus", "http://prometheus:9090/api/v1/rules"))["data"]["groups"]
    if not rules or any(rule["health"] == "err" for group in rules for rule in group["rules"]):
        fail(f"Prometheus has no rules, or one that it cannot evaluate: {rules}")
    firing = [alert["metric"]["alertname"] for alert in query(network, "ALERTS{alertstate='firing'}")]
    if firing:
        fail(f"alerts are firing where nothing is wrong: {firing}")


@contextlib.contextmanager
def running(network, services, binary, folder):
    children, logs = [], {}
    try:
        for name, service in services.items():
            words, environment = command(service, binary, folder / name)
            logs[name] = folder / f"{name}.log"
            place = service.get("network_mode", name).removeprefix("service:")
            with open(logs[name], "wb") as log:
                children.append(subprocess.Popen(network.within(place, words), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        yield logs
    finally:
        for child in children:
            child.terminate()
        until = time.monotonic() + 3
        for child in children:
            try:
                child.wait(timeout=max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    binary = parser.parse_args().binary.resolve()
    services = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
    check_file(services)
    check_grafana(services)
    subprocess.run([binary, "validate", HERE / "environments"], check=True, stdout=subprocess.DEVNULL)
    if os.geteuid() or not all(shutil.which(tool) for tool in ("ip", "prometheus", "curl")):
        print("the compose file and Grafana's fit together; not root, or no ip, prometheus or curl: nothing was run")
        return
    run = {name: service for name, service in services.items() if name not in NOT_RUN}
    with tempfile.TemporaryDirectory(prefix="overlane-compose-") as folder:
        folder = pathlib.Path(folder)
        for name in run:
            (folder / name).mkdir()
        with Network([name for name, service in services.items() if "network_mode" not in service], folder) as network:
            with running(network, run, binary, folder) as logs:
                check_running(network, logs)
    print(f"{len(run)} of {len(services)} services as processes: requests, receipts, and Prometheus sees them")


if __name__ == "__main__":
    main()
