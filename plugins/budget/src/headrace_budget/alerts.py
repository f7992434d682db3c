"""Says that a budget is nearly used up: once for each, in its period, by each process."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from .answers import named

if TYPE_CHECKING:
    from .answers import Words
    from .rules import Part

logger = logging.getLogger("headrace.budget")

KEPT = 50_000
"""Alerts that are remembered: beyond, the oldest may be given again."""


class Alerts:
    """Looks at budgets as they are used.

    Args:
        words: how budgets are said.
        clock: seconds since the epoch.
        post: called with each alert, beside the log.
    """

    def __init__(
        self, words: Words, clock: Callable[[], float], post: Callable[[Mapping[str, Any]], None] | None
    ) -> None:
        self._words, self._clock, self._post = words, clock, post
        self._given: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """By the ledger's key: how many of a budget's alerts, and until when that is to be remembered."""

    def __len__(self) -> int:
        """How many budgets are remembered."""
        return len(self._given)

    def look(self, parts: Sequence[Part], used: Sequence[int]) -> None:
        """So much is used of each budget now."""
        for part, amount in zip(parts, used, strict=True):
            if part.alerts and amount >= part.alerts[0]:
                self._reached(part, amount)

    def _reached(self, part: Part, used: int) -> None:
        key, reached = part.limit.key, sum(used >= each for each in part.alerts)
        if reached <= self._given.get(key, (0, 0.0))[0]:
            return
        self._given[key] = reached, part.period.end
        self._forget()
        self._give(part, used)

    def _forget(self) -> None:
        while len(self._given) > KEPT or next(iter(self._given.values()))[1] <= self._clock():
            self._given.popitem(last=False)
            if not self._given:
                return

    def _give(self, part: Part, used: int) -> None:
        words = self._words
        logger.warning(
            "%d %% of the %s: %s used%s",
            round(100 * used / part.most),
            words.budget(part, named(part.subject)),
            words.amount(part.unit, used),
            "" if part.enforced else " (not enforced)",
        )
        if self._post is not None:
            standing = msgspec.structs.asdict(words.standing(part, used))
            self._post({"event": "budget_alert", **standing, "share": used / part.most, "enforced": part.enforced})
