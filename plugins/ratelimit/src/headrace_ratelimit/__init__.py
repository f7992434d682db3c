"""Limits on requests, tokens and open requests: reserved before the backend is asked, settled by what was used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import LimitConfig, RatelimitConfig

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Principal
    from headrace.gateway import Gateway
    from headrace.limits import Standing

    from .rules import Applied


class Plugin:
    """Refuses what does not fit, with 429 and the time after which it will."""

    Config = RatelimitConfig

    def __init__(self, config: RatelimitConfig, gateway: Gateway) -> None:
        from .rules import Rules, walls

        self._config = config
        self._gateway = gateway
        self._rules = Rules(config.limits)
        gateway.counts = True
        if config.wall:
            gateway.walls += walls(config.limits)

    @hookimpl
    def admit(self, exchange: Exchange) -> AbstractAsyncContextManager[None] | None:
        applied = self._rules.of(exchange)
        return self._hold(exchange, applied) if applied.limits else None

    @asynccontextmanager
    async def _hold(self, exchange: Exchange, applied: Applied) -> AsyncIterator[None]:
        from headrace.estimate import spent
        from headrace.ledger import Refusal

        from .answers import headers, refused

        if self._config.exact_prompts and applied.tokens is not None:
            await self._gateway.estimator.count(exchange, self._gateway)
        tokens = self._reserve(exchange, applied)
        held = await self._gateway.ledger.reserve(applied.limits, applied.amounts(tokens))
        exchange.response_headers += headers(held.levels, applied.units)
        if isinstance(held, Refusal):
            raise refused(held, applied.units[applied.limits.index(held.level.limit)])
        try:
            yield
        finally:
            held.settle(applied.amounts(spent(exchange, tokens)))

    @hookimpl
    async def standing(self, principal: Principal) -> list[Standing]:
        from .answers import standing

        allowed = principal.models
        models = [model.name for model in self._gateway.models if allowed is None or model.name in allowed]
        told = self._rules.standing_for(principal, models)
        levels = await self._gateway.ledger.levels(tuple(told))
        return [standing(level, *told[level.limit]) for level in levels]

    def _reserve(self, exchange: Exchange, applied: Applied) -> int:
        """Tokens that this request may take at most; 0 if they are not limited."""
        if applied.tokens is None:
            return 0
        from headrace.estimate import answer_tokens, asked_tokens, choices

        exchange.usage_wanted = True
        prompt = self._gateway.estimator.prompt(exchange)
        if asked_tokens(exchange) or exchange.endpoint.name == "embeddings":
            return prompt + answer_tokens(exchange, 0)
        each = max(1, min(self._config.default_max_tokens, (applied.tokens - prompt) // choices(exchange)))
        if self._config.cap_answers:
            exchange.answer_limit = min(each, exchange.answer_limit or each)
        return prompt + answer_tokens(exchange, each)


__all__ = ["LimitConfig", "Plugin", "RatelimitConfig"]
