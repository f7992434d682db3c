"""Answers requests that are exactly the same from memory or a server, and generates once for all who ask at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from headrace import hookimpl
from headrace.errors import PluginError

from .config import CacheConfig, ModelRules, address_of
from .counts import Measures, Tally
from .rules import ENDPOINTS

if TYPE_CHECKING:
    import click

    from headrace.exchange import Exchange, Reply
    from headrace.gateway import Gateway
    from headrace.streaming import Tap

    from .desk import Desk
    from .shared import Shared

logger = logging.getLogger("headrace.cache")
SECONDS = 1.0
"""How often a worker writes down how it stands."""


class Plugin:
    """Looks before a backend is asked, and keeps what it answered."""

    Config = CacheConfig

    def __init__(self, config: CacheConfig, gateway: Gateway) -> None:
        self.config, self._gateway = config, gateway
        self._tally = Tally()
        self.desk: Desk | None = None
        """None until the gateway runs."""
        gateway.collectors.append(Measures(self._tally, self._look))

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import cache

        cli.add_command(cache)

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        known = {model.name for model in gateway.models}  # here, because they are known by now
        unknown = sorted(set(self.config.models) - known)
        if unknown:
            names = ", ".join(sorted(known)) or "none"
            raise PluginError("cache", f"models: there is no model {unknown[0]!r} (there are: {names})")
        if self.config.url is not None:
            from .remote import check_installed

            check_installed(address_of(self.config.url))
        if self.config.admin_api:
            from .api import AdminAPI

            AdminAPI(self, gateway).register()

    @hookimpl
    @asynccontextmanager
    async def lifespan(self, gateway: Gateway) -> AsyncIterator[None]:
        if gateway.looking:
            yield
            return
        from .desk import Desk
        from .marks import Marks
        from .memory import Memory
        from .plan import Planner

        config, marks = self.config, Marks(gateway.runtime_dir)
        memory = Memory(config.memory_bytes, marks.of) if config.memory else None
        shared = self.shared()
        self.desk = Desk(config, Planner(config, gateway.models), marks, self._tally, memory, shared)
        async with contextlib.AsyncExitStack() as stack:
            if shared is not None:
                await stack.enter_async_context(shared.running())
            await stack.enter_async_context(self._shown(gateway, self.desk))
            stack.callback(self._forget)
            yield

    def _forget(self) -> None:
        """The gateway has ended: nothing is kept by whoever still knows it."""
        self.desk = None

    @hookimpl
    def open_tap(self, exchange: Exchange) -> Tap | None:
        if exchange.endpoint.name not in ENDPOINTS or self.desk is None:
            return None
        return self.desk.open(exchange)

    @hookimpl
    async def cache_lookup(self, exchange: Exchange) -> Reply | None:
        return await self.desk.lookup(exchange) if self.desk is not None else None

    def shared(self) -> Shared | None:
        """The level that workers and gateways share, not yet at work; None if there is none."""
        if self.config.url is None:
            return None
        from .remote import connect
        from .shared import Shared

        config, address, tally = self.config, address_of(self.config.url), self._tally

        def failed(model: str) -> None:
            tally.of(model).errors += 1

        return Shared(lambda: connect(address), config.prefix, config.deadline, config.probe_seconds, failed)

    @asynccontextmanager
    async def _shown(self, gateway: Gateway, desk: Desk) -> AsyncIterator[None]:
        """Keep a file for `headrace cache stats`."""
        from .marks import Board

        board = Board(gateway.runtime_dir)
        showing = asyncio.create_task(_show(board, desk, gateway))
        try:
            yield
        finally:
            showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await showing
            if not gateway.superseded.is_set():
                board.remove(gateway.worker)

    def _look(self) -> bool | None:
        """For metrics: what is true now, and whether the server is up."""
        desk = self.desk
        if desk is None:
            return None
        up = desk.standing(self._gateway.worker).server
        return None if up is None or self._gateway.superseded.is_set() else up == "up"


async def _show(board: Any, desk: Desk, gateway: Gateway) -> None:
    said = False
    while not gateway.superseded.is_set():
        try:
            board.write(desk.standing(gateway.worker))
            said = False
        except OSError as error:
            if not said:
                logger.error("how the cache stands cannot be written: %s", error)
            said = True
        await asyncio.sleep(SECONDS)


__all__: Sequence[str] = ["CacheConfig", "ModelRules", "Plugin"]
