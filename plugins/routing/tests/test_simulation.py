"""Policies over minutes of traffic: backends that exist in numbers alone, and a clock of their own."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from headrace.errors import Unavailable
from headrace.exchange import Attempt, Exchange, Outcome, Target, Usage

PREFILL, PER_TOKEN, TOKENS = 0.1, 0.01, 100
"""Seconds to a first token, for each that follows, and how many those are on average: of a backend of speed 1."""


class Backend(NamedTuple):
    """So many requests at a time, the others wait; `speed` 0.5 takes twice as long."""

    slots: int
    speed: float = 1.0


class Answer(NamedTuple):
    """What one request got: when it came, from which target, after how long its first token, how many tries."""

    came: float
    target: str
    ttft: float
    tries: int


class Simulation:
    """Requests come at random, `rate` a second, are ordered by a policy and walk along that order."""

    def __init__(self, kit: Any, backends: list[Backend], rate: float, *, seed: int = 1) -> None:
        self.now = 0.0
        self.targets = kit.targets(len(backends))
        self.answers: list[Answer] = []
        self.asked: list[tuple[float, str]] = []
        """Every try: when, and whom."""
        self.down: set[str] = set()
        """Targets that refuse every connection."""
        self.most: dict[str, int] = {}
        """Of each target: the most requests it has had at a time since this was last emptied."""
        self._kit, self._rate, self._rng = kit, rate, random.Random(seed)
        self._backends = {target.name: each for target, each in zip(self.targets, backends, strict=True)}
        self._free = {name: each.slots for name, each in self._backends.items()}
        self._queues: dict[str, deque[Callable[[], None]]] = {name: deque() for name in self._backends}
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def clock(self) -> float:
        """Its time."""
        return self.now

    def run(self, policy: Any, seconds: float) -> Simulation:
        """Let requests come for so long."""
        end = self.now + seconds
        at = self.now
        while (at := at + self._rng.expovariate(self._rate)) < end:
            self._at(at, lambda: self._come(policy))
        while self._events and self._events[0][0] < end:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = end
        return self

    def speed(self, name: str, speed: float) -> None:
        """From now on a backend is so fast."""
        self._backends[name] = self._backends[name]._replace(speed=speed)

    def p99(self, since: float = 0.0) -> float:
        """Of the seconds to the first token. Those who still wait have waited for as long as they have by now."""
        found = sorted(each.ttft for each in self.answers if each.came >= since)
        return found[int(len(found) * 0.99)]

    def shares(self, since: float, until: float) -> dict[str, float]:
        """The part of all tries that each target had."""
        names = [name for at, name in self.asked if since <= at < until]
        return {target.name: names.count(target.name) / len(names) for target in self.targets}

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def _come(self, policy: Any) -> None:
        exchange = self._kit.exchange(self.targets)
        self._try(policy, exchange, list(policy.order(exchange, self.targets)), self.now, 1)

    def _try(self, policy: Any, exchange: Exchange, left: list[Target], came: float, number: int) -> None:
        target = left.pop(0)
        attempt = Attempt(exchange, number, target, None)
        attempt.started = self.now
        attempt.begin()
        self.asked.append((self.now, target.name))
        self.most[target.name] = max(self.most.get(target.name, 0), target.state.in_flight)
        if target.name in self.down:
            self._at(self.now + 0.001, lambda: self._refuse(policy, attempt, left, came))
        elif self._free[target.name]:
            self._free[target.name] -= 1
            self._serve(policy, attempt, came)
        else:
            self._queues[target.name].append(lambda: self._serve(policy, attempt, came))

    def _refuse(self, policy: Any, attempt: Attempt, left: list[Target], came: float) -> None:
        attempt.end()
        self._tell(policy, attempt, Outcome(status=503, completed=False, error=Unavailable("No.")))
        if left:
            self._try(policy, attempt.exchange, left, came, attempt.number + 1)

    def _serve(self, policy: Any, attempt: Attempt, came: float) -> None:
        speed = self._backends[attempt.target.name].speed
        first = self.now + PREFILL / speed * self._rng.uniform(0.5, 1.5)
        tokens = self._rng.randint(TOKENS // 2, TOKENS * 3 // 2)
        end = first + tokens * PER_TOKEN / speed
        self.answers.append(Answer(came, attempt.target.name, first - came, attempt.number))
        self._at(end, lambda: self._end(policy, attempt, first, tokens))

    def _end(self, policy: Any, attempt: Attempt, first: float, tokens: int) -> None:
        attempt.end()
        outcome = Outcome(status=200, completed=True, usage=Usage(10, tokens + 1))
        outcome.ttft_seconds = first - attempt.started
        self._tell(policy, attempt, outcome)
        name = attempt.target.name
        if self._queues[name]:
            self._queues[name].popleft()()
        else:
            self._free[name] += 1

    def _tell(self, policy: Any, attempt: Attempt, outcome: Outcome) -> None:
        outcome.duration_seconds = self.now - attempt.started
        if hasattr(policy, "learn"):
            policy.learn(attempt, outcome)


UNEQUAL = [Backend(16), Backend(16), Backend(8), Backend(8, speed=1 / 3)]
"""They can take 39 requests a second; in turn, the slowest has all it can take at 10."""
EQUAL = [Backend(16)] * 4


def p99(kit: Any, kind: str, rate: float) -> float:
    simulation = Simulation(kit, UNEQUAL, rate)
    return simulation.run(kit.policy(kind, clock=simulation.clock), 120.0).p99(since=20.0)


@pytest.mark.parametrize("rate", [9.0, 28.0])
@pytest.mark.parametrize("kind", ["least_busy", "latency"])
def test_with_unequal_backends_first_tokens_come_at_least_twice_as_soon_as_in_turn(
    kit: Any, kind: str, rate: float
) -> None:
    in_turn, found = p99(kit, "round_robin", rate), p99(kit, kind, rate)
    print(f"{rate:g} requests/s: p99 of the time to the first token {found:.2f} s, in turn {in_turn:.2f} s")
    assert found * 2 <= in_turn


def first_since(simulation: Simulation, name: str, since: float) -> float:
    """Seconds from then until a target was asked."""
    return next(at for at, asked in simulation.asked if asked == name and at >= since) - since


@pytest.mark.parametrize(("rate", "within"), [(1.0, 90.0), (20.0, 15.0), (38.0, 15.0)])
def test_a_backend_that_is_back_is_found_soon_however_few_requests_there_are(
    kit: Any, rate: float, within: float
) -> None:
    simulation = Simulation(kit, EQUAL, rate)
    policy = kit.policy("latency", clock=simulation.clock)
    simulation.run(policy, 30.0)
    simulation.down = {"gpu0"}
    simulation.run(policy, 120.0)
    simulation.down = set()
    simulation.run(policy, 200.0)
    found = first_since(simulation, "gpu0", 150.0)
    shares = simulation.shares(250.0, 350.0)
    print(f"{rate:g} requests/s: asked again after {found:.1f} s; shares {shares}")
    assert found <= within and 0.15 <= shares["gpu0"] <= 0.35


@pytest.mark.parametrize("rate", [20.0, 38.0])
def test_a_backend_that_is_down_costs_few_tries_and_everybody_is_answered(kit: Any, rate: float) -> None:
    simulation = Simulation(kit, EQUAL, rate)
    policy = kit.policy("latency", clock=simulation.clock)
    simulation.run(policy, 30.0)
    simulation.down = {"gpu0"}
    simulation.run(policy, 130.0)
    refused = sum(name == "gpu0" for at, name in simulation.asked if at >= 40.0)
    print(f"{rate:g} requests/s: {refused} tries at a backend that is down for two minutes")
    assert refused <= 25 and max(each.tries for each in simulation.answers) == 2


def refuses(simulation: Simulation, policy: Any) -> None:
    simulation.down = {"gpu0"}
    simulation.run(policy, 120.0)
    simulation.down = set()


def taken_out(simulation: Simulation, policy: Any) -> None:
    everybody = simulation.targets
    simulation.targets = everybody[1:]
    simulation.run(policy, 120.0)
    simulation.targets = everybody


@pytest.mark.parametrize("away", [refuses, taken_out])
def test_nobody_floods_a_backend_that_is_just_back(kit: Any, away: Callable[[Simulation, Any], None]) -> None:
    simulation = Simulation(kit, EQUAL, 38.0)
    policy = kit.policy("latency", clock=simulation.clock)
    simulation.run(policy, 60.0)
    away(simulation, policy)
    simulation.most.clear()
    while "gpu0" not in simulation.most:
        simulation.run(policy, 0.05)
    simulation.run(policy, 0.4)  # less than the shortest answer takes: nothing is known of it yet
    elsewhere = [each.state.in_flight for each in simulation.targets[1:]]
    print(f"before its first answer at most {simulation.most['gpu0']} at once; elsewhere {elsewhere}")
    assert simulation.most["gpu0"] * 2 <= max(elsewhere)
    simulation.most.clear()
    simulation.run(policy, 60.0)
    print(f"later at most {simulation.most}; shares {simulation.shares(simulation.now - 30.0, simulation.now)}")
    assert simulation.most["gpu0"] <= 1.3 * max(simulation.most[name] for name in ("gpu1", "gpu2", "gpu3"))
    assert simulation.shares(simulation.now - 30.0, simulation.now)["gpu0"] >= 0.2


def test_a_backend_that_nobody_has_asked_yet_gets_its_part(kit: Any) -> None:
    simulation = Simulation(kit, EQUAL, 2.0)
    policy = kit.policy("latency", clock=simulation.clock)
    everybody = simulation.targets
    simulation.targets = everybody[1:]
    simulation.run(policy, 60.0)
    simulation.targets = everybody
    simulation.run(policy, 200.0)
    assert first_since(simulation, "gpu0", 60.0) <= 30.0
    assert simulation.shares(120.0, 260.0)["gpu0"] >= 0.15


def test_a_backend_that_was_slow_is_asked_again_when_it_is_fast(kit: Any) -> None:
    simulation = Simulation(kit, EQUAL, 20.0)
    policy = kit.policy("latency", clock=simulation.clock)
    simulation.speed("gpu0", 0.05)
    simulation.run(policy, 200.0)
    slow = simulation.shares(100.0, 200.0)["gpu0"]
    simulation.speed("gpu0", 1.0)
    simulation.run(policy, 200.0)
    print(f"its part: {slow:.3f} while slow, {simulation.shares(300.0, 400.0)['gpu0']:.3f} when it is not")
    assert slow <= 0.05 and simulation.shares(300.0, 400.0)["gpu0"] >= 0.2
