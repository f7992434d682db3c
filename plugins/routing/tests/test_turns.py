"""Policies that look at nothing but the weights."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest


def firsts(kit: Any, policy: Any, targets: Any, count: int) -> list[str]:
    exchange = kit.exchange(targets)
    return [policy.order(exchange, targets)[0].name for _ in range(count)]


def test_round_robin_asks_each_target_in_turn_and_the_one_after_it_next(kit: Any) -> None:
    policy, targets = kit.policy("round_robin"), kit.targets(4)
    names = firsts(kit, policy, targets, 8)
    assert names[:4] == names[4:] and len(set(names[:4])) == 4
    following = [each.name for each in policy.order(kit.exchange(targets), targets)]
    assert following == names[:4]


def test_round_robin_keeps_a_turn_for_each_model(kit: Any) -> None:
    policy, one, other = kit.policy("round_robin"), kit.targets(2), kit.targets(2)
    for targets in (one, other):
        policy.order(kit.exchange(targets), targets)
    names = [firsts(kit, policy, targets, 1)[0] for _ in range(4) for targets in (one, other)]
    assert Counter(names[::2]) == Counter(names[1::2]) == {"gpu0": 2, "gpu1": 2}


def test_workers_do_not_begin_with_the_same_target(kit: Any) -> None:
    targets = kit.targets(4, weights=(4, 3, 2, 1))
    for kind in ("round_robin", "weighted"):
        begun = {firsts(kit, kit.policy(kind, seed=seed), targets, 1)[0] for seed in range(40)}
        assert len(begun) == 4, kind


def test_weighted_turns_are_exactly_in_proportion_to_the_weights(kit: Any) -> None:
    targets = kit.targets(3, weights=(5, 2, 1))
    names = firsts(kit, kit.policy("weighted"), targets, 8 * 10)
    assert Counter(names) == {"gpu0": 50, "gpu1": 20, "gpu2": 10}


def test_weighted_turns_are_evenly_spread(kit: Any) -> None:
    targets = kit.targets(3, weights=(4, 2, 2))
    names = firsts(kit, kit.policy("weighted"), targets, 80)
    assert "gpu0 gpu0 gpu0" not in " ".join(names)
    at = [number for number, name in enumerate(names) if name == "gpu1"]
    assert {after - before for before, after in pairwise(at)} == {4}


def test_random_chooses_in_proportion_to_the_weights_for_every_place(kit: Any) -> None:
    targets, policy = kit.targets(3, weights=(6, 3, 1)), kit.policy("random")
    orders = Counter(tuple(each.name[-1] for each in policy.order(None, targets)) for _ in range(10_000))
    first = Counter({name: sum(n for order, n in orders.items() if order[0] == name) for name in "012"})
    assert first["0"] == pytest.approx(6000, abs=200)
    assert first["2"] == pytest.approx(1000, abs=150)
    assert orders["0", "1", "2"] == pytest.approx(6000 * 3 / 4, abs=200)  # what is left is weighed against each other


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("round_robin", "each in turn"),
        ("weighted", "in turn, 3 of 4 requests"),
        ("random", "at random, 3 of 4 requests"),
    ],
)
def test_they_say_which_part_a_target_has(kit: Any, kind: str, why: str) -> None:
    targets = kit.targets(2, weights=(3, 1))
    assert kit.policy(kind).why(kit.exchange(targets), targets[0]) == why
