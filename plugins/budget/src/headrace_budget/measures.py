"""What was spent, and of which budgets how much, as the plugin `metrics` wants it; without it nobody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .money import MILLION

if TYPE_CHECKING:
    from .rules import Part

MOST_SEEN = 4096
"""Callers that are remembered from one collection to the next."""


class Measures:
    """See `Gateway.collectors`. Budgets are told of by their rules: of all callers, the one who has used most.

    Attributes:
        spent: what requests for a model have cost, in millionths.
        wanted: whether anybody collects: else nothing is noted per request.
    """

    def __init__(self, currency: str, clock: Callable[[], float]) -> None:
        self._currency, self._clock = currency, clock
        self.spent: Counter[str] = Counter()
        self.wanted = False
        self._seen: dict[int, tuple[Sequence[Part], Sequence[int]]] = {}
        """By the identity of the budgets, which are kept here meanwhile: what was used of each last."""
        self._fullest: dict[tuple[str, str], tuple[float, float]] = {}
        """By rule and number: the part that is used, and until when that is of interest."""

    def see(self, parts: Sequence[Part], used: Sequence[int]) -> None:
        """So much is used or reserved of each budget now. Paid for each request."""
        if len(self._seen) < MOST_SEEN:
            self._seen[id(parts)] = parts, used

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # whoever calls this has it

        self.wanted = True
        text = "What requests have cost that a budget of money applies to."
        cost = CounterMetricFamily("headrace_cost", text, labels=["model", "currency"])
        for model, money in list(self.spent.items()):
            cost.add_metric([model, self._currency], money / MILLION)
        text = "The fullest budget of each rule: the part of it that is used or reserved."
        share = GaugeMetricFamily("headrace_budget_used_ratio", text, labels=["rule", "budget"])
        self._fold()
        now = self._clock()
        for (rule, field), (part, end) in self._fullest.items():
            if now < end:
                share.add_metric([rule, field], part)
        yield from (cost, share)

    def _fold(self) -> None:
        seen, self._seen = self._seen, {}
        for parts, used in seen.values():
            for part, amount in zip(parts, used, strict=True):
                key = part.limit.key.split(":", 2)[1], part.field
                share, end = amount / part.most if part.most else 1.0, part.period.end
                known = self._fullest.get(key)
                if known is None or known[1] < end or known[0] < share:
                    self._fullest[key] = share, end
