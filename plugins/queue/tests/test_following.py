"""Slots that follow what an engine says: as many requests as it runs, and none that wait in it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.errors import PluginError
from headrace.exchange import Target
from headrace.fleet import EngineLoad
from headrace_queue.following import ANY_NUMBER, Followed, following

ROUTING: dict[str, Any] = {"openai": {}, "routing": {"metrics": {"interval": 3600}}}


class Engine:
    """Runs so many at a time, whoever asks; time passes from one word of it to the next."""

    def __init__(self, seats: int, most: int | None = None) -> None:
        self.target = Target(name="gpu", provider="openai", base_url="http://gpu")
        self.followed = Followed(self.target, most)
        self.seats, self.others = seats, 0

    def says(self, *, ours: int, cache: float = 0.0) -> int:
        """The slots after its next word, while it has so many requests of ours."""
        self.target.state.counted.own[0] = ours
        everybody = ours + self.others
        running = min(everybody, self.seats)
        self.target.state.engine = EngineLoad(running, everybody - running, cache)
        self.followed.look()
        return self.followed.slots

    def flooded(self, times: int) -> list[int]:
        """The same, again and again, while there are as many of ours as may be."""
        return [self.says(ours=min(100, self.followed.slots)) for _ in range(times)]


def test_as_many_run_as_the_engine_has_seats() -> None:
    engine = Engine(seats=10)
    engine.flooded(30)
    assert set(engine.flooded(30)) <= {10, 11}


def test_nothing_changes_while_nobody_waits_and_not_all_are_used() -> None:
    engine = Engine(seats=10, most=8)
    assert [engine.says(ours=ours) for ours in (0, 3, 7)] == [8, 8, 8]


def test_a_moment_of_waiting_is_how_requests_come_in() -> None:
    engine = Engine(seats=10)
    assert [engine.says(ours=ours) for ours in (5, 14, 9, 14, 9)] == [ANY_NUMBER] * 5


def test_no_more_than_is_configured_however_idle_the_engine_says_it_is() -> None:
    engine = Engine(seats=100, most=20)
    assert set(engine.flooded(30)) == {20}


def test_one_is_let_in_even_if_others_fill_the_engine() -> None:
    engine = Engine(seats=10)
    engine.others = 50
    assert engine.flooded(10)[-1] == 1


def test_what_others_leave_is_used_again() -> None:
    engine = Engine(seats=10)
    engine.others = 50
    engine.flooded(10)
    engine.others = 0
    assert set(engine.flooded(40)[-10:]) <= {10, 11}


def test_a_full_cache_is_no_room() -> None:
    engine = Engine(seats=10, most=20)
    engine.flooded(10)
    before = engine.followed.slots
    engine.seats = 50
    assert engine.says(ours=before, cache=0.99) == before < engine.says(ours=before, cache=0.2)


def test_what_was_said_once_counts_once() -> None:
    engine = Engine(seats=10, most=8)
    engine.says(ours=3)
    assert not engine.followed.look()


async def test_where_no_backend_follows_nobody_wakes_up_to_look() -> None:
    before = asyncio.all_tasks()
    async with following([], lambda name, slots: None):
        assert asyncio.all_tasks() == before


async def test_requests_wait_here_once_they_would_wait_in_the_engine(queued: Any) -> None:
    async with queued({"plugins": {**ROUTING, "queue": {"follow": ["fake"]}}}) as gate:
        gate.backend.silent = True
        state = gate.running.gateway.models.find("test").targets[0].state
        tasks = [gate.asks(f"key-{number}") for number in range(6)]
        await gate.until(lambda now: now.running == 6)

        def four_run_and_two_wait(now: Any) -> bool:
            state.engine = EngineLoad(4, 2)
            return bool(now.backends["fake"].capacity == 4)

        await gate.until(four_run_and_two_wait)
        tasks.append(gate.asks("late"))
        await gate.until(lambda now: now.waiting == 1)
        for each in tasks:
            each.cancel()


@pytest.mark.parametrize(
    ("plugins", "text"),
    [
        ({"openai": {}, "queue": {"follow": ["fake"]}}, "the plugin routing that asks engines"),
        ({**ROUTING, "queue": {"follow": ["gpu9"]}}, "no model uses a backend 'gpu9'"),
    ],
    ids=["nobody asks", "unknown"],
)
async def test_what_cannot_be_followed_is_said_at_the_start(queued: Any, plugins: dict[str, Any], text: str) -> None:
    with pytest.raises(PluginError, match=text):
        async with queued({"plugins": plugins}):
            pass
