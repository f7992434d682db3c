"""What every request pays."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.alone


def least_seconds(call: Callable[[], object], times: int = 1000, rounds: int = 20) -> float:
    """CPU time of one call: the least of several rounds, for others use the machine too."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(times):
            call()
        found.append((time.process_time() - began) / times)
    return min(found)


async def test_while_all_is_well_nothing_is_looked_at(staged: Any) -> None:
    async with staged("abcdefgh") as stage:
        await stage.ask()
        model = stage.running.gateway.models.find("test")
        exchange: Any = type("Asked", (), {"model": model})
        assert stage.plugin.arrange(exchange, model.targets) is None
        assert least_seconds(lambda: stage.plugin.arrange(exchange, model.targets)) < 4e-6  # 0.2 µs on a slow core


async def test_circuits_take_no_more_memory_with_more_requests(staged: Any) -> None:
    async with staged("ab", failures=1) as stage:
        stage.a.status = 500
        await stage.ask_often(50)
        stage.turn_to("a", "half_open")
        await stage.ask_often(5)
        circuits = stage.plugin._circuits.all
        assert set(circuits) == {"a", "b"}
        assert all(not each._waiting and not each._going for each in circuits.values())
