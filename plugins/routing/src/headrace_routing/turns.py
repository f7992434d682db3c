"""Policies that look at nothing but the weights: in turn, in turn by weight, at random by weight."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from headrace.exchange import Exchange, Target

from .memory import PerModel, rivals

MOST_STEPS = 1000
"""Of a sequence of turns, where it may begin."""


class RoundRobin:
    """Each target in turn. The first turn is anybody's, so that several workers do not go in step."""

    def __init__(self, name: str, *, rng: random.Random) -> None:
        self.name = name
        self._rings = PerModel(lambda targets: _Ring(targets, rng))

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        return self._rings.of(targets).turn()

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says that it is a matter of turns."""
        return "each in turn"


class _Ring:
    """A model's targets, beginning with each of them."""

    def __init__(self, targets: Sequence[Target], rng: random.Random) -> None:
        self._rotations = [(*targets[number:], *targets[:number]) for number in range(len(targets))]
        self._next = rng.randrange(len(targets)) if targets else 0

    def turn(self) -> Sequence[Target]:
        if not self._rotations:
            return ()
        number = self._next
        self._next = number + 1 if number + 1 < len(self._rotations) else 0
        return self._rotations[number]


class Weighted:
    """In turn, a target of weight 3 three times as often as one of weight 1, evenly spread: nginx's smooth weighted
    round robin (https://github.com/phusion/nginx/commit/27e94984486058d73157038f7950a0a36ecc6e35)."""

    def __init__(self, name: str, *, rng: random.Random) -> None:
        self.name = name
        self._turns = PerModel(lambda targets: _Turns(targets, rng))

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        return [targets[number] for number in self._turns.of(targets).turn()]

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says its part of the turns."""
        return f"in turn, {_part(exchange, target)}"


class _Turns:
    """How far each target of a model is from its next turn."""

    def __init__(self, targets: Sequence[Target], rng: random.Random) -> None:
        self._weights = [target.weight for target in targets]
        self._total = sum(self._weights)
        self._credit = [0] * len(targets)
        self._numbers = range(len(targets))
        for _ in range(rng.randrange(min(self._total, MOST_STEPS) or 1)):
            self.turn()

    def turn(self) -> Sequence[int]:
        """The targets by number: whose turn it is, then who is nearest to the next."""
        credit = self._credit
        for number, weight in enumerate(self._weights):
            credit[number] += weight
        ranked = sorted(self._numbers, key=credit.__getitem__, reverse=True)
        if ranked:
            credit[ranked[0]] -= self._total
        return ranked


class Random:
    """At random, a target of weight 3 three times as likely to be the first as one of weight 1."""

    def __init__(self, name: str, *, rng: random.Random) -> None:
        self.name = name
        self._rng = rng

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        uniform, log = self._rng.random, math.log
        # The smallest of exponentially distributed times, each with its weight as rate, is each one's in proportion to
        # its weight; and so on among those that are left (Efraimidis and Spirakis, 2006).
        ranked = sorted([(-log(1.0 - uniform()) / each.weight, number) for number, each in enumerate(targets)])
        return [targets[number] for _, number in ranked]

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says how likely it is."""
        return f"at random, {_part(exchange, target)}"


def _part(exchange: Exchange, target: Target) -> str:
    """Of all requests, those for which a target is the first."""
    total = sum(each.weight for each in rivals(exchange, target))
    return f"{target.weight} of {total} requests"
