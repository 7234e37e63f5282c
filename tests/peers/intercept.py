#!/usr/bin/env python3
"""Connections that deploy/intercept.sh sends to a sidecar: HTTP is routed by its key, all else arrives where it was meant.

    python3 tests/peers/intercept.py BINARY

In a network namespace of its own, as root, with nftables and with iptables where they are.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness.processes import running

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "intercept.sh"
UID = 1337
PORT = 7490
ADMIN = 7491
# Addresses that only this namespace has: where services and others listen.
ADDRESSES = ["10.9.0.1", "fd09::1"]


def serve(address, port, answer):
    """Gives each connection to `answer`, each on a thread of its own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=64)

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def http(name):
    """Answers one request with its name and the key that arrived."""

    def answer(connection):
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                read = connection.recv(4096)
                if not read:
                    return
                head += read
            key = [line[14:] for line in head.decode().split("\r\n") if line.startswith("x-overlay-id: ")]
            body = f"{name} {key[0] if key else 'none'}".encode()
            start = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(start + body)

    return answer


def greets(connection):
    """A server that speaks first."""
    connection.sendall(b"220 hello\r\n")
    echoes(connection)


def echoes(connection):
    with connection, contextlib.suppress(ConnectionError):
        while read := connection.recv(4096):
            connection.sendall(read)


def exchange(address, port, sends, wants):
    """Sends to an address, after the server's greeting where there is nothing to say, until `wants` is heard."""
    with socket.create_connection((address, port), timeout=10) as connection:
        heard = b""
        if not sends:
            heard = connection.recv(4096)
            connection.sendall(wants)
        else:
            connection.sendall(sends)
        while wants not in heard and (read := connection.recv(4096)):
            heard += read
        assert wants in heard, f"{address}:{port}: wanted {wants!r}, got {heard!r}"
        return heard


def get(host, fields=""):
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode()


def write_blueprints(folder):
    services = "services: [{name: web, url: 'http://10.9.0.1:%d'}]\n"
    (folder / "base.yaml").write_text("name: base\nrouting: {mode: baseline}\n" + services % 8001)
    overlay = "name: alice\nrouting: {mode: overlay, baselineId: base}\n"
    (folder / "alice.yaml").write_text(overlay + services % 8002)


def sidecar(binary, folder, *, mark):
    """The sidecar, as a user of its own or with a mark."""
    command = [binary, "run", "--store", str(folder), "--outbound", f"127.0.0.1:{PORT}", "--intercept"]
    command += ["--admin", f"127.0.0.1:{ADMIN}", *(["--mark", "77"] if mark else [])]
    return running("sidecar", folder, *command, port=ADMIN, user=None if mark else UID)


def check(way):
    key = "x-overlay-id: alice\r\n"
    exchange("10.9.0.1", 8001, get("web"), b"base none")
    heard = exchange("10.9.0.1", 8001, get("web", key), b"owner alice")
    assert b"x-overlay-route: web;env=alice;via=overlay;reason=owned" in heard, heard
    for address in ADDRESSES:
        # A name that only the caller can resolve; and the key stays behind.
        exchange(address, 8003, get("outside.invalid", key), b"outside none")
        # Who speaks first does not matter.
        exchange(address, 3306, b"", b"more")
        exchange(address, 9000, b"\x16\x03\x01 like TLS", b"like TLS")
        exchange(address, 9000, b"\x00\x01binary", b"binary")
    print(f"intercepted by {way}: HTTP is routed, all else arrives")


def without_nft(folder):
    """A path on which there is everything that the script calls but nft."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name in ["sh", "grep", "tr", "paste", "iptables", "ip6tables", "sed"]:
        with contextlib.suppress(FileExistsError):
            (tools / name).symlink_to(shutil.which(name))
    return str(tools)


def intercepted(binary, folder, tool, *, mark):
    path = os.environ["PATH"] if tool == "nft" else without_nft(folder)

    def script(*arguments):
        env = {**os.environ, "PATH": path}
        subprocess.run(["/bin/sh", SCRIPT, *arguments], check=True, env=env, stdout=subprocess.DEVNULL)

    with sidecar(binary, folder, mark=mark):
        script("up", "--port", str(PORT), *(["--mark", "77"] if mark else ["--uid", str(UID)]))
        try:
            script("show")
            check(f"{tool}, the sidecar told by its {'mark' if mark else 'user'}")
        finally:
            script("down")
        # Nothing is left of it.
        exchange("10.9.0.1", 8001, get("web", "x-overlay-id: alice\r\n"), b"base alice")


def inside(binary):
    for command in ["link set lo up", "addr add 10.9.0.1/32 dev lo", "-6 addr add fd09::1/128 dev lo"]:
        subprocess.run(["ip", *command.split()], check=True)
    servers = {8001: http("base"), 8002: http("owner"), 8003: http("outside"), 3306: greets, 9000: echoes}
    for port, answer in servers.items():
        for address in ADDRESSES:
            serve(address, port, answer)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # The user of the sidecar reads it.
        folder.chmod(0o755)
        write_blueprints(folder)
        for tool in ["nft", "iptables"]:
            if not shutil.which(tool):
                print(f"{tool} is not here: not tried")
                continue
            for mark in [False, True]:
                intercepted(binary, folder, tool, mark=mark)


def main():
    if len(sys.argv) > 2:
        return inside(sys.argv[1])
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        sys.exit("root, unshare and ip are needed")
    with tempfile.TemporaryDirectory() as folder:
        # The user of the sidecar runs it.
        os.chmod(folder, 0o755)
        copy = shutil.copy(sys.argv[1], folder)
        subprocess.run(["unshare", "--net", sys.executable, __file__, copy, "inside"], check=True, timeout=120)


if __name__ == "__main__":
    main()
