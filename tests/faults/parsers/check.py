#!/usr/bin/env python3
"""The corpus of hostile requests before servers of others: gunicorn, waitress, tornado, aiohttp, uvicorn (h11, httptools), Node, hyper.

    python3 tests/faults/parsers/check.py BINARY [--engine auto|pingora] [--server NAME]...

Each case of `tests/corpus/requests.txt`, with `GET /next` behind it, goes to each server twice: by itself, and through a gateway.
Through the gateway a server may see nothing but what was sent as a request, in order and once, and both `/next` and somebody
else's request get their own answers, or the connection ends. Sent by itself it says how many cases are an attack on that server.
"""

import argparse
import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "peers"))

import installed

CORPUS = HERE.parents[1] / "corpus/requests.txt"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
INNOCENT = b"GET /innocent HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SERVERS = ["gunicorn", "waitress", "tornado", "aiohttp", "uvicorn-h11", "uvicorn-httptools", "node", "hyper"]
# What a server by itself may take before it counts as one that waits for more.
QUIET = 0.2
# The same through the gateway, where it is a failure.
PATIENCE = 10.0


def unescaped(text):
    text = re.sub(r"\{(.)\*(\d+)\}", lambda found: found[1] * int(found[2]), text)
    named = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
    pieces = re.split(r"\\(x[0-9a-f]{2}|.)", text)
    escapes = [bytes([int(escape[1:], 16)]) if escape[0] == "x" else named[escape] for escape in pieces[1::2]] + [b""]
    return b"".join(plain.encode() + escape for plain, escape in zip(pieces[::2], escapes))


def cases():
    frame = "{}"
    for number, line in enumerate(CORPUS.read_text().split("\n"), 1):
        if line.startswith("@ "):
            frame = line[2:]
        elif line and not line.startswith("#"):
            outcome, _, written = line.partition("  ")
            yield number, outcome.strip().split("/")[0], unescaped(frame.replace("{}", written, 1))


def requests(sent):
    """What right bytes ask for: method, target and how much body."""
    while sent := sent.lstrip(b"\r\n"):
        head, found, sent = sent.partition(b"\r\n\r\n")
        if not found:
            return
        method, target, _ = head.split(b"\r\n")[0].split(b" ")
        target = re.sub(rb"(?i)^http://[^/?]*/?", b"/", target)
        length = re.search(rb"(?i)\ncontent-length:\s*(\d+)", head)
        size = int(length[1]) if length else 0
        if re.search(rb"(?i)\ntransfer-encoding:", head):
            size, piece = 0, None
            while piece != 0:
                line, _, sent = sent.partition(b"\r\n")
                piece = int(line.split(b";")[0], 16)
                size += piece
                sent = sent[piece + 2:] if piece else sent
            trailers = b"\r\n" + sent
            sent = trailers[trailers.index(b"\r\n\r\n") + 4:]
        else:
            sent = sent[size:]
        yield b"%s %s %d" % (method, target, size)


def meant(outcome, sent):
    if outcome == "pass":
        return [*requests(sent), b"GET /next 0"]
    before = int(outcome.split(":")[0]) - 1 if ":" in outcome else 0
    first = sent.partition(b"\r\n\r\n")
    return list(requests(first[0] + first[1])) if before else []


def exchange(port, sent, until, patience):
    """What comes back, up to `until`, the end, or silence; and whether it ended."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
        came = b""
        try:
            client.sendall(sent)
            while until not in came:
                more = client.recv(65536)
                if not more:
                    return came, True
                came += more
        except TimeoutError:
            return came, False
        except OSError:
            return came, True
    # Either `until` came, and all is well, or the end.
    return came, True


class Notes:
    def __init__(self, path):
        self.path, self.read = path, 0
        path.touch()

    def news(self):
        lines = self.path.read_bytes()[self.read:]
        self.read += len(lines)
        return lines.split(b"\n")[:-1]


def in_order(seen, meant):
    rest = iter(meant)
    return all(any(same(one, other) for other in rest) for one in seen)


def same(one, other):
    """A server may write a target otherwise than it came."""
    (method, *target, size), (method_, *target_, size_) = one.split(b" "), other.split(b" ")
    plain = [re.sub(rb"[^a-z]", b"", b"".join(part)) for part in (target, target_)]
    return (method.upper(), size) == (method_.upper(), size_) and plain[0] == plain[1]


def listening(port):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    sys.exit(f"nobody listens on {port}")


def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command, port, log):
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        listening(port)
        yield process
    finally:
        # How it ends is another test's.
        process.kill()
        process.wait()


def hyper():
    """The server on hyper, built: `tests/examples/hyper.rs`."""
    root = HERE.parents[2]
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target")).resolve()
    installed.run(["cargo", "build", "--quiet", "--locked", "--workspace", "--example", "hyper", "--target-dir", target], root, 3600)
    return target / "debug/examples/hyper"


def server_of(kind, programs):
    """The command of a server, without its port and its notes."""
    match kind:
        case "node":
            return ["node", HERE / "server.js"]
        case "hyper":
            return [hyper()]
        case _:
            return [programs / "python", HERE / "servers.py", kind]


def check(kind, programs, binary, engine, folder):
    server, gateway, admin = free(), free(), free()
    notes = Notes(folder / "notes")
    command = [*server_of(kind, programs), str(server), notes.path]
    (folder / "store").mkdir()
    (folder / "store/base.yaml").write_text(
        "name: base\nrouting: {mode: baseline}\n"
        f"services: [{{name: web, expose: true, url: 'http://127.0.0.1:{server}'}}]\n")
    proxy = [binary, "run", "--store", folder / "store", "--gateway", f"127.0.0.1:{gateway}", "--admin", f"127.0.0.1:{admin}",
             "--workers", "1", "--engine", engine]
    attacks, silent, problems, total = 0, set(), [], 0
    with running(command, server, folder / "server.log"):
        for number, outcome, sent in cases():
            total += 1
            exchange(server, sent + NEXT, b"GET /next 0", QUIET)
            # It may still be at it.
            time.sleep(0.01)
            attacks += not in_order(notes.news(), meant(outcome, sent))
            if outcome == "pass" and b" 200 OK" not in exchange(server, sent, b" 200 OK", QUIET)[0]:
                silent.add(number)
            time.sleep(0.01)
            notes.news()
    with running(command, server, folder / "server.log"), running(proxy, admin, folder / "overlane.log") as process:
        notes.news()
        for number, outcome, sent in cases():
            expected = meant(outcome, sent)
            came, ended = exchange(gateway, sent + NEXT, b"GET /next 0", PATIENCE)
            answer, _ = exchange(gateway, INNOCENT, b"GET /innocent 0", PATIENCE)
            seen = notes.news()
            # Some wait for a body where they are told to expect one, and none was announced.
            answered = ended or number in silent
            fine = answered and answer.endswith(b"GET /innocent 0") and in_order(seen, [*expected, b"GET /innocent 0"])
            if not fine:
                problems.append(f"{kind}, line {number} ({outcome}): saw {seen}, not {expected}; ended {ended}; {came[-200:]}; "
                                f"the innocent got {answer[-100:]}")
            if process.poll() is not None:
                sys.exit(f"the proxy ended: {(folder / 'overlane.log').read_text()[-2000:]}")
    print(f"{kind}: of {total} cases {attacks} are taken otherwise by it alone than by a strict reader, {len(problems)} through the gateway", flush=True)
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--engine", choices=["auto", "pingora"], default="auto")
    parser.add_argument("--server", choices=SERVERS, action="append")
    options = parser.parse_args()
    binary = options.binary.resolve()
    cache = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parents[2] / "target")) / "peers/parsers"
    cache.mkdir(parents=True, exist_ok=True)
    programs = installed.python(cache, HERE / "requirements.txt")
    problems = []
    for kind in options.server or SERVERS:
        with tempfile.TemporaryDirectory() as folder:
            problems += check(kind, programs, binary, options.engine, pathlib.Path(folder))
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
