"""Whatever is going on, every policy asks every target once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import Unavailable
from headrace.exchange import Principal
from headrace.fleet import EngineLoad
from headrace_routing.config import OPTIONS

ROOT = Principal(id="root", role="admin")
numbers = st.integers(0, 9)
seconds = st.floats(0, 1e6)
targets = st.lists(numbers, min_size=1, max_size=10, unique=True)
answers = st.tuples(numbers, st.none() | seconds, seconds, st.none() | st.integers(0, 10_000), st.booleans())
engines = st.tuples(numbers, st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("order"), targets),
        st.tuples(st.just("busy"), numbers),
        st.tuples(st.just("answer"), answers),
        st.tuples(st.just("engine"), engines),
        st.tuples(st.just("wait"), st.floats(0, 1e5)),
    ),
    max_size=25,
)
sessions = st.sampled_from(["", "ada", "é\x00"])


@pytest.mark.parametrize("kind", list(OPTIONS))
@settings(max_examples=60, deadline=None)
@given(steps=steps, weights=st.lists(st.integers(1, 1000), min_size=10, max_size=10), user=sessions, data=st.data())
def test_every_policy_returns_each_of_the_given_targets_once(
    kit: Any, kind: str, steps: list[Any], weights: list[int], user: str, data: st.DataObject
) -> None:
    clock = kit.clock()
    policy, everybody = kit.policy(kind, clock=clock), kit.targets(10, weights)
    for what, value in [*steps, ("order", list(range(10))), ("order", [3])]:
        if what == "order":
            some = tuple(everybody[number] for number in value)
            for given in (some, some, list(some)):
                names = data.draw(st.sampled_from(["", given[0].name]))
                exchange = kit.exchange(some, user=user, who=ROOT, headers={"x-headrace-target": names})
                ordered = policy.order(exchange, given)
                assert sorted(each.name for each in ordered) == sorted(each.name for each in given)
                assert all(isinstance(policy.why(exchange, each), str) for each in ordered)
        elif what == "busy":
            everybody[value].state.begin()
        elif what == "engine":
            number, running, waiting, cache = value
            everybody[number].state.engine = EngineLoad(running, waiting, cache)
        elif what == "wait":
            clock.now += value
        elif hasattr(policy, "learn"):
            number, first, whole, tokens, failed = value
            error = Unavailable("No.") if failed else None
            kit.learn(policy, everybody[number], began=clock.now, first=first, whole=whole, tokens=tokens, error=error)
