#!/usr/bin/env python3
"""What a running proxy makes of a store that fails in every way that we could think of, on a real kernel.

    python3 tests/faults/store.py BINARY [--only WORD] [--rounds N]

Wants root (namespaces, small file systems, another user); libfaketime (Debian) for clocks that jump. Everything happens
in temporary folders and in a mount namespace of its own. Every line says what was worst, what is allowed, and whether
that holds; the exit code is 1 where something does not.
"""

import contextlib
import glob
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness import figures
from harness.processes import command_line

SOON, PERIODICALLY = 0.5, 5.0
GATEWAY, ADMIN = 18810, 18811
NOBODY = 65534
failures = []


def report(what, worst, allowed, unit="ms"):
    holds = worst <= allowed
    if not holds:
        failures.append(what)
    print(f"{what:<58} {worst:>9.1f} of {allowed:>7.0f} {unit}  {'ok' if holds else 'NOT'}", flush=True)


def check(what, holds, why=""):
    if not holds:
        failures.append(what)
    print(f"{what:<58} {'ok' if holds else 'NOT ' + str(why)}", flush=True)


def get(path, port=ADMIN, headers=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def metric(name):
    return figures.metric(ADMIN, name)


def until(condition, limit=30.0):
    """How long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit:
            return float("inf")
        time.sleep(0.001)
    return time.monotonic() - began


def blueprint(port):
    return ("name: staging\nrouting: {mode: baseline}\n"
            f"services: [{{name: web, expose: true, url: 'http://127.0.0.1:{port}'}}]\n")


def version():
    """The port that is in force, which is the number of a version."""
    dump = json.loads(get("/config_dump?id=staging")[2])["environments"].get("staging", {})
    return int(dump["services"][0]["urls"][0].rsplit(":", 1)[1]) if dump.get("services") else None


class Proxy:
    """A proxy, and a store `store` in `folder` whose versions are numbers from 20000 on."""

    def __init__(self, folder, *arguments, before=(), environment=None, store=None):
        self.folder, self.store = folder, store or folder / "store"
        self.log = open(folder / "log", "ab")
        command = [*before, BINARY, "run", "--store", str(self.store), "--gateway", f"127.0.0.1:{GATEWAY}",
                   "--admin", f"127.0.0.1:{ADMIN}", "--workers", "1", *arguments]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self.log,
                                      env={**os.environ, **(environment or {})})
        if until(self.answers) == float("inf"):
            raise RuntimeError((folder / "log").read_text())

    def answers(self):
        if self.child.poll() is not None:
            raise RuntimeError((self.folder / "log").read_text())
        with contextlib.suppress(OSError):
            return get("/healthz")[0] == 200
        return False

    @property
    def pid(self):
        """Of the proxy itself, behind what started it."""
        _, *children = figures.family(self.child.pid)
        return children[0] if children else self.child.pid

    def said(self, words):
        return words in (self.folder / "log").read_text()

    def stop(self, how=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(self.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(2)
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory() as path:
        path = pathlib.Path(path)
        path.chmod(0o755)
        (path / "store").mkdir()
        (path / "store/staging.yaml").write_text(blueprint(20000))
        yield path


def put(store, text, name="staging.yaml"):
    (store / ".next").write_bytes(text if isinstance(text, bytes) else text.encode())
    os.rename(store / ".next", store / name)


def link(store, target):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(store / ".link")
    os.symlink(target, store / ".link")
    os.rename(store / ".link", store / "staging.yaml")


def in_place(store, text):
    # No close for a while: only quiet says that it is whole.
    with open(store / "staging.yaml", "w") as file:
        file.write(text)
        file.flush()
        time.sleep(0.6)


def closed(store, text):
    with open(store / "staging.yaml", "w") as file:
        file.write(text)


def anew(store, text):
    os.unlink(store / "staging.yaml")
    closed(store, text)


def data(store, text):
    name = f"..{time.monotonic_ns()}"
    (store / name).mkdir()
    (store / name / "staging.yaml").write_text(text)
    os.symlink(name, store / "..data_tmp")
    os.rename(store / "..data_tmp", store / "..data")
    if not (store / "staging.yaml").is_symlink():
        link(store, "..data/staging.yaml")


def swapped(store, text):
    following, old = store.parent / "following", store.parent / f"old-{time.monotonic_ns()}"
    following.mkdir()
    (following / "staging.yaml").write_text(text)
    os.rename(store, old)
    os.rename(following, store)


def live(change, to):
    """Seconds from the beginning of a change until it is in force."""
    done = threading.Thread(target=change)
    done.start()
    took = until(lambda: version() == to)
    done.join()
    return took


def ways():
    """However a file is changed."""
    for name, way in [("renamed into place", put), ("written in place and closed", closed), ("written in place, not closed", in_place),
                      ("deleted and created", anew), ("..data swapped", data), ("directory swapped", swapped)]:
        with folder() as place, Proxy(place) as proxy:
            worst = max(live(lambda n=n: way(proxy.store, blueprint(n)), n) for n in range(20001, 20001 + ROUNDS))
            report(f"{name}, {ROUNDS} times", worst * 1000, SOON * 1000)


def overflow():
    """More events than the kernel keeps, while nobody reads them."""
    most = int(pathlib.Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with folder() as place, Proxy(place) as proxy:
        os.kill(proxy.pid, signal.SIGSTOP)
        for number in range(most + 100):
            (proxy.store / f"{number}.txt").touch()
        put(proxy.store, blueprint(20001))
        os.kill(proxy.pid, signal.SIGCONT)
        report(f"after {most + 100} events at once", live(lambda: None, 20001) * 1000, SOON * 1000)


def no_watches():
    """No inotify instance is left; later there is."""
    script = "echo 0 > /proc/sys/user/max_inotify_instances; \"$@\" <&- & read go; echo 99 > /proc/sys/user/max_inotify_instances; wait"
    with folder() as place, Proxy(place, before=["unshare", "-U", "-r", "bash", "-c", script, "--"]) as proxy:
        check("no inotify instance left: said", proxy.said("no file events"))
        worst = max(live(lambda n=n: put(proxy.store, blueprint(n)), n) for n in (20001, 20002, 20003))
        report("no inotify instance left", worst * 1000, PERIODICALLY * 1000)
        proxy.child.stdin.write(b"go\n")
        proxy.child.stdin.flush()
        check("events come again", until(lambda: proxy.said("file events come again"), 15) < 15)
        report("and then", live(lambda: put(proxy.store, blueprint(20004)), 20004) * 1000, SOON * 1000)
        for pid in pathlib.Path(f"/proc/{proxy.child.pid}/task/{proxy.child.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def unreadable():
    """EIO, EACCES; files and the directory; as root and as nobody."""
    with folder() as place, Proxy(place) as proxy:
        for number, (name, target) in enumerate([("EIO", "/proc/self/mem"), ("EACCES", "/proc/sys/vm/drop_caches"), ("ENOENT", "nowhere")]):
            link(proxy.store, target)
            until(lambda: "problem:" in get("/readyz?verbose")[2], 5)
            check(f"{name}: said, and last good is in force", version() == 20000 + number and "problem:" in get("/readyz?verbose")[2])
            report(f"{name} is over", live(lambda: put(proxy.store, blueprint(20001 + number)), 20001 + number) * 1000, SOON * 1000)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    with folder() as place, Proxy(place, before=user) as proxy:
        file = proxy.store / "staging.yaml"

        def mode(path, to):
            path.chmod(to)
        put(proxy.store, blueprint(20001))
        until(lambda: version() == 20001)
        mode(file, 0)
        until(lambda: "problem:" in get("/readyz?verbose")[2], 10)
        check("chmod 000 of a file: last good is in force", version() == 20001 and "ermission denied" in get("/readyz?verbose")[2])
        file.write_text(blueprint(20002))
        report("chmod 644 again", live(lambda: mode(file, 0o644), 20002) * 1000, SOON * 1000)
        mode(proxy.store, 0)
        check("chmod 000 of the directory: STALE is said", until(lambda: "STALE" in get("/readyz?verbose")[2], 10) < 6)
        file.write_text(blueprint(20003))
        check("last good is in force", version() == 20002)
        report("chmod 755 again", live(lambda: mode(proxy.store, 0o755), 20003) * 1000, SOON * 1000)


def unmounted():
    """The volume goes, and comes back with something else."""
    with folder() as place:
        volume = place / "volume"
        volume.mkdir()
        (volume / "staging.yaml").write_text(blueprint(20001))
        subprocess.run(["mount", "--bind", volume, place / "store"], check=True)
        (place / "store").joinpath("staging.yaml").read_text()
        below = place / "below"
        with Proxy(place) as proxy:
            subprocess.run(["umount", "-l", place / "store"], check=True)
            # What is below it has a file; an empty one is what a node has.
            os.rename(place / "store", below)
            (place / "store").mkdir()
            check("unmounted: STALE is said", until(lambda: "STALE" in get("/readyz?verbose")[2], 10) < 6)
            time.sleep(1)
            check("unmounted: last good is in force", version() == 20001 and metric("overlane_config_stale") == 1)
            (volume / "staging.yaml").write_text(blueprint(20002))
            took = live(lambda: subprocess.run(["mount", "--bind", volume, place / "store"], check=True), 20002)
            report("mounted again", took * 1000, PERIODICALLY * 1000)
            subprocess.run(["umount", "-l", place / "store"], check=True)


def bad_files():
    """What no blueprint is: time and memory until it is refused."""
    whole = blueprint(20001)
    cases = {
        "cut off": whole[:60].encode(),
        "empty": b"",
        "duplicate keys": whole.replace("name: web", "name: web, name: api").encode(),
        "aliases, 129 KB, quadratic": ("name: staging\na: &a [" + "x," * 21_500 + "]\nb: [" + "*a," * 28_600 + "]\n").encode(),
        "aliases, a billion laughs": b"a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n".encode() for n in range(1, 12)),
        "200,000 brackets": b"[" * 200_000,
        "200,000 braces": b"{a: " * 200_000,
        "64 MB": (whole + "# " + "x" * (64 << 20)).encode(),
        "not UTF-8": whole.encode() + b"# \xff\xfe\n",
        "zeros": bytes(1 << 20),
        "a directory": None,
    }
    with folder() as place, Proxy(place) as proxy:
        for number, (name, text) in enumerate(cases.items()):
            (proxy.store / ".next").write_bytes(b"") if text is None else None
            if text is None:
                os.unlink(proxy.store / ".next")
                os.unlink(proxy.store / "staging.yaml")
                (proxy.store / "staging.yaml").mkdir()
            before = figures.memory(proxy.pid)
            pathlib.Path(f"/proc/{proxy.pid}/clear_refs").write_text("5")
            if text is not None:
                (proxy.store / ".next").write_bytes(text)
                os.rename(proxy.store / ".next", proxy.store / "staging.yaml")
            took = until(lambda: "problem:" in get("/readyz?verbose")[2], 10)
            grown = figures.memory(proxy.pid, "VmHWM") - before
            # A file is closed before it is renamed; a directory is nothing that is closed: quiet says it.
            report(f"{name}: refused", took * 1000, 100 if text is not None else SOON * 1000)
            report(f"{name}: memory", grown, 32, "MiB")
            check(f"{name}: last good is in force", version() == 20000 + number)
            if text is None:
                (proxy.store / "staging.yaml").rmdir()
            took = live(lambda: put(proxy.store, blueprint(20001 + number)), 20001 + number)
            report(f"{name}: the next good file", took * 1000, SOON * 1000)


def half_written():
    """A writer that takes its time is not read before it is done."""
    with folder() as place, Proxy(place) as proxy:
        seen = set()
        for number in range(20001, 20006):
            with open(proxy.store / "staging.yaml", "w") as file:
                for piece in blueprint(number).splitlines(keepends=True) + ["# end\n"] * 10:
                    file.write(piece)
                    file.flush()
                    until_next = time.monotonic() + 0.08
                    while time.monotonic() < until_next:
                        seen.add((number, version(), "problem:" in get("/readyz?verbose")[2]))
            until(lambda: version() == number)
        early = {(at, now, wrong) for at, now, wrong in seen if now != at - 1 or wrong}
        check(f"written in 13 pieces: never half", not early, early)


def killed():
    """kill -9 at any moment; started again without the store."""
    with folder() as place:
        rounds, number = 3 * ROUNDS, 20000
        away = place / "away"
        for _ in range(rounds):
            with Proxy(place, "--cache", str(place / "kept")) as proxy:
                until(lambda: version() == number)
                until(lambda: metric('overlane_cache_writes_total{result="ok"}') >= 1)
                put(proxy.store, blueprint(number + 1))
                time.sleep(random.uniform(0, 0.03))
                proxy.stop(signal.SIGKILL)
            os.rename(place / "store", away)
            with Proxy(place, "--cache", str(place / "kept")) as proxy:
                served, stale = version(), metric("overlane_config_stale")
                if served not in (number, number + 1) or stale != 1:
                    check(f"killed, without the store: {served} instead of {number} or the next", False)
                os.rename(away, place / "store")
                number += 1
                if until(lambda: version() == number, 10) > 6:
                    check("converges when the store is back", False)
        check(f"killed {rounds} times within 30 ms of a change: last good", "killed" not in str(failures))
        left = sorted(path.name.split(".")[-1] for path in (place / "kept").iterdir())
        check("one cache, its lock, at most one left-over", left in (["cache", "lock"], ["cache", "lock", "new"]), left)


@contextlib.contextmanager
def small_disk(path, size):
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path):
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def full_disk():
    """Of the cache, and of the store."""
    with folder() as place, small_disk(place / "kept", "64k") as kept:
        with Proxy(place, "--cache", str(kept)) as proxy:
            until(lambda: metric('overlane_cache_writes_total{result="ok"}') >= 1)
            before = next(kept.glob("*.cache")).read_bytes()
            fill(kept / "filler")
            put(proxy.store, blueprint(20001))
            check("full disk of the cache: counted", until(lambda: metric('overlane_cache_writes_total{result="error"}') >= 1, 10) < 10)
            check("said, in force, and what it held is whole", proxy.said("the cache cannot be written")
                  and version() == 20001 and next(kept.glob("*.cache")).read_bytes() == before)
            (kept / "filler").unlink()
            check("room again: written", until(lambda: metric('overlane_cache_writes_total{result="ok"}') >= 2, 20) < 15)
    with folder() as place, small_disk(place / "small", "256k") as small:
        def command(*words):
            return subprocess.run([BINARY, *words, "--store", str(small)], capture_output=True, text=True)
        (place / "base.yaml").write_text(blueprint(20000))
        command("baseline", "create", "--file", str(place / "base.yaml"))
        acknowledged, refused = {"staging"}, []
        for number in range(200):
            (place / "overlay.yaml").write_text(f"name: o{number}\nrouting: {{mode: overlay, baselineId: staging}}\n"
                                                "services: [{name: web}]\n# " + "x" * 3000 + "\n")
            done = command("overlay", "create", "--file", str(place / "overlay.yaml"))
            (acknowledged.add(f"o{number}") if done.returncode == 0 else refused.append(done.stderr))
        there = {path.stem for path in small.glob("*.yaml")}
        valid = subprocess.run([BINARY, "validate", str(small)], capture_output=True, text=True)
        check(f"full disk of the store: {len(acknowledged)} acknowledged, {len(refused)} refused",
              refused and there == acknowledged and valid.returncode == 0, (there ^ acknowledged, valid.stdout[-300:]))
        check("with the reason", all("No space left on device" in why for why in refused), refused[:1])
        check("nothing is left beside", not list(small.glob(".overlane-*")))


def clocks():
    """A clock of the wall that jumps."""
    library = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not library:
        print("no libfaketime (apt-get install libfaketime): clocks that jump are left out")
        return
    with folder() as place:
        jump = place / "jump"
        jump.write_text("+0")
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        (place / "store/alice.yaml").write_text(
            f"name: alice\nrouting: {{mode: overlay, baselineId: staging, expiresAt: '{expires}', holdFor: 0s}}\n"
            "services: [{name: web, url: 'http://127.0.0.1:1'}]\n")
        environment = {"LD_PRELOAD": library[0], "FAKETIME_TIMESTAMP_FILE": str(jump), "FAKETIME_NO_CACHE": "1",
                       "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
        with Proxy(place, environment=environment) as proxy:
            def expired():
                question = {"role": "gateway", "host": "shop", "headers": [["x-overlay-id", "alice"]]}
                request = urllib.request.Request(f"http://127.0.0.1:{ADMIN}/api/v1/explain", json.dumps(question).encode(),
                                                 {"content-type": "application/json"})
                with urllib.request.urlopen(request) as answer:
                    return "`alice` has expired" in answer.read().decode()
            check("an overlay that expires in an hour is served", not expired())
            jump.write_text("-2d")
            check("two days back: still", not expired())
            jump.write_text("+2h")
            check("two hours on: expired at once", expired())
            until(lambda: proxy.said('"message":"expired"'), 5)
            jump.write_text("-2h")
            time.sleep(0.1)
            check("and back: it stays expired", expired())
            worst, number = 0.0, 20000
            began = time.monotonic()
            while time.monotonic() < began + 10:
                number += 1
                jump.write_text(random.choice(["-400d", "-1h", "-1", "+0", "+1", "+1h", "+400d"]))
                worst = max(worst, live(lambda: put(proxy.store, blueprint(number)), number))
                time.sleep(0.3)
            report(f"{number - 20000} changes while the clock jumps", worst * 1000, SOON * 1000)
            began = time.monotonic()
            used = figures.cpu(proxy.pid)
            while time.monotonic() < began + 5:
                jump.write_text(random.choice(["-400d", "-1h", "+1h", "+400d"]))
                time.sleep(0.1)
            report("nobody asks, the clock jumps: processor time", (figures.cpu(proxy.pid) - used) / 5 * 100, 5, "%")


def main():
    global BINARY, ROUNDS
    parser = command_line(__doc__)
    parser.add_argument("--only", default="", help="one of the parts below: " + ", ".join(part.__name__ for part in PARTS))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    BINARY, ROUNDS = str(options.binary), options.rounds
    if "OVERLANE_IN_NAMESPACE" not in os.environ:
        os.execvpe("unshare", ["unshare", "-m", sys.executable, *sys.argv], {**os.environ, "OVERLANE_IN_NAMESPACE": "1"})
    for name in list(os.environ):
        if name.startswith("OVERLANE_"):
            del os.environ[name]
    for part in PARTS:
        if options.only in part.__name__:
            print(f"-- {part.__doc__}")
            part()
    print("all hold" if not failures else f"{len(failures)} do not hold: {failures}")
    return 1 if failures else 0


PARTS = [ways, overflow, no_watches, unreadable, unmounted, half_written, bad_files, killed, full_disk, clocks]

if __name__ == "__main__":
    sys.exit(main())
