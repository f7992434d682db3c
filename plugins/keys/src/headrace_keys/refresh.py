"""Keeping the keys in memory like those in the database, while the gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.rounds import Round

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
    if isinstance(plugin.database, Path):  # a server is not asked more often than it must be
        plugin.pass_by = watch.pass_by
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
        self._mirror = mirror
        self._round = Round(seconds, self._look)
        self.pass_by = self._round.pass_by
        """Called when a request has come, for then everybody is awake."""
        self._ring = asyncio.Event()
        self.stopped = False

    async def until_changed(self) -> bool:
        """Wait until there may be something new; false if it was stopped."""
        self._ring.clear()
        if not self.stopped:
            self._round.start()
            await self._ring.wait()
        return not self.stopped

    def _look(self) -> bool:
        if self._mirror.is_unchanged():
            return True
        self._ring.set()
        return False

    def stop(self) -> None:
        self.stopped = True
        self._ring.set()
        self._round.stop()


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
