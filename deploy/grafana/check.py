#!/usr/bin/env python3
"""The dashboard is one, by the types that Grafana publishes of the version that the compose file runs: unknown fields and wrong values are refused.

    deploy/grafana/check.py

Wants npm; `@grafana/schema` and `typescript` are installed beside the build (CARGO_TARGET_DIR). Its expressions are held by deploy/prometheus/check.py. Grafana itself
is not run.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TYPESCRIPT = "typescript@7.0.2"
# The panels that the dashboard has, as the packages of their types are named.
PANELS = {"stat": "Stat", "table": "Table", "timeseries": "TimeSeries"}
# The values of an enumeration are texts in JSON.
TOLD = """type Told<T> = T extends string ? (string extends T ? string : `${T}`)
  : T extends number | boolean | null | undefined ? T
  : T extends Array<infer Each> ? Told<Each>[]
  : { [Key in keyof T]: Told<T[Key]> };
"""


def schema():
    """The package of the types, with the version of Grafana."""
    version = re.search(r"grafana/grafana:([0-9.]+)", (ROOT / "deploy/compose/compose.yaml").read_text())[1]
    return f"@grafana/schema@{version}"


def program(dashboard, types):
    """What has a type error where the dashboard has a mistake, with a line for each panel."""
    yield f'import type {{ Dashboard, Panel }} from "{types}/index.gen";'
    for kind, name in PANELS.items():
        yield f'import type * as {name} from "{types}/raw/composable/{kind}/panelcfg/x/{name}PanelCfg_types.gen";'
    yield TOLD
    whole = {name: value for name, value in dashboard.items() if name != "panels"}
    yield f"export const dashboard: Told<Omit<Dashboard, 'panels'>> = {json.dumps(whole, indent=1)};"
    for panel in dashboard["panels"]:
        number, name = panel["id"], PANELS[panel["type"]]
        custom = panel["fieldConfig"]["defaults"].get("custom", {})
        yield f"export const panel{number}: Told<Panel> = {json.dumps(panel)};"
        yield f"export const options{number}: Told<Partial<{name}.Options>> = {json.dumps(panel['options'])};"
        if custom:
            yield f"export const custom{number}: Told<Partial<{name}.FieldConfig>> = {json.dumps(custom)};"


def main():
    folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), "grafana").resolve()
    installed = schema()
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, installed, TYPESCRIPT], check=True)
    dashboard = json.loads((HERE / "overlane.json").read_text())
    (folder / "dashboard.ts").write_text("\n".join(program(dashboard, "./node_modules/@grafana/schema/dist/types")) + "\n")
    done = subprocess.run([folder / "node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler",
                           "--target", "es2022", "dashboard.ts"], cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"deploy/grafana/overlane.json is not what {installed} has; the lines are those of {folder}/dashboard.ts:\n{done.stdout}")
    print(f"{len(dashboard['panels'])} panels are what {installed} has")


if __name__ == "__main__":
    main()
