"""Keeping the keys in memory like those in the database, while the gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from .changes import KEPT_BY
from .mirror import Mirror

if TYPE_CHECKING:
    from . import Plugin

logger = logging.getLogger("headrace.keys")

NEVER = float("inf")
MOST_SECONDS = 1.0
"""How long a request waits for keys that have changed; then those read last count for it."""


@contextlib.asynccontextmanager
async def refreshing(plugin: Plugin) -> AsyncIterator[None]:
    """Read the keys, and read them again whenever they change, until the context is left.

    Raises:
        PluginError: the database cannot be used at the start. Later on, the keys read last stay in force.
    """
    await asyncio.to_thread(plugin.ensure_development_key)
    mirror = plugin.mirror = Mirror(plugin.database, plugin.ring, development=plugin.config.development_key)
    await asyncio.to_thread(mirror.look)
    for name, keeper in KEPT_BY.items():
        if keeper not in plugin.neighbours and any(getattr(each, name) for each in plugin.ring.principals()):
            logger.warning("there are keys with %s, which nothing enforces: enable the plugin %r", name, keeper)
    watch = plugin.watch = Watch(mirror, plugin.config.refresh_seconds)
    task = asyncio.create_task(_follow(mirror, watch), name="headrace-keys-refresh")
    try:
        yield
    finally:
        plugin.watch = None
        watch.stop()  # not cancelled: a look that is under way in its thread still uses the connection
        await task
        mirror.close()


class Watch:
    """Says when it is time to look for changes.

    A file is looked at when a request comes, for its stamps tell whether it has changed at a hundredth of what it costs
    to wake up for that: a gateway that does nothing sleeps. A server is asked in turns; so is a file while it cannot be
    read.

    Attributes:
        due: when a request looks first, on the loop's clock; never, while there are turns.
    """

    def __init__(self, mirror: Mirror, seconds: float) -> None:
        self._mirror, self._seconds = mirror, seconds
        self._loop = asyncio.get_running_loop()
        self.due = NEVER
        self._wanted, self._done = asyncio.Event(), asyncio.Event()
        self.stopped = False

    async def until_wanted(self, *, turns: bool) -> bool:
        """Wait until somebody has to look; false if it was stopped. `turns`: without being asked."""
        self._done.set()
        if self.stopped:
            return False
        self._wanted.clear()
        if turns or not self._mirror.has_file:
            self.due = NEVER
            await _wait(self._wanted, self._seconds)
        else:
            self.due = self._loop.time() + self._seconds
            await self._wanted.wait()
        return not self.stopped

    async def look(self) -> None:
        """A request has come when it was time: it waits until the keys are those of the file, but not for long."""
        if self._mirror.is_unchanged():
            self.due = self._loop.time() + self._seconds
            return
        self._wanted.set()
        self._done.clear()
        await _wait(self._done, MOST_SECONDS)
        if not self._done.is_set():
            self.due = NEVER  # it takes too long: whoever comes until it is over does not wait for it

    def stop(self) -> None:
        self.stopped = True
        self.due = NEVER
        self._wanted.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _follow(mirror: Mirror, watch: Watch) -> None:
    failed: str | None = None
    while await watch.until_wanted(turns=failed is not None):
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
