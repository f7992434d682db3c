"""Inference engines as processes: what their launchers share. Each runs under a keeper: see `keeper.py`."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import keeper
from .keeper import STARTED, SWEEP_SECONDS, TICK_SECONDS, trouble_at

if TYPE_CHECKING:
    from .gateway import Gateway
    from .supervisor import Process

LINE_LENGTH = 1000
"""Of a longer line the rest is not looked at."""
TAIL_BYTES = 262_144
"""So much of a log's end is looked at."""
QUIET_SECONDS = 30.0
"""After so long without anything new the last word is repeated."""
RECORD = "-engines.json"
"""How the names of files end that tell what a plugin's engines were started with."""
BACKOFF = (0.5, 2.0, 10.0, 30.0, 60.0, 300.0)
"""Seconds before each restart in a row: a start is costly, and what did not fit into a GPU may not yet."""


def keeper_argv(argv: Sequence[str], log: Path, *, limit: int, grace: float, listen: str) -> list[str]:
    """How to start an engine under a keeper: `listen` (`HOST:PORT`) must be free then."""
    options = (f"--log={log}", f"--limit={limit}", f"--grace={grace:g}", f"--listen={listen}")
    return [sys.executable, "-I", "-S", keeper.__file__, *options, "--", *argv]


def engine_process(
    name: str, argv: Sequence[str], *, log: Path, listen: str, milestones: Patterns, causes: Patterns, **options: Any
) -> Process:
    """An engine under its keeper, ready once `/health` at `listen` (`HOST:PORT`) is answered with 200.

    Args:
        milestones: what its log tells of its start.
        causes: what its log tells of its end.
        options: `limit`, the log's size in bytes; `grace`, seconds from SIGTERM to SIGKILL; others are `Process`'s.
    """
    from .supervisor import Process

    limit, grace = options.pop("limit"), options.pop("grace")
    host, _, port = listen.rpartition(":")
    return Process(
        name=name,
        argv=keeper_argv(argv, log, limit=limit, grace=grace, listen=listen),
        ready=lambda: is_ready(local(host), int(port)),
        progress=Progress(log, milestones),
        why=lambda status: reason(log, status, causes),
        backoff=BACKOFF,
        stop_timeout=grace + SWEEP_SECONDS + TICK_SECONDS,
        **options,
    )


def local(host: str) -> str:
    """The address by which this machine reaches what listens at `host`."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))  # noqa: S104


# --- what the log tells ---------------------------------------------------------------------------------------------


Patterns = Sequence[tuple[re.Pattern[str], str]]
"""What stands in a log, and what to say of it: `{0}`, `{1}` … are the pattern's groups."""


class Progress:
    """What an engine's log tells of its start, in few lines: each kind of news once, and its numbers now and then.

    Args:
        path: the log.
        milestones: what is told, in the order of precedence.
        seconds: how long after it something of the same kind is told again.
    """

    def __init__(
        self, path: Path, milestones: Patterns, *, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._milestones, self._seconds, self._clock = path, milestones, seconds, clock
        self._at = _size(path)
        self._inode = 0
        self._rest = ""
        self._begin()

    def _begin(self) -> None:
        self._began = self._changed = self._clock()
        self._told: dict[str, float] = {}
        self._last = self._pending = ""

    def __call__(self) -> list[str]:
        """What there is to say now."""
        *lines, self._rest = re.split(r"[\r\n]", self._rest + self._more())
        self._rest = self._rest[-LINE_LENGTH:]
        told = [said for line in lines if (said := self._read(line[:LINE_LENGTH]))]
        now = self._clock()
        if told:
            self._changed = now
        elif now - self._changed > QUIET_SECONDS:
            self._changed = now
            told = [f"{self._pending or self._last or 'starting'} ({now - self._began:.0f} s)"]
        return told

    def _more(self) -> str:
        """What has been written since; of very much, the end."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._at:
                    self._at = min(self._at, found.st_size) if self._inode == 0 else 0
                    self._inode = found.st_ino
                file.seek(max(self._at, found.st_size - TAIL_BYTES))
                data = file.read()
                self._at = file.tell()
        except OSError:
            return ""
        return data.decode(errors="replace")

    def _read(self, line: str) -> str:
        """What to say of a line, if anything."""
        if line.startswith(STARTED):
            self._begin()
            return ""
        for pattern, words in self._milestones:
            found = pattern.search(line)
            if found is not None:
                self._pending = words.format(*found.groups())
                if self._pending == self._last or self._clock() - self._told.get(words, -1e9) < self._seconds:
                    return ""
                self._told[words] = self._clock()
                self._last = self._pending
                return self._last
        return ""


def reason(path: Path, status: int | None, causes: Patterns) -> str:
    """Why an engine has ended, and what to do, in one line; empty if its log does not tell.

    Args:
        status: its exit status as its keeper gives it; None if it was not ready in time.
        causes: what may stand in the log, what is most telling first.
    """
    if status in (128 + signal.SIGKILL, -signal.SIGKILL):
        text = "killed (SIGKILL), most often by the kernel for want of memory: see `dmesg`, and give it less to hold"
    elif status in (128 + signal.SIGSEGV, 128 + signal.SIGABRT, 128 + signal.SIGBUS, 128 + signal.SIGILL):
        text = f"crashed ({signal.Signals(status - 128).name})"
    else:
        text = next(_found_in(last_run(path), causes), "")
    return f"{text}; log: {path}" if text else f"log: {path}"


def _found_in(log: str, causes: Patterns) -> Iterator[str]:
    for pattern, words in causes:
        found = pattern.search(log)
        if found is not None:
            yield words.format(*(" ".join((each or "").split()) for each in found.groups()))


def last_run(path: Path) -> str:
    """What an engine has said since it was last started, or the end of it; of long lines, their beginning."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, _size(path) - TAIL_BYTES))
            text = file.read().decode(errors="replace").rpartition(STARTED)[2]
    except OSError:
        return ""
    return "\n".join(line[:LINE_LENGTH] for line in text.splitlines())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


async def is_ready(host: str, port: int, path: str = "/health", seconds: float = 2.0) -> bool:
    """Whether an engine answers a GET with 200."""
    import asyncio

    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                return (await reader.readline()).split(b" ")[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


# --- what runs ------------------------------------------------------------------------------------------------------


def note_running(gateway: Gateway, plugin: str, engines: Mapping[str, str]) -> None:
    """Keep what a plugin's engines are started with (any text that differs where they do), for `refuse_changes`."""
    import msgspec

    path = _record(gateway, plugin)
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.encode(engines))


def refuse_changes(gateway: Gateway, plugin: str, engines: Mapping[str, str]) -> None:
    """A reload neither starts nor stops engines. Raises HeadraceError if it would have to."""
    import msgspec

    from .errors import HeadraceError
    from .sockets import is_held

    if not is_held(gateway.runtime_dir / "up.lock"):
        return  # nobody runs engines here: this gateway is `headrace serve`
    try:
        running = msgspec.json.decode(_record(gateway, plugin).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        running = {}
    words = {
        "new": engines.keys() - running.keys(),
        "gone": running.keys() - engines.keys(),
        "changed": {name for name in engines.keys() & running.keys() if engines[name] != running[name]},
    }
    told = ", ".join(f"{name!r} is {word}" for word, names in words.items() for name in sorted(names))
    if told:
        raise HeadraceError(
            f"{gateway.source}: [plugins.{plugin}.engines]: {told}, and a reload neither starts nor stops engines: "
            "restart headrace up for that"
        )


def refuse_orphans(gateway: Gateway) -> None:
    """The same for plugins that the configuration does not have any more. Raises HeadraceError."""
    for record in sorted(gateway.runtime_dir.glob(f"*{RECORD}")):
        plugin = record.name.removesuffix(RECORD)
        if plugin not in gateway.plugins:
            refuse_changes(gateway, plugin, {})


def forget_running(gateway: Gateway) -> None:
    """Nothing runs yet."""
    for record in gateway.runtime_dir.glob(f"*{RECORD}"):
        record.unlink(missing_ok=True)


def _record(gateway: Gateway, plugin: str) -> Path:
    return gateway.runtime_dir / f"{plugin}{RECORD}"


__all__ = [
    "STARTED",
    "Patterns",
    "Progress",
    "engine_process",
    "is_ready",
    "local",
    "note_running",
    "reason",
    "refuse_changes",
    "trouble_at",
]
