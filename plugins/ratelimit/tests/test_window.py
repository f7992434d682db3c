"""A window never holds more than was said in any span of its length, and lets nearly all of it be used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace_ratelimit.window import SLOTS, Window

MINUTE = 60.0


def admit(window: Window, now: float, amount: int, limit: int) -> bool:
    if window.advance(now) + amount > limit:
        return False
    window.add(amount)
    return True


@given(
    steps=st.lists(st.tuples(st.floats(0, 90), st.integers(1, 40)), max_size=200),
    seconds=st.sampled_from([1.0, MINUTE, 3600.0]),
    limit=st.integers(1, 100),
)
def test_no_span_of_its_length_holds_more_than_the_limit(
    steps: list[tuple[float, int]], seconds: float, limit: int
) -> None:
    window, now, passed = Window(seconds), 1000.0, []
    for pause, amount in steps:
        now += pause * seconds / MINUTE
        if admit(window, now, amount, limit):
            passed.append((now, amount))
    for begin, _ in passed:
        assert sum(amount for at, amount in passed if begin <= at < begin + seconds) <= limit


def test_at_steady_load_nearly_all_of_the_limit_is_used() -> None:
    window, limit, passed = Window(MINUTE), 1000, 0
    for tick in range(10 * 6000):
        passed += admit(window, 1000 + tick / 100, 1, limit)
    assert 0.97 * 10 * limit <= passed <= 11 * limit


@given(
    uses=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=100),
)
def test_what_is_given_back_is_as_if_it_had_never_been_used(uses: list[tuple[float, int, int]]) -> None:
    reserving, exact, now = Window(MINUTE), Window(MINUTE), 1000.0
    for pause, reserved, used in uses:
        now += pause
        reserving.advance(now)
        exact.advance(now)
        reserving.correct(reserving.add(reserved), min(used, reserved) - reserved)
        exact.add(min(used, reserved))
        assert reserving.used == exact.used
    assert reserving.advance(now + 2 * MINUTE) == 0 and reserving.is_empty


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50), st.floats(0, 200), st.integers(-50, 50)), max_size=60))
def test_corrections_come_at_any_time_and_nothing_is_left_over(uses: list[tuple[float, int, float, int]]) -> None:
    window, now = Window(MINUTE), 1000.0
    later: list[tuple[float, int, int]] = []
    for pause, reserved, delay, correction in uses:
        now += pause
        for at, slot, amount in [each for each in later if each[0] <= now]:
            window.advance(at if at > now else now)
            window.correct(slot, amount)
        later = [each for each in later if each[0] > now]
        window.advance(now)
        later.append((now + delay, window.add(reserved), max(correction, -reserved)))
        assert window.used >= 0 and min(window._slots) >= 0
    for at, slot, amount in later:
        now = max(now, at)
        window.advance(now)
        window.correct(slot, amount)
    assert window.advance(now + 2 * MINUTE) == 0


@given(
    uses=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 30)), min_size=1, max_size=50), room=st.integers(1, 100)
)
def test_after_the_wait_there_is_room_and_not_long_before(uses: list[tuple[float, int]], room: int) -> None:
    window, now = Window(MINUTE), 1000.0
    for pause, amount in uses:
        now += pause
        window.advance(now)
        window.add(amount)
    before = window.advance(now)
    wait = window.wait(now, min(room, before))
    assert 0 <= wait <= MINUTE * (SLOTS + 1) / SLOTS
    assert window.advance(now + wait + 0.001) <= before - min(room, before)


def test_a_clock_that_goes_back_forgets_nothing() -> None:
    window = Window(MINUTE)
    window.advance(1000)
    window.add(5)
    assert window.advance(900) == 5 == window.advance(1000)
