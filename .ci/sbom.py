#!/usr/bin/env python3
"""Whether an SBOM has every package of Cargo.lock with its checksum, and nothing else.

    python3 .ci/sbom.py target/dist/overlane.cdx.json
"""

import json
import pathlib
import sys
import tomllib


def main() -> int:
    sbom = json.loads(pathlib.Path(sys.argv[1]).read_text())
    told = {(part["name"], part["version"]): {each["content"] for each in part.get("hashes", [])} for part in sbom["components"]}
    packages = tomllib.loads(pathlib.Path("Cargo.lock").read_text())["package"]
    lock = {(package["name"], package["version"]): package.get("checksum") for package in packages}
    faults = [f"{name} {version} is in Cargo.lock and not in the SBOM" for name, version in sorted(lock.keys() - told.keys())]
    faults += [f"{name} {version} is in the SBOM and not in Cargo.lock" for name, version in sorted(told.keys() - lock.keys())]
    faults += [f"{name} {version} does not have the checksum of Cargo.lock" for (name, version), checksum in sorted(lock.items())
               if checksum and checksum not in told.get((name, version), {checksum})]
    print("\n".join(faults) or f"{len(told)} components: complete, with the checksums of Cargo.lock")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
