#!/usr/bin/env python3
"""The Helm chart and the manifests that it renders: they are equal, and right by the published schemas of Kubernetes.

    $(bash .ci/tools manifests)/python deploy/helm/check.py [--write] [--binary OVERLANE]

Each file of `cases` is a release with its values, and `../kubernetes/rendered` has what becomes of it; `--write` renders them anew. The hand-written
manifests beside them are checked as well, values that make no sense have to be refused, and OVERLANE has to know each option that it is started with.
What `overlane inject` and `overlane overlay render` make of the manifests of proxy/tests/manifests is checked in the same way. `kubectl kustomize` has to
build the kustomization, and to lose nothing of its resources.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

HERE = pathlib.Path(__file__).resolve().parent
CHART, CASES, MANIFESTS = HERE / "overlane", HERE / "cases", HERE.parent / "kubernetes"
RENDERED = MANIFESTS / "rendered"
HELM = pathlib.Path(sys.executable).with_name("helm")
# The oldest with native sidecars, and the newest whose schemas are published.
VERSIONS = ["1.29", "1.33", "1.37"]
# Kinds that Kubernetes does not know; who defines them checks them.
OTHERS = ("monitoring.coreos.com/", "overlane.dev/", "kustomize.config.k8s.io/")

# Values that have to be refused, and the word by which it is said.
REFUSED = {
    "gateway: {replica: 3}": "replica",
    "gateway: {trust: ''}": "trust",
    "store: redis:localhost": "store",
    "environments: {staging.txt: x}": "staging.txt",
    "hub: {enabled: true}": "store",
    "gateway: {service: {port: 70000}}": "port",
    "store: 'kubernetes:Staging'": "store",
}


def helm(*arguments):
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=60)


def render(release, values):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        # The cluster's version is the oldest that the chart takes.
        return helm("template", release, str(CHART), "--namespace", "overlane", "--values", file.name, "--kube-version",
                    VERSIONS[0], "--skip-tests")


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def check(name, text, whole=True):
    """What is wrong with manifests, which are ours as a whole or only in part."""
    wrong = []
    for document in documents(text):
        what = f"{name}: {document.get('kind')} {document.get('metadata', {}).get('name')}"
        if document["apiVersion"].startswith(OTHERS):
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except Exception as error:  # noqa: BLE001, whatever it is, it is told
                wrong.append(f"{what}: {version}: {error}")
        if whole:
            wrong += [f"{what}: {why}" for why in loose(document)]
    return wrong


def loose(document):
    """Where a pod of ours has more rights than it needs, or none of what it should have."""
    spec = document.get("spec", {})
    pod = spec if document["kind"] == "Pod" else spec.get("template", {}).get("spec", {})
    if not pod:
        return
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        yield "runs as root"
    for container in pod.get("initContainers", []) + pod["containers"]:
        security = container.get("securityContext", {})
        if not security.get("readOnlyRootFilesystem") or security.get("allowPrivilegeEscalation", True) \
                or security.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{container['name']}: has rights that it does not need"
        if container["name"] == "overlane":
            wanted = ["startupProbe", "readinessProbe", "livenessProbe", "resources"]
            missing = [field for field in wanted if field not in container]
            if missing:
                yield f"{container['name']}: no {', '.join(missing)}"


def unknown(name, text, options):
    """The options that a container of ours is started with, and that it does not know."""
    for document in documents(text):
        spec = document.get("spec") or {}
        pod = spec if document["kind"] == "Pod" else (spec.get("template") or {}).get("spec") or {}
        for container in pod.get("initContainers", []) + pod.get("containers", []):
            if container["name"] == "overlane":
                given = [argument.split("=")[0] for argument in container["args"] if argument.startswith("--")]
                yield from (f"{name}: {option} is no option of `overlane run`" for option in given if option not in options)


def built(kustomization):
    """What is wrong with what kustomize builds: as it stands, and as the base of somebody who names a namespace and an image."""
    folder = kustomization.parent
    resources = [document for name in yaml.safe_load(kustomization.read_text())["resources"] for document in documents((folder / name).read_text())]
    with tempfile.TemporaryDirectory() as over:
        mine = {"namespace": "mine", "images": [{"name": "overlane", "newName": "registry.example/overlane", "newTag": "1"}], "resources": [os.path.relpath(folder, os.path.realpath(over))]}
        (pathlib.Path(over) / "kustomization.yaml").write_text(yaml.safe_dump(mine))
        for what in (folder, over):
            done = subprocess.run(["kubectl", "kustomize", what], capture_output=True, text=True, timeout=60)
            if done.returncode:
                yield f"kubectl kustomize {folder.name}: {done.stderr}"
            elif what == folder and sorted(map(yaml.safe_dump, documents(done.stdout))) != sorted(map(yaml.safe_dump, resources)):
                yield f"kubectl kustomize {folder.name}: is not what its resources say"
            elif what == over and {kind(document) for document in documents(done.stdout)} != {kind(document) for document in resources}:
                yield f"kubectl kustomize {folder.name} as a base: other objects"
            elif what == over:
                yield from check(f"{folder.name} as a base", done.stdout)
                yield from (f"{folder.name} as a base: the image {image}" for image in re.findall(r"image: (.*)", done.stdout) if image != "registry.example/overlane:1")


def kind(document):
    return document["kind"], document["metadata"]["name"]


def made(binary):
    """What OVERLANE makes of manifests of others: how, and the text."""
    overlay = "name: alice\nrouting: {mode: overlay, baselineId: staging}\nservices: [{name: NAME, image: my-org/alice:1, env: {A: 1}}]\n"
    for file in sorted((HERE.parent.parent / "proxy/tests/manifests").iterdir()):
        for flags in [["--outbound"], ["--no-native"], ["--hub", "http://hub:7484", "--token-secret", "hub", "--environment", "alice"]]:
            done = subprocess.run([binary, "inject", "-f", file, *flags], capture_output=True, text=True, timeout=60, check=True)
            yield f"inject {' '.join(flags)} {file.name}", done.stdout
        name = {"list.yaml": "web", "indented.yaml": "ledger"}.get(file.name, "payments-api")
        if file.suffix == ".yaml":
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as blueprint:
                blueprint.write(overlay.replace("NAME", name))
                blueprint.flush()
                command = [binary, "overlay", "render", "-f", blueprint.name, "--from", file, "--namespace", "alice", "--store", "/nonexistent"]
                yield f"render {file.name}", subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def wrong_in(name, text, options):
    """What is wrong with manifests that OVERLANE made, of which only the sidecar is ours."""
    objects = [item for document in documents(text) for item in document.get("items", [document])]
    yield from check(name, yaml.safe_dump_all(objects), whole=False)
    yield from unknown(name, yaml.safe_dump_all(objects), options)
    sidecars = 0
    for document in objects:
        spec = document.get("spec") or {}
        pod = spec if document["kind"] == "Pod" else (spec.get("template") or {}).get("spec") or {}
        for container in pod.get("initContainers", []) + pod.get("containers", []):
            if container["name"] == "overlane":
                sidecars += 1
                security = container["securityContext"]
                if not security["runAsNonRoot"] or security["capabilities"] != {"drop": ["ALL"]} or not security["readOnlyRootFilesystem"]:
                    yield f"{name}: the sidecar has rights that it does not need"
    if sidecars != 1:
        yield f"{name}: {sidecars} sidecars"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--binary")
    told = parser.parse_args()
    write, binary = told.write, told.binary
    options = binary and re.findall(r"--[a-z-]+", subprocess.check_output([binary, "run", "--help"], text=True))
    wrong = []
    lint = helm("lint", "--strict", str(CHART))
    if lint.returncode:
        wrong.append(lint.stdout + lint.stderr)
    for case in sorted(CASES.glob("*.yaml")):
        text = case.read_text()
        told = yaml.safe_load(text)
        done = render(told["release"], told["values"])
        if done.returncode:
            wrong.append(f"{case.name}: {done.stderr}")
            continue
        comments = "".join(line + "\n" for line in text.splitlines() if line.startswith("#"))
        said = f"{comments}# Rendered from deploy/helm/overlane with deploy/helm/cases/{case.name}: change those, and run deploy/helm/check.py --write.\n"
        rendered = said + re.sub(r"\n# Source: [^\n]*", "", "\n" + done.stdout).lstrip("\n")
        golden = RENDERED / case.name
        if write:
            golden.write_text(rendered)
        elif not golden.exists() or golden.read_text() != rendered:
            wrong.append(f"{golden.name}: is not what the chart gives; deploy/helm/check.py --write renders it")
    for manifest in sorted([*MANIFESTS.glob("*.yaml"), *MANIFESTS.glob("crds/*.yaml"), *RENDERED.glob("*.yaml")]):
        wrong += check(manifest.relative_to(MANIFESTS), manifest.read_text())
        if options:
            wrong += unknown(manifest.relative_to(MANIFESTS), manifest.read_text(), options)
    wrong += built(MANIFESTS / "kustomization.yaml")
    outputs = list(made(binary)) if binary else []
    for name, text in outputs:
        wrong += wrong_in(name, text, options)
    for values, word in REFUSED.items():
        done = render("overlane", yaml.safe_load(values))
        if done.returncode == 0 or word not in done.stderr:
            wrong.append(f"{values}: not refused, or not with `{word}`: {done.stderr}")
    if wrong:
        sys.exit("\n".join(wrong))
    cases = len(list(CASES.glob("*.yaml")))
    print(f"{cases} releases are what the chart renders, and right for Kubernetes {', '.join(VERSIONS)}; so are {len(outputs)} outputs of inject and render, "
          "and the kustomization")


if __name__ == "__main__":
    main()
