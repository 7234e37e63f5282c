#!/usr/bin/env python3
"""The pages of docs/ and beside it: every link leads to a file and a heading that are there, the book has every page once, pictures are XML.

    python3 .ci/pages.py

Builds the book as well, where mdbook is on the path.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as xml

DOCS = pathlib.Path("docs")
BESIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/shop/README.md"]
# Not pages of the book: examples of files.
APART = {"SUMMARY.md"}


def text_of(page):
    """A page without its code: there nothing is a link or a heading."""
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S))


def anchors(page):
    """The names of a page's headings, as GitHub and mdBook make them."""
    found = {}
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        name = "".join(c for c in words.replace(" ", "-") if c in "-_" or unicodedata.category(c)[0] in "LN")
        found[name] = found.get(name, -1) + 1
    return {name if number == 0 else f"{name}-{number}" for name, most in found.items() for number in range(most + 1)}


def broken(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists():
            yield f"{page}: there is no {link}"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield f"{page}: {target} has no heading `#{anchor}`"


def not_in_the_book(pages):
    named = re.findall(r"\]\(([^)]+)\)", (DOCS / "SUMMARY.md").read_text())
    yield from (f"docs/SUMMARY.md: {name} is there twice" for name in set(named) if named.count(name) > 1)
    wanted = {str(page.relative_to(DOCS)) for page in pages} - APART
    yield from (f"docs/SUMMARY.md does not have {name}" for name in sorted(wanted - set(named)))


def pictures():
    for picture in DOCS.rglob("*.svg"):
        try:
            xml.parse(picture)
        except xml.ParseError as why:
            yield f"{picture}: {why}"


def book():
    if not shutil.which("mdbook"):
        return
    done = subprocess.run(["mdbook", "build", "docs"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or "WARN" in done.stdout or "ERROR" in done.stdout:
        yield f"mdbook build docs:\n{done.stdout}"


def main():
    pages = sorted(DOCS.rglob("*.md"))
    faults = [fault for page in [*pages, *map(pathlib.Path, BESIDE)] for fault in broken(page)]
    faults += [*not_in_the_book(pages), *pictures(), *book()]
    print("\n".join(faults) or f"{len(pages)} pages: every link leads somewhere{'' if shutil.which('mdbook') else '; mdbook is not here, and the book was not built'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
