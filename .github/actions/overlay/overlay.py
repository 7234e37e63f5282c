#!/usr/bin/env python3
"""An overlay for a pull request: created and waited for, tested, told in a comment; or deleted, where it is closed.

It is asked by variables, as action.yml sets them. It wants nothing but Python 3.9 and Overlane.

Exit codes: 0 done; 1 the overlay could not be made, deleted or told of; 2 it was asked wrongly; 3 the tests went well, and the overlay
answered no request; else the tests' own. The tests' 1, 2 and 3 are told from these by what is written.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

NOTHING_SERVED = 3
# Proxies tell their hub every 5 s, and a quarter more, what they did.
REPORTED = 10


class Failed(Exception):
    """What went wrong, for people, and the exit code of that."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def given(name, otherwise=""):
    return os.environ.get(name, "").strip() or otherwise


def needed(name, what):
    value = given(name)
    if not value:
        raise Failed(f"{what} is empty. Secrets are, in the pull requests of forks.", 2)
    return value


def lines(name):
    return [line.strip() for line in given(name).splitlines() if line.strip()]


def tell(name, value):
    """An output of the step."""
    if given("GITHUB_OUTPUT"):
        with open(given("GITHUB_OUTPUT"), "a") as out:
            out.write(f"{name}={value}\n")


def overlane(*arguments, quietly=False):
    """What Overlane prints; its mistakes go where it writes them."""
    command = [needed("INPUT_BINARY", "`binary`"), *arguments]
    if not quietly:
        print("$ overlane", shlex.join(arguments), flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    except OSError as why:
        raise Failed(f"{command[0]} cannot be run: {why}", 2) from None
    if done.returncode:
        raise Failed(f"`overlane {arguments[0]}` ended with {done.returncode}", 2 if done.returncode == 2 else 1)
    return done.stdout


def create(overlay):
    """Creates or changes the overlay, and waits until it is in force everywhere."""
    arguments = ["apply", "--wait", "--timeout", given("INPUT_TIMEOUT", "5m")]
    if given("INPUT_TTL"):
        arguments += ["--ttl", given("INPUT_TTL")]
    if given("INPUT_FILE"):
        if given("INPUT_URLS") or given("INPUT_IMAGES"):
            raise Failed("`file` and `urls` or `images` cannot be given together: the file says which services there are", 2)
        arguments += ["--file", given("INPUT_FILE")]
        arguments += ["--baseline", given("INPUT_BASELINE")] if given("INPUT_BASELINE") else []
    else:
        arguments += ["--id", overlay, "--baseline", needed("INPUT_BASELINE", "`baseline`")]
        arguments += [word for url in lines("INPUT_URLS") for word in ("--url", url)]
        arguments += [word for image in lines("INPUT_IMAGES") for word in ("--image", image)]
    made = overlane(*arguments, "-o", "name").split()
    if overlay not in made:
        raise Failed(f"{given('INPUT_FILE')} is about {', '.join(made) or 'nothing'}, and not about `{overlay}`: they have to agree", 2)


def served(overlay):
    """How many requests the overlay itself answered, by proxy."""
    proxies = json.loads(overlane("status", "-o", "json", quietly=True))["instances"]
    if not any("served" in one for one in proxies):
        raise Failed("no proxy tells the hub what overlays answered: none is there, or the proxies or the hub are older than this action")
    return {one["id"]: one.get("served", {}).get(overlay, 0) for one in proxies}


def since(before, overlay):
    """How many more it is by now; waits for the proxies' reports where it is none."""
    until = time.monotonic() + REPORTED
    while True:
        # A proxy that counts from the beginning was started anew.
        more = sum(count - (before.get(proxy, 0) if count >= before.get(proxy, 0) else 0)
                   for proxy, count in served(overlay).items())
        if more or time.monotonic() > until:
            return more
        time.sleep(0.5)


def curl_settings(overlay, folder):
    """A file for `curl -K` with the headers that a request of the overlay needs."""
    fields = {"x-overlay-id": overlay, "x-overlay-require": given("INPUT_REQUIRE", "*")}
    if given("INPUT_OVERLAY_TOKEN"):
        fields["x-overlay-token"] = given("INPUT_OVERLAY_TOKEN")
    file = pathlib.Path(folder, "curl")
    file.touch(mode=0o600)
    file.write_text("".join(f'header = "{name}: {value}"\n' for name, value in fields.items()) + "fail-with-body\nsilent\nshow-error\n")
    return file


def test(overlay):
    """Runs the tests; their exit code, and how many requests the overlay answered meanwhile, where they went well."""
    before = served(overlay)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OVERLAY_ID": overlay, "OVERLAY_URL": given("INPUT_GATEWAY"),
                       "OVERLAY_REQUIRE": given("INPUT_REQUIRE", "*"), "OVERLAY_CURL": str(curl_settings(overlay, folder))}
        for secret in ("OVERLANE_SERVER_TOKEN", "GITHUB_TOKEN", "INPUT_OVERLAY_TOKEN"):
            environment.pop(secret, None)
        print("The tests:", flush=True)
        code = subprocess.run(["bash", "-euo", "pipefail", "-c", os.environ["INPUT_TEST"]], env=environment).returncode
    # Who is ended by a signal has a negative one.
    code = code if code >= 0 else 128 - code
    return code, since(before, overlay) if code == 0 else None


def links(overlay):
    gateway = given("INPUT_GATEWAY").rstrip("/")
    if not gateway:
        return f"Requests with `x-overlay-id: {overlay}` are in it.\n"
    address = f"{gateway}/?overlay={urllib.parse.quote(overlay)}"
    return f"In a browser: {address}\n\n```sh\ncurl -H 'x-overlay-id: {overlay}' {gateway}/\n```\n"


def github(method, path, body=None):
    base = given("GITHUB_API_URL", "https://api.github.com")
    request = urllib.request.Request(
        f"{base}/repos/{needed('GITHUB_REPOSITORY', 'GITHUB_REPOSITORY')}{path}", method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"authorization": f"Bearer {given('GITHUB_TOKEN')}", "accept": "application/vnd.github+json",
                 "content-type": "application/json", "x-github-api-version": "2022-11-28"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as why:
        hint = " (`permissions: pull-requests: write` lets the job comment; or `comment: false`)" if why.code == 403 else ""
        raise Failed(f"GitHub answers {method} {path} with {why.code}{hint}") from None
    except OSError as why:
        raise Failed(f"GitHub does not answer {method} {path}: {why}") from None


def comments(issue):
    page = 1
    while found := github("GET", f"/issues/{issue}/comments?per_page=100&page={page}"):
        yield from found
        page += 1


def comment(overlay, text):
    """Writes the comment of this overlay, or writes it anew."""
    if given("INPUT_COMMENT", "true") != "true":
        return
    issue = needed("PULL_REQUEST", "the number of the pull request")
    mark = f"<!-- overlane {overlay} -->"
    body = {"body": f"{mark}\n{text}"}
    known = next((one["id"] for one in comments(issue) if one["body"].startswith(mark)), None)
    if known:
        github("PATCH", f"/issues/comments/{known}", body)
    else:
        github("POST", f"/issues/{issue}/comments", body)


def up(overlay):
    create(overlay)
    if not given("INPUT_TEST"):
        comment(overlay, f"The overlay `{overlay}` is in force.\n\n{links(overlay)}")
        return 0
    code, count = test(overlay)
    said = f"The tests ended with {code}."
    if code == 0:
        tell("served", count)
        said = f"The tests went well; the overlay itself answered {count} request{'' if count == 1 else 's'}."
    print(said, flush=True)
    if code == 0 and count == 0:
        code = NOTHING_SERVED
        said += " **So they say nothing about this change.**"
        print(f"::error::The tests went well, but none of their requests was answered by `{overlay}`. Do they send `x-overlay-id: "
              f"{overlay}` (curl -K \"$OVERLAY_CURL\"), and does the gateway trust this machine?", flush=True)
    comment(overlay, f"The overlay `{overlay}` is in force. {said}\n\n{links(overlay)}")
    return code


def down(overlay):
    overlane("overlay", "delete", overlay, "--ignore-not-found")
    comment(overlay, f"The overlay `{overlay}` was deleted.\n")
    return 0


def main():
    overlay = needed("INPUT_ID", "`id`")
    for name, what in (("OVERLANE_SERVER", "`server`"), ("OVERLANE_SERVER_TOKEN", "`token`")):
        needed(name, what)
    return down(overlay) if given("CLOSED") == "true" else up(overlay)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failed:
        print(f"::error::{failed}", flush=True)
        sys.exit(failed.code)
