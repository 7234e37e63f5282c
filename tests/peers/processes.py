"""Processes that run together, their ports and their logs."""

import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import time

# Seconds that everything together has to come up.
START = 60


class Failed(Exception):
    """What was expected and not seen."""


class Port:
    """A port that nobody else gets. It stays bound, unheard, while who listens to it shares it (SO_REUSEADDR)."""

    def __init__(self):
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        self.number = self.held.getsockname()[1]
        self.address = f"127.0.0.1:{self.number}"


class Process:
    """A process of ours with its log."""

    def __init__(self, name, command, log, environment, folder):
        self.name, self.log = name, log
        with open(log, "wb") as out:
            self.child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          env=environment, cwd=folder)

    def tail(self):
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"-- the end of what {self.name} wrote:", *(f"   {line[:400]}" for line in lines)])

    def end(self, until):
        try:
            self.child.wait(timeout=max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def clean(extra):
    """This process's own variables without those that would tell an application or a proxy something."""
    told = re.compile(r"(?i)(.*_proxy|OTEL_.*|OVERLANE_.*|RUST_LOG|PYTHONPATH|NODE_OPTIONS)")
    return {name: value for name, value in os.environ.items() if not told.fullmatch(name)} | extra


@contextlib.contextmanager
def running(name, folder, *command):
    """A process whose log is in the folder; it ends with the block."""
    process = Process(name, command, folder / f"{name}.log", clean({}), folder)
    try:
        yield process
    finally:
        process.child.terminate()
        process.end(time.monotonic() + START)


def said(process, pattern):
    """What a process says sooner or later."""
    until = time.monotonic() + 2 * START
    while True:
        found = re.search(pattern, process.log.read_text(errors="replace"))
        if found:
            return found
        if process.child.poll() is not None or time.monotonic() > until:
            sys.exit(f"{process.name} did not say {pattern}\n{process.tail()}")
        time.sleep(0.05)


class Together:
    """Processes that are up together; used with `with`, at whose end none of them runs any more.

    `binary` is Overlane's, and `folder` a folder of their own for logs. Who inherits says in `bring_up` what is started.
    """

    def __init__(self, binary, folder):
        self.binary, self.folder, self.processes = binary, folder, []

    def __enter__(self):
        try:
            self.bring_up()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def start(self, name, command, environment, folder=None):
        log = self.folder / f"{len(self.processes)}.log"
        self.processes.append(Process(name, command, log, environment, folder))
        return self.processes[-1]

    def wait_for(self, port, path):
        """Until the port answers that path, whatever it is: 503 is an answer of who is not ready yet."""
        until = time.monotonic() + START
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port.number, timeout=5)
                connection.request("GET", path)
                if connection.getresponse().status != 503:
                    return connection.close()
            except (OSError, http.client.HTTPException):
                pass
            ended = [process for process in self.processes if process.child.poll() is not None]
            if ended:
                raise Failed("\n".join(f"{one.name} ended with {one.child.returncode}\n{one.tail()}" for one in ended))
            if time.monotonic() > until:
                raise Failed(f"{port.address} does not answer {path}")
            time.sleep(0.05)

    def tails(self, service):
        """What the processes of a service wrote at last, and the gateway."""
        mine = [process for process in self.processes if f"{service}@" in process.name or process.name == "gateway"]
        return "\n".join(process.tail() for process in mine)

    def overlane(self, *arguments):
        """The exit code of a command, and what it prints."""
        done = subprocess.run([self.binary, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, env=clean({}), timeout=60)
        return done.returncode, done.stdout

    def end(self):
        """Ends each process that was started here, by its id."""
        for process in self.processes:
            process.child.terminate()
        # An instrumented Node catches SIGTERM and goes on.
        until = time.monotonic() + 2
        for process in self.processes:
            process.end(until)
