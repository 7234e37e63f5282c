"""The packages of the peers: installed once, as long as what is pinned stays the same."""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys


def cache(name):
    """The folder of a check's packages, beside the build."""
    target = os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).parents[2] / "target")
    folder = pathlib.Path(target).resolve() / "peers" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def of_browser(about):
    """The command line of a check that looks through a browser: the binary, and which Chromium."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    return parser


def expect(packages, *tools):
    """Ends with what to install where one of the programs is not here."""
    for tool in tools:
        if not tool or not shutil.which(tool):
            sys.exit(f"{tool or 'chromium'} is not here: apt install {packages}")


def fingerprint(*files):
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run(command, folder, seconds=900):
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}")


def fresh(folder, pinned):
    """Empties the folder unless it was filled from these files; true where it is to be filled."""
    mark = folder / "installed"
    if mark.exists() and mark.read_text() == fingerprint(*pinned):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return True


def python(cache, requirements):
    """The folder of the programs of an environment with these requirements."""
    folder = cache / "python"
    if fresh(folder, [requirements]):
        run([sys.executable, "-m", "venv", folder], cache)
        run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "-r", requirements], cache)
        run([folder / "bin/python", "-m", "pip", "check"], cache)
        (folder / "installed").write_text(fingerprint(requirements))
    return folder / "bin"


def modules(cache, pinned):
    """The folder of an environment with the modules that the package.json and package-lock.json of a folder pin."""
    folder, pinned = cache / "node", [pinned / name for name in ("package.json", "package-lock.json")]
    if fresh(folder, pinned):
        for file in pinned:
            shutil.copy(file, folder)
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
        (folder / "installed").write_text(fingerprint(*pinned))
    return folder


def node(cache, program):
    """A copy of the program, with its modules: they are looked for beside the file that wants them."""
    return pathlib.Path(shutil.copy(program, modules(cache, program.parent)))
