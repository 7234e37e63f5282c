#!/usr/bin/env python3
"""Bytes copied in user space per byte of body, counted by DHAT's copy mode (every memcpy and memmove is seen).

    cargo build --profile dist -p overlane
    python3 benches/copies.py target/dist/overlane [--engine auto|pingora] [--most N]

A gateway carries uploads and downloads of bodies with a known length and in chunks. Two runs differ only in how many
exchanges they make, and what differs in their counts is divided by the bytes of the bodies that differ; so heads are
counted, and what happens once at the start is not. Exits with 1 where the ratio is over `--most`.
"""

import pathlib
import re
import socket
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

from harness.processes import command_line, free_ports, running

BODY = b"overlane" * 131_072
FEW, MANY = 2, 18
HOST = "Host: 127.0.0.1\r\nx-overlay-id: overlay\r\n"


def framed(chunked):
    """The body on the wire, and the header line that delimits it."""
    if not chunked:
        return f"Content-Length: {len(BODY)}\r\n".encode(), BODY
    parts = [BODY[at:at + 65_536] for at in range(0, len(BODY), 65_536)]
    wire = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"Transfer-Encoding: chunked\r\n", wire + b"0\r\n\r\n"


def read_until(connection, read, end):
    while end not in read[-(len(end) + 70_000):]:
        more = connection.recv(65_536)
        if not more:
            sys.exit(f"the connection was closed after {bytes(read[:300])!r}")
        read += more


def read_message(connection):
    """One message whose framing is one of ours; its bytes are dropped."""
    read = bytearray()
    read_until(connection, read, b"\r\n\r\n")
    head, _, body = bytes(read).partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        rest = bytearray(body)
        read_until(connection, rest, b"0\r\n\r\n")
        return head
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    left = (int(length.group(1)) if length else 0) - len(body)
    while left > 0:
        more = connection.recv(65_536)
        if not more:
            sys.exit("the connection was closed within a body")
        left -= len(more)
    return head


def upstream():
    """Answers an upload with nothing, and everything else with a body as its path asks."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)

    def answer(connection):
        while True:
            head = read_message(connection)
            if head.startswith(b"POST"):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                line, wire = framed(b"/chunked" in head)
                connection.sendall(b"HTTP/1.1 200 OK\r\n" + line + b"\r\n" + wire)

    def accept():
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def exchange(connection, number):
    chunked = number % 2 == 1
    if number // 2 % 2:
        connection.sendall(f"GET /{'chunked' if chunked else 'length'} HTTP/1.1\r\n{HOST}\r\n".encode())
    else:
        line, wire = framed(chunked)
        connection.sendall(f"POST / HTTP/1.1\r\n{HOST}".encode() + line + b"\r\n" + wire)
    head = read_message(connection)
    if not head.startswith(b"HTTP/1.1 200"):
        sys.exit(f"answered {head!r}")


def copied(options, exchanges):
    """All bytes that the binary copied while it carried so many exchanges."""
    with tempfile.TemporaryDirectory(prefix="overlane-copies-") as name:
        folder = pathlib.Path(name)
        (folder / "store").mkdir()
        url = f"http://127.0.0.1:{upstream()}"
        (folder / "store/staging.yaml").write_text(
            f"name: staging\nrouting: {{mode: baseline}}\nservices:\n  - {{name: web, expose: true, url: '{url}'}}\n")
        (folder / "store/overlay.yaml").write_text(
            f"name: overlay\nrouting: {{mode: overlay, baselineId: staging}}\nservices:\n  - {{name: web, url: '{url}'}}\n")
        port, admin = free_ports(2)
        command = ["valgrind", "--tool=dhat", "--mode=copy", f"--dhat-out-file={folder}/dhat", options.binary, "run",
                   "--store", folder / "store", "--workers", "1", "--engine", options.engine,
                   "--gateway", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"]
        with running("gateway", folder, *command, port=port) as proxy:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                for number in range(exchanges):
                    exchange(connection, number)
        told = proxy.log.read_text(errors="replace")
        total = re.search(r"Total:\s+([\d,]+) bytes", told)
        if not total:
            sys.exit(told)
        return int(total.group(1).replace(",", ""))


def main():
    parser = command_line(__doc__)
    parser.add_argument("--engine", choices=["auto", "pingora"], default="auto")
    parser.add_argument("--most", type=float, help="the bound: bytes copied per byte of body")
    options = parser.parse_args()
    ratio = (copied(options, MANY) - copied(options, FEW)) / ((MANY - FEW) * len(BODY))
    print(f"engine {options.engine}: {ratio:.4f} bytes copied per byte of body")
    if options.most is not None and ratio > options.most:
        sys.exit(f"over the bound of {options.most}")


if __name__ == "__main__":
    main()
