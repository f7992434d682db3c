"""OpenAI's Responses API: for every backend that has chats, and with conversations that are kept at the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.errors import InvalidRequest

from .config import ResponsesConfig

if TYPE_CHECKING:
    from headrace.exchange import Exchange
    from headrace.gateway import Gateway, Register
    from headrace.streaming import Tap

    from .store import Store


class Plugin:
    """Registers the endpoint `responses`, and keeps its answers."""

    Config = ResponsesConfig

    def __init__(self, config: ResponsesConfig, gateway: Gateway) -> None:
        from .continuing import go_on
        from .dialect import endpoint
        from .keeping import Keeper
        from .shelf import Shelf
        from .translation import Translation

        self._config = config
        self._most = gateway.config.server.max_body_bytes
        self._endpoint = endpoint(Translation(self._keeps))
        self._go_on, self._keeper = go_on, Keeper
        self._shelf: Shelf | None = None
        if config.store != "off":
            self._shelf = Shelf(self._store(gateway))

    def _store(self, gateway: Gateway) -> Store:
        from .store import MEMORY, Store

        place = MEMORY if self._config.store == "memory" else str(gateway.state_dir / self._config.database)
        return Store(place, self._config.max_entries, self._config.max_bytes)

    @hookimpl
    def register_dialects(self, register: Register) -> None:
        register(self._endpoint)

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        from .routes import Routes

        Routes(self._shelf).add_to(gateway)

    @hookimpl
    @asynccontextmanager
    async def lifespan(self, gateway: Gateway) -> AsyncIterator[None]:
        if self._shelf is None or gateway.looking:
            yield
            return
        purges = gateway.worker == 0 or self._config.store == "memory"
        async with self._shelf.running(purges=purges):
            yield

    @hookimpl
    async def transform_request(self, exchange: Exchange) -> None:
        if exchange.endpoint is not self._endpoint:
            return
        if getattr(exchange.peek, "background", None):
            message = "Nothing is answered in the background here: leave 'background' out, and wait for the answer."
            raise InvalidRequest(message, param="background", code="unsupported_parameter")
        if self._shelf is not None:
            await self._go_on(exchange, self._shelf, self._most)

    @hookimpl
    def open_tap(self, exchange: Exchange) -> Tap | None:
        if exchange.endpoint is not self._endpoint or self._shelf is None or not self._keeps(exchange):
            return None
        return self._keeper(exchange, self._shelf.put, self._config.ttl, self._config.max_entry_bytes)

    def _keeps(self, exchange: Exchange) -> bool:
        """Whether a complete answer to this is kept."""
        return self._shelf is not None and getattr(exchange.peek, "store", None) is not False


__all__: Sequence[str] = ["Plugin", "ResponsesConfig"]
