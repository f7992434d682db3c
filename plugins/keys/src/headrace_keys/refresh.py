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
