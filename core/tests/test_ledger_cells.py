"""Windows, sums and open counts, and how time changes them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.ledger import Limit, cells
from headrace.ledger.cells import SLOTS, is_over

MINUTE = Limit("t:m", "window", 100, 60.0)
SUM = Limit("t:s", "sum", 100, ends=2000.0)
OPEN = Limit("t:o", "open", 3)
STEP = 60.0 / SLOTS


class Kept:
    """What is kept of a limit, looked at at some time by some worker."""

    def __init__(self, limit: Limit, data: bytes | None, now: float, column: int) -> None:
        self.limit, self.column = limit, column
        self.data = cells.load(limit, data, now, column)

    @property
    def used(self) -> int:
        return self.data[0]

    def take(self, amount: int) -> int:
        return cells.take(self.limit, self.data, amount, self.column)

    def correct(self, place: int, change: int) -> None:
        cells.correct(self.limit, self.data, place, change, self.column)

    def wait(self, amount: int, now: float) -> float:
        return cells.wait(self.limit, self.data, amount, now)

    def reset(self, now: float) -> float:
        return cells.reset(self.limit, self.data, now)


def again(limit: Limit, kept: Kept | None, now: float, column: int = 0) -> Kept:
    """What the next process finds that looks at it."""
    return Kept(limit, kept.data.tobytes() if kept else None, now, column)


def test_what_was_used_counts_until_it_is_older_than_the_window() -> None:
    window = again(MINUTE, None, 1000.0)
    window.take(100)
    assert again(MINUTE, window, 1000.0 + 60.0).used == 100
    assert again(MINUTE, window, 1000.0 + 60.0 + STEP).used == 0


def test_a_window_says_when_it_will_have_room() -> None:
    window = again(MINUTE, None, 1000.0)
    window.take(60)
    window = again(MINUTE, window, 1030.0)
    window.take(40)
    assert window.wait(0, 1030.0) == 0
    assert window.wait(60, 1030.0) == pytest.approx(31.0)
    assert window.wait(61, 1030.0) == pytest.approx(61.0)
    assert window.wait(101, 1030.0) == math.inf
    assert window.reset(1030.0) == pytest.approx(61.0)


def test_what_was_not_used_is_given_back_where_it_was_taken() -> None:
    window = again(MINUTE, None, 1000.0)
    place = window.take(50)
    window = again(MINUTE, window, 1020.0)
    window.take(10)
    window.correct(place, -40)
    assert window.used == 20
    assert again(MINUTE, window, 1061.5).used == 10


def test_what_was_used_beyond_the_reservation_counts_from_now_on() -> None:
    window = again(MINUTE, None, 1000.0)
    place = window.take(10)
    window = again(MINUTE, window, 1030.0)
    window.correct(place, 5)
    assert again(MINUTE, window, 1065.0).used == 5


def test_what_has_left_the_window_cannot_be_given_back_once_more() -> None:
    window = again(MINUTE, None, 1000.0)
    place = window.take(50)
    window = again(MINUTE, window, 1100.0)
    window.take(10)
    window.correct(place, -50)
    assert window.used == 10


def test_a_clock_that_goes_back_stands_still() -> None:
    window = again(MINUTE, None, 1000.0)
    window.take(10)
    back = again(MINUTE, window, 990.0)
    back.take(5)
    assert back.used == 15
    assert again(MINUTE, back, 1059.0).used == 15


def test_a_clock_that_was_set_back_by_hours_does_not_stop_everything() -> None:
    window = again(MINUTE, None, 100_000.0)
    window.take(100)
    assert again(MINUTE, window, 1000.0).used == 0


def test_a_sum_counts_until_its_end() -> None:
    sum_ = again(SUM, None, 1000.0)
    sum_.take(90)
    sum_.correct(0, -30)
    assert sum_.used == 60
    assert sum_.wait(40, 1000.0) == 0
    assert sum_.wait(41, 1000.0) == pytest.approx(1000.0)
    assert sum_.wait(101, 1000.0) == math.inf
    assert not is_over("sum", sum_.data, 1999.0)
    assert is_over("sum", sum_.data, 2001.0)


def test_what_is_open_is_counted_by_worker_and_in_all() -> None:
    first = again(OPEN, None, 0.0, column=0)
    place = first.take(1)
    second = again(OPEN, first, 0.0, column=2)
    second.take(2)
    assert second.used == 3
    assert second.wait(1, 0.0) > 0
    first = again(OPEN, second, 0.0, column=0)
    first.correct(place, 0)
    assert first.used == 2
    assert list(first.data) == [2, 0, 0, 2]


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 60), st.integers(0, 80)), min_size=1, max_size=60),
)
def test_a_window_keeps_its_limit_and_says_truly_when_it_has_room(
    moves: list[tuple[float, int, int]],
) -> None:
    """Whatever is asked for, and however much of it is given back or overdrawn later."""
    now, held = 1_000_000.0, list[tuple[int, int]]()
    cell = again(MINUTE, None, now)
    for pause, amount, back in moves:
        now += pause
        cell = again(MINUTE, cell, now)
        assert cell.used >= 0
        assert cell.used == sum(cell.data[3:])
        if cell.used + amount <= MINUTE.most:
            held.append((cell.take(amount), amount))
            assert cell.used <= MINUTE.most
        elif amount <= MINUTE.most:
            wait = cell.wait(amount, now)
            assert 0 < wait <= 61.0
            assert again(MINUTE, cell, now + wait + 0.001).used + amount <= MINUTE.most
        if held and back % 3 == 0:
            place, reserved = held.pop(0)
            cell.correct(place, -min(back, reserved))


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 60)), min_size=1, max_size=80))
def test_without_giving_back_the_sum_over_any_span_is_within_the_limit(moves: list[tuple[float, int]]) -> None:
    now, taken = 1_000_000.0, list[tuple[float, int]]()
    cell = again(MINUTE, None, now)
    for pause, amount in moves:
        now += pause
        cell = again(MINUTE, cell, now)
        if cell.used + amount <= MINUTE.most:
            cell.take(amount)
            taken.append((now, amount))
        assert sum(each for at, each in taken if now - at <= 60.0) <= MINUTE.most


def test_steady_demand_gets_nearly_all_of_a_limit() -> None:
    limit = Limit("t:steady", "window", 1000, 60.0)
    cell, now, granted = again(limit, None, 0.0), 0.0, 0
    while now < 600.0:
        now += 0.05
        cell = again(limit, cell, now)
        if cell.used < limit.most:
            cell.take(1)
            granted += 1
    assert granted >= 0.97 * 10 * limit.most
