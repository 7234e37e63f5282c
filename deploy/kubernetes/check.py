#!/usr/bin/env python3
"""What `overlane inject` and `overlane overlay render` make of manifests works: the sidecars are started as their containers say.

    $(bash .ci/tools manifests)/python deploy/kubernetes/check.py OVERLANE

There is no cluster: the two applications are web servers of this process, and of what a container says only addresses and the folder of its blueprints
are replaced. Then a request with the overlay's key, sent to the baseline's sidecar, has to be answered by the overlay's application, and say so.
"""

import contextlib
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from harness.processes import free_ports, running, until
from harness.service import answering

MANIFESTS = ROOT / "proxy/tests/manifests/named.yaml"
SECONDS = 30


def arguments(manifests):
    """What the sidecar is started with."""
    pods = [document["spec"]["template"]["spec"] for document in yaml.safe_load_all(manifests) if document["kind"] == "Deployment"]
    return next(container["args"] for pod in pods for container in pod["initContainers"] if container["name"] == "overlane")


@contextlib.contextmanager
def sidecar(binary, manifests, folder, inbound, app):
    """A sidecar as its container says, at addresses of this machine; what it says of its probes."""
    probes, outbound, admin = free_ports(3)
    told = [re.sub(r"^(--inbound)=.*", rf"\1=127.0.0.1:{inbound}", one) for one in arguments(manifests)]
    told = [re.sub(r"^(--app=http://127.0.0.1):.*", rf"\1:{app}", one) for one in told]
    told = [re.sub(r"^(--probes)=.*", rf"\1=127.0.0.1:{probes}", one) for one in told]
    told = [re.sub(r"^(--outbound)=.*", rf"\1=127.0.0.1:{outbound}", one) for one in told]
    told = [one.replace("/etc/overlane/environments", str(folder / "environments")) for one in told]
    command = [binary, *told, "--admin", f"127.0.0.1:{admin}"]
    with running(f"sidecar-{inbound}", folder, *command, environment={"OVERLANE_LOG": "warn"}):
        until("it is ready", lambda: ready(probes), SECONDS)
        yield


def ready(probes):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{probes}/readyz", timeout=SECONDS).read()


def ask(port, key=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"x-overlay-id": key} if key else {})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return answer.read().decode(), answer.headers.get("x-overlay-route", "")


def main():
    binary = str(pathlib.Path(sys.argv[1]).resolve())
    old, new = answering("baseline"), answering("alice")
    with tempfile.TemporaryDirectory() as name:
        folder, baseline, overlay = pathlib.Path(name), *free_ports(2)
        (folder / "environments").mkdir()
        services = "services: [{name: payments-api, url: \"http://127.0.0.1:%d\"}]\n"
        (folder / "environments/staging.yaml").write_text("name: staging\nrouting: {mode: baseline}\n" + services % baseline)
        alice = "name: alice\nrouting: {mode: overlay, baselineId: staging}\n"
        (folder / "environments/alice.yaml").write_text(alice + services % overlay)
        (folder / "alice.yaml").write_text(alice + "services: [{name: payments-api, image: my-org/alice:1}]\n")

        def run(*command):
            return subprocess.run([binary, *command], cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=True).stdout

        injected = run("inject", "-f", str(MANIFESTS), "--outbound", "--baseline", "staging")
        (folder / "injected.yaml").write_text(injected)
        rendered = run("overlay", "render", "-f", "alice.yaml", "--from", "injected.yaml", "--store", "nowhere")
        with sidecar(binary, injected, folder, baseline, old), sidecar(binary, rendered, folder, overlay, new):
            plain, keyed = ask(baseline), ask(baseline, "alice")
    if plain[0] != "baseline" or keyed[0] != "alice" or "env=alice;via=overlay;reason=owned" not in keyed[1]:
        sys.exit(f"without a key {plain}, with alice's {keyed}")
    print("the injected sidecar leads to the rendered one, and each to its application")


if __name__ == "__main__":
    main()
