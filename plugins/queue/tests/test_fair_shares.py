"""Who gets how much, and how soon, in simulations: no clock but their own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

WEIGHTS = (0.5, 1.0, 2.0, 5.0)
GUESSES = (0.2, 1.0, 3.0, 100.0)
"""How many times more tokens are estimated than used: one who leaves `max_tokens` at 100,000 and gets a word."""


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


sizes = st.tuples(st.integers(1, 500), st.integers(1, 500)).map(lambda pair: (min(pair), max(pair)))
kinds = st.tuples(st.sampled_from(WEIGHTS), sizes, st.sampled_from(GUESSES))


@settings(max_examples=12, deadline=None)
@given(st.lists(kinds, min_size=2, max_size=6), st.integers(1, 8), st.integers(0, 1000))
def test_callers_that_always_have_more_to_do_share_by_weight_whatever_they_ask_for(
    tenant: Any, simulation: Any, kinds: list[tuple[float, tuple[int, int], float]], slots: int, seed: int
) -> None:
    tenants = [
        tenant(f"t{number}", weight=weight, at_once=2 * slots, tokens=tokens, guess=guess)
        for number, (weight, tokens, guess) in enumerate(kinds)
    ]
    lightest, together = min(each.weight for each in tenants), sum(each.weight for each in tenants)
    goal = (60 + 20 * slots) * 500 * together / lightest  # the least has some sixty requests done, at their largest
    done = simulation(tenants, slots, seed=seed).run(
        lambda now: sum(now.tokens.values()) >= goal or len(now.order) > 9000
    )
    total = sum(done.tokens.values())
    largest = 500 * (slots + 1)
    for each in tenants:
        fair = total * each.weight / together
        assert abs(done.tokens[each.name] - fair) <= 0.1 * fair + largest * max(1, each.weight / lightest)


def test_fifty_callers_get_what_their_weights_say(tenant: Any, simulation: Any) -> None:
    tenants = [tenant(f"t{n}", weight=1.0 + n % 3, at_once=3, tokens=(1, 400), guess=1 + n % 7) for n in range(50)]
    done = simulation(tenants, 8).run(lambda now: sum(now.tokens.values()) > 2_000_000)
    total, together = sum(done.tokens.values()), sum(each.weight for each in tenants)
    for each in tenants:
        assert done.tokens[each.name] / total == pytest.approx(each.weight / together, rel=0.1)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 12), st.sampled_from((1, 10)), st.sampled_from(((100, 100), (1, 200), (20, 600))))
def test_beside_a_flood_a_light_caller_waits_no_longer_than_beside_its_likes(
    tenant: Any, simulation: Any, slots: int, guess: int, tokens: tuple[int, int]
) -> None:
    """Its wait alone is the one at a backend that others, one request each, keep just busy."""
    light = tenant("light", pause=4.0, tokens=(50, 150), guess=guess)
    likes = [tenant(f"other-{number}", tokens=tokens, guess=guess) for number in range(slots)]
    flood = tenant("flood", at_once=40 * slots, tokens=tokens, guess=guess)
    waits = [
        simulation([light, *others], slots, seed=1).run(lambda now: len(now.waits["light"]) >= 300).waits["light"]
        for others in (likes, [flood])
    ]
    alone, beside = (percentile(each, 0.99) for each in waits)
    assert beside <= 2 * alone


def test_a_caller_that_is_alone_uses_everything(tenant: Any, simulation: Any) -> None:
    done = simulation([tenant("one", at_once=10)], 4).run(lambda now: now.tokens["one"] >= 40_000)
    assert done.now == pytest.approx(100, abs=2)  # 4 slots, 100 tokens a second each


def test_a_newcomer_neither_catches_up_nor_waits_behind_what_others_did_before(tenant: Any, simulation: Any) -> None:
    tenants = [tenant("early", at_once=20), tenant("late", at_once=20, begins=1000.0)]
    done = simulation(tenants, 2).run(lambda now: now.order.count("late") >= 100)
    since = done.order[done.order.index("late") :]
    assert done.now > 1000 and since.count("late") / len(since) == pytest.approx(0.5, abs=0.02)


def test_short_answers_to_requests_that_allow_long_ones_cost_no_share(tenant: Any, simulation: Any) -> None:
    tenants = [tenant("careful", at_once=20, guess=1), tenant("careless", at_once=20, guess=100)]
    done = simulation(tenants, 8).run(lambda now: sum(now.tokens.values()) > 200_000)
    assert done.tokens["careless"] / sum(done.tokens.values()) == pytest.approx(0.5, abs=0.03)


def test_two_callers_alike_are_served_in_turn(tenant: Any, simulation: Any) -> None:
    done = simulation([tenant("a", at_once=9), tenant("b", at_once=9)], 1).run(lambda now: len(now.order) > 60)
    settled = done.order[20:60]
    assert all(one != other for one, other in itertools.pairwise(settled))


def test_a_higher_priority_goes_first_but_leaves_the_others_their_part(tenant: Any, simulation: Any) -> None:
    tenants = [tenant("urgent", priority=5, at_once=20), tenant("usual", at_once=20), tenant("rest", at_once=20)]
    tenants[1] = tenants[1]._replace(priority=1)
    done = simulation(tenants, 4, min_share=0.1).run(lambda now: len(now.order) >= 2000)
    parts = [done.order[100:].count(each.name) / 1900 for each in tenants]
    assert parts == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_without_a_least_share_lower_priorities_wait_for_all_higher_ones(tenant: Any, simulation: Any) -> None:
    tenants = [tenant("urgent", priority=5, at_once=20), tenant("usual", at_once=20)]
    done = simulation(tenants, 4, min_share=0.0).run(lambda now: len(now.order) >= 500)
    assert done.order[4:].count("usual") == 0


def test_a_priority_that_nobody_uses_takes_nothing_from_the_others(tenant: Any, simulation: Any) -> None:
    tenants = [tenant("urgent", priority=5, pause=1000.0), tenant("usual", at_once=20)]
    done = simulation(tenants, 4).run(lambda now: now.tokens["usual"] >= 40_000)
    assert done.now == pytest.approx(100, abs=2)
