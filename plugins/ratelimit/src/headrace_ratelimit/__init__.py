"""Limits on requests, tokens and open requests: reserved before the backend is asked, settled by what was used."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from headrace import hookimpl
from headrace.errors import PluginError

from .config import LimitConfig, RatelimitConfig

if TYPE_CHECKING:
    from headrace.exchange import Exchange
    from headrace.gateway import Gateway


class Plugin:
    """Refuses what does not fit, with 429 and the time after which it will."""

    Config = RatelimitConfig

    def __init__(self, config: RatelimitConfig, gateway: Gateway) -> None:
        from .estimate import Estimator
        from .ledger import Ledger
        from .rules import Rules

        spanning = [limit for limit in config.limits if "key" not in limit.per]
        if spanning and gateway.config.server.workers > 1:
            raise PluginError(
                "ratelimit",
                f"limits: the one per {list(spanning[0].per)} counts several keys, whose requests go to different "
                'workers: set server.workers = 1, or add "key" to its per',
            )
        self._rules = Rules(config.limits)
        self._estimator = Estimator(config.default_max_tokens)
        self._ledger = Ledger(time.monotonic)

    @hookimpl
    def admit(self, exchange: Exchange) -> AbstractAsyncContextManager[None] | None:
        tokens = self._estimator.reserve(exchange) if self._rules.count_tokens else 0
        wants = self._rules.of(exchange, tokens)
        if not wants:
            return None
        exchange.usage_wanted |= any(want.kind == "tokens" for want in wants)
        return self._hold(exchange, wants)

    @asynccontextmanager
    async def _hold(self, exchange: Exchange, wants: list[Want]) -> AsyncIterator[None]:
        from .answers import headers, refused
        from .ledger import Refusal

        held = self._ledger.reserve(wants)
        exchange.response_headers += headers([self._ledger.level(want) for want in wants])
        if isinstance(held, Refusal):
            raise refused(held)
        try:
            yield
        finally:
            held.settle(self._cost(exchange))

    def _cost(self, exchange: Exchange) -> int:
        """Tokens that the request has cost: as counted, or as estimated where the backend did not come to that."""
        usage = exchange.usage
        if usage is not None:
            self._estimator.learn(exchange, usage)
            return usage.prompt_tokens + usage.completion_tokens
        return self._estimator.prompt(exchange) if exchange.attempts and exchange.error is None else 0


if TYPE_CHECKING:
    from .ledger import Want

__all__ = ["LimitConfig", "Plugin", "RatelimitConfig"]
