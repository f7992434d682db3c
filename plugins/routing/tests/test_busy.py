"""Policies that go by the requests in flight: `least_busy`, `cost`, `priority`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from headrace_routing.config import RoutingConfig


def make_busy(targets: Any, *in_flight: int) -> Any:
    for target, count in zip(targets, in_flight, strict=True):
        for _ in range(count):
            target.state.begin()
    return targets


def order(kit: Any, policy: Any, targets: Any) -> list[str]:
    return [each.name for each in policy.order(kit.exchange(targets), targets)]


def test_the_least_busy_is_the_first_and_the_busiest_the_last(kit: Any) -> None:
    targets = make_busy(kit.targets(3), 5, 2, 9)
    assert order(kit, kit.policy("least_busy"), targets) == ["gpu1", "gpu0", "gpu2"]


def test_a_target_of_weight_3_may_have_three_times_as_many(kit: Any) -> None:
    targets = make_busy(kit.targets(2, weights=(3, 1)), 8, 3)
    assert order(kit, kit.policy("least_busy"), targets) == ["gpu0", "gpu1"]
    targets[0].state.begin()
    targets[0].state.begin()
    assert order(kit, kit.policy("least_busy"), targets) == ["gpu1", "gpu0"]


def test_of_equally_busy_ones_anybody_is_the_first(kit: Any) -> None:
    policy, targets = kit.policy("least_busy"), make_busy(kit.targets(3), 1, 1, 1)
    counts = Counter(order(kit, policy, targets)[0] for _ in range(3000))
    assert all(count == pytest.approx(1000, abs=150) for count in counts.values()) and len(counts) == 3


def test_the_cheapest_is_the_first_however_busy_it_is(kit: Any) -> None:
    targets = make_busy(kit.targets(3), 0, 50, 0)
    policy = kit.policy("cost", costs={"gpu0": 2.5, "gpu1": 0.1, "gpu2": 1})
    assert order(kit, policy, targets) == ["gpu1", "gpu2", "gpu0"]


def test_of_equally_cheap_ones_the_least_busy_is_the_first(kit: Any) -> None:
    targets = make_busy(kit.targets(3), 4, 2, 0)
    policy = kit.policy("cost", costs={"gpu0": 1, "gpu1": 1, "gpu2": 3})
    assert order(kit, policy, targets) == ["gpu1", "gpu0", "gpu2"]


def test_a_variant_takes_the_costs_of_all_but_for_its_own(kit: Any) -> None:
    config = RoutingConfig(costs={"gpu0": 1, "gpu1": 2, "gpu2": 3})
    policy = kit.policy("cost", config=config, costs={"gpu0": 9})
    assert order(kit, policy, kit.targets(3)) == ["gpu1", "gpu2", "gpu0"]


def test_a_chain_of_groups_is_asked_in_order_and_in_a_group_the_least_busy_first(kit: Any) -> None:
    targets = make_busy(kit.targets(4), 0, 3, 0, 1)
    config = RoutingConfig(priorities={"gpu1": 0, "gpu3": 0, "gpu0": 1, "gpu2": 7})
    assert order(kit, kit.policy("priority", config=config), targets) == ["gpu3", "gpu1", "gpu0", "gpu2"]


def test_targets_without_a_group_follow_in_the_order_of_the_file(kit: Any) -> None:
    targets = make_busy(kit.targets(4), 2, 1, 3, 0)
    assert order(kit, kit.policy("priority"), targets) == ["gpu0", "gpu1", "gpu2", "gpu3"]
    one_named = kit.policy("priority", priorities={"gpu2": 5})
    assert order(kit, one_named, targets) == ["gpu2", "gpu0", "gpu1", "gpu3"]


def test_they_say_what_counts(kit: Any) -> None:
    targets = make_busy(kit.targets(2, weights=(2, 1)), 3, 0)
    exchange = kit.exchange(targets)
    assert kit.policy("least_busy").why(exchange, targets[0]) == "3 in flight for a weight of 2"
    assert kit.policy("cost", costs={"gpu1": 0.25}).why(exchange, targets[1]) == "costs 0.25, 0 in flight"
    assert kit.policy("priority").why(exchange, targets[1]) == "priority 1, 0 in flight"
