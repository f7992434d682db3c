"""Having a running gateway take over its configuration anew: `headrace reload`, and SIGHUP to `headrace up`.

The core comes first, worker by worker, then what stands in front of it: nothing is asked of the core that it does not
know yet. What cannot be used is found before anything has changed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from .engines import refuse_orphans
from .errors import HeadraceError
from .gateway import Gateway
from .sockets import is_held, lock_of
from .tenure import Told, digest, told_file
from .timelimit import in_thread

WAIT_SECONDS = 60.0
"""For one worker to take over: its plugins may have to connect to something."""
POLL_SECONDS = 0.01
LOOK_SECONDS = 1.0
"""How often a file is looked at that may change."""


async def reload(path: Path, say: Callable[[str], None]) -> None:
    """Have the processes of the gateway that a file configures take over what it says now.

    Raises:
        ConfigError, PluginError: it cannot be used; all goes on as before.
        HeadraceError: no gateway runs here, or a worker refuses: which, and what has changed already.
    """
    try:
        gateway = await in_thread(lambda: Gateway.from_file(path).assemble(), WAIT_SECONDS)
    except TimeoutError:
        raise HeadraceError(f"{path} could not be read, with all its plugins, within {WAIT_SECONDS:g} s") from None
    running = _running(gateway)
    if not running:
        raise HeadraceError(f"no gateway runs in {gateway.state_dir}: start one with headrace up")
    await asyncio.to_thread(gateway.hooks.setup, "check_reload", gateway)
    refuse_orphans(gateway)
    text = digest(path)
    for count, (worker, pid) in enumerate(running.items()):
        told = await _have_reloaded(gateway, worker, pid, text)
        if not told.ok:
            after = f" ({count} of {len(running)} workers had taken it over already)" if count else ""
            raise HeadraceError("\n".join((f"worker {worker} refuses the configuration{after}:", *told.problems)))
    await asyncio.to_thread(gateway.hooks.setup, "reload", gateway)
    say(f"{path}: taken over by {len(running)} process{'es' * (len(running) != 1)}")


async def on_change(path: Path, work: Callable[[], Awaitable[object]], seconds: float = LOOK_SECONDS) -> None:
    """Do this work whenever a file has changed, and has then been the same for one look."""
    worked = before = _stamp(path)
    while True:
        await asyncio.sleep(seconds)
        now = _stamp(path)
        if now is not None and now == before != worked:
            worked = now
            await work()
        before = now


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """By what a file is told from what it was; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _running(gateway: Gateway) -> dict[int, int]:
    """The process id of each worker that runs, by its number. Raises HeadraceError: one cannot be asked yet."""
    found = {}
    for worker in range(gateway.config.server.workers):
        if not is_held(lock_of(gateway.core_sockets[worker])):
            continue  # what may lie there is a dead one's, and its process id somebody else's by now
        try:
            found[worker] = read(told_file(gateway.runtime_dir, worker)).pid
        except (OSError, msgspec.MsgspecError):
            raise HeadraceError(f"worker {worker} is starting or stopping: try again in a moment") from None
    return found


def read(path: Path) -> Told:
    """What a worker has said last. Raises OSError, msgspec.MsgspecError."""
    return msgspec.json.decode(path.read_bytes(), type=Told)


async def _have_reloaded(gateway: Gateway, worker: int, pid: int, text: str) -> Told:
    """Signal one worker and wait for what it says: it may be at work on an earlier text. Raises HeadraceError."""
    path = told_file(gateway.runtime_dir, worker)
    try:
        before = read(path).number
        os.kill(pid, signal.SIGHUP)
        until = time.monotonic() + WAIT_SECONDS
        while (told := read(path)).number == before or (told.read != text and told.number < before + 2):
            if time.monotonic() > until:
                raise HeadraceError(
                    f"worker {worker} (process {pid}) did not say within {WAIT_SECONDS:g} s how it went"
                )
            await asyncio.sleep(POLL_SECONDS)
    except (OSError, msgspec.MsgspecError) as error:
        raise HeadraceError(f"worker {worker} (process {pid}) ended meanwhile: {error}") from error
    return told
