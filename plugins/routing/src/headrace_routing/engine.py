"""The policy `queue_aware`: who has the least to do, as the engines themselves say."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from headrace.exchange import Exchange, Target
from headrace.fleet import EngineLoad

from .busy import in_flight

LEAST_FREE = 0.05
"""Of the KV cache: a full one makes a target look twenty times as busy."""


class Loads:
    """What engines have said, and what we have sent since.

    An engine knows of everybody's requests, but as of its last word; between two of them what changes is known only of
    our own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._noted: dict[str, tuple[EngineLoad, int]] = {}

    def note(self, target: Target) -> None:
        """The engine has just said how busy it is: what is in flight now is in what it said."""
        if target.state.engine is not None:
            self._noted[target.name] = (target.state.engine, target.state.in_flight)

    def since(self, target: Target, load: EngineLoad, busy: int) -> int:
        """How many more of our requests it has than when it said that; fewer, below 0."""
        noted = self._noted.get(target.name)
        if noted is None or noted[0] is not load:  # somebody else has asked it
            self._noted[target.name] = (load, busy)
            return 0
        return busy - noted[1]

    def age(self, load: EngineLoad) -> float:
        """Seconds since it said so."""
        return self._clock() - load.at

    def now(self) -> float:
        """By the clock of `EngineLoad.at`."""
        return self._clock()


class QueueAware:
    """The least busy engine first: requests that run, those that wait, counted more than once, both in proportion to
    what is free of its KV cache. A target whose engine has said nothing lately counts by our own requests in flight.

    Args:
        max_age: seconds for which an engine's word counts.
        queue_factor: how many that run are as bad as one that waits.
    """

    def __init__(
        self, name: str, *, max_age: float = 10.0, queue_factor: float = 4.0, loads: Loads, rng: random.Random
    ) -> None:
        self.name = name
        self._max_age, self._queue_factor = max_age, queue_factor
        self._loads, self._rng = loads, rng

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        oldest, uniform = self._loads.now() - self._max_age, self._rng.random
        ranked = sorted([(self._load(each, oldest) / each.weight, uniform(), at) for at, each in enumerate(targets)])
        return [targets[at] for *_, at in ranked]

    def _load(self, target: Target, oldest: float) -> float:
        """The requests it would have with this one."""
        state = target.state
        load, busy = state.engine, state.in_flight
        if load is None or load.at < oldest:
            return busy + 1.0
        requests = load.running + self._queue_factor * load.waiting + self._loads.since(target, load, busy) + 1
        return max(1.0, requests) / max(LEAST_FREE, 1.0 - load.cache_usage)

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says what the engine has said, and when."""
        load = target.state.engine
        if load is None:
            return f"its engine has said nothing, {in_flight(target)}"
        age = self._loads.age(load)
        if age > self._max_age:
            return f"its engine has said nothing for {age:.0f} s, {in_flight(target)}"
        since = self._loads.since(target, load, target.state.in_flight)
        said = f"{load.running} run, {load.waiting} wait, {load.cache_usage:.0%} of the KV cache taken"
        return f"{said}, {age:.1f} s ago; {since:+d} of ours since"
