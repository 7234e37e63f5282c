#!/usr/bin/env python3
"""The alert rules and the dashboard: right to promtool, tested, and about metrics that there are.

    deploy/prometheus/check.py

Wants promtool, as Debian's package `prometheus` has it. What metrics there are says docs/metrics.md, which a test holds equal to
what a process serves. Each expression of the dashboard is read by promtool as a rule.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RULES, TESTS = HERE / "overlane.rules.yaml", HERE / "overlane.test.yaml"
DASHBOARD = HERE.parent / "grafana/overlane.json"
# What a histogram and a client library add.
SUFFIX = re.compile(r"_(bucket|sum|count)$")
# Grafana's own variables, as promtool may read them.
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h"}


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def main():
    promtool("check", "rules", RULES)
    promtool("test", "rules", TESTS)
    expressions = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    as_rules = [{"record": f"panel:{at}", "expr": expression} for at, expression in enumerate(expressions)]
    for name, value in VARIABLES.items():
        as_rules = [{**rule, "expr": rule["expr"].replace(name, value)} for rule in as_rules]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": as_rules}]}, file)
        file.flush()
        promtool("check", "rules", file.name)
    known = set(re.findall(r"`(overlane_[a-z0-9_]+)`", (ROOT / "docs/metrics.md").read_text()))
    named = set(re.findall(r"\boverlane_[a-z0-9_]+", RULES.read_text() + " ".join(expressions)))
    unknown = sorted(name for name in named if name not in known and SUFFIX.sub("", name) not in known)
    if unknown:
        sys.exit(f"no such metrics: {', '.join(unknown)}")
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule}
    print(f"{len(alerts)} alerts and {len(expressions)} expressions of the dashboard are about metrics that there are")


if __name__ == "__main__":
    main()
