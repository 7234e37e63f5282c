#!/usr/bin/env python3
"""mdBook's preprocessor: links to files outside docs/ become links to the repository (OVERLANE_SOURCE, a url of its files at a commit)."""

import json
import os
import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).resolve().parent
SOURCE = os.environ.get("OVERLANE_SOURCE", "").rstrip("/")


def outside(page, link):
    """The url of a file outside docs/, or the link as it is."""
    target = pathlib.Path(os.path.normpath(DOCS / page.parent / link.partition("#")[0]))
    inside = target.is_relative_to(DOCS) and target.suffix in (".md", ".svg", ".png")
    if ":" in link or link.startswith("#") or inside or not SOURCE:
        return link
    return f"{SOURCE}/{target.relative_to(DOCS.parent)}"


def rewrite(item):
    if chapter := item.get("Chapter"):
        page = pathlib.Path(chapter["path"] or "")
        chapter["content"] = re.sub(r"\]\(([^)\s]+)\)", lambda found: f"]({outside(page, found[1])})", chapter["content"])
        for below in chapter["sub_items"]:
            rewrite(below)


if __name__ == "__main__":
    if sys.argv[1:2] == ["supports"]:
        sys.exit(0)
    _, book = json.load(sys.stdin)
    for item in book.get("items") or book.get("sections"):
        if isinstance(item, dict):
            rewrite(item)
    json.dump(book, sys.stdout)
