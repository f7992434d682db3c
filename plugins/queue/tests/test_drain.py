"""When it is worth to come back."""

from __future__ import annotations

import pytest

from headrace_queue.drain import Drain


def busy(running: int, average: float, since: float) -> Drain:
    """Requests run since then; those before took so long each."""
    drain = Drain()
    drain.begin(0.0)
    drain.end(0.0, average)
    for _ in range(running):
        drain.begin(since)
    return drain


def test_as_many_are_finished_as_run_in_the_time_that_each_takes() -> None:
    assert busy(running=8, average=4.0, since=10.0).rate(11.0) == pytest.approx(2.0)


def test_a_backend_that_hangs_makes_the_rate_sink() -> None:
    assert busy(running=8, average=4.0, since=10.0).rate(26.0) == pytest.approx(0.5)


def test_a_quiet_hour_does_not() -> None:
    assert busy(running=8, average=4.0, since=3600.0).rate(3600.0) == pytest.approx(2.0)


@pytest.mark.parametrize(("position", "seconds"), [(1, 1), (7, 4), (100, 50), (10_000, 300)])
def test_one_should_come_back_when_those_before_are_done_but_within_bounds(position: int, seconds: int) -> None:
    assert busy(running=8, average=4.0, since=10.0).retry_after(position, 10.0, unknown=60.0) == seconds


@pytest.mark.parametrize(("unknown", "seconds"), [(0.0, 1), (59.5, 60), (86_400.0, 300)])
def test_before_anything_is_known_one_waits_as_long_as_the_queue_would_let_one(unknown: float, seconds: int) -> None:
    assert Drain().retry_after(5, 1.0, unknown) == seconds


def test_what_never_really_ran_counts_for_nothing() -> None:
    drain = busy(running=2, average=4.0, since=10.0)
    drain.begin(10.0)
    drain.end(10.0, None)
    assert drain.rate(10.0) == pytest.approx(0.5)
