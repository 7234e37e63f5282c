"""What is read of a process, and what is made of many figures."""

import os
import pathlib
import platform
import re
import urllib.request


def family(pid):
    """A process and its children."""
    return [pid, *map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def cpu(pid):
    """Seconds that a process has computed until now, in user space and in the kernel."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid, field="VmRSS"):
    """What a process holds, in MiB: `VmRSS` now, `VmHWM` at most, `RssAnon` without the pages of files. 0 where it has ended."""
    found = re.search(rf"^{field}:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(found[1]) / 1024 if found else 0.0


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def percentile(values, share):
    """The value that this share of them does not exceed; not a number where there are none."""
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def metric(admin, series):
    """What `/metrics` says of a series, which is named with its labels; 0 where it does not. OSError where nobody answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=10) as answer:
        found = re.search(rf"^{re.escape(series)} (\S+)$", answer.read().decode(), re.M)
        return float(found[1]) if found else 0.0


def processor():
    """The model of this machine's processor."""
    return next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")), platform.machine())


def put_into(page, begin, end, text):
    """Replaces what stands between two marks of a page."""
    head, rest = page.read_text().split(begin, 1)
    page.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}")
