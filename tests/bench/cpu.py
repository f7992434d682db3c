"""What a process and all its children cost: CPU time, memory. Linux only: it reads /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """A line of /proc/PID/stat, as far as it matters here."""

    pid: int
    parent: int
    own: float
    """CPU seconds, user and system, in units of `TICK`."""
    children: float
    """CPU seconds of children that ended and were waited for, theirs included."""
    started: int
    resident: int
    """Bytes."""


def processes() -> Iterator[Process]:
    """Every process that is alive."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            process = _process(int(folder.name), (folder / "stat").read_text())
            if process is not None:
                yield process


def _process(pid: int, line: str) -> Process | None:
    state, *fields = line.rpartition(")")[2].split()
    if state in "ZX":
        return None
    ticks = [int(field) for field in fields[10:14]]
    return Process(
        pid, int(fields[0]), sum(ticks[:2]) * TICK, sum(ticks[2:]) * TICK, int(fields[18]), int(fields[20]) * PAGE
    )


def tree(root: int) -> list[Process]:
    """A process and its descendants."""
    alive = {process.pid: process for process in processes()}
    children: dict[int, list[int]] = {}
    for process in alive.values():
        children.setdefault(process.parent, []).append(process.pid)
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        if pid in alive:
            found.append(alive[pid])
        waiting += children.get(pid, ())
    return found


def seconds(root: int) -> float:
    """CPU seconds, user and system, of a process and its descendants, those that ended included.

    Only the time of a process whose parent ended without waiting for it is lost.
    """
    return sum(_precise(process) + process.children for process in tree(root))


def _precise(process: Process) -> float:
    """The kernel's own clock of a process in nanoseconds (`clock_getcpuclockid`), where it can be read."""
    try:
        return time.clock_gettime(~process.pid << 3 | 2)
    except OSError:
        return process.own


def resident(root: int) -> int:
    """Bytes of memory resident in a process and its descendants; pages they share count for each."""
    return sum(process.resident for process in tree(root))


class Members(NamedTuple):
    """The pids of a running `headrace up` that do the work, by what they are."""

    core: tuple[int, ...]
    nginx: tuple[int, ...]
    """Master and workers."""


def members(root: int) -> Members:
    """Who is who in a process tree, by the command lines."""
    found = {process.pid: _command(process.pid) for process in tree(root)}
    core = (pid for pid, words in found.items() if "headrace" in words and "serve" in words)
    nginx = (pid for pid, words in found.items() if words and words[0].startswith("nginx: "))
    return Members(tuple(sorted(core)), tuple(sorted(nginx)))


def _command(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    return []


def seconds_of(pids: Iterable[int]) -> float:
    """CPU seconds of these processes alone."""
    return sum(_precise(process) for process in map(_alive, pids))


def resident_of(pids: Iterable[int]) -> int:
    """Bytes resident in these processes; pages they share count for each."""
    return sum(process.resident for process in map(_alive, pids))


def _alive(pid: int) -> Process:
    """Raises ProcessLookupError."""
    with contextlib.suppress(OSError):
        process = _process(pid, Path(f"/proc/{pid}/stat").read_text())
        if process is not None:
            return process
    raise ProcessLookupError(f"process {pid} has ended")


def end(child: subprocess.Popen[bytes], patience: float = 30.0) -> None:
    """End a process and whatever it leaves behind."""
    family = {process.pid: process for process in tree(child.pid)} if child.poll() is None else {}
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        child.terminate()
        child.wait(patience)
    for pid in _left(family):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait(patience)


def _left(family: Mapping[int, Process]) -> list[int]:
    """Those of a family seen earlier that still live, and are not others with the same number."""
    return [each.pid for each in processes() if each.pid in family and each.started == family[each.pid].started]
