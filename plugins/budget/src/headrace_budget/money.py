"""Money as whole millionths of the currency's unit, so that sums are exact; and what requests cost.

A price per 1,000,000 tokens is a price of so many millionths per token. Prices are kept exactly, to the millionth part
of that; what a request costs is rounded up to whole millionths, once, and a budget down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING

import msgspec

from headrace.ledger import LARGEST

from .config import PriceConfig

if TYPE_CHECKING:
    from headrace.models import Model

MILLION = 1_000_000


class Rate(msgspec.Struct, frozen=True):
    """A price in millionths of a millionth: of one token, or of one request."""

    input: int = 0
    cached: int = 0
    output: int = 0
    request: int = 0

    def cost(self, prompt: int, cached: int, answer: int) -> int:
        """What was used costs so much, in millionths. `cached` of the prompt's tokens came from a cache."""
        if cached > prompt:
            cached = prompt
        exact = (prompt - cached) * self.input + cached * self.cached + answer * self.output + self.request
        return -(-exact // MILLION)

    def at_most(self, prompt: int, answer: int) -> int:
        """What a request may cost, whatever is cached."""
        dearer = self.input if self.input > self.cached else self.cached
        return -(-(prompt * dearer + answer * self.output + self.request) // MILLION)

    def answer_for(self, money: int, prompt: int) -> int:
        """How many tokens of an answer so much money pays for, after the prompt. Below zero: not even the prompt."""
        left = money * MILLION - prompt * max(self.input, self.cached) - self.request
        if left < 0:
            return -1
        return left // self.output if self.output else LARGEST


FREE = Rate()


class Priced(msgspec.Struct, frozen=True):
    """What a model costs at each of its targets."""

    rates: tuple[Rate, ...]
    """Each once."""
    by_target: dict[str, Rate]

    @property
    def is_free(self) -> bool:
        return self.rates == (FREE,)

    def cost(self, target: str, prompt: int, cached: int, answer: int) -> int:
        """What was used costs so much at the target that answered; if that is none of the model's, the most it may."""
        rate = self.by_target.get(target)
        if rate is None:
            return max(each.cost(prompt, cached, answer) for each in self.rates)
        return rate.cost(prompt, cached, answer)

    def at_most(self, prompt: int, answer: int) -> int:
        """What a request may cost, whichever target answers."""
        if len(self.rates) == 1:
            return self.rates[0].at_most(prompt, answer)
        return max(rate.at_most(prompt, answer) for rate in self.rates)

    def answer_for(self, money: int, prompt: int) -> int:
        """How many tokens of an answer so much money pays for, whichever target answers."""
        return min(rate.answer_for(money, prompt) for rate in self.rates)


class Prices:
    """The price list. `free` says that a model which is not on it costs nothing; `find` finds a model by its name."""

    def __init__(
        self, prices: Mapping[str, PriceConfig], free: bool, find: Callable[[str], Model] | None = None
    ) -> None:
        self._rates = {name: rate(price) for name, price in prices.items()}
        self._free, self._find = free, find

    def of(self, model: Model) -> Priced | None:
        """None if it is not known what the model costs, or one that may answer in its place."""
        others = (*model.fallbacks, *model.longer) if self._find is not None else ()
        chain = [model, *(self._find(name) for name in others if self._find is not None)]
        by_target: dict[str, Rate | None] = {}
        for each in chain:
            for target in each.targets:
                by_target.setdefault(target.name, self._rate(each.name, target.name))
        known = {name: each for name, each in by_target.items() if each is not None}
        return Priced(tuple(dict.fromkeys(known.values())), known) if len(known) == len(by_target) else None

    def _rate(self, model: str, target: str) -> Rate | None:
        found = self._rates.get(f"{model}@{target}", self._rates.get(model))
        return FREE if found is None and self._free else found

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


def millionths(amount: float) -> int:
    """A budget in millionths of the currency's unit."""
    return int((Decimal(repr(amount)) * MILLION).to_integral_value(ROUND_FLOOR))


def written(amount: int) -> str:
    """Millionths as people write money: at least two digits after the point, and no more than it has."""
    whole, rest = divmod(amount, MILLION)
    digits = f"{rest:06d}".rstrip("0")
    return f"{whole}.{digits:0<2}"
