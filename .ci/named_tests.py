#!/usr/bin/env python3
"""Every test and program that docs/threat-model.md and docs/faults.md name is there.

A test is written as `path/of/file.rs::name_of_the_test` (or `file.rs::module::name`), a program as `path/of/file.py`.
"""

import pathlib
import re
import sys

PAGES = ["docs/threat-model.md", "docs/faults.md"]


def fault(name):
    """What is wrong with a name; nothing where it is there."""
    path, _, test = name.partition("::")
    file = pathlib.Path(path)
    if not file.exists():
        return f"there is no {path}"
    if test and not re.search(rf"\bfn {re.escape(test.rsplit('::', 1)[-1])}\(", file.read_text()):
        return f"{path} has no test `{test}`"
    return None


def main() -> int:
    named = [(page, name) for page in PAGES for name in
             re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:rs|py)(?:::\w+)*)`", pathlib.Path(page).read_text())]
    faults = [f"{page}: {why}" for page, name in named if (why := fault(name))]
    print("\n".join(faults) or f"{len(named)} tests and programs are named, and there")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
