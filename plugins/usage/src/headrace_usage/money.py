"""What requests cost, in whole millionths of the currency's unit, so that sums are exact.

A price per 1,000,000 tokens is a price of so many millionths per token. What a request costs is rounded up to whole
millionths, once: as the plugin `budget` does it, so that both come to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING

import msgspec

from .config import PriceConfig

if TYPE_CHECKING:
    from headrace.models import Model

MILLION = 1_000_000


class Rate(msgspec.Struct, frozen=True):
    """A price in millionths of a millionth: of one token, or of one request."""

    input: int
    cached: int
    output: int
    request: int

    def cost(self, prompt: int, cached: int, answer: int) -> int:
        """What was used costs so much, in millionths. `cached` of the prompt's tokens came from a cache."""
        cached = min(cached, prompt)
        exact = (prompt - cached) * self.input + cached * self.cached + answer * self.output + self.request
        return -(-exact // MILLION)


class Prices:
    """The price list."""

    def __init__(self, prices: Mapping[str, PriceConfig]) -> None:
        self._rates = {name: rate(price) for name, price in prices.items()}

    def of(self, model: str, target: str) -> Rate | None:
        """What a model costs at one of its targets; None if that is not known."""
        return self._rates.get(f"{model}@{target}") or self._rates.get(model)

    def unknown(self, models: Iterable[Model]) -> list[str]:
        """Names on the list that are no model's and no target's."""
        names = {name for model in models for name in (model.name, *(f"{model.name}@{t.name}" for t in model.targets))}
        return [name for name in self._rates if name not in names]


def rate(price: PriceConfig) -> Rate:
    """A price in whole numbers, none of them smaller than it was."""
    cached = price.input if price.cached_input is None else price.cached_input
    tokens, kept, answer = (_whole(each, MILLION) for each in (price.input, cached, price.output))
    return Rate(tokens, kept, answer, _whole(price.request, MILLION * MILLION))


def _whole(amount: float, parts: int) -> int:
    return int((Decimal(repr(amount)) * parts).to_integral_value(ROUND_CEILING))


def written(amount: int) -> str:
    """Millionths as people write money: at least two digits after the point, and no more than it has."""
    whole, rest = divmod(amount, MILLION)
    digits = f"{rest:06d}".rstrip("0")
    return f"{whole}.{digits:0<2}"
