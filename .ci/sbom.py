#!/usr/bin/env python3
"""Completes an SBOM of the crates with what is bundled in the web page, and says whether it has every package of both lock files, and nothing else.

    python3 .ci/sbom.py target/dist/overlane.cdx.json

The packages of the page are those of ui/package-lock.json that are no tools of its build; the notices at the end of the built page have to name the same.
"""

import base64
import json
import pathlib
import re
import sys
import tomllib
import urllib.parse


def bundled():
    """The components of npm packages whose code is in the page."""
    for path, package in json.loads(pathlib.Path("ui/package-lock.json").read_text())["packages"].items():
        if not path or package.get("dev"):
            continue
        whole = path.rpartition("node_modules/")[2]
        purl = f"pkg:npm/{urllib.parse.quote(whole, safe='/')}@{package['version']}"
        group, _, name = whole.rpartition("/")
        algorithm, _, digest = package["integrity"].partition("-")
        yield {"type": "library", **({"group": group} if group else {}), "name": name, "version": package["version"], "scope": "required",
               "hashes": [{"alg": algorithm.upper().replace("SHA", "SHA-"), "content": base64.b64decode(digest).hex()}],
               "licenses": [{"license": {"id": package["license"]}}], "purl": purl, "bom-ref": purl}


def completed(path):
    """The SBOM with those as parts of Overlane; once, however often it is asked."""
    sbom = json.loads(path.read_text())
    parts = list(bundled())
    refs = {part["bom-ref"] for part in parts}
    sbom["components"] = [each for each in sbom["components"] if each.get("bom-ref") not in refs] + parts
    root = sbom["metadata"]["component"]["bom-ref"]
    own = next((each for each in sbom["dependencies"] if each["ref"] == root), None)
    if own is None:
        sbom["dependencies"].append(own := {"ref": root})
    own["dependsOn"] = sorted({*own.get("dependsOn", []), *refs})
    known = {each["ref"] for each in sbom["dependencies"]}
    sbom["dependencies"] += [{"ref": ref} for ref in sorted(refs - known)]
    path.write_text(json.dumps(sbom, indent=1) + "\n")
    return sbom


def told(sbom, kind):
    """The packages of a registry in the SBOM, and the checksums of each."""
    parts = [each for each in sbom["components"] if each["purl"].startswith(f"pkg:{kind}/")]
    return {("/".join(filter(None, [part.get("group"), part["name"]])), part["version"]): {each["content"] for each in part.get("hashes", [])}
            for part in parts}


def crates(sbom):
    packages = tomllib.loads(pathlib.Path("Cargo.lock").read_text())["package"]
    lock = {(package["name"], package["version"]): package.get("checksum") for package in packages}
    there = told(sbom, "cargo")
    yield from (f"{name} {version} is in Cargo.lock and not in the SBOM" for name, version in sorted(lock.keys() - there.keys()))
    yield from (f"{name} {version} is in the SBOM and not in Cargo.lock" for name, version in sorted(there.keys() - lock.keys()))
    yield from (f"{name} {version} does not have the checksum of Cargo.lock" for (name, version), checksum in sorted(lock.items())
                if checksum and checksum not in there.get((name, version), {checksum}))


def page(sbom):
    notices = re.findall(r"^(\S+): Copyright", pathlib.Path("proxy/src/ui/page.js").read_text(), re.M)
    there = [name for name, _ in told(sbom, "npm")]
    yield from (f"{name} is in the notices of the page and not in the SBOM" for name in sorted(set(notices) - set(there)))
    yield from (f"{name} is in the SBOM and not in the notices of the page" for name in sorted(set(there) - set(notices)))


def main() -> int:
    sbom = completed(pathlib.Path(sys.argv[1]))
    faults = [*crates(sbom), *page(sbom)]
    count = {kind: len(told(sbom, kind)) for kind in ("cargo", "npm")}
    if len(sbom["components"]) != sum(count.values()):
        faults.append("the SBOM has components that are neither crates nor packages of npm")
    print("\n".join(faults) or f"{count['cargo']} crates and {count['npm']} packages of npm: complete, with the checksums of the lock files")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
