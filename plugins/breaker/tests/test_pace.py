"""How much a backend gets that has come back, or answers 429; and what counts within a window."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_breaker.pace import Pace
from headrace_breaker.window import PARTS, Window


def pace(growth: float = 10, max_pause: float = 60) -> Pace:
    return Pace(growth, max_pause, random.Random(1))


def test_a_backend_of_which_nothing_is_known_gets_its_whole_share() -> None:
    assert pace().share(5.0) == 1.0


def test_one_that_has_come_back_begins_with_a_tenth_and_gets_more_and_more() -> None:
    one = pace()
    one.begin(100.0)
    assert [one.share(100.0 + seconds) for seconds in (0, 2, 5, 8.9)] == pytest.approx([0.1, 0.3, 0.6, 0.99])
    assert one.share(109.1) == 1.0 and not one.is_slowed


def test_without_a_slow_start_it_gets_all_at_once() -> None:
    one = pace(growth=0)
    one.begin(100.0)
    assert not one.is_slowed


def test_one_that_says_429_pauses_for_as_long_as_it_asks_then_gets_half() -> None:
    one = pace()
    one.slow(100.0, 7.0)
    assert [one.share(at) for at in (100.0, 106.9)] == [0.0, 0.0]
    assert one.share(107.0) == 0.5
    assert one.share(112.0) == 1.0


def test_what_others_are_told_during_a_pause_does_not_halve_its_share_again() -> None:
    one = pace()
    for _ in range(50):
        one.slow(100.0, 7.0)
    assert one.share(107.0) == 0.5


def test_each_429_after_a_pause_halves_its_share_down_to_a_twentieth() -> None:
    one, now, shares = pace(), 100.0, []
    for _ in range(6):
        one.slow(now, 1.0)
        now += 1.0
        shares.append(one.share(now))
    assert shares == [0.5, 0.25, 0.125, 0.0625, 0.05, 0.05]


def test_pauses_that_nobody_has_set_become_longer() -> None:
    one, now, pauses = pace(max_pause=10), 100.0, []
    for _ in range(6):
        one.slow(now, 0.0)
        pauses.append(one.paused_until - now)
        now = one.paused_until
    for found, longest in zip(pauses, [1, 2, 4, 8, 10, 10], strict=True):
        assert 0.75 * longest <= found <= longest


@settings(deadline=None)
@given(st.floats(min_value=0, max_value=1e300))
def test_no_pause_is_longer_than_the_longest(asked: float) -> None:
    one = pace(max_pause=60)
    one.slow(100.0, asked)
    one.slow(100.0, asked)
    assert 100.0 <= one.paused_until <= 160.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(min_value=0, max_value=20), st.booleans())))
def test_a_window_counts_what_is_as_old_as_it_to_a_tenth(steps: list[tuple[float, bool]]) -> None:
    window, now, events = Window(10.0), 1000.0, []
    for wait, failed in steps:
        now += wait
        window.add(now, failed)
        events.append((now, failed))
        total, bad = window.counts(now)
        surely = [each for each in events if each[0] > now - 9.0]
        at_most = [each for each in events if each[0] >= now - 10.0 - 1e-6]
        assert len(surely) <= total <= len(at_most)
        assert sum(each for _, each in surely) <= bad <= sum(each for _, each in at_most)
        assert len(window._total) == len(window._failed) == PARTS
