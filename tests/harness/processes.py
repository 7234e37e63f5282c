"""Processes that run together, their ports and their logs."""

import argparse
import contextlib
import http.client
import os
import pathlib
import re
import resource
import shutil
import signal
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


def free_port(host="127.0.0.1"):
    """One that nobody has just now, for who does not share it."""
    with socket.create_server((host, 0)) as probe:
        return probe.getsockname()[1]


def free_ports(count):
    """So many, each another one."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def all_descriptors():
    """Raises what this process and its children may open to what the machine allows, and tells how many that is."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def program(name):
    """Where a program is, whatever folder it is started in: one on the path, or one at a path from here."""
    return pathlib.Path(shutil.which(name) or name).resolve()


def command_line(about):
    """The command line of a harness: what it says of itself, and the binary."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=program)
    return parser


class Process:
    """A process of ours with its log."""

    def __init__(self, name, command, log, environment, folder, user=None):
        self.name, self.log = name, log
        with open(log, "wb") as out:
            self.child = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                          env=environment, cwd=folder, user=user)

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


def until(what, holds, patience=10.0):
    """Waits until something holds, and returns what it gave."""
    end = time.monotonic() + patience
    while not (found := holds()):
        if time.monotonic() > end:
            sys.exit(f"after {patience} s not yet: {what}")
        time.sleep(0.01)
    return found


def listening(port, process):
    """Waits until a process listens to a port."""
    end = time.monotonic() + 2 * START
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.child.poll() is not None or time.monotonic() > end:
            sys.exit(f"{process.name} does not listen to {port}\n{process.tail()}")
        time.sleep(0.05)


@contextlib.contextmanager
def running(name, folder, *command, port=None, environment=None, user=None, ends=signal.SIGTERM):
    """A process whose log is in the folder, from when it listens to the port, where one is named; it ends with the block.

    `ends` is the signal that it is ended with, and `environment` what it is told besides what is `clean`.
    """
    process = Process(name, command, folder / f"{name}.log", clean(environment or {}), folder, user)
    try:
        if port is not None:
            listening(port, process)
        yield process
    finally:
        process.child.send_signal(ends)
        process.end(time.monotonic() + START)


def said(process, pattern):
    """What a process says sooner or later."""
    end = time.monotonic() + 2 * START
    while True:
        found = re.search(pattern, process.log.read_text(errors="replace"))
        if found:
            return found
        if process.child.poll() is not None or time.monotonic() > end:
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
