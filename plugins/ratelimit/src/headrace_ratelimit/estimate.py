"""How many tokens a request may cost, before it is known."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from headrace.exchange import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Usage

MODELS_KEPT = 256
WEIGHT = 0.1
"""Of one request in the moving average."""
DIGITS = 9
"""Of a number that are read: one with more is beyond every limit."""
MARGIN = 1.1
"""Reserved beyond the average: prompts differ."""


class Estimator:
    """Prompt tokens by the body's length, as each model's own usage shows them: a few bytes make a token."""

    def __init__(self, default_max_tokens: int) -> None:
        self._default = default_max_tokens
        self._tokens_per_byte: OrderedDict[str, float] = OrderedDict()

    def reserve(self, exchange: Exchange) -> int:
        """Tokens that this request may cost at most, as far as can be said."""
        return self.prompt(exchange) + self._answer(exchange)

    def prompt(self, exchange: Exchange) -> int:
        """Tokens of its prompt."""
        rate = self._tokens_per_byte.get(_model(exchange), 1 / BYTES_PER_TOKEN)
        return math.ceil(len(exchange.body) * rate * MARGIN)

    def _answer(self, exchange: Exchange) -> int:
        if exchange.endpoint.name == "embeddings":
            return 0
        peek = exchange.peek
        asked = max(getattr(peek, name, None) or 0 for name in ("max_completion_tokens", "max_tokens"))
        return (asked if asked > 0 else self._default) * _choices(exchange)  # below zero some backends know no end

    def learn(self, exchange: Exchange, usage: Usage) -> None:
        """The backend has counted: the next estimate for its model is the better for it."""
        size = len(exchange.body)
        if usage.estimated or not usage.prompt_tokens or not size:
            return
        model, seen = _model(exchange), usage.prompt_tokens / size
        before = self._tokens_per_byte.pop(model, None)
        self._tokens_per_byte[model] = seen if before is None else before + WEIGHT * (seen - before)
        if len(self._tokens_per_byte) > MODELS_KEPT:
            self._tokens_per_byte.popitem(last=False)


def _model(exchange: Exchange) -> str:
    return exchange.model.name if exchange.model else ""


def _choices(exchange: Exchange) -> int:
    """How many answers are asked for: `n`, or `best_of`."""
    counts = [1]
    for name in ("n", "best_of"):
        text = bytes(exchange.fields.get(name, b""))
        if text.isdigit():
            counts.append(int(text[:DIGITS]))
    return max(counts)
