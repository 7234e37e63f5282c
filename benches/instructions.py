#!/usr/bin/env python3
"""User-space instructions per request, counted by callgrind: they repeat whatever else the machine does.

    cargo build --profile dist -p overlane
    python3 benches/instructions.py target/dist/overlane [--overlays N,…] [--case known|unknown|none] [--engine auto|pingora]
                                    [--role gateway|inbound|outbound] [--restore trace|nothing]
                                    [--token none|cached|fresh|bad] [--key ed25519|hmac]
                                    [--tap] [--of FUNCTION] [--most N] [--spread PERCENT] [--profile] [-- FLAGS OF overlane run]

One worker of the gateway, everything on but the access log (`-- --access-log=json` has it as well, `-- --decisions 0` leaves the ring of
decisions out): key read, decision, propagation, X-Forwarded-*, receipt,
metrics, deadlines, pools. 32 keep-alive connections each have one request under way, as in benches/compare. Only what
happens between two moments of the steady state is counted, and divided by the requests. With `--role inbound` each request
has a key and a trace of its own, which are remembered; with `--role outbound` it has a trace and gets its key from
there, or brings its key along where `--restore nothing` says that traces do not count. With `--token` the gateway trusts
nobody, and each request shows an overlay token: the same one (`cached`), one that was never seen before (`fresh`: what
verification costs), or one whose signature is wrong (`bad`). With `--tap` somebody looks on, and is told every decision. With `--of` it is told how many are spent in a
function and in what it calls: `--of overlane::metrics::counting::observe` is the counting. Exits with 1 where a count is
over `--most`, or where counts differ by more than `--spread` per cent.
"""

import itertools
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

from harness.processes import START, Process, clean, command_line, free_ports, listening

CONNECTIONS, WARM, COUNTED = 32, 10, 60
ANSWER = (b"HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Mon, 23 Nov 2026 23:00:00 GMT\r\nContent-Type: text/plain\r\n"
          b"Content-Length: 8\r\nConnection: keep-alive\r\n\r\noverlay\n")


def upstream():
    """Answers every head that arrives; only the proxy is counted."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS * 2)

    def answer(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        read = b""
        while more := connection.recv(65536):
            read += more
            while b"\r\n\r\n" in read:
                read = read.split(b"\r\n\r\n", 1)[1]
                connection.sendall(ANSWER)

    def accept():
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def store(folder, count, port):
    path = folder / "store"
    path.mkdir()
    (path / "staging.yaml").write_text("name: staging\nrouting: {mode: baseline}\nservices:\n"
                                       f"  - {{name: web, expose: true, url: 'http://127.0.0.1:{port}'}}\n")
    text = ("name: overlay-{0}\nrouting: {{mode: overlay, baselineId: staging}}\nservices:\n"
            f"  - {{{{name: web, url: 'http://127.0.0.1:{port}'}}}}\n")
    (path / "overlays.yaml").write_text("---\n".join(text.format(number) for number in range(count)))
    return path


def tokens(options, folder, count):
    """Tokens for the overlay that is asked for, without end; nothing where none are shown."""
    if options.token == "none":
        return None

    def overlane(*arguments):
        return subprocess.run([options.binary, "token", *arguments], check=True, capture_output=True, text=True).stdout.strip()

    overlane("key", "--out", str(folder / "key"), *(["--hmac"] if options.key == "hmac" else []))

    def issue(ttl):
        return overlane("issue", "--overlay", f"overlay-{count - 1}", "--audience", "counting", "--ttl", f"{ttl}s", "--key", str(folder / "key"))

    # As many as requests are sent, each with a time of its own.
    many = (WARM * 2 + COUNTED) * CONNECTIONS if options.token == "fresh" else 1
    issued = [issue(100_000 + number) for number in range(many)]
    if options.token == "bad":
        other = issue(50_000).rsplit(".", 1)[1]
        issued = [issued[0].rsplit(".", 1)[0] + "." + other]
    return iter(issued) if options.token == "fresh" else itertools.cycle(issued)


class Proxy:
    """The binary under callgrind, which counts only when it is told to."""

    def __init__(self, options, folder, count):
        self.folder = folder
        port, admin, others = free_ports(3)
        # Where requests come in that its own calls belong to.
        arrivals = others if options.role == "outbound" else port
        backend = upstream()
        (folder / "settings.yaml").write_text(f"correlation: {{by: [{options.restore.replace('nothing', '')}]}}\n")
        listeners = ["--gateway", f"127.0.0.1:{port}"]
        self.tokens = tokens(options, folder, count)
        if options.token != "none":
            listeners += ["--trust", "none", "--token-key", str(folder / "key"), "--token-audience", "counting"]
        if options.role != "gateway":
            listeners = ["--inbound", f"127.0.0.1:{arrivals}", "--app", f"http://127.0.0.1:{backend}", "--service", "web"]
            listeners += ["--outbound", f"127.0.0.1:{port}"] if options.role == "outbound" else []
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/counts",
                   options.binary, "run", "--config", str(folder / "settings.yaml"),
                   "--store", str(store(folder, count, backend)), "--workers", "1",
                   "--engine", options.engine, *listeners, "--admin", f"127.0.0.1:{admin}", *options.flags]
        self.process = Process("proxy", command, folder / "log", clean({}), folder)
        for listener in {port, arrivals}:
            listening(listener, self.process)
        key = {"known": f"x-overlay-id: overlay-{count - 1}\r\n", "unknown": "x-overlay-id: nobody\r\n", "none": ""}
        self.key, self.traces = key[options.case], 0
        self.role, self.restore = options.role, options.restore
        self.admin, self.told = admin if options.tap else None, 0
        self.connections = [self.connect(arrivals if options.role == "outbound" else port) for _ in range(CONNECTIONS)]
        if options.role == "outbound":
            # What its calls belong to: remembered, and not counted.
            self.role = "inbound"
            self.ask(1)
            for connection in self.connections:
                connection.close()
            self.role = "outbound"
            self.connections = [self.connect(port) for _ in range(CONNECTIONS)]

    def request(self, number):
        """The next request on the connection with this number."""
        key, trace = self.key, ""
        if self.role != "gateway":
            self.traces += self.role == "inbound"
            # The application's calls on one connection are all of the trace that arrived there.
            trace = f"traceparent: 00-{self.traces if self.role == 'inbound' else number + 1:032x}-b7ad6b7169203331-01\r\n"
            key = "" if self.role == "outbound" and self.restore == "trace" else key
        token = f"x-overlay-token: {next(self.tokens)}\r\n" if self.tokens else ""
        return ("GET / HTTP/1.1\r\nHost: web\r\nUser-Agent: counting\r\nAccept: */*\r\n" f"{token}{trace}{key}\r\n").encode()

    @staticmethod
    def connect(port):
        connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(self, rounds):
        for _ in range(rounds):
            for number, connection in enumerate(self.connections):
                connection.sendall(self.request(number))
            for connection in self.connections:
                read = b""
                while not read.endswith(b"\r\n\r\noverlay\n"):
                    more = connection.recv(65536)
                    if not more:
                        sys.exit(f"the connection was closed after {read!r}")
                    read += more

    def look_on(self):
        """Reads a tap from now on, where one is asked for."""
        if self.admin is None:
            return
        tap = socket.create_connection(("127.0.0.1", self.admin), timeout=60)
        tap.sendall(b"GET /api/v1/tap?maxRps=10000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if not tap.recv(65536).startswith(b"HTTP/1.1 200 "):
            sys.exit("nobody may look on")

        def read():
            while more := tap.recv(65536):
                self.told += more.count(b"event: decision")

        threading.Thread(target=read, daemon=True).start()

    def control(self, *flags):
        subprocess.run(["callgrind_control", *flags, str(self.process.child.pid)], check=True, capture_output=True)

    def count(self):
        """Instructions per request, and the file with the profile."""
        self.ask(WARM)
        self.look_on()
        self.control("--instr=on")
        self.ask(WARM)
        self.control("--zero")
        self.ask(COUNTED)
        self.control("--dump")
        self.control("--instr=off")
        dumped = sorted(self.folder.glob("counts.*"))[0]
        # The summary line is of the whole run; what was dumped is the sum of its parts.
        return sum_of(dumped) / (COUNTED * CONNECTIONS), dumped

    def stop(self):
        for connection in self.connections:
            connection.close()
        self.process.child.terminate()
        self.process.end(time.monotonic() + START)


def sum_of(path):
    """The sum of all self costs in a callgrind profile: the lines that follow `calls=` are inclusive ones."""
    total, inclusive = 0, False
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith("calls="):
            inclusive = True
        elif found := re.fullmatch(r"(?:[+-]?\d+|\*) (\d+)", line):
            total += 0 if inclusive else int(found.group(1))
            inclusive = False
    return total


def spent_in(path, function):
    """What is spent in functions whose names have this in them, and in what they call."""
    annotated = subprocess.run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", "--auto=no", str(path)], check=True,
                               capture_output=True, text=True).stdout
    found = [line for line in annotated.splitlines() if re.search(rf":{re.escape(function)}\b", line)]
    if not found:
        sys.exit(f"no function is called {function}")
    return sum(int(line.split()[0].replace(",", "")) for line in found)


def main():
    parser = command_line(__doc__)
    parser.add_argument("--overlays", type=lambda text: [int(each) for each in text.split(",")], default=[10_000])
    parser.add_argument("--case", choices=["known", "unknown", "none"], default="known")
    parser.add_argument("--engine", choices=["auto", "pingora"], default="auto")
    parser.add_argument("--role", choices=["gateway", "inbound", "outbound"], default="gateway")
    parser.add_argument("--restore", choices=["trace", "nothing"], default="trace")
    parser.add_argument("--token", choices=["none", "cached", "fresh", "bad"], default="none")
    parser.add_argument("--key", choices=["ed25519", "hmac"], default="ed25519", help="what signs the tokens")
    parser.add_argument("--most", type=int, help="the budget: instructions per request")
    parser.add_argument("--spread", type=float, help="by how many per cent the counts may differ")
    parser.add_argument("--tap", action="store_true", help="somebody looks on as decisions are taken")
    parser.add_argument("--of", metavar="FUNCTION", help="tell what this function costs, with what it calls")
    parser.add_argument("--profile", action="store_true", help="show the functions that they are spent in")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end])
    options.flags = sys.argv[end + 1:]
    counts = []
    for overlays in options.overlays:
        with tempfile.TemporaryDirectory(prefix="overlane-instructions-") as name:
            proxy = Proxy(options, pathlib.Path(name), overlays)
            try:
                count, profile = proxy.count()
            finally:
                proxy.stop()
            counts.append(count)
            if options.tap and proxy.told < COUNTED * CONNECTIONS // 2:
                sys.exit(f"the tap told {proxy.told} decisions only")
            token = "" if options.token == "none" else f", {options.token} token by {options.key}"
            besides = "".join(f", {each}" for each in [*(["a tap"] if options.tap else []), *options.flags])
            print(f"{overlays:>9,} overlays, {options.case} key{token}, {options.role}, engine {options.engine}{besides}: {count:,.0f} instructions per request")
            if options.of:
                print(f"{spent_in(profile, options.of) / (COUNTED * CONNECTIONS):>9,.0f} of them in {options.of}")
            if options.profile:
                subprocess.run(["callgrind_annotate", "--auto=no", str(profile)], check=True)
    if options.most and max(counts) > options.most:
        sys.exit(f"over the budget of {options.most:,} instructions per request")
    if options.spread and max(counts) / min(counts) > 1 + options.spread / 100:
        sys.exit(f"the counts differ by more than {options.spread} %")


if __name__ == "__main__":
    main()
