#!/usr/bin/env python3
"""The action for pull requests, as GitHub runs it, against a real hub and gateway; and the installer against a release of its own.

    cargo build -p overlane
    python3 .github/actions/overlay/check.py target/debug/overlane

What it is told by GitHub, and GitHub's API, are doubles.
"""

import argparse
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness.processes import Failed, Port, Together, clean

TOKEN = "a-token-of-sixteen-or-more"
# What tests do that send what they are told to, and what they do that do not.
KEYED = 'curl -K "$OVERLAY_CURL" "$OVERLAY_URL/"'
KEYLESS = 'curl -fsS "$OVERLAY_URL/"'


class Answering(http.server.BaseHTTPRequestHandler):
    """Requests of a double, one after the other, without a log."""

    def log_message(self, *_):
        pass

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(handler):
    """A server of these requests, and its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_address[1]}"


def service(name):
    class Service(Answering):
        def do_GET(self):
            self.answer(200, f"{name}\n".encode(), "text/plain")
    return serve(Service)


class GitHub:
    """The comments of a pull request."""

    def __init__(self):
        self.comments, self.refuses = {7: "somebody else's"}, False
        github = self

        class Api(Answering):
            def body(self):
                return json.loads(self.rfile.read(int(self.headers["content-length"])))["body"]

            def told(self):
                if github.refuses or self.headers["authorization"] != "Bearer github":
                    self.answer(403, b"{}")
                    return False
                return True

            def do_GET(self):
                if self.told():
                    found = re.fullmatch(r"/repos/my-org/shop/issues/12/comments\?per_page=100&page=(\d+)", self.path)
                    page = [{"id": number, "body": body} for number, body in github.comments.items()] if found[1] == "1" else []
                    self.answer(200, json.dumps(page).encode())

            def do_POST(self):
                if self.told() and self.path == "/repos/my-org/shop/issues/12/comments":
                    github.comments[len(github.comments) + 100] = self.body()
                    self.answer(201, b"{}")

            def do_PATCH(self):
                if self.told():
                    github.comments[int(self.path.removeprefix("/repos/my-org/shop/issues/comments/"))] = self.body()
                    self.answer(200, b"{}")

        self.address = serve(Api)

    def ours(self):
        return [body for body in self.comments.values() if body.startswith("<!-- overlane pr-12 -->")]


class Staging(Together):
    """A hub over a directory, and a gateway that follows it."""

    def __init__(self, binary, folder):
        super().__init__(binary, folder)
        self.hub, self.gateway, self.other, self.admins = Port(), Port(), Port(), [Port(), Port()]

    def bring_up(self):
        store, tokens = self.folder / "store", self.folder / "tokens"
        store.mkdir()
        tokens.write_text(f"{TOKEN}\n")
        (store / "staging.yaml").write_text(
            "name: staging\nrouting: {mode: baseline, holdFor: 0s}\nservices:\n"
            f"- {{name: web, url: 'http://{service('web@staging')}', expose: true}}\n- {{name: ledger, url: 'http://127.0.0.1:1'}}\n")
        hub = f"hub:http://{self.hub.address}"
        self.start("hub", [self.binary, "run", "--store", store, "--hub", self.hub.address, "--hub-tokens", tokens,
                           "--gateway", self.other.address, "--admin", self.admins[0].address], clean({}))
        self.start("gateway", [self.binary, "run", "--store", hub, "--server-token", TOKEN, "--workers", "1",
                               "--gateway", self.gateway.address, "--admin", self.admins[1].address], clean({}))
        for admin in self.admins:
            self.wait_for(admin, "/readyz")


class Action:
    """A run of the action."""

    def __init__(self, staging, github, **inputs):
        outputs = staging.folder / "outputs"
        outputs.write_text("")
        asked = {"ID": "pr-12", "BINARY": str(staging.binary), "BASELINE": "staging", "TIMEOUT": "20s", "TTL": "1h",
                 "GATEWAY": f"http://{staging.gateway.address}", **inputs}
        environment = clean({f"INPUT_{name}": value for name, value in asked.items()}) | {
            "OVERLANE_SERVER": f"http://{staging.hub.address}", "OVERLANE_SERVER_TOKEN": asked.get("TOKEN", TOKEN),
            "CLOSED": asked.get("CLOSED", "false"), "PULL_REQUEST": "12", "GITHUB_TOKEN": "github",
            "GITHUB_REPOSITORY": "my-org/shop", "GITHUB_API_URL": f"http://{github.address}", "GITHUB_OUTPUT": str(outputs)}
        done = subprocess.run([sys.executable, HERE / "overlay.py"], env=environment, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=120)
        self.code, self.text, self.outputs = done.returncode, done.stdout, outputs.read_text()

    def expect(self, code, *words):
        missing = [word for word in words if word not in self.text]
        if self.code != code or missing:
            raise Failed(f"exit code {self.code}, and {code} was to be; {missing or 'nothing'} is missing in:\n{self.text}")
        return self


def expect(what, wanted, seen):
    if wanted != seen:
        raise Failed(f"{what}: {wanted!r} was to be seen, and {seen!r} was")


def check_pull_request(staging, github):
    url = f"web=http://{service('web@pr-12')}"
    opened = Action(staging, github, URLS=url, TEST=f"test \"$({KEYED})\" = web@pr-12").expect(0, "The tests went well")
    expect("the outputs of a first run", "served=1\n", opened.outputs)
    expect("the comments of a first run", 1, len(github.ours()))
    gateway = f"http://{staging.gateway.address}"
    for told in (f"{gateway}/?overlay=pr-12", f"curl -H 'x-overlay-id: pr-12' {gateway}/", "answered 1 request."):
        expect(f"whether the comment says `{told}`", True, told in github.ours()[0])
    Action(staging, github, URLS=url, IMAGES="web=my-org/web:12", TEST=KEYED).expect(0, "web@pr-12")
    expect("the comments of a second run", 1, len(github.ours()))
    # The test went well, on the baseline.
    Action(staging, github, URLS=url, TEST=KEYLESS).expect(3, "web@staging", "::error::", "none of their requests")
    expect("whether the comment says so", True, "say nothing about this change" in github.ours()[0])
    Action(staging, github, URLS=url, TEST=f"{KEYED}; exit 7").expect(7, "The tests ended with 7")
    Action(staging, github, URLS=url, TEST="kill -TERM $$").expect(143)
    # What is demanded and not owned is refused by the gateway, and curl says so.
    Action(staging, github, URLS=url, TEST=KEYED, REQUIRE="ledger").expect(22, "412")
    Action(staging, github, URLS=url).expect(0)
    expect("whether somebody else's comment stays", "somebody else's", github.comments[7])


def check_secrets(staging, github):
    url = f"web=http://{service('web@pr-12')}"
    told = Action(staging, github, URLS=url, OVERLAY_TOKEN="a.b.c", TEST=f"env; cat \"$OVERLAY_CURL\"; {KEYED}").expect(0, "x-overlay-token: a.b.c")
    for secret in (TOKEN, "GITHUB_TOKEN", "INPUT_OVERLAY_TOKEN"):
        expect(f"whether tests see {secret}", False, secret in told.text)


def check_failures(staging, github):
    url = "web=http://127.0.0.1:1"
    Action(staging, github, URLS=url, TOKEN="").expect(2, "`token` is empty", "forks")
    Action(staging, github, URLS=url, TOKEN="another-token-of-sixteen").expect(1, "ended with 1")
    Action(staging, github, URLS=url, BASELINE="").expect(2, "`baseline` is empty")
    Action(staging, github, BASELINE="stagin", URLS=url).expect(1, "did you mean `staging`?")
    Action(staging, github).expect(2, "would own nothing")
    Action(staging, github, URLS=url, FILE="overlay.yaml").expect(2, "cannot be given together")
    Action(staging, github, URLS=url, BINARY="/nonexistent").expect(2, "cannot be run")
    # An image alone has no address here: that is waited for, and told.
    Action(staging, github, ID="pr-13", IMAGES="web=my-org/web:12", TIMEOUT="1s").expect(1, "web")
    github.refuses = True
    Action(staging, github, URLS=url).expect(1, "403", "pull-requests: write")
    Action(staging, github, URLS=url, COMMENT="false").expect(0)
    github.refuses = False


def check_file(staging, github):
    file = staging.folder / "overlay.yaml"
    file.write_text("name: pr-12\nrouting: {mode: overlay, baselineId: staging}\n"
                    f"services: [{{name: web, url: 'http://{service('web@file')}'}}]\n")
    Action(staging, github, FILE=str(file), BASELINE="", TEST=KEYED).expect(0, "web@file")
    Action(staging, github, FILE=str(file), ID="pr-14").expect(2, "is about pr-12, and not about `pr-14`")


def check_closed(staging, github):
    Action(staging, github, CLOSED="true").expect(0)
    expect("whether the comment says that it is deleted", True, "was deleted" in github.ours()[0])
    Action(staging, github, CLOSED="true").expect(0)
    code, text = staging.overlane("overlay", "get", "pr-12", "--server", f"http://{staging.hub.address}", "--server-token", TOKEN)
    expect(f"the exit code of what asks for an overlay that is gone ({text})", 4, code)


def check_variables():
    """What the program asks for is what action.yml sets, and every input is used."""
    action = (HERE / "action.yml").read_text()
    program = (HERE / "overlay.py").read_text()
    runners = {"GITHUB_OUTPUT", "GITHUB_API_URL", "GITHUB_REPOSITORY"}
    read = set(re.findall(r"\b(?:INPUT|OVERLANE|GITHUB)_[A-Z_]+|\bCLOSED\b|\bPULL_REQUEST\b", program)) - runners
    inputs, steps = action.split("\nruns:\n")
    expect("the variables that action.yml sets", read, set(re.findall(r"^        ([A-Z_]+):", steps.split("overlay.py", 1)[1], re.M)) - {"ACTION"})
    names = set(re.findall(r"^  ([a-z-]+):$", inputs.split("\noutputs:\n")[0], re.M))
    expect("the inputs that action.yml uses", names, set(re.findall(r"inputs\.([a-z-]+)", steps)))


class Release:
    """A release, made as the workflow makes it, whose files are served, and that is installed by its own installer."""

    def __init__(self, binary, folder):
        built, sbom, out = folder / "built", folder / "sbom.json", folder / "release"
        built.mkdir()
        sbom.write_text("{}")
        for machine in ("x86_64", "aarch64"):
            (built / f"overlane-{machine}-linux").write_bytes(pathlib.Path(binary).read_bytes())
        version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        subprocess.run(["bash", ROOT / "deploy/release.sh", built, sbom, "my-org/overlane", f"v{version}", out], check=True)
        self.made = {file.name: file.read_bytes() for file in (out / "files").iterdir()}
        self.notes = (out / "notes.md").read_text()
        self.installer = out / "files/install.sh"
        self.files = {}
        release = self

        class Files(Answering):
            def do_GET(self):
                body = release.files.get(self.path.removeprefix("/"))
                self.answer(404 if body is None else 200, body or b"", "application/octet-stream")

        self.to = folder / "installed"
        self.name = f"overlane-{os.uname().machine}-linux"
        self.address = serve(Files)

    def install(self, script, **variables):
        environment = clean({"OVERLANE_DOWNLOAD": f"http://{self.address}", "OVERLANE_INSTALL_TO": str(self.to), **variables})
        done = subprocess.run(["sh", script], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        return done.returncode, done.stdout


def check_installer(binary, folder):
    release = Release(binary, folder)
    expect("the files of a release", {"SHA256SUMS", "install.sh", "overlane-aarch64-linux", "overlane-x86_64-linux", "overlane.cdx.json"}, set(release.made))
    expect("whether its notes have a change", True, "\n- " in release.notes)
    expect("an install by a script that was not released", (1, "install.sh: whose release? Set OVERLANE_REPOSITORY=OWNER/overlane\n"),
           release.install(ROOT / "deploy/install.sh", OVERLANE_DOWNLOAD=""))
    made, sums = release.made[release.name], release.made["SHA256SUMS"]
    for files, told in [({}, "SHA256SUMS cannot be downloaded"), ({"SHA256SUMS": sums}, f"{release.name} cannot be downloaded"),
                        ({"SHA256SUMS": b"\n", release.name: b"x"}, f"SHA256SUMS does not name {release.name}"),
                        ({"SHA256SUMS": sums, release.name: made + b"x"}, "does not have the checksum")]:
        release.files = files
        code, text = release.install(release.installer)
        if code != 1 or told not in text or (release.to / "overlane").exists():
            raise Failed(f"an install of {list(files)} is to fail with `{told}`, and ended with {code}:\n{text}")
    release.files = release.made
    for _ in range(2):
        code, text = release.install(release.installer)
        if code or f"is {release.to}/overlane" not in text:
            raise Failed(f"an install ended with {code}:\n{text}")
    installed = subprocess.run([release.to / "overlane", "--version"], stdout=subprocess.PIPE, text=True, check=True)
    expect("whether what is installed runs", True, installed.stdout.startswith("overlane "))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    binary = parser.parse_args().binary.resolve()
    try:
        check_variables()
        with tempfile.TemporaryDirectory(prefix="overlane-action-") as folder:
            check_installer(binary, pathlib.Path(folder))
            with Staging(binary, pathlib.Path(folder)) as staging:
                github = GitHub()
                for each in (check_pull_request, check_secrets, check_failures, check_file, check_closed):
                    each(staging, github)
    except Failed as failed:
        sys.exit(str(failed))
    print("a pull request from its opening to its end, what goes wrong in between, and the installer: as they should be")


if __name__ == "__main__":
    main()
