#!/usr/bin/env python3
"""Every command of the README and the tutorials is run: what a page shows is what the commands print.

    python3 docs/check.py target/debug/overlane [PAGE…] [--update] [--list]
    python3 docs/check.py --letter "$EPOCHREALTIME"          # the README in this folder, as it stands; .ci/fresh

A page is a session in a folder of its own with the files of docs/examples (the README: with docs/), and, where the machine lets us, in a network of its
own, so that its ports are free. A block ```` ```yaml FILE ```` (or any other language) writes a file. A block ```` ```console ```` has commands (`$ …`) and what they print:
`…` stands for anything in a line, and alone in a line for any lines; durations in ms and names of hops may be others. A command that ends with ` &`, or that serves, goes on beside the others, until the page ends or
`$ kill %N`; what it is to print is waited for. `<!-- $ COMMAND -->` and `<!-- $ COMMAND & until TEXT -->` are run and not shown. `? N` after a command is its exit code, where it is not 0.
`--update` writes what was printed in place of what differs.

What is shown and not run says why: `<!-- not run: WHY -->` is before its block, or `<!-- nothing is run: WHY -->` anywhere in a page; a block of `sh` is never run. Of what is not run, and of
what stands between words, each `overlane …` is asked whether it has such flags. `--list` says what a reader types for each page, what is not run, and why. `--letter BEGAN` builds what the README says, where it says so, and tells how long after that point in time the first request was routed.
"""

import argparse
import contextlib
import os
import pathlib
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
README = "../README.md"
PAGES = [README, "quick-start.md", "kubernetes.md", "ci.md", "browsers.md", "operating.md", *sorted(f"tutorials/{page.name}" for page in (HERE / "tutorials").glob("*.md"))]
# Every page that people follow; decisions tell of their time.
ALL = [README, "../CONTRIBUTING.md", "../examples/shop/README.md",
       *sorted(str(page.relative_to(HERE)) for page in HERE.rglob("*.md") if "decisions" not in page.parts)]
SECONDS = 60
# A build of everything, on a slow machine.
BUILD = 3600
FENCED = re.compile(r"(^```\S.*?^```\n)", re.M | re.S)
NOT_RUN = re.compile(r"<!-- not run: ((?:(?!-->).)*) -->\s*$", re.S)
NOTHING_RUN = re.compile(r"<!-- nothing is run: (.*?) -->", re.S)
# An `overlane …` among other words of a shell; what another program gets from it is no part of it.
SPOKEN = re.compile(r"(?<!-p )(?<![\w./:-])overlane ((?:'[^'\n]*'|\"[^\"\n]*\"|[^|#)&><;\n])+)")
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

    def __init__(self, binary, folder, began=None):
        self.folder, self.beside = folder, []
        # Since when the README is followed to the letter, if it is; then builds take their time.
        self.letter, self.began = began is not None, began
        self.seconds = BUILD if self.letter else SECONDS
        told = re.compile(r"(?i)(.*_proxy|OVERLANE_.*|RUST_LOG)")
        # People see no progress of curl's on a terminal, and we do not have one.
        (folder / ".curlrc").write_text("silent\nshow-error\n")
        self.variables = {name: value for name, value in os.environ.items() if not told.fullmatch(name)} | {
            "PATH": f"{binary.parent}:{os.environ['PATH']}", "NO_COLOR": "1", "HOME": str(folder)}

    def told(self, command):
        """A command as it is run: what cargo would build is there already, but to the letter."""
        return command if self.letter else command.replace("cargo run --release --", "overlane")

    def routed(self, command):
        """Tells when the first request was answered, where somebody counts from the beginning."""
        if self.began is not None and command.startswith("curl "):
            print(f"the first routed request: {time.time() - self.began:.1f} s from the beginning", flush=True)
            self.began = None

    def run(self, command):
        """What a command prints, line by line, with its exit code first where that is not 0."""
        if kill := re.fullmatch(r"kill %(\d+)", command):
            self.end(self.beside[int(kill[1]) - 1])
            return []
        if export := re.fullmatch(r"export (\w+)=(\S*)", command):
            self.variables[export[1]] = export[2]
            return []
        done = subprocess.run(["bash", "-c", self.told(command)], cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=self.seconds)
        if not done.returncode:
            self.routed(command)
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
        until = time.monotonic() + self.seconds
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


def unseen(session, command, text):
    """Runs what is not shown: it says this text at some time, or ends well, whatever it prints."""
    if text:
        return converse(session, [f"$ {command} &", "…", f"…{text}…", "…"])[1]
    printed = session.run(command)
    return [f"$ {command}\n  printed:\n    " + "\n    ".join(printed)] if printed and printed[0].startswith("? ") else []


@contextlib.contextmanager
def place(page, letter):
    """The folder in which a page's commands are run."""
    if letter:
        yield HERE.parent
        return
    with tempfile.TemporaryDirectory(prefix="overlane-page-") as folder:
        folder = pathlib.Path(folder)
        if page == README:
            shutil.copytree(HERE, folder / "docs", ignore=shutil.ignore_patterns("*.md", "__pycache__"))
        else:
            shutil.copytree(HERE / "examples", folder, dirs_exist_ok=True)
            shutil.copy(HERE / "cluster.py", folder)
        yield folder


def play(page, binary, update, began=None):
    text = (HERE / page).read_text()
    out, faults = [], []
    with place(page, began is not None) as folder:
        session = Session(binary, folder, began)
        try:
            left_out = False
            for part in re.split(FENCED, text):
                head, _, rest = part.partition("\n")
                kind, _, name = head.removeprefix("```").partition(" ")
                if not head.startswith("```"):
                    out.append(part)
                    left_out = bool(NOT_RUN.search(part))
                    for command, text in re.findall(r"<!-- \$ (.*?)(?: & until (.*?))? -->", part):
                        faults += unseen(session, command, text)
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


def listed(kind, body):
    """The commands of a block."""
    if kind == "console":
        return [command.removeprefix("$ ") for command, _ in commands(body.splitlines())]
    lines = re.sub(r"\\\n\s*", "", body).splitlines() if kind == "sh" else []
    return [line for line in lines if line.strip() and not line.startswith("#")]


def account(page):
    """How many commands of a page are run, and of the others where they are, what they are and why they are not."""
    text, before, played, others = (HERE / page).read_text(), "", 0, []
    whole = NOTHING_RUN.search(text)
    for part in re.split(FENCED, text):
        head, _, rest = part.partition("\n")
        kind = head.removeprefix("```").partition(" ")[0] if head.startswith("```") else ""
        found = listed(kind, rest.removesuffix("```\n"))
        why = NOT_RUN.search(before) or whole
        if kind == "console" and page in PAGES and not why:
            played += len(found)
        elif found:
            others.append((before.count("\n") + 1, found, " ".join(why[1].split()) if why else None))
        before += part
    return played, others


def words_of(command):
    """The words of an `overlane …`, without what it starts and what stands for anything."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    words = words[:words.index("--")] if "--" in words else words
    return [word.removeprefix("[").removesuffix("]") for word in words if "…" not in word]


def unknown(binary, command):
    """What the program does not know of a command, which is not run."""
    words = words_of(command)
    if not words:
        return None
    done = subprocess.run([binary, *words, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    told = re.search(r"error: (unexpected argument|unrecognized subcommand) .*", done.stdout) if done.returncode else None
    return f"`overlane {command.strip()}`: {told[0]}" if told else None


def spoken(page, others):
    """Every `overlane …` of a page that is not run: of its blocks, and between words."""
    prose = re.sub(FENCED, "", (HERE / page).read_text())
    inline = [code for code in re.findall(r"`([^`\n]+)`", prose) if code.startswith("overlane ")]
    return {found for line in [*inline, *(command for _, block, _ in others for command in block)] for found in SPOKEN.findall(line)}


def check_others(binary, show):
    """What is not run: whether it says why, and whether its flags are there."""
    faults, all_played, all_others, read = [], 0, 0, set()
    for page in ALL:
        played, others = account(page)
        all_played += played
        all_others += sum(len(block) for _, block, _ in others)
        read |= (said := spoken(page, others))
        faults += [f"docs/{page}:{line}: `{block[0]}` is not run, and nothing says why" for line, block, why in others if not why]
        faults += [f"docs/{page}: {fault}" for fault in (unknown(binary, command) for command in sorted(said)) if fault]
        if show and played:
            files = re.findall(r"^```yaml \S+\n(.*?)^```", (HERE / page).read_text(), re.M | re.S)
            print(f"docs/{page}: {played} commands and {sum(len(file.splitlines()) for file in files)} lines of YAML to type")
        for line, block, why in others if show else []:
            print(f"docs/{page}:{line}: {len(block)} not run: {why}")
    if faults:
        sys.exit("\n".join(faults))
    print(f"{all_played} commands are run; {all_others} are not, and say why (--list); of {len(read)} that are only told the flags are there")


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
    parser.add_argument("binary", type=pathlib.Path, nargs="?", default=HERE.parent / "target/release/overlane")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"of {', '.join(PAGES)}")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--list", action="store_true", help="say what a reader types for each page, what is not run, and why")
    parser.add_argument("--letter", type=float, metavar="BEGAN", help="follow the README as it stands, here")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    binary = options.binary.resolve()
    letter = options.letter is not None
    if binary.name != "overlane" or not (letter or binary.is_file()):
        parser.error(f"{options.binary} is to be the program `overlane`: cargo build -p overlane")
    if options.inside:
        try:
            play(options.pages[0], binary, options.update, options.letter)
        except Failed as failed:
            sys.exit(str(failed))
        return
    if letter:
        options.pages = [README]
    else:
        check_others(binary, options.list)
    if "kubernetes.md" in (options.pages or PAGES) and not shutil.which("kubectl"):
        sys.exit("kubernetes.md wants kubectl (Debian's kubernetes-client)")
    within = network()
    again = (["--update"] if options.update else []) + (["--letter", str(options.letter)] if letter else [])
    failed = [page for page in options.pages or PAGES
              if subprocess.run([*within, sys.executable, __file__, binary, page, "--inside", *again]).returncode]
    if failed:
        sys.exit(f"{', '.join(failed)}: not as they say (`--update` writes what was printed)")
    print(f"every command prints what is said: {', '.join(options.pages or PAGES)}")


if __name__ == "__main__":
    main()
