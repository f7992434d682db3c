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
    watch = Watch(mirror, plugin.config.refresh_seconds)
    task = asyncio.create_task(_follow(mirror, watch), name="headrace-keys-refresh")
    try:
        yield
    finally:
        watch.stop()  # not cancelled: a look that is under way in its thread still uses the connection
        await task
        mirror.close()


class Watch:
    """Looks now and then whether the keys may have changed: as long as they have not, this wakes nobody."""

    def __init__(self, mirror: Mirror, seconds: float) -> None:
        self._mirror, self._seconds = mirror, seconds
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._ring = asyncio.Event()
        self.stopped = False

    async def until_changed(self) -> bool:
        """Wait until there may be something new; false if it was stopped."""
        self._ring.clear()
        if not self.stopped:
            self._timer = self._loop.call_later(self._seconds, self._look)
            await self._ring.wait()
        return not self.stopped

    def _look(self) -> None:
        if self._mirror.is_unchanged():
            self._timer = self._loop.call_later(self._seconds, self._look)
        else:
            self._ring.set()

    def stop(self) -> None:
        self.stopped = True
        self._ring.set()
        if self._timer is not None:
            self._timer.cancel()


async def _follow(mirror: Mirror, watch: Watch) -> None:
    failed: str | None = None
    while await watch.until_changed():
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
