#!/usr/bin/env python3
"""Checks the dependency tree: licences from a list, one TLS provider, Pingora pinned exactly."""

import json
import re
import subprocess
import sys

ALLOWED = {
    "MIT", "MIT-0", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib",
    "Unicode-3.0", "CC0-1.0", "0BSD", "BSL-1.0", "Unlicense", "MPL-2.0", "MPL-2.0+", "CDLA-Permissive-2.0", "OpenSSL",
}
BANNED = {
    "openssl-sys": "TLS is rustls on ring only",
    "aws-lc-rs": "TLS is rustls on ring only; two providers make rustls panic",
    "aws-lc-sys": "TLS is rustls on ring only; it also needs cmake",
    "serde_yml": "RUSTSEC-2025-0068",
}


def licensed(expression: str) -> bool:
    """Whether some reading of an SPDX expression needs only allowed licences ('/' is an old 'OR')."""
    choices = re.split(r"\s+OR\s+|/", expression.replace("(", " ").replace(")", " "))
    return any(all(part.strip() in ALLOWED for part in re.split(r"\s+AND\s+", choice)) for choice in choices)


def main() -> int:
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    packages = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    faults = []
    for package in packages:
        name, licence = package["name"], package.get("license")
        if name in BANNED:
            faults.append(f"{name} is in the tree: {BANNED[name]}")
        if licence is None and not package.get("license_file"):
            faults.append(f"{name} states no licence")
        elif licence is not None and not licensed(licence):
            faults.append(f"{name}: `{licence}` is not on the list of licences")
        if name.startswith("overlane"):
            for needed in package["dependencies"]:
                if needed["name"].startswith("pingora") and not needed["req"].startswith("="):
                    faults.append(f"{name} does not pin {needed['name']} exactly ({needed['req']})")
    names = [package["name"] for package in packages]
    if [p for p in packages if p["name"] == "libz-ng-sys" and p["source"] is not None]:
        faults.append("libz-ng-sys comes from the registry, which needs cmake: third-party/ must replace it")
    print("\n".join(faults) or f"{len(names)} packages, all fine")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
