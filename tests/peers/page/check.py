#!/usr/bin/env python3
"""The web page in a real browser, against a running demo under load, a hub with a token, and ten thousand overlays.

    python3 check.py BINARY [--chromium PATH] [--screenshots FOLDER]

Debian's Chromium, driven by playwright-core; axe-core looks at every view, at desktop and phone width, in light and dark. Needs chromium,
node and npm. Pictures for the README are written where a folder is named.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from harness.processes import running, said
from peers import installed

# Of one baseline. Each 50th belongs to another overlay.
MANY = 10_000
# Requests per second at the demo: enough to be seen, and little for a small machine.
LOAD = 20
TOKEN = "a-token-that-may-read"


def many(folder):
    folder.mkdir()
    (folder / "staging.yaml").write_text(
        "name: staging\nrouting: {mode: baseline}\nservices:\n"
        + "".join(f"- {{name: service-{at}, expose: {str(at == 0).lower()}, url: 'http://127.0.0.1:9'}}\n" for at in range(20)))
    for at in range(MANY):
        parent = f"pr-{at - 1}" if at % 50 == 1 else "staging"
        # What people write is shown as they wrote it, whatever it looks like.
        owner = "<img src=x onerror=window.broken=1>" if at == 0 else f"team-{at % 9}"
        (folder / f"pr-{at}.yaml").write_text(
            f"name: pr-{at}\nowner: '{owner}'\nrouting: {{mode: overlay, baselineId: {parent}}}\n"
            f"services: [{{name: service-{at % 20}, url: 'http://127.0.0.1:9'}}]\n")


def load(gateway, ended):
    """Calls the demo, with the overlay's key and without."""
    turn = 0
    while not ended.wait(1 / LOAD):
        turn += 1
        fields = {"traceparent": f"00-{turn:032x}-{turn:016x}-01"}
        if turn % 2:
            fields["x-overlay-id"] = "alice-payments"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(f"{gateway}/cart/{turn % 7}", headers=fields), timeout=5).read()


def main():
    parser = installed.of_browser(__doc__)
    parser.add_argument("--screenshots", type=pathlib.Path)
    options = parser.parse_args()
    installed.expect("chromium nodejs npm", options.chromium, "node", "npm")
    program = installed.node(installed.cache("page"), HERE / "page.mjs")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        demo = stack.enter_context(running("demo", folder, options.binary, "demo"))
        many(folder / "many")
        (folder / "tokens").write_text(f"{TOKEN}\n")
        large = stack.enter_context(running(
            "large", folder, options.binary, "run", "--store", folder / "many", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0",
            "--trust", "any", "--workers", "1", "--hub", "127.0.0.1:0", "--hub-read-tokens", folder / "tokens"))
        gateway = said(demo, r"the baseline +curl (http://[\d.:]+)").group(1)
        page = said(demo, r"look at it +(http://[\d.:]+/ui/)").group(1)
        at = {role: said(large, rf'"role":"{role}","address":"([\d.:]+)"').group(1) for role in ["admin", "hub"]}
        ended = threading.Event()
        caller = threading.Thread(target=load, args=[gateway, ended])
        caller.start()
        told = {"chromium": options.chromium, "page": page, "gateway": gateway, "many": f"http://{at['admin']}/ui/", "hub": f"http://{at['hub']}/ui/",
                "token": TOKEN, "overlays": MANY, "screenshots": str(options.screenshots.resolve()) if options.screenshots else ""}
        try:
            done = subprocess.run(["node", program], env={**os.environ, "HOME": str(folder), "TOLD": json.dumps(told)}, stdin=subprocess.DEVNULL,
                                  timeout=600)
        finally:
            ended.set()
            caller.join()
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
