"""What a decision costs. The bound is for a slow machine that has other things to do; each measurement prints what it
found (`pytest -s`)."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from headrace.exchange import Principal
from headrace.fleet import EngineLoad
from headrace_routing.config import OPTIONS, RoutingConfig

pytestmark = pytest.mark.alone

ROOT = Principal(id="root", role="admin")
ROUNDS, CALLS = 20, 200


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_a_decision_among_eight_targets_takes_some_microseconds(kit: Any, kind: str) -> None:
    targets, rng, policy = (
        kit.targets(8),
        random.Random(1),
        kit.policy(
            kind,
            config=RoutingConfig(costs={f"gpu{number}": number % 3 for number in range(8)}),
            clock=time.perf_counter,
        ),
    )
    for target in targets:
        for _ in range(rng.randrange(20)):
            target.state.begin()
        target.state.engine = EngineLoad(rng.randrange(30), rng.randrange(3), rng.random())
        if hasattr(policy, "learn"):
            kit.learn(policy, target, first=rng.random(), whole=5.0, tokens=100)
    request = {"user": "ada", "metadata": {"target": "gpu3"}, "who": ROOT, "policy": policy}
    best = min(
        _seconds_of_a_call(policy, targets, [kit.exchange(targets, **request) for _ in range(CALLS)])
        for _ in range(ROUNDS)
    )
    print(f"{kind}: {best * 1e6:.1f} µs")
    assert best < 100e-6


def _seconds_of_a_call(policy: Any, targets: Any, exchanges: list[Any]) -> float:
    began = time.process_time()
    for exchange in exchanges:
        policy.order(exchange, targets)
    return (time.process_time() - began) / len(exchanges)


def test_learning_from_a_try_takes_some_microseconds(kit: Any) -> None:
    policy, targets = kit.policy("latency", clock=time.perf_counter), kit.targets(1)
    exchange = kit.exchange(targets)
    attempt = kit.attempt(exchange, targets[0])
    outcome = kit.outcome(first=0.1, whole=2.0, tokens=100)
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(CALLS):
            policy.learn(attempt, outcome)
        best = min(best, (time.process_time() - began) / CALLS)
    print(f"{best * 1e6:.1f} µs")
    assert best < 50e-6
