#!/usr/bin/env python3
"""Every command of the README and the tutorials is run: what a page shows is what the commands print.

    python3 docs/check.py target/debug/overlane [PAGE…] [--update]

A page is a session in a folder of its own with the files of docs/examples (the README: with docs/), and, where the machine lets us, in a network of its
own, so that its ports are free. A block ```` ```yaml FILE ```` (or any other language) writes a file. A block ```` ```console ```` has commands (`$ …`) and what they print:
`…` stands for anything in a line, and alone in a line for any lines; durations in ms and names of hops may be others. A command that ends with ` &`, or that serves, goes on beside the others, until the page ends or
`$ kill %N`; what it is to print is waited for. `<!-- $ COMMAND -->` and `<!-- $ COMMAND & until TEXT -->` are run and not shown, and `<!-- not run: WHY -->` is before a block that is shown and
not run. `? N` after a command is its exit code, where it is not 0. `--update` writes what was printed
in place of what differs.
"""

import argparse
import contextlib
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
README = "../README.md"
PAGES = [README, "quick-start.md", *sorted(f"tutorials/{page.name}" for page in (HERE / "tutorials").glob("*.md"))]
SECONDS = 60
# Commands that go on until they are ended.
SERVES = re.compile(r"(overlane|cargo run --release --) (run|demo|try)\b(?!.* --once)")


class Failed(Exception):
    """What a page shows and the commands do not print."""


def still(lines):
    """Lines without what is another each time: durations, and names of hops."""
    return [re.sub(r"\b(hop|parent)=\w{8}\b", r"\1=…", re.sub(r"\b\d+(\.\d+)? ms\b", "… ms", line)) for line in lines]


def matches(expected, printed):
    """Whether lines are what was expected of them."""
    return fits(still(expected), still(printed))


def fits(expected, printed):
    if not expected:
        return not printed
    if expected[0].strip() == "…":
        return any(fits(expected[1:], printed[at:]) for at in range(len(printed) + 1))
    if not printed:
        return False
    pattern = ".*".join(re.escape(part) for part in expected[0].split("…"))
    return bool(re.fullmatch(pattern, printed[0])) and fits(expected[1:], printed[1:])


def read(terminal, into):
    """What comes to a terminal, until nobody writes to it any more; nobody is ever kept from writing."""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            part = b""
        if not part:
            return os.close(terminal)
        into.append(part)


class Session:
    """A folder, and what was started in it."""

    def __init__(self, binary, folder):
        self.folder, self.beside = folder, []
        told = re.compile(r"(?i)(.*_proxy|OVERLANE_.*|RUST_LOG)")
        # People see no progress of curl's on a terminal, and we do not have one.
        (folder / ".curlrc").write_text("silent\nshow-error\n")
        self.variables = {name: value for name, value in os.environ.items() if not told.fullmatch(name)} | {
            "PATH": f"{binary.parent}:{os.environ['PATH']}", "NO_COLOR": "1", "HOME": str(folder)}

    @staticmethod
    def told(command):
        """A command as it is run: what cargo would build is there already."""
        return command.replace("cargo run --release --", "overlane")

    def run(self, command):
        """What a command prints, line by line, with its exit code first where that is not 0."""
        if kill := re.fullmatch(r"kill %(\d+)", command):
            self.end(self.beside[int(kill[1]) - 1])
            return []
        done = subprocess.run(["bash", "-c", self.told(command)], cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS)
        return ([f"? {done.returncode}"] if done.returncode else []) + done.stdout.replace("\r", "").rstrip().splitlines()

    def start(self, command, expected):
        """Starts a command that goes on; what it printed once that is what was expected, or it has ended, or the time is over.

        On a terminal, as people see it.
        """
        ours, its = pty.openpty()
        child = subprocess.Popen(["bash", "-c", f"exec env {self.told(command)}"], cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL,
                                 stdout=its, stderr=its, start_new_session=True)
        os.close(its)
        screen = []
        threading.Thread(target=read, args=(ours, screen), daemon=True).start()
        self.beside.append(child)
        until = time.monotonic() + SECONDS
        while True:
            over = child.poll() is not None or time.monotonic() > until
            printed = b"".join(screen).decode(errors="replace").replace("\r", "").rstrip().splitlines()
            if matches(expected, printed) or over:
                return printed
            time.sleep(0.02)

    def end(self, child):
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGINT)
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def end_all(self):
        for child in reversed(self.beside):
            self.end(child)


def commands(body):
    """Each command of a block, with the lines that it is to print."""
    for line in body:
        if line.startswith("$ "):
            found = [line, []]
            yield found
        elif found[0].endswith("\\"):
            found[0] += "\n" + line
        else:
            found[1].append(line)


def converse(session, body):
    """A block as it should read, and whether it does."""
    shown, faults = [], []
    for line, expected in list(commands(body)):
        command = line.removeprefix("$ ")
        # An empty line before the next command is for the eye.
        space = [""] if expected and expected[-1] == "" else []
        wanted = expected[:-1] if space else expected
        beside = command.endswith(" &") or SERVES.match(command)
        printed = session.start(command.removesuffix(" &"), wanted) if beside else session.run(command)
        if not matches(wanted, printed):
            faults.append(f"$ {command}\n  was to print:\n    " + "\n    ".join(wanted) + "\n  and printed:\n    " + "\n    ".join(printed))
            wanted = printed
        shown += [*line.splitlines(), *wanted, *space]
    return shown, faults


@contextlib.contextmanager
def place(page):
    """The folder in which a page's commands are run."""
    with tempfile.TemporaryDirectory(prefix="overlane-page-") as folder:
        folder = pathlib.Path(folder)
        if page == README:
            shutil.copytree(HERE, folder / "docs", ignore=shutil.ignore_patterns("*.md", "__pycache__"))
        else:
            shutil.copytree(HERE / "examples", folder, dirs_exist_ok=True)
        yield folder


def play(page, binary, update):
    text = (HERE / page).read_text()
    out, faults = [], []
    with place(page) as folder:
        session = Session(binary, folder)
        try:
            left_out = False
            for part in re.split(r"(^```\S.*?^```\n)", text, flags=re.M | re.S):
                head, _, rest = part.partition("\n")
                kind, _, name = head.removeprefix("```").partition(" ")
                if not head.startswith("```"):
                    out.append(part)
                    left_out = bool(re.search(r"<!-- not run: .* -->\s*$", part))
                    for command, text in re.findall(r"<!-- \$ (.*?)(?: & until (.*?))? -->", part):
                        hidden = [f"$ {command} &", "…", f"…{text}…", "…"] if text else [f"$ {command}"]
                        faults += converse(session, hidden)[1]
                elif left_out:
                    out.append(part)
                elif kind == "console":
                    shown, wrong = converse(session, list(iter(rest.splitlines()[:-1])))
                    faults += wrong
                    out.append("```console\n" + "".join(f"{line}\n" for line in shown) + "```\n")
                else:
                    if name:
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        (folder / name).write_text(rest.removesuffix("```\n"))
                    out.append(part)
        finally:
            session.end_all()
    if update:
        (HERE / page).write_text("".join(out))
    elif faults:
        raise Failed(f"docs/{page}:\n" + "\n".join(faults))


def network():
    """What begins a command in a network of its own, where the machine lets us."""
    up = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    for unshare in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*unshare, *up, "true"], stderr=subprocess.DEVNULL).returncode == 0:
            return [*unshare, *up]
    print("no network of its own can be had here: the ports of the pages have to be free", file=sys.stderr)
    return []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"of {', '.join(PAGES)}")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    binary = options.binary.resolve()
    if binary.name != "overlane" or not binary.is_file():
        parser.error(f"{options.binary} is to be the program `overlane`: cargo build -p overlane")
    if options.inside:
        try:
            play(options.pages[0], binary, options.update)
        except Failed as failed:
            sys.exit(str(failed))
        return
    within = network()
    again = ["--update"] if options.update else []
    failed = [page for page in options.pages or PAGES
              if subprocess.run([*within, sys.executable, __file__, binary, page, "--inside", *again]).returncode]
    if failed:
        sys.exit(f"{', '.join(failed)}: not as they say (`--update` writes what was printed)")
    print(f"every command prints what is said: {', '.join(options.pages or PAGES)}")


if __name__ == "__main__":
    main()
