"""Processes of the tests: what is installed, what runs, what is left of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"
START_SECONDS = 60.0

TOOLS = {
    "nginx": (("nginx",),),
    "node": (("node",), ("npm",)),
    "chromium": (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)),
    "curl": (("curl",),),
}
"""Programs these tests need: of each group, any one."""
SKIPPED = frozenset(filter(None, os.environ.get("HEADRACE_TEST_SKIP", "").split(",")))


def find(program: str) -> str | None:
    return shutil.which(program, path=PATH)


def need(tool: str) -> list[str]:
    """The paths of a tool's programs. Fails if one is missing, unless HEADRACE_TEST_SKIP names the tool."""
    if tool in SKIPPED:
        pytest.skip(f"HEADRACE_TEST_SKIP names {tool}")
    found = [next(filter(None, map(find, names)), None) for names in TOOLS[tool]]
    missing = [names[0] for names, path in zip(TOOLS[tool], found, strict=True) if path is None]
    if missing:
        pytest.fail(f"this test needs {' and '.join(missing)}: install it, or set HEADRACE_TEST_SKIP={tool}")
    return [path for path in found if path is not None]


def until(condition: Callable[[], Any], what: str = "it", seconds: float = 30.0) -> Any:
    """Ask until it is true; returns what it said."""
    end = time.monotonic() + seconds
    while not (said := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.002)
    return said


def process_tree(root: int) -> dict[int, str]:
    """A process and all its descendants: pid → when it started, so that a reused pid is not taken for the old one."""
    parents: dict[int, list[int]] = {}
    started = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX":
                parents.setdefault(int(fields[1]), []).append(int(folder.name))
                started[int(folder.name)] = fields[19]
    found, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        if pid in started:
            found[pid] = started[pid]
        waiting += parents.get(pid, ())
    return found


def still_there(tree: Mapping[int, str]) -> list[int]:
    """Which processes of a tree seen earlier live on."""
    return [pid for pid, when in tree.items() if process_tree(pid).get(pid) == when]


class Launched:
    """A `headrace` process: its lines on stdout, its stderr, its end."""

    def __init__(
        self, folder: Path, arguments: Iterable[str], environment: Mapping[str, str], python: Path | str
    ) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self.stderr_file = folder / "stderr.txt"
        self.started = time.perf_counter()
        with self.stderr_file.open("w") as stderr:
            self.child = subprocess.Popen(
                [str(python), "-m", "headrace", *arguments],
                cwd=folder,
                env={**kept, "PATH": PATH, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.stdout: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.stdout.append(line.rstrip("\n"))

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text()

    def first_line(self) -> str:
        """The first line on stdout, once it is there."""
        until(lambda: self.stdout or self.child.poll() is not None, "the READY line", START_SECONDS)
        assert self.stdout, f"exit status {self.child.poll()}, stderr:\n{self.stderr}"
        return self.stdout[0]

    def ready(self) -> dict[str, str]:
        """The fields of the READY line."""
        word, *fields = self.first_line().split(" ")
        assert word == "READY", self.first_line()
        return dict(field.split("=", 1) for field in fields)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it, unless it has ended, and wait; returns the exit status."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            return self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise
        finally:
            self._reader.join(30)
            assert self.child.stdout is not None
            self.child.stdout.close()
