#!/usr/bin/env python3
"""The API as its description says: Schemathesis asks everything that `/openapi.json` describes, right and wrong, and holds the answers to it.

    python3 check.py BINARY [--examples N] [--only PLACE,…]

No answer is a server's error, each has a status, a type, headers and a body that are described, what is malformed is refused, what is well-formed is
taken, other methods are refused, and nothing is given without its token. At an admin listener without a token and one with a token, at a hub whose
tokens are asked for, and at one where everybody may read: each with a store of its own, while requests pass. Every run asks the same.
"""

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from harness.processes import clean, command_line, running, said
from harness.service import answering
from peers import installed

# What a run at one place may take.
SECONDS = 600
TOKEN, READ_TOKEN = "a-token-that-may-write", "a-token-that-may-read"
# Each place: the listener that is asked, and what it is started with.
PLACES = {
    "admin": ("admin", []),
    "admin-token": ("admin", ["--admin-token", TOKEN]),
    "hub": ("hub", ["--hub-tokens", "tokens", "--hub-read-tokens", "read-tokens"]),
    "hub-open": ("hub", ["--hub-tokens", "tokens", "--hub-open", "read"]),
}
ATTACHED = "{services: [{name: api, url: 'http://127.0.0.1:9'}], shares: [{id: qa, sha256: '%s'}]}" % ("0" * 64)


def store(folder, port):
    folder.mkdir(parents=True)
    web = f"url: 'http://127.0.0.1:{port}'"
    (folder / "staging.yaml").write_text(
        f"name: staging\nrouting: {{mode: baseline}}\nservices: [{{name: web, expose: true, {web}}}, {{name: api, {web}}}]\n")
    for overlay, parent, service in [("alice", "staging", "web"), ("bob", "alice", "api")]:
        (folder / f"{overlay}.yaml").write_text(
            f"name: {overlay}\nrouting: {{mode: overlay, baselineId: {parent}}}\nservices: [{{name: {service}, {web}}}, {{name: api-2}}]\n")
    (folder / "bob.attached.yaml").write_text(
        f"apiVersion: overlane.dev/v1alpha1\nkind: Attachment\nmetadata: {{name: bob}}\nspec: {ATTACHED}\n")


def load(gateway, ended):
    """So that there are decisions to be shown."""
    turn = 0
    while not ended.wait(0.05):
        turn += 1
        key = ["alice", "bob", "nobody", ""][turn % 4]
        fields = {"traceparent": f"00-{turn:032x}-{turn:016x}-01", "x-overlay-id": key}
        with contextlib.suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(f"http://{gateway}/{turn % 7}", headers=fields), timeout=5).read()


@contextlib.contextmanager
def place(binary, folder, name, upstream):
    """The address to be asked, while requests pass."""
    listener, arguments = PLACES[name]
    folder = folder / name
    store(folder / "store", upstream)
    (folder / "tokens").write_text(f"{TOKEN}\n")
    (folder / "read-tokens").write_text(f"{READ_TOKEN}\n")
    command = [binary, "run", "--store", folder / "store", "--workers", "1", "--gateway", "127.0.0.1:0", "--admin", "127.0.0.1:0", *arguments]
    command += ["--hub", "127.0.0.1:0"] if listener == "hub" else []
    with running(name, folder, *command) as process:
        at = {role: said(process, rf'"role":"{role}","address":"([\d.:]+)"').group(1) for role in {"gateway", listener}}
        ended = threading.Event()
        caller = threading.Thread(target=load, args=[at["gateway"], ended])
        caller.start()
        try:
            yield f"http://{at[listener]}"
        finally:
            ended.set()
            caller.join()
        if "panicked" in process.log.read_text(errors="replace"):
            raise SystemExit(f"{name} panicked\n{process.tail()}")


def fuzzed(schemathesis, at, examples, folder):
    """What Schemathesis says, and whether it found nothing."""
    request = urllib.request.Request(f"{at}/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"})
    (folder / "openapi.json").write_bytes(urllib.request.urlopen(request, timeout=10).read())
    command = [schemathesis, "--config-file", HERE / "schemathesis.toml", "run", folder / "openapi.json", "--url", at,
               "--max-examples", examples, "--phases", "examples,coverage,fuzzing"]
    done = subprocess.run(list(map(str, command)), cwd=folder, env=clean({"TOKEN": TOKEN, "NO_COLOR": "1"}), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=SECONDS)
    return done.stdout, done.returncode == 0


def asked(at, method, path, token=None):
    """The status of an answer."""
    fields = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"{at}{path}", method=method, headers=fields, data=b"{}" if method != "GET" else None)
    try:
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def tokens_hold(name, at):
    """What may be done with which token; what Schemathesis does not know are tokens that give less."""
    path = "/api/v1/overlays/alice"
    expected = {
        "admin": [(None, 200, 400)],
        "admin-token": [(None, 200, 401), (READ_TOKEN, 200, 401), (TOKEN, 200, 400)],
        "hub": [(None, 401, 401), ("no-token-of-this-hub", 401, 401), (READ_TOKEN, 200, 403), (TOKEN, 200, 400)],
        "hub-open": [(None, 200, 401), (READ_TOKEN, 200, 403), (TOKEN, 200, 400)],
    }
    for token, reading, writing in expected[name]:
        # A blueprint without a mode: refused for itself only where the token is good.
        came = asked(at, "GET", path, token), asked(at, "PUT", path, token)
        good = came[0] == reading and (came[1] == writing or writing == 400 and came[1] == 422)
        if not good:
            yield f"{name}: with the token {token} reading gives {came[0]} and writing {came[1]}, instead of {reading} and {writing}"


def tap_tells(name, at):
    """The first events of a tap, each with what its description says."""
    request = urllib.request.Request(f"{at}/api/v1/tap?service=web&maxRps=50", headers={"Authorization": f"Bearer {TOKEN}"})
    schema = json.loads(urllib.request.urlopen(urllib.request.Request(f"{at}/openapi.json", headers=dict(request.header_items())), timeout=10).read())
    required = schema["components"]["schemas"]["Decision"]["required"]
    with urllib.request.urlopen(request, timeout=30) as answer:
        if answer.headers["Content-Type"] != "text/event-stream":
            yield f"{name}: a tap is {answer.headers['Content-Type']}"
        told = 0
        while told < 5:
            field, _, value = answer.readline().decode().strip().partition(": ")
            if field == "event" and value == "decision":
                decision = json.loads(answer.readline().decode().partition(": ")[2])
                told += 1
                if decision["service"] != "web" or not decision.keys() >= set(required):
                    yield f"{name}: a tap told {decision}"


def watch_tells(name, at):
    """The first events of a watch, which only the admin listener has."""
    request = urllib.request.Request(f"{at}/api/v1/watch?service=web", headers={"Authorization": f"Bearer {TOKEN}"})
    if not name.startswith("admin"):
        status = asked(at, "GET", "/api/v1/watch", TOKEN)
        if status != 404:
            yield f"{name}: a watch is answered with {status}"
        return
    with urllib.request.urlopen(request, timeout=30) as answer:
        told = {}
        while "SYNCED" not in told:
            field, _, value = answer.readline().decode().strip().partition(": ")
            if field == "event":
                answer.readline()
                told.setdefault(value, json.loads(answer.readline().decode().partition(": ")[2]))
    if told.get("RULE", {}).keys() != {"key", "environment", "mine"} or told["SYNCED"]["service"] != "web":
        yield f"{name}: a watch told {told}"


def logging_changes(name, at):
    """Another level, and back."""
    if not name.startswith("admin"):
        return
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    before = json.loads(urllib.request.urlopen(f"{at}/logging", timeout=10).read())
    for filter in [{"filter": "warn,overlane::store=debug"}, before]:
        request = urllib.request.Request(f"{at}/logging", method="PUT", headers=headers, data=json.dumps(filter).encode())
        told = json.loads(urllib.request.urlopen(request, timeout=10).read())
        if sorted(told["filter"].split(",")) != sorted(filter["filter"].split(",")):
            yield f"{name}: it logs by {told}, not by {filter}"


def main():
    parser = command_line(__doc__)
    parser.add_argument("--examples", type=int, default=100, help="of each operation, besides the edges of each value")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PLACES), help=", ".join(PLACES))
    options = parser.parse_args()
    schemathesis = installed.python(installed.cache("api"), HERE / "requirements.txt") / "schemathesis"
    wrong = []
    upstream = answering()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in options.only:
            began = time.monotonic()
            with place(options.binary, folder, name, upstream) as at:
                wrong += [*tokens_hold(name, at), *tap_tells(name, at), *watch_tells(name, at), *logging_changes(name, at)]
                report, good = fuzzed(schemathesis, at, options.examples, folder / name)
            cases = re.search(r"(\d[\d,]*) generated", report)
            print(f"  {name}: {cases.group(1) if cases else 'no'} requests in {time.monotonic() - began:.0f} s", flush=True)
            wrong += [] if good else [f"{name}:\n{report}"]
    print(f"{len(options.only)} places, {len(wrong)} wrong")
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
