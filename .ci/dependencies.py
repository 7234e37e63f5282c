#!/usr/bin/env python3
"""What deny.toml cannot say: Pingora is pinned exactly, nothing needs cmake, `unsafe` is where it is named, and an image has what is included."""

import json
import pathlib
import re
import subprocess
import sys

# Files of ours with `unsafe`, and why. Everywhere else the workspace's lints forbid it.
UNSAFE = {
    "third-party/libz-ng-sys/src/lib.rs": "forwards C's zlib functions to zlib-rs, for flate2: pointers come from there",
}


def unsafe_faults():
    """Members without the workspace's lints, and files with `unsafe` that are not named (nor so in docs/threat-model.md)."""
    for manifest in pathlib.Path().glob("*/Cargo.toml"):
        text = manifest.read_text()
        if manifest.parent.name not in ("fuzz", "target") and "[lints]\nworkspace = true" not in text:
            yield f"{manifest} does not have the workspace's lints, which forbid `unsafe`"
    if 'unsafe_code = "forbid"' not in pathlib.Path("Cargo.toml").read_text():
        yield "the workspace's lints do not forbid `unsafe`"
    sources = subprocess.run(["git", "ls-files", "*.rs"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    code = {name: re.sub(r"//.*", "", pathlib.Path(name).read_text()) for name in sources if pathlib.Path(name).exists()}
    found = {name for name, text in code.items() if re.search(r"\bunsafe\s*(\{|fn|impl|trait|extern)", text)}
    page = pathlib.Path("docs/threat-model.md").read_text()
    yield from (f"{name} has `unsafe` and is not named in .ci/dependencies.py" for name in sorted(found - UNSAFE.keys()))
    yield from (f"{name} is named in .ci/dependencies.py and has no `unsafe`" for name in sorted(UNSAFE.keys() - found))
    yield from (f"docs/threat-model.md does not name {name}, which has `unsafe`" for name in UNSAFE if name not in page)


def context_faults():
    """Files that the sources include and that `.dockerignore` keeps from the image's build."""
    allowed = [line[1:] for line in pathlib.Path(".dockerignore").read_text().split() if line.startswith("!")]
    root = pathlib.Path().resolve()
    for source in [*pathlib.Path("config/src").rglob("*.rs"), *pathlib.Path("proxy/src").rglob("*.rs")]:
        for included in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            path = (source.parent / included).resolve().relative_to(root)
            if not any(path.is_relative_to(each) for each in allowed):
                yield f".dockerignore keeps {path} from the image's build, and {source} includes it"


def main() -> int:
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    packages = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    faults = [*unsafe_faults(), *context_faults()]
    for package in packages:
        if package["name"].startswith("overlane"):
            for needed in package["dependencies"]:
                if needed["name"].startswith("pingora") and not needed["req"].startswith("="):
                    faults.append(f"{package['name']} does not pin {needed['name']} exactly ({needed['req']})")
        if package["name"] == "libz-ng-sys" and package["source"] is not None:
            faults.append("libz-ng-sys comes from the registry, which needs cmake: third-party/ must replace it")
    print("\n".join(faults) or f"{len(packages)} packages; Pingora is pinned, nothing needs cmake, `unsafe` is where it is named")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
