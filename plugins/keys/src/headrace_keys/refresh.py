"""Keeping the keys in memory like those in the database, while the gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import PluginError

from .ring import KeyRing
from .store import Store

if TYPE_CHECKING:
    from . import Plugin

logger = logging.getLogger("headrace.keys")

POLL_WAIT_SECONDS = 0.2
"""How long one look at the database waits for a lock; the next look comes soon anyway."""
SURE_NS = 3_000_000_000
"""Age at which a file's time of change tells: some file systems count in steps of two seconds."""


class Stamp(NamedTuple):
    """What changes of a file with its content."""

    device: int
    inode: int
    size: int
    modified_ns: int


@contextlib.asynccontextmanager
async def refreshing(plugin: Plugin) -> AsyncIterator[None]:
    """Read the keys, and read them again whenever they change, until the context is left.

    Raises:
        PluginError: the database cannot be used at the start. Later on, the keys read last stay in force.
    """
    await asyncio.to_thread(plugin.ensure_development_key)
    mirror = Mirror(plugin.database, plugin.ring, development=plugin.config.development_key)
    await asyncio.to_thread(mirror.look)
    stop = asyncio.Event()
    task = asyncio.create_task(_watch(mirror, plugin.config.refresh_seconds, stop), name="headrace-keys-refresh")
    try:
        yield
    finally:
        stop.set()  # not cancelled: a look that is under way in its thread still uses the connection
        await task
        mirror.close()


async def _watch(mirror: Mirror, seconds: float, stop: asyncio.Event) -> None:
    failed: str | None = None
    while not await _is_set_within(stop, seconds):
        if mirror.is_unchanged():
            continue
        try:
            await asyncio.to_thread(mirror.look)
        except Exception as error:  # whatever it is, looking must go on: else no key could be revoked any more
            if failed is None:
                logger.error("the keys cannot be read again; those read last stay in force: %s", error)
            failed = str(error)
        else:
            if failed is not None:
                logger.warning("the keys can be read again")
            failed = None


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class Mirror:
    """Copies the database into a KeyRing. Blocks on the disk; for one thread at a time."""

    def __init__(self, path: Path, ring: KeyRing, *, development: bool) -> None:
        self._path = path
        self._ring = ring
        self._development = development
        self._store: Store | None = None
        self._file: tuple[int, int] | None = None
        self._seen: int | None = None
        self._stamps: tuple[Stamp | None, ...] = ()

    def is_unchanged(self) -> bool:
        """Whether the files are those of the last look, and old enough for their times to be told apart from now's.

        Asks the file system alone, and so needs no thread.
        """
        stamps = self._stamps_now()
        if self._store is None or stamps[0] is None or stamps != self._stamps:
            return False
        newest = max(stamp.modified_ns for stamp in stamps if stamp is not None)
        return time.time_ns() - newest > SURE_NS

    def _stamps_now(self) -> tuple[Stamp | None, ...]:
        return tuple(_stamp(path) for path in (self._path, self._path.with_name(self._path.name + "-wal")))

    def look(self) -> None:
        """Copy the keys if they have changed, also when the whole file was put in place of another.

        Raises:
            PluginError: the database cannot be read; the ring is as it was, and the next look starts afresh.
        """
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        stamps = self._stamps_now()  # before anything is read
        store = self._current_store()
        seen = store.version()  # before the rows: a change in between is found by the next look
        if seen != self._seen:
            self._ring.replace(store.records(), development=self._development)
            self._seen = seen
        self._stamps = stamps

    def _current_store(self) -> Store:
        file = _identity(self._path)
        if file is None and self._file is not None:
            raise PluginError("keys", f"{self._path} is gone: put it back, or restart to begin with an empty one")
        if self._store is None or file != self._file:
            self.close()
            self._store = Store.open(self._path, POLL_WAIT_SECONDS)
            self._file = _identity(self._path)
        return self._store

    def close(self) -> None:
        store, self._store, self._seen = self._store, None, None
        if store is not None:
            store.close()


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
