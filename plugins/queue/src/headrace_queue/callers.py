"""Who asks, as far as the queue cares: whose share it is, how large, and how urgent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from headrace.exchange import ANONYMOUS, Principal

from .config import DEFAULT_CLASS, LEAST_WEIGHT, MOST_WEIGHT, ClassConfig, QueueConfig


class Caller(NamedTuple):
    """Whose request it is."""

    share: str
    """Requests with the same share one part of the capacity."""
    weight: float
    priority: int
    class_name: str


class Callers:
    """The configured classes and weights, prepared."""

    def __init__(self, config: QueueConfig) -> None:
        self._by_team = config.share_by == "team"
        self._key_weights: Mapping[str, float] = {} if self._by_team else config.key_weights
        self._team_weights = config.team_weights
        classes = {**config.classes}
        if all(each.keys or each.teams for each in classes.values()):
            classes.setdefault(DEFAULT_CLASS, ClassConfig())
        self._classes = list(classes.items())
        self._keys = _first(self._classes, "keys")
        self._teams = _first(self._classes, "teams")
        self._rest = len(classes) - 1

    @property
    def names(self) -> list[str]:
        """The classes, those for everybody else included."""
        return [name for name, _ in self._classes]

    def of(self, principal: Principal | None) -> Caller:
        """Who this is."""
        who = principal or ANONYMOUS
        number = min(self._keys.get(who.id, self._rest), self._teams.get(who.team or "", self._rest))
        name, found = self._classes[number]
        share = f"team {who.team}" if self._by_team and who.team else f"key {who.id}"
        return Caller(share, self._weight(who, found.weight), found.priority, name)

    def _weight(self, who: Principal, default: float) -> float:
        weight = self._key_weights.get(who.id)
        if weight is None and who.metadata:
            weight = _own_weight(who.metadata.get("queue_weight"))
        if weight is None and who.team is not None:
            weight = self._team_weights.get(who.team)
        return default if weight is None else weight


def _own_weight(value: object) -> float | None:
    """What a caller's own metadata say, within bounds; None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(min(MOST_WEIGHT, max(LEAST_WEIGHT, value)))


def _first(classes: list[tuple[str, ClassConfig]], what: str) -> dict[str, int]:
    """For each key or team, the number of the first class that names it."""
    found: dict[str, int] = {}
    for number, (_, each) in enumerate(classes):
        for name in getattr(each, what):
            found.setdefault(name, number)
    return found
