"""Policies that go by the requests that targets are answering now: among all, or among the cheapest or the foremost."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.exchange import Exchange, Target

from .memory import PerModel, rivals

if TYPE_CHECKING:
    from headrace.models import Model


class LeastBusy:
    """Who answers the fewest requests now, for its weight; anybody of those that are equal."""

    def __init__(self, name: str, *, rng: random.Random) -> None:
        self.name = name
        self._rng = rng

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        uniform = self._rng.random
        ranked = sorted([(each.state.in_flight / each.weight, uniform(), at) for at, each in enumerate(targets)])
        return [targets[at] for *_, at in ranked]

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says how busy it is."""
        return in_flight(target)


class Ranked:
    """Those of the lowest rank first; of one rank, the least busy."""

    def __init__(self, name: str, *, rng: random.Random) -> None:
        self.name = name
        self._rng = rng
        self._ranks = PerModel(self.ranks)

    def ranks(self, targets: Sequence[Target]) -> list[float]:
        """The rank of each of a model's targets."""
        raise NotImplementedError

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        uniform = self._rng.random
        ranked = sorted(
            [
                (rank, each.state.in_flight / each.weight, uniform(), at)
                for at, (rank, each) in enumerate(zip(self._ranks.of(targets), targets, strict=True))
            ]
        )
        return [targets[at] for *_, at in ranked]

    def _rank(self, exchange: Exchange, target: Target) -> float:
        targets = rivals(exchange, target)
        return next(rank for each, rank in zip(targets, self.ranks(targets), strict=True) if each.name == target.name)


class Cost(Ranked):
    """The cheapest first. `costs`: by target, in whatever unit; what stands nowhere costs infinitely much."""

    def __init__(self, name: str, *, costs: Mapping[str, float], rng: random.Random) -> None:
        super().__init__(name, rng=rng)
        self._costs = costs

    def ranks(self, targets: Sequence[Target]) -> list[float]:
        return [self._costs.get(target.name, float("inf")) for target in targets]

    def problems(self, model: Model) -> Iterator[str]:
        """A model's targets that nobody has given a cost."""
        for target in model.targets:
            if target.name not in self._costs:
                yield f"costs: model {model.name!r} has the policy {self.name!r}: say what {target.name!r} costs"

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says what it costs."""
        return f"costs {self._rank(exchange, target):g}, {in_flight(target)}"


class Priority(Ranked):
    """A chain of groups, the lowest number first. Targets that stand in none follow one by one, as in the file."""

    def __init__(self, name: str, *, priorities: Mapping[str, int], rng: random.Random) -> None:
        super().__init__(name, rng=rng)
        self._priorities = priorities
        self._following = max(priorities.values(), default=-1) + 1

    def ranks(self, targets: Sequence[Target]) -> list[float]:
        following = iter(range(self._following, self._following + len(targets)))
        return [self._priorities[each.name] if each.name in self._priorities else next(following) for each in targets]

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says which group it is in."""
        return f"priority {self._rank(exchange, target):g}, {in_flight(target)}"


def in_flight(target: Target) -> str:
    """How busy a target is, in words."""
    weight = f" for a weight of {target.weight}" if target.weight != 1 else ""
    return f"{target.state.in_flight} in flight{weight}"
