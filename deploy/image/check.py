#!/usr/bin/env python3
"""The image, built by the Dockerfile around a binary that is there, and run as its users run it.

    deploy/image/check.py target/dist/overlane
    deploy/image/check.py --compile              # and the stage that compiles, as it stands: a whole build, optimized

Wants root, buildah, podman, runc and mmdebstrap, as Debian has them, and no registry: the base images are made of the same packages of Debian, and of the
toolchain that is here, under their names in the Dockerfile, in a storage of its own. So what is not held here is the base images themselves. What cargo downloads is
downloaded before.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PACKAGES = ["base-files", "ca-certificates", "libc6", "libgcc-s1", "libssl3", "netbase", "tzdata"]
SECONDS = 30
# What a machine without systemd, or with little, lets nobody raise.
LIMITS = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1024:1024"]


def run(*command, check=True):
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


class Engine:
    """podman and buildah over a storage of their own."""

    def __init__(self, folder):
        self.storage = ["--root", folder / "storage", "--runroot", folder / "run"]

    def podman(self, *words, check=True):
        return run("podman", *self.storage, "--runtime", "runc", *words, check=check)

    def build(self, context, binary, tag):
        """The image of a context: around a folder with the binary, or with what it compiles itself."""
        around = ["--build-context", f"binary={binary}"] if binary else []
        return run("buildah", *self.storage, "bud", "--pull-never", "--format", "docker", "--isolation", "chroot", *around, "--build-arg", "REVISION=tried", "--build-arg", "SOURCE=https://example.com/overlane", "-t", tag, context)


def bases():
    """The names of the image in which is compiled, and of the one that the binary is put into."""
    names = re.findall(r"^FROM ([a-z.]\S+[:/]\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    return names[0], names[-1]


def compiler(engine, folder):
    """An image as Rust's own: Debian, a C compiler, and the toolchain that is here with what cargo downloaded."""
    name, archive = bases()[0], folder / "compiler.tar"
    home = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
    run("cargo", "fetch", "--locked", "--manifest-path", ROOT / "Cargo.toml")
    run("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include=binutils,ca-certificates,gcc,libc6-dev", name.rpartition("-")[2], archive)
    toolchain = run("rustc", "--print", "sysroot").stdout.strip()
    # Where Debian has nothing: an image's archive has no path twice.
    put(archive, toolchain, sorted(os.listdir(toolchain)), "usr/local/rust")
    put(archive, home, ["registry/cache", "registry/index", *(name for name in ("config.toml", "config") if (home / name).exists())], "usr/local/cargo")
    told = ["CARGO_HOME=/usr/local/cargo", "CARGO_NET_OFFLINE=true", "PATH=/usr/local/rust/bin:/usr/bin:/bin"]
    engine.podman("import", *(word for variable in told for word in ("--change", f"ENV {variable}")), archive, name)
    archive.unlink()


def put(archive, folder, names, below):
    """Adds files of a folder to an archive, below another one."""
    run("tar", "--append", "--file", archive, "--directory", folder, "--transform", f"s,^,./{below}/,S", *names)


def base(engine, folder):
    name = bases()[1]
    suite = re.search(r"debian(\d+)", name)[1]
    suites = {"12": "bookworm", "13": "trixie"}
    archive = folder / "base.tar"
    run("mmdebstrap", "--quiet", "--variant=extract", "--mode=root", f"--include={','.join(PACKAGES)}",
        # What distroless images do not have either.
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
        suites[suite], archive)
    engine.podman("import", archive, name)


def expect(what, wanted, seen):
    if wanted != seen:
        sys.exit(f"{what}: {wanted!r} was to be seen, and {seen!r} was")


def check_config(engine, tag):
    image = json.loads(engine.podman("inspect", tag).stdout)[0]
    config = image["Config"]
    expect("the user", "65532:65532", config["User"])
    expect("the entrypoint", ["/overlane"], config["Entrypoint"])
    expect("the ports", {"7480/tcp", "7482/tcp"}, set(config["ExposedPorts"]))
    expect("the health check", ["CMD", "/overlane", "status", "-o", "name"],
           (image.get("Healthcheck") or config["Healthcheck"])["Test"])
    expect("the labels of where it is from", ["tried", "https://example.com/overlane"],
           [config["Labels"][f"org.opencontainers.image.{name}"] for name in ("revision", "source")])
    return image["Size"]


@contextlib.contextmanager
def container(engine, tag, store):
    started = engine.podman("run", "--detach", "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--network", "none",
                            "--no-healthcheck", *LIMITS, "--volume", f"{store}:/etc/overlane/environments:ro", tag).stdout.strip()
    try:
        yield started
    finally:
        engine.podman("rm", "--force", "--time", "1", started, check=False)


def ask(pid, *words):
    """curl from inside of the container's network; it has none of its own."""
    return run("nsenter", "--target", pid, "--net", "curl", "--silent", "--max-time", "5", *words, check=False).stdout


@contextlib.contextmanager
def service(pid):
    """An upstream in the container's network."""
    command = ["nsenter", "--target", str(pid), "--net", sys.executable, ROOT / "docs/examples/service.py", "9000", "web@image"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        child.stdout.readline()
        yield
    finally:
        child.kill()
        child.wait()


def check_run(engine, tag, store):
    with container(engine, tag, store) as started:
        pid = json.loads(engine.podman("inspect", started).stdout)[0]["State"]["Pid"]
        until = time.monotonic() + SECONDS
        while ask(pid, "http://127.0.0.1:7482/readyz") != "ok\n":
            if time.monotonic() > until:
                sys.exit(f"it does not get ready:\n{engine.podman('logs', started).stderr}")
            time.sleep(0.05)
        status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        expect("the user and the group that it runs as", ["65532"] * 8, (status["Uid"] + "\t" + status["Gid"]).split())
        expect("its capabilities", "0000000000000000", status["CapEff"])
        mounts = [line.split() for line in pathlib.Path(f"/proc/{pid}/mounts").read_text().splitlines()]
        expect("whether its root is read-only", True, next(each[3] for each in mounts if each[1] == "/").startswith("ro"))
        health = engine.podman("exec", started, "/overlane", "status", "-o", "name", check=False)
        expect(f"the exit code of its health check ({health.stderr})", 0, health.returncode)
        with service(pid):
            told = ask(pid, "--include", "-H", "x-overlay-id: alice", "http://127.0.0.1:7480/")
            expect("whether its entrance answers", True, told.endswith("\nweb@image\n"))
            expect("whether a stranger's key means something by default", False, "x-overlay-route" in told)
        expect("whether there is a shell", True, engine.podman("exec", started, "/bin/sh", check=False).returncode != 0)
        engine.podman("stop", "--time", "30", started)
        expect("the exit code after SIGTERM", 0, json.loads(engine.podman("inspect", started).stdout)[0]["State"]["ExitCode"])


STORE = """name: staging
routing: {mode: baseline}
services: [{name: web, url: 'http://127.0.0.1:9000', expose: true}]
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path, nargs="?")
    parser.add_argument("--compile", action="store_true", help="compile as the Dockerfile does, in place of a binary that is there")
    binary = (options := parser.parse_args()).binary
    if bool(binary) == options.compile:
        parser.error("either the program or --compile")
    missing = [tool for tool in ("buildah", "podman", "runc", "mmdebstrap", "nsenter", "strip") if not shutil.which(tool)]
    if missing:
        sys.exit(f"{', '.join(missing)}: not here; Debian has them (apt-get install buildah podman runc mmdebstrap)")
    with tempfile.TemporaryDirectory(prefix="overlane-image-") as folder:
        folder = pathlib.Path(folder)
        for name in ("context", "binary", "store"):
            (folder / name).mkdir()
        for name in ("Dockerfile", "LICENSE"):
            shutil.copy(ROOT / name, folder / "context")
        if binary:
            run("strip", binary, "-o", folder / "binary/overlane")
        (folder / "store/staging.yaml").write_text(STORE)
        for path in (folder, folder / "store"):
            path.chmod(0o755)
        engine, tag = Engine(folder), "overlane:tried"
        base(engine, folder)
        try:
            if options.compile:
                compiler(engine, folder)
            engine.build(*((ROOT, None) if options.compile else (folder / "context", folder / "binary")), tag)
            size = check_config(engine, tag)
            check_run(engine, tag, folder / "store")
            own = f"{(folder / 'binary/overlane').stat().st_size / 1e6:.1f} MB of them the binary" if binary else "compiled by its Dockerfile"
        finally:
            engine.podman("rmi", "--all", "--force", check=False)
    print(f"the image runs as nobody, with a read-only root and without capabilities; {size / 1e6:.1f} MB in all, {own}")


if __name__ == "__main__":
    main()
