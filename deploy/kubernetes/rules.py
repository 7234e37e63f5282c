#!/usr/bin/env python3
"""The rules (CEL) of our custom resources say what Overlane says of the same blueprints.

    $(bash .ci/tools cel)/python deploy/kubernetes/rules.py OVERLANE

Every object here has a name that Kubernetes takes (DNS-1123 subdomains). A rule that refuses what Overlane takes would keep it out of a cluster; one that
takes what Overlane refuses would be found out only by its status. They are evaluated by cel-python, an implementation of its own.
"""

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import celpy
import yaml

DEFINITIONS = pathlib.Path(__file__).resolve().parent / "crds"
NAMES = ["alice", "a", "1a", "a-b", "a.b", "a--b", "alice.staging", "x" * 63, "x" * 64, "--".join("ab"), "xn--a"]
ROUTINGS = {
    "Baseline": [{"mode": "baseline"}, {"mode": "baseline", "baselineId": "alice"}, {"mode": "baseline", "baselineId": "a.b"}],
    "Overlay": [{"mode": "overlay", "baselineId": "staging"}, {"mode": "overlay", "baselineId": "staging", "overlayId": "alice"},
                {"mode": "overlay", "baselineId": "staging", "overlayId": "a-b"}],
}


def rules():
    """Of each kind, what decides whether an object is refused."""
    known = {}
    for path in sorted(DEFINITIONS.glob("*.yaml")):
        definition = yaml.safe_load(path.read_text())
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        environment = celpy.Environment()
        compiled = [environment.program(environment.compile(one["rule"])) for one in schema["x-kubernetes-validations"]]
        known[definition["spec"]["names"]["kind"]] = compiled
    return known


def accepted(programs, value):
    return all(bool(program.evaluate({"self": celpy.json_to_cel(value)})) for program in programs)


def main():
    binary, wrong, seen = str(pathlib.Path(sys.argv[1]).resolve()), [], {True: 0, False: 0}
    for kind, programs in rules().items():
        for name, routing in itertools.product(NAMES, ROUTINGS[kind]):
            value = {"apiVersion": "overlane.dev/v1alpha1", "kind": kind, "metadata": {"name": name},
                     "spec": {"routing": routing, "services": [{"name": "web", "url": "http://127.0.0.1:1"}]}}
            with tempfile.TemporaryDirectory() as folder:
                blueprint = pathlib.Path(folder, "input.yaml")
                blueprint.write_text(json.dumps(value))
                staging = pathlib.Path(folder, "staging.yaml")
                staging.write_text("name: staging\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://127.0.0.1:1'}]\n")
                command = [binary, "validate", "--file", str(blueprint), "--file", str(staging)]
                ours = subprocess.run(command, capture_output=True, text=True)
            rule = accepted(programs, value)
            seen[rule] += 1
            if rule != (ours.returncode == 0):
                wrong.append(f"{kind} {name} {routing}: the rules say {rule}, and overlane: {ours.stderr or 'fine'}")
    if wrong or not all(seen.values()):
        sys.exit("\n".join(wrong) or f"all were the same: {seen}")
    print(f"the rules of the definitions say what overlane says: {seen[True]} taken, {seen[False]} refused")


if __name__ == "__main__":
    main()
