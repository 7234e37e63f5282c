#!/usr/bin/env python3
"""The JSON Schemas refuse nothing that the readers take, and nearly everything that the readers refuse.

    $(bash .ci/tools manifests)/python docs/schema/check.py OVERLANE

Every blueprint of the repository, right or wrong, is read by both. What a schema refuses, `overlane validate` has to refuse as well: nobody's editor marks
what is right. What only the reader refuses has to be of the kinds that no schema can tell, such as names of other documents. Where a block of yaml in a page
or a transcript is a blueprint, it counts as one.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import jsonschema
import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# What a schema cannot know: other documents, and what is there twice.
BEYOND = re.compile(
    r"unknown parent|is a cycle|names itself as parent|duplicate|leads to `|there is no blueprint in it|would have \d+ ancestors|belongs to|already"
    r"|has a mistake|cannot be used"
)
# Settings, and whether they are right.
SETTINGS = {
    "{}": True,
    "gateway: unix:/run/overlane.sock": True,
    "{accessLog: {format: common, sample: 0.1, errors: always}, tls: {certificates: [{certificate: a, key: b}], minVersion: 1.3}}": True,
    "{upstreamTls: [{hosts: [a], ca: b}], timeouts: {idle: 1m}, connectPorts: [443]}": True,
    "traces: {endpoint: 'http://127.0.0.1:4318', ratio: 0.01, headers: {authorization: Bearer t}}": True,
    "traces: {endpoint: 127.0.0.1:4318}": False,
    "gatewy: 127.0.0.1:7480": False,
    "gateway: 7480": False,
    "workers: none": False,
    "timeouts: {idle: 5}": False,
    "tls: {certificates: [{certificate: a}]}": False,
    "engine: nginx": False,
}


class Loader(yaml.SafeLoader):
    """YAML without points in time, as the readers have it."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def schema(name):
    read = json.loads((HERE / f"{name}.json").read_text())
    jsonschema.Draft7Validator.check_schema(read)
    return jsonschema.Draft7Validator(read)


def texts():
    """Blueprints of the repository, and where they are."""
    for folder in ["config/tests", "docs/examples", "examples"]:
        for file in sorted((ROOT / folder).rglob("*.yaml")):
            yield str(file.relative_to(ROOT)), file.read_text()
    for page in [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "proxy/tests/transcripts").glob("*.md")), ROOT / "README.md"]:
        for number, block in enumerate(re.findall(r"^```yaml[^\n]*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
            if re.search(r"^\s*(routing|spec):", block, re.MULTILINE) and (not re.search(r"^kind:", block, re.MULTILINE) or "overlane.dev/" in block):
                yield f"{page.relative_to(ROOT)}, block {number + 1}", block


def documents(text):
    """The documents of a text; none where PyYAML reads YAML 1.1 and the text is YAML 1.2, or no YAML."""
    try:
        return [document for document in yaml.load_all(text, Loader) if document is not None]
    except yaml.YAMLError:
        return None


def mistakes(binary, text):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([binary, "validate", "-o", "json", file.name], capture_output=True, text=True, timeout=60)
    return [mistake["message"] for mistake in json.loads(done.stdout) if mistake["severity"] == "error"]


def main():
    binary, blueprints, settings = sys.argv[1], schema("blueprint"), schema("settings")
    wrong, seen, refused = [], 0, 0
    for name, text in texts():
        read = documents(text)
        if read is None:
            continue
        seen += 1
        marked = [error.message for document in read for error in blueprints.iter_errors(document)]
        told = mistakes(binary, text)
        refused += bool(marked)
        if marked and not told:
            wrong.append(f"{name}: the schema refuses what is right: {marked}")
        beyond = [message for message in told if not BEYOND.search(message)]
        if beyond and not marked:
            wrong.append(f"{name}: the schema takes what is wrong: {beyond}")
    example = re.search(r"A settings file with every key.*?```yaml\n(.*?)```", (ROOT / "docs/operating.md").read_text(), re.DOTALL)
    for text, right in {**SETTINGS, example[1]: True}.items():
        marked = [error.message for error in settings.iter_errors(yaml.load(text, Loader))]
        if right == bool(marked):
            wrong.append(f"settings {text!r}: {marked or 'taken'}")
    for name in ["blueprint", "settings"]:
        printed = subprocess.run([binary, "schema", name], capture_output=True, text=True, timeout=60, check=True).stdout
        if printed != (HERE / f"{name}.json").read_text():
            wrong.append(f"`overlane schema {name}` prints something else than docs/schema/{name}.json")
    if seen < 50 or refused < 10:
        wrong.append(f"only {seen} blueprints were found, {refused} of them wrong")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{seen} blueprints, {refused} of which the schema refuses, as the reader does")


if __name__ == "__main__":
    main()
