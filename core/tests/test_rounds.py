"""Chores that come round, by a clock that goes when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headrace.rounds import Round


class Timer:
    def __init__(self, at: float, work: Callable[[], None]) -> None:
        self.at, self.work, self.cancelled = at, work, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Of an event loop, its clock and its timers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, work: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, work))
        return self.timers[-1]

    def pass_time(self, seconds: float) -> int:
        """Returns how many timers went off."""
        self.now += seconds
        due = [timer for timer in self.timers if timer.at <= self.now and not timer.cancelled]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            timer.work()
        return len(due)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


@pytest.fixture
def done() -> list[float]:
    return []


def chore(loop: Loop, done: list[float], times: int = 1_000_000) -> Round:
    """Every two seconds, so many times."""

    def work() -> bool:
        done.append(loop.now)
        return len(done) < times

    return Round(2.0, work)


def test_nothing_is_done_before_it_is_started(loop: Loop, done: list[float]) -> None:
    it = chore(loop, done)
    loop.now += 50
    it.pass_by()
    assert (done, it.running, loop.timers) == ([], False, [])


def test_a_timer_does_it_when_nobody_passes_by(loop: Loop, done: list[float]) -> None:
    chore(loop, done).start()
    assert [loop.pass_time(1.0) for _ in range(6)] == [0, 1, 0, 1, 0, 1]
    assert done == [102.0, 104.0, 106.0]


def test_who_passes_by_often_enough_leaves_nothing_for_the_timer(loop: Loop, done: list[float]) -> None:
    it = chore(loop, done)
    it.start()
    for _ in range(40):
        assert loop.pass_time(0.25) == 0
        it.pass_by()
    assert done == [101.0 + number for number in range(10)]


def test_who_passes_by_too_early_does_nothing(loop: Loop, done: list[float]) -> None:
    it = chore(loop, done)
    it.start()
    loop.pass_time(0.9)
    it.pass_by()
    assert done == []
    assert loop.pass_time(1.1) == 1


def test_it_ends_when_the_work_says_so(loop: Loop, done: list[float]) -> None:
    it = chore(loop, done, times=2)
    it.start()
    loop.pass_time(2.0)
    loop.pass_time(1.5)
    it.pass_by()
    assert not it.running
    loop.pass_time(50.0)
    it.pass_by()
    assert len(done) == 2


def test_it_ends_when_it_is_stopped_and_may_begin_again(loop: Loop, done: list[float]) -> None:
    it = chore(loop, done)
    it.start()
    it.stop()
    loop.pass_time(50.0)
    it.pass_by()
    assert done == []
    it.start()
    loop.pass_time(2.0)
    assert done == [152.0]


def test_started_twice_it_is_done_once_each_time(loop: Loop, done: list[float]) -> None:
    it = chore(loop, done)
    it.start()
    loop.pass_time(1.5)
    it.start()
    assert [loop.pass_time(1.0) for _ in range(2)] == [0, 1]
    assert done == [103.5]
