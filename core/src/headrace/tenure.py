"""The gateways of one process: the one that answers, and those before it that still have requests to finish.

A request is answered from its beginning to its end by the gateway that was at work when it came: it sees one
configuration, whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import msgspec
import uvicorn

from .app import build_app
from .audit import Act, operator, record_in_thread
from .choice import forget_ways
from .config import ServerConfig
from .errors import ConfigError, HeadraceError, Problem
from .gateway import Gateway
from .timelimit import in_thread

logger = logging.getLogger("headrace.reload")

FIXED = ("listen", "state_dir", "workers", "max_header_bytes")
"""Keys of `[server]` that a running process cannot take over."""


END_SECONDS = 30.0
"""For plugins to close what they have opened, when the process ends."""


class Told(msgspec.Struct):
    """What a process says of itself and its last reload, in a file that whoever asked for it reads."""

    pid: int
    number: int = 0
    """Counts the reloads that were asked for, refused ones as well."""
    ok: bool = True
    problems: list[str] = []
    read: str = ""
    """Which text it has read last, as `digest` says."""


def digest(path: Path) -> str:
    """By what the text of a file is told from any other; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def told_file(runtime_dir: Path, worker: int) -> Path:
    """Where a worker says how its last reload went."""
    return runtime_dir / f"reload-{worker}.json"


class Tenure:
    """The work of one gateway, from its plugins' start to their end, in one task."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._ends = asyncio.Event()
        self._at_once = False
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run(), name="headrace-gateway")

    async def begun(self) -> None:
        """Wait until it works. Raises what keeps it from that."""
        try:
            await self._begun
        except BaseException:
            await asyncio.wait((self.task,))
            raise

    def end(self, *, at_once: bool = False) -> None:
        """From now on it gets no requests; those it has are finished first, unless `at_once`."""
        self._at_once = at_once
        if at_once and self.gateway.emptied is not None:
            self.gateway.emptied.set()
        self._ends.set()

    async def _run(self) -> None:
        try:
            async with self.gateway.running():
                self._begun.set_result(None)
                await self._ends.wait()
                if not self._at_once:
                    await emptied(self.gateway)
        except Exception as error:
            if self._begun.done():
                raise
            self._begun.set_exception(error)


class Tenures:
    """Runs one gateway after the other.

    Args:
        first: the gateway to begin with.
        path: its configuration file; None if there is none to be read again.
        config: uvicorn's, whose application is replaced.
    """

    def __init__(self, first: Gateway, path: Path | None, config: uvicorn.Config) -> None:
        self._path, self._config = path, config
        self._first = first
        self._reloading = asyncio.Lock()
        self._told = Told(os.getpid())
        self._old: list[Tenure] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """For as long as the process serves. Raises PluginError."""
        self._told_file.unlink(missing_ok=True)
        self.current = Tenure(self._first)
        await self.current.begun()
        try:
            yield
        finally:
            self._told_file.unlink(missing_ok=True)
            await self._end()

    async def _end(self) -> None:
        """End all of them, whatever the plugins of one do at their end."""
        tenures = (*self._old, self.current)
        for tenure in tenures:
            tenure.end(at_once=True)
        _, late = await asyncio.wait([tenure.task for tenure in tenures], timeout=END_SECONDS)
        for task in late:
            logger.error("a plugin did not end within %g s", END_SECONDS)
            task.cancel()
        if self.current.task not in late:
            await self.current.task

    @property
    def _told_file(self) -> Path:
        return told_file(self._first.runtime_dir, self._first.worker)

    async def reload(self) -> Told:
        """Read the configuration again, and have new requests answered by it. If it cannot be used all stays as it
        was, and is told in the log."""
        async with self._reloading:
            read = digest(self._path) if self._path is not None else ""
            problems = await self._problems()
            self._told = Told(self._told.pid, self._told.number + 1, not problems, problems, read)
            await self._note(self._told)
            self.tell()
        for problem in problems:
            logger.error("the configuration is not taken over: %s", problem)
        return self._told

    async def _note(self, told: Told) -> None:
        """For the audit log, which text is in force from now on, or was refused. Who wanted it is not known here."""
        why = f"sha256 {told.read}" if told.ok else "; ".join(told.problems)
        result: Literal["done", "refused"] = "done" if told.ok else "refused"
        act = Act(action="reload", about=str(self._path), by="process", id=operator(), result=result, message=why)
        await record_in_thread(self.current.gateway, act)

    async def _problems(self) -> list[str]:
        """What keeps the configuration from being taken over; none: it was."""
        try:
            await self._replace()
        except ConfigError as error:
            return [str(problem) for problem in error.problems]
        except HeadraceError as error:
            return [str(error)]
        except Exception as error:  # a plugin's own
            return [f"{type(error).__name__}: {error}"]
        return []

    def tell(self) -> None:
        """Say that this process can be asked to reload, and how the last time went."""
        new = self._told_file.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(self._told))
            new.replace(self._told_file)
        except OSError as error:
            logger.error("%s cannot be written, so headrace reload will not know: %s", self._told_file, error)

    async def _replace(self) -> None:
        """Raises HeadraceError: the new one cannot work, or not in this process."""
        if self._path is None:
            raise HeadraceError("there is no file to read the configuration from")
        before = self.current
        server, path = before.gateway.config.server, self._path
        seconds = server.startup_timeout * (1 + len(before.gateway.plugins))
        try:
            gateway = await in_thread(lambda: _made(path, before.gateway), seconds)
        except TimeoutError:
            raise HeadraceError(f"{path} could not be read, with all its plugins, within {seconds:g} s") from None
        check_fixed(before.gateway.config.server, gateway.config.server, gateway.source)
        app = build_app(gateway)
        after = Tenure(gateway)
        await after.begun()
        gateway.foundation.serve(gateway)
        self.current, self._config.loaded_app = after, app
        self._config.timeout_graceful_shutdown = int(gateway.config.server.shutdown_timeout)
        before.gateway.superseded.set()
        self._old.append(before)
        before.task.add_done_callback(lambda _: self._gone(before))
        before.end()

    def _gone(self, tenure: Tenure) -> None:
        """The last request of a gateway has ended, and its plugins with it."""
        self._old.remove(tenure)
        if not tenure.task.cancelled() and (error := tenure.task.exception()) is not None:
            logger.error("the end of a configuration: %s: %s", type(error).__name__, error)
        forget_ways()
        gc.collect()  # plugins and gateway know each other


async def emptied(gateway: Gateway) -> None:
    """Wait until a gateway that gets no new requests has finished those it has."""
    for _ in range(3):
        await asyncio.sleep(0)  # requests that were given to it and have not begun
    gateway.emptied = asyncio.Event()
    if gateway.open_requests:
        await gateway.emptied.wait()


def _made(path: Path, before: Gateway) -> Gateway:
    return Gateway.from_file(path, before).assemble()


def check_fixed(before: ServerConfig, after: ServerConfig, source: str) -> None:
    """Raises ConfigError: something has changed that needs a restart."""
    changed = [name for name in FIXED if getattr(before, name) != getattr(after, name)]
    if changed:
        raise ConfigError(
            [Problem(f"{source}: [server] {name}", "has changed: restart the gateway for that") for name in changed]
        )
