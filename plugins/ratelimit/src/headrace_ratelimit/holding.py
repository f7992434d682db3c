"""What one request holds while it lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.estimate import asked_tokens, check_fields, choices, demand, spent
from headrace.ledger import Refusal

from .answers import headers, refused

if TYPE_CHECKING:
    from collections import Counter

    from headrace.exchange import Exchange
    from headrace.gateway import Gateway
    from headrace.ledger import Hold

    from .config import RatelimitConfig
    from .rules import Applied


class Holding:
    """Reserves when it is entered, settles when it is left: a context of one request.

    A class, not a generator: asyncio keeps book of asynchronous generators, which costs more than all of this.
    """

    __slots__ = ("_applied", "_config", "_exchange", "_gateway", "_held", "_refused", "_tokens")

    def __init__(
        self,
        gateway: Gateway,
        config: RatelimitConfig,
        exchange: Exchange,
        applied: Applied,
        refused: Counter[str] | None = None,
    ) -> None:
        """`refused` counts refusals by what is limited."""
        self._refused = refused
        self._gateway, self._config, self._exchange, self._applied = gateway, config, exchange, applied
        self._held: Hold | None = None
        self._tokens = 0

    async def __aenter__(self) -> None:
        exchange, applied = self._exchange, self._applied
        if applied.tokens is not None:
            exchange.usage_wanted = True
            if not exchange.fields_checked:
                check_fields(exchange)
            if self._config.exact_prompts and await self._has_room():
                await self._gateway.estimator.count(exchange, self._gateway)
            self._tokens = self._needed(applied.tokens)
        ledger, amounts = self._gateway.ledger, applied.amounts(self._tokens)
        take = ledger.take
        held = take(applied.limits, amounts) if take is not None else await ledger.reserve(applied.limits, amounts)
        if isinstance(held, Refusal) and self._takes_what_is_left(held):
            held = await ledger.reserve(applied.limits, applied.amounts(self._tokens))
        if isinstance(held, Refusal):
            exchange.response_headers += headers(applied, [level.used for level in held.levels])
            if self._refused is not None:
                self._refused[applied.units[applied.limits.index(held.level.limit)]] += 1
            raise refused(held, applied)
        exchange.response_headers += headers(applied, held.used)
        self._held = held

    async def _has_room(self) -> bool:
        """Whether it makes sense to have the prompt counted: a request that is refused in any case costs no backend."""
        levels = await self._gateway.ledger.levels(self._applied.limits)
        return all(level.remaining for level in levels)

    def _takes_what_is_left(self, refusal: Refusal) -> bool:
        """Whether this is a request that sets no limit itself, and there is enough left for a shorter answer."""
        applied, exchange = self._applied, self._exchange
        if applied.tokens is None or exchange.endpoint.name == "embeddings" or asked_tokens(exchange):
            return False
        left = min(
            level.remaining for level, unit in zip(refusal.levels, applied.units, strict=True) if unit == "tokens"
        )
        if left >= self._tokens:  # it is something else that it does not fit into
            return False
        self._tokens = self._needed(left)
        least = min(self._config.minimum_answer, self._config.default_max_tokens)
        prompt = self._gateway.estimator.prompt(exchange)
        return self._tokens <= left and self._tokens - prompt >= least * choices(exchange)

    async def __aexit__(self, *exception: object) -> None:
        if self._held is not None:
            self._held.settle(self._applied.amounts(spent(self._exchange, self._tokens)))

    def _needed(self, limit: int) -> int:
        """Tokens that this request may take at most, where so many are the smallest limit."""
        exchange = self._exchange
        prompt = self._gateway.estimator.prompt(exchange)
        if exchange.endpoint.name == "embeddings":
            return prompt
        asked, answers = demand(exchange)
        if not asked:
            asked = max(1, min(self._config.default_max_tokens, (limit - prompt) // answers))
            if exchange.answer_limit is not None:  # another has reserved no more, or we before
                asked = min(asked, exchange.answer_limit)
            if self._config.cap_answers:
                exchange.answer_limit = asked
        return prompt + asked * answers
