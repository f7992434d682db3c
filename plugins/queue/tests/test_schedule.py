"""Slots, lines and turns, one step at a time."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_queue.fair import REMEMBERED, FairQueue, Ticket
from headrace_queue.schedule import Request, Schedule
from headrace_queue.slots import Backend, Lane, Slots


def lane(slots: int = 1, limit: float = math.inf) -> Lane:
    return Lane([Backend("gpu", slots)], limit, ["m"])


def names(schedule: Schedule, count: int) -> list[str]:
    """The next so many that run, each after the one before is over."""
    found = []
    for _ in range(count):
        request = schedule.next()
        assert request is not None
        found.append(request.caller)
        schedule.finish(request, request.tokens)
    return found


def waiting(schedule: Schedule, where: Lane, callers: str, **more: float) -> list[Request]:
    requests = [Request(where, name, 100, **more) for name in callers]  # type: ignore[arg-type]
    for each in requests:
        schedule.wait(each)
    return requests


def test_requests_of_one_caller_keep_their_order() -> None:
    where = lane()
    schedule = Schedule([where])
    requests = waiting(schedule, where, "aaaa")
    served = []
    while (found := schedule.next()) is not None:
        served.append(found)
        schedule.finish(found, 100)
    assert served == requests


def test_one_who_leaves_is_skipped_and_the_order_of_the_others_stays() -> None:
    where = lane()
    schedule = Schedule([where])
    requests = waiting(schedule, where, "abcd")
    schedule.leave(requests[1])
    assert names(schedule, 3) == ["a", "c", "d"] and schedule.waiting == 0


def test_who_leaves_without_being_served_has_used_nothing() -> None:
    where = lane()
    schedule = Schedule([where])
    for each in waiting(schedule, where, "a" * 50):
        schedule.leave(each)
    waiting(schedule, where, "bbbaaa")
    assert sorted(names(schedule, 2)) == ["a", "b"]


def test_slots_that_become_free_together_go_to_all_callers() -> None:
    where = lane(slots=0)
    schedule = Schedule([where])
    waiting(schedule, where, "aaaaaaaabbbbbbbb")
    waiting(schedule, where, "cccccccc", weight=2.0)
    where.backends[0].capacity = 8
    begun = [found.caller for _ in range(8) if (found := schedule.next()) is not None]
    assert [begun.count(each) for each in "abc"] == [2, 2, 4]


def test_who_was_away_saves_nothing_up() -> None:
    where = lane()
    schedule = Schedule([where])
    waiting(schedule, where, "a" + "b" * 500)
    assert names(schedule, 501).count("a") == 1
    waiting(schedule, where, "a" * 50 + "b" * 50)
    assert names(schedule, 20).count("a") == pytest.approx(10, abs=1)


def test_who_used_much_while_nobody_else_wanted_it_does_not_pay_later() -> None:
    where = lane()
    schedule = Schedule([where])
    waiting(schedule, where, "b" * 500)
    names(schedule, 500)
    waiting(schedule, where, "a" * 50 + "b" * 50)
    assert names(schedule, 20).count("b") == pytest.approx(10, abs=1)


def test_a_request_that_cost_more_than_was_thought_is_paid_for_in_full() -> None:
    where = lane(slots=1)
    schedule = Schedule([where])
    waiting(schedule, where, "ab" * 50)
    first = schedule.next()
    assert first is not None and first.caller == "a"
    schedule.finish(first, 1000)  # it was taken for 100
    assert names(schedule, 9) == ["b"] * 9


def test_estimates_that_are_far_too_high_leave_nothing_behind() -> None:
    queue = FairQueue()
    for name in "ab":
        for _ in range(3000):
            queue.push(Ticket(100_000), name, 1.0)
    for running in [[queue.pop() for _ in range(1000)] for _ in range(3)]:
        for ticket in running:
            queue.finish(ticket, 1)
    assert len(queue._heap) <= 64 + 2 * 2


def test_a_caller_that_waits_is_not_forgotten_however_many_come_and_go() -> None:
    queue = FairQueue()
    for name in ("back", "back", *map(str, range(2 * REMEMBERED))):
        ticket = Ticket(1)
        queue.start(ticket, name, 1.0)
        queue.finish(ticket, 1)
        if name == "back":
            queue.push(waits := Ticket(1), name, 1.0)
    assert queue.waiting_of("back") == 2 and queue.pop() is not waits


def test_a_priority_in_which_nobody_waits_any_more_saves_no_turns_up() -> None:
    where = lane()
    schedule = Schedule([where], min_share=0.1)
    waiting(schedule, where, "h" * 100, priority=1)
    for _ in range(2):
        low = waiting(schedule, where, "l")
        assert names(schedule, 9) == ["h"] * 9
        schedule.leave(low[0])


def test_callers_are_forgotten_once_they_are_many() -> None:
    queue = FairQueue()
    for number in range(3 * REMEMBERED):
        ticket = Ticket(1)
        queue.start(ticket, f"caller {number}", 1.0)
        queue.finish(ticket, 1)
    assert queue.callers == REMEMBERED and queue.weight == 0


def test_the_caller_of_whom_most_wait_is_known_through_all_changes() -> None:
    where = lane()
    schedule = Schedule([where])
    requests = waiting(schedule, where, "aaabbc")
    found = []
    while (dispensable := schedule.dispensable()) is not None:
        found.append((dispensable[0].caller, dispensable[1]))
        schedule.leave(dispensable[0])
    assert [count for _, count in found] == [3, 2, 2, 1, 1, 1]
    assert found[0] == ("a", 3) and requests[2].state == "over"


def test_who_is_dispensable_is_of_the_lowest_priority() -> None:
    where = lane()
    schedule = Schedule([where])
    waiting(schedule, where, "hhhh", priority=9)
    low = waiting(schedule, where, "l")
    assert schedule.dispensable() == (low[0], 1)


def test_models_with_limits_of_their_own_share_a_backend() -> None:
    gpu = Backend("gpu", 3)
    small, large = Lane([gpu], math.inf, ["small"]), Lane([gpu], 1, ["large"])
    schedule = Schedule([small, large])
    assert [schedule.start(Request(large, "a", 1)) for _ in range(2)] == [True, False]
    assert [schedule.start(Request(small, "a", 1)) for _ in range(3)] == [True, True, False]


def test_lines_at_one_backend_take_turns_by_how_many_callers_use_them() -> None:
    gpu = Backend("gpu", 1)
    one, other = Lane([gpu], math.inf, ["one"]), Lane([gpu], 5, ["other"])
    schedule = Schedule([one, other])
    waiting(schedule, one, "a" * 40)
    waiting(schedule, other, "xyz" * 40)
    assert names(schedule, 40).count("a") == pytest.approx(10, abs=1)


def test_a_line_that_could_not_be_served_saves_no_turns_up() -> None:
    gpu, busy = Backend("gpu", 1), Backend("busy", 0)
    free, bound = Lane([gpu, busy], math.inf, ["free"]), Lane([busy], math.inf, ["bound"])
    schedule = Schedule([free, bound])
    waiting(schedule, bound, "b" * 100)
    waiting(schedule, free, "f" * 200)
    assert names(schedule, 100) == ["f"] * 100
    gpu.capacity, busy.capacity = 0, 1
    assert names(schedule, 40).count("b") == pytest.approx(20, abs=1)


def test_a_request_counts_elsewhere_if_that_makes_room_for_another() -> None:
    a, b = Backend("a", 1), Backend("b", 1)
    both, only_a = Lane([a, b], math.inf, ["both"]), Lane([a], math.inf, ["only_a"])
    slots = Slots([both, only_a])
    assert slots.take(both) and slots.take(only_a) and not slots.has_room(both)
    slots.give(both)
    assert not slots.has_room(only_a) and slots.take(both)


def test_a_backend_that_has_fewer_slots_than_it_runs_is_the_first_to_run_less() -> None:
    a, b = Backend("a", 2), Backend("b", 2)
    both = Lane([a, b], math.inf, ["both"])
    slots = Slots([both])
    assert all(slots.take(both) for _ in range(4))
    b.capacity = 0
    slots.give(both)
    slots.give(both)
    assert (a.used, b.used, slots.has_room(both)) == (2, 0, False)


LANES = st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(LANES, st.lists(st.integers(0, 2), min_size=4, max_size=4), st.data())
def test_there_is_room_exactly_if_everything_could_be_placed(
    used: list[set[int]], sizes: list[int], data: st.DataObject
) -> None:
    backends = [Backend(str(number), size) for number, size in enumerate(sizes)]
    lanes = [Lane([backends[each] for each in sorted(use)], math.inf, [str(n)]) for n, use in enumerate(used)]
    slots = Slots(lanes)
    for _ in range(30):
        which = data.draw(st.sampled_from(lanes))
        if which.running and data.draw(st.booleans()):
            slots.give(which)
        else:
            wanted = {each: each.running + (each is which) for each in lanes}
            assert slots.has_room(which) == (could := could_be_placed(wanted))
            assert slots.take(which) == could
        assert all(each.used <= each.capacity for each in backends)
        assert [sum(each.placed.values()) for each in lanes] == [each.running for each in lanes]


def could_be_placed(wanted: dict[Lane, int]) -> bool:
    """Hall's theorem: whichever lanes are taken together, their backends have slots enough."""
    return all(
        sum(wanted[each] for each in some)
        <= sum(backend.capacity for backend in {backend for each in some for backend in each.backends})
        for count in range(1, len(wanted) + 1)
        for some in itertools.combinations(wanted, count)
    )
