"""The packages of the applications: installed once, as long as what is pinned stays the same."""

import hashlib
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def fingerprint(*files):
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run(command, folder):
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", timeout=900)
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


def python(cache):
    """The folder of the programs of an environment with `requirements.txt`."""
    folder, pinned = cache / "python", HERE / "python/requirements.txt"
    if fresh(folder, [pinned]):
        run([sys.executable, "-m", "venv", folder], cache)
        run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "-r", pinned], cache)
        run([folder / "bin/python", "-m", "pip", "check"], cache)
        (folder / "installed").write_text(fingerprint(pinned))
    return folder / "bin"


def node(cache):
    """A copy of `node/` with its modules: they are looked for beside the file that wants them."""
    folder, pinned = cache / "node", [HERE / "node" / name for name in ("package.json", "package-lock.json")]
    if fresh(folder, pinned):
        for file in pinned:
            shutil.copy(file, folder)
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
        (folder / "installed").write_text(fingerprint(*pinned))
    shutil.copy(HERE / "node/api.js", folder)
    return folder
