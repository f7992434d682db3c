"""Waiting, one event after the other: nothing is lost and nothing leaks, whatever happens at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from headrace.errors import Unavailable
from headrace_queue.gate import Gate, Group, Waiter
from headrace_queue.slots import Backend, Lane

SLOTS, MOST, MOST_OF_ONE = 3, 8, 5


class Loop(asyncio.SelectorEventLoop):
    """Time passes when it is told to."""

    now = 0.0

    def time(self) -> float:
        return self.now


class Waiting(RuleBasedStateMachine):
    """Requests come, get their turn, give up, are told to stop and end, in every order."""

    waiters = Bundle("waiters")
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.backend = Backend("gpu", SLOTS)
        lane = Lane([self.backend], math.inf, ["m"])
        self.lane, self.group = lane, Group([lane], 0.1)
        self.gate = Gate([self.group], MOST, MOST_OF_ONE, 5.0, self.loop.time)
        self.here: dict[Waiter, asyncio.Task[Any]] = {}

    @rule(
        target=waiters,
        caller=st.sampled_from("abc"),
        priority=st.integers(0, 1),
        timeout=st.sampled_from((0.0, 1.0, 10.0)),
    )
    def come(self, caller: str, priority: int, timeout: float) -> Waiter:
        waiter = Waiter(self.group, self.lane, caller, 10, priority=priority)
        self.here[waiter] = self.loop.create_task(self.enter(waiter, timeout))
        return waiter

    async def enter(self, waiter: Waiter, timeout: float) -> None:
        if not self.gate.start(waiter):
            await self.gate.wait(waiter, timeout)

    @rule(waiter=consumes(waiters))
    def leave(self, waiter: Waiter) -> None:
        """The client is gone: whether it waits, has just been let in or runs."""
        task = self.here.pop(waiter)
        if task.done() and not task.exception():
            self.gate.finish(waiter, 10)
        task.cancel()

    @rule(waiter=consumes(waiters), tokens=st.sampled_from((None, 0, 5, 1000)))
    def end(self, waiter: Waiter, tokens: int | None) -> None:
        task = self.here[waiter]
        if task.done():
            del self.here[waiter]
            if not task.exception():
                self.gate.finish(waiter, tokens)
        else:
            self.leave(waiter)

    @rule()
    def let_things_happen(self) -> None:
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))

    @rule(seconds=st.sampled_from((0.5, 2.0, 20.0)))
    def time_passes(self, seconds: float) -> None:
        self.loop.now += seconds

    @rule(slots=st.integers(0, 4))
    def the_capacity_changes(self, slots: int) -> None:
        self.backend.capacity = slots
        self.gate.serve(self.group)

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        schedule = self.group.schedule
        assert not schedule.waiting or schedule.running >= self.backend.capacity

    @invariant()
    def everything_is_counted_once(self) -> None:
        schedule = self.group.schedule
        assert self.gate.waiting == schedule.waiting <= MOST
        assert sum(self.gate._waiting_of.values()) == schedule.waiting
        assert max(self.gate._waiting_of.values(), default=0) <= MOST_OF_ONE
        assert self.backend.used == self.lane.running == schedule.running <= max(SLOTS, 4)

    def teardown(self) -> None:
        for waiter in list(self.here):
            self.leave(waiter)
        self.let_things_happen()
        assert (self.gate.waiting, self.group.schedule.running, self.gate._waiting_of) == (0, 0, {})
        self.loop.close()


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


class Door:
    """A gate with one slot, and who wants in."""

    def __init__(self, **more: Any) -> None:
        self.backend = Backend("gpu", 1)
        self.lane = Lane([self.backend], math.inf, ["m"])
        self.group = Group([self.lane], 0.0)
        self.gate = Gate([self.group], **{"max_waiting": 100, "max_waiting_per_caller": None, "timeout": 60.0, **more})
        self.tasks: list[asyncio.Task[float]] = []

    def comes(self, caller: str = "a", **more: Any) -> Waiter:
        return Waiter(self.group, self.lane, caller, 10, **more)

    async def waits(self, caller: str = "a", timeout: float = 60.0, **more: Any) -> tuple[Waiter, asyncio.Task[float]]:
        waiter = self.comes(caller, **more)
        task = asyncio.create_task(self.gate.wait(waiter, timeout))
        self.tasks.append(task)
        await asyncio.sleep(0)
        return waiter, task


@contextlib.asynccontextmanager
async def door(**more: Any) -> AsyncIterator[Door]:
    """One whose slot is taken."""
    made = Door(**more)
    assert made.gate.start(made.comes("holder"))
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def test_who_leaves_while_waiting_is_gone_at_once() -> None:
    async with door() as made:
        _, task = await made.waits()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert made.gate.waiting == made.group.schedule.waiting == 0


async def test_nothing_is_left_of_those_who_left() -> None:
    async with door() as made:
        for _ in range(100):
            _, task = await made.waits()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        made.tasks.clear()
        del task
        gc.collect()
        assert sum(isinstance(each, Waiter) for each in gc.get_objects()) <= 2


async def test_who_leaves_just_when_its_turn_has_come_gives_it_to_the_next() -> None:
    async with door() as made:
        first, leaving = await made.waits("a")
        second, staying = await made.waits("b")
        made.backend.capacity = 2
        made.gate.serve(made.group)
        assert (first.state, second.state) == ("running", "waiting")
        leaving.cancel()  # its task has not yet heard that it may run
        await staying
        assert (first.state, second.state, made.backend.used) == ("over", "running", 2)
        assert leaving.cancelled()


async def test_who_is_late_is_told_when_to_come_again() -> None:
    async with door() as made:
        _, task = await made.waits(timeout=0.001)
        with pytest.raises(Unavailable, match=r"no room for this request within 0\.001 s: try again in 60 s") as caught:
            await task
        assert caught.value.code == "queue_timeout" and caught.value.headers == {"Retry-After": "60"}


async def test_a_full_queue_refuses_the_newest_of_those_who_crowd_it() -> None:
    async with door(max_waiting=3) as made:
        crowd = [await made.waits("crowd") for _ in range(3)]
        _, other = await made.waits("other")
        with pytest.raises(Unavailable, match="Too many requests are waiting") as caught:
            await crowd[2][1]
        assert caught.value.code == "overloaded" and not crowd[1][1].done() and not other.done()


async def test_a_full_queue_makes_room_where_most_wait_whatever_they_wait_for() -> None:
    async with door(max_waiting=6) as made:
        crowd = [await made.waits("crowd") for _ in range(3)]
        few = [await made.waits("few") for _ in range(2)]
        elsewhere = Group([Lane([Backend("other", 0)], math.inf, ["n"])], 0.0)
        made.gate.groups = (elsewhere, made.group)
        made.group, made.lane = elsewhere, elsewhere.schedule.slots.lanes[0]
        await made.waits("third")
        _, other = await made.waits("other")
        assert [each.state for each, _ in (*crowd, *few)] == ["waiting", "waiting", "over", "waiting", "waiting"]
        assert not other.done()


async def test_a_full_queue_refuses_one_more_of_the_crowd() -> None:
    async with door(max_waiting=3) as made:
        crowd = [await made.waits("crowd") for _ in range(3)]
        _, more = await made.waits("crowd")
        with pytest.raises(Unavailable):
            await more
        assert not any(task.done() for _, task in crowd)


async def test_a_full_queue_makes_room_for_a_higher_priority_and_not_for_a_lower_one() -> None:
    async with door(max_waiting=2) as made:
        usual = [await made.waits(name, priority=1) for name in "ab"]
        _, lower = await made.waits("c", priority=0)
        _, higher = await made.waits("d", priority=2)
        with pytest.raises(Unavailable):
            await lower
        await asyncio.sleep(0)
        assert [task.done() for _, task in usual].count(True) == 1 and not higher.done()


async def test_one_caller_may_have_so_many_waiting_and_no_more() -> None:
    async with door(max_waiting_per_caller=2) as made:
        tasks = [(await made.waits("a"))[1] for _ in range(3)]
        _, other = await made.waits("b")
        with pytest.raises(Unavailable, match="Too many of your requests"):
            await tasks[2]
        assert not tasks[0].done() and not tasks[1].done() and not other.done()


async def test_those_who_wait_long_are_sent_a_sign_of_life_until_their_turn() -> None:
    async with door() as made:
        signs = 0

        async def beat() -> None:
            nonlocal signs
            signs += 1
            if signs == 3:
                made.backend.capacity = 2
                made.gate.serve(made.group)

        waited = await made.gate.wait(made.comes(), 60.0, 0.001, beat)
        assert signs == 3 and waited > 0


async def test_a_sign_of_life_that_cannot_be_sent_ends_the_waiting() -> None:
    async def beat() -> None:
        raise ConnectionResetError

    async with door() as made:
        with pytest.raises(ConnectionResetError):
            await made.gate.wait(made.comes(), 60.0, 0.001, beat)
        assert made.gate.waiting == 0
