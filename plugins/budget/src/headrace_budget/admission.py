"""One request under budgets: reserved before the backend is asked, settled by what it took."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from operator import ge
from typing import TYPE_CHECKING

from headrace.estimate import check_fields, choices, demand
from headrace.ledger import LARGEST, Refusal

from .answers import unpriced

if TYPE_CHECKING:
    from headrace.exchange import Exchange
    from headrace.gateway import Gateway
    from headrace.ledger import Hold, Level

    from .alerts import Alerts
    from .answers import Words
    from .config import BudgetConfig
    from .measures import Measures
    from .rules import Applied

TRIES = 3
"""To take what is left, while others take of it, too."""


class Desk:
    """What all requests have in common."""

    def __init__(
        self, config: BudgetConfig, gateway: Gateway, words: Words, alerts: Alerts, measures: Measures
    ) -> None:
        self.config, self.gateway, self.words, self.alerts, self.measures = config, gateway, words, alerts, measures


class Admission(AbstractAsyncContextManager[None]):
    """Holds what one request may take, until it is known what it took."""

    __slots__ = ("_amounts", "_answer", "_applied", "_desk", "_exchange", "_held", "_money", "_prompt")

    def __init__(self, desk: Desk, exchange: Exchange, applied: Applied) -> None:
        self._desk, self._exchange, self._applied = desk, exchange, applied
        self._prompt = self._answer = self._money = 0
        self._amounts: list[int] = []
        self._held: Hold | None = None

    async def __aenter__(self) -> None:
        """Raises RateLimited, Forbidden, Unavailable."""
        applied, exchange = self._applied, self._exchange
        if applied.closed is not None:
            raise self._desk.words.refusal(applied.closed, 0, 0)
        if applied.priceless:
            raise unpriced(exchange.model.name if exchange.model else "")
        exchange.usage_wanted = True
        if not exchange.fields_checked:
            check_fields(exchange)
        if self._desk.config.exact_prompts and await self._has_room():
            await self._desk.gateway.estimator.count(exchange, self._desk.gateway)
        self._prompt = self._desk.gateway.estimator.prompt(exchange)
        asked, answers = demand(exchange)
        if not asked and exchange.endpoint.name != "embeddings":
            await self._reserve_some()
            return
        answer = asked * answers
        self._ask_for(answer if answer < LARGEST else LARGEST)
        ledger, limits = self._desk.gateway.ledger, applied.limits
        take = ledger.take
        held = take(limits, self._amounts) if take is not None else await ledger.reserve(limits, self._amounts)
        if isinstance(held, Refusal):
            self._refuse(held)
        else:
            self._held = held

    async def __aexit__(self, *exception: object) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        tokens, money = self._spent()
        taken = self._applied.amounts(tokens, money)
        held.settle(taken)
        measures = self._desk.measures
        if money and self._exchange.model is not None:
            measures.spent[self._exchange.model.name] += money
        if measures.wanted:
            measures.see(self._applied.parts, held.used)
        if any(map(ge, held.used, self._applied.alert_from)):
            self._look(held, taken)

    def _look(self, held: Hold, taken: Sequence[int]) -> None:
        """With what was reserved there is cause for an alert; perhaps with what was taken, too."""
        used = [each - was + now for each, was, now in zip(held.used, self._amounts, taken, strict=True)]
        self._desk.alerts.look(self._applied.parts, used)

    async def _has_room(self) -> bool:
        """Whether it makes sense to have the prompt counted: what is refused in any case costs no backend."""
        levels = await self._desk.gateway.ledger.levels(self._applied.limits)
        return all(level.remaining for level in levels)

    async def _reserve_some(self) -> None:
        """For a request that sets no limit itself: as much as is usual, or as is left."""
        exchange, config = self._exchange, self._desk.config
        count, most = choices(exchange), config.default_max_tokens
        if exchange.answer_limit is not None:  # the backend is told so anyway
            most = min(most, exchange.answer_limit)
        least = min(most, config.minimum_answer) * count if config.cap_answers else None
        await self._reserve(most * count, least)
        if config.cap_answers:
            exchange.answer_limit = self._answer // count

    async def _reserve(self, answer: int, least: int | None) -> None:
        """Take the prompt and so many tokens of an answer; or as many as are left, if that is at least `least`.

        Raises:
            RateLimited: it does not fit.
        """
        refusal = await self._take(answer)
        for _ in range(TRIES):
            if refusal is None:
                return
            if least is None:
                break
            answer = max(least, min(answer, self._left(refusal.levels)))  # the refusal is that of the least
            refusal = await self._take(answer)
            if answer == least:
                break
        if refusal is not None:
            self._refuse(refusal)

    async def _take(self, answer: int) -> Refusal | None:
        """Take the prompt and so many tokens of an answer, if they fit."""
        self._ask_for(answer)
        held = await self._desk.gateway.ledger.reserve(self._applied.limits, self._amounts)
        if isinstance(held, Refusal):
            return held
        self._held = held
        return None

    def _ask_for(self, answer: int) -> None:
        """Reckon what the prompt and so many tokens of an answer need of each budget."""
        applied, prompt = self._applied, self._prompt
        self._answer = answer
        self._money = applied.priced.at_most(prompt, answer) if applied.priced else 0
        self._amounts = applied.amounts(prompt + answer, self._money)

    def _left(self, levels: Sequence[Level]) -> int:
        """How many tokens of an answer fit into all budgets; as many for each of several answers."""
        priced, left = self._applied.priced, LARGEST
        for part, level in zip(self._applied.parts, levels, strict=True):
            if part.enforced and (part.unit == "tokens" or priced is None):
                left = min(left, level.remaining - self._prompt)
            elif part.enforced and priced is not None:
                left = min(left, priced.answer_for(level.remaining, self._prompt))
        each = choices(self._exchange)
        return left // each * each

    def _refuse(self, refusal: Refusal) -> None:
        parts = self._applied.parts
        self._desk.alerts.look(parts, [level.used for level in refusal.levels])
        part = parts[self._applied.limits.index(refusal.level.limit)]
        raise self._desk.words.refusal(part, refusal.amount, refusal.level.used)

    def _spent(self) -> tuple[int, int]:
        """Tokens and money that the request took: as the backend counted; nothing if no backend began an answer; all
        that was reserved if nobody knows."""
        exchange = self._exchange
        if not exchange.attempts:  # a cache has answered, or nobody
            return 0, 0
        attempt, usage, priced = exchange.attempts[-1], exchange.usage, self._applied.priced
        failed = attempt.reporting is not None
        if usage is None and (failed or (exchange.status or 0) >= 400):
            return 0, 0
        if usage is None or (usage.estimated and failed):  # such an estimate knows nothing of the answer
            return self._prompt + self._answer, self._money
        prompt, answer = _sane(usage.prompt_tokens), _sane(usage.completion_tokens)
        if usage.estimated:
            prompt = max(prompt, self._prompt)
        if priced is None:
            return prompt + answer, 0
        return prompt + answer, priced.cost(attempt.target.name, prompt, _sane(usage.cached_tokens), answer)


SANE = 2**33
"""No request takes more tokens: a dialect that reads such a number must not spoil the count."""


def _sane(tokens: int) -> int:
    return 0 if tokens < 0 else SANE if tokens > SANE else tokens
