"""How long plugins take, and how often they fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headrace.errors import Forbidden
from headrace.registry import specifications
from headrace_metrics.hooktimes import HookTimes, Times

PAUSE = 0.02


async def waits(exchange: Any) -> str:
    await asyncio.sleep(PAUSE)
    return f"seen {exchange}"


async def refuses(exchange: Any) -> None:
    raise Forbidden("No.")


async def breaks(exchange: Any) -> None:
    raise ValueError("broken")


@asynccontextmanager
async def held() -> AsyncIterator[None]:
    await asyncio.sleep(PAUSE)
    yield
    await asyncio.sleep(PAUSE)


def measured(call: Callable[..., Any], hook: str = "authorize") -> tuple[Callable[..., Any], Times]:
    """The function with the measurement around it, and what was measured."""
    hooks = HookTimes()
    return hooks.wrap("mine", specifications()[hook], call), hooks._times["mine", hook]


async def test_a_hook_answers_as_it_did_and_its_time_is_counted() -> None:
    call, times = measured(waits)
    assert await call("x") == "seen x"
    assert times.calls[0] == 1
    assert times.seconds[0] >= PAUSE * 0.9


async def test_a_refusal_is_no_failure() -> None:
    call, times = measured(refuses)
    with pytest.raises(Forbidden):
        await call("x")
    assert (times.calls[0], times.errors[0]) == (1, 0)


async def test_an_adapter_for_arguments_that_are_left_out_is_measured_to_its_end() -> None:
    call, times = measured(lambda *arguments: waits(arguments[0]), "on_complete")
    assert await call("x", "outcome") == "seen x"
    assert times.seconds[0] >= PAUSE * 0.9


async def test_a_fault_is_one_and_is_raised_as_it_was() -> None:
    call, times = measured(breaks)
    with pytest.raises(ValueError, match="broken"):
        await call("x")
    assert (times.calls[0], times.errors[0]) == (1, 1)


def test_a_plain_function_is_measured_as_well() -> None:
    call, times = measured(lambda exchange, targets: [exchange, targets], "arrange")
    assert call(1, 2) == [1, 2]
    assert times.calls[0] == 1


def test_a_plain_function_that_breaks_is_a_failure() -> None:
    def breaks(exchange: Any) -> None:
        raise ValueError

    call, times = measured(breaks, "open_tap")
    with pytest.raises(ValueError):
        call(1)
    assert times.errors[0] == 1


async def test_of_what_is_held_the_time_to_get_it_is_counted_and_not_that_of_letting_go() -> None:
    call, times = measured(lambda exchange: held(), "admit")
    manager = call("x")
    await manager.__aenter__()
    before = times.seconds[0]
    await manager.__aexit__(None, None, None)
    assert PAUSE * 0.9 <= before == times.seconds[0]
    assert times.calls[0] == 1


async def test_what_cannot_be_held_by_a_fault_is_a_failure() -> None:
    class Broken:
        __aexit__ = None

        async def __aenter__(self) -> None:
            raise ValueError

    call, times = measured(lambda exchange: Broken(), "admit")
    with pytest.raises(ValueError):
        await call("x").__aenter__()
    assert times.errors[0] == 1


def test_nothing_is_held_where_there_was_nothing_to_hold() -> None:
    call, times = measured(lambda exchange: None, "admit")
    assert call("x") is None
    assert times.calls[0] == 1


@pytest.mark.alone
async def test_measuring_a_call_costs_less_than_two_microseconds() -> None:
    """The best of several runs: some 0.5 on a machine that does nothing else."""

    async def nothing(exchange: Any) -> None: ...

    call, _ = measured(nothing)
    assert min([await _cost(call) - await _cost(nothing) for _ in range(7)]) < 2e-6


async def _cost(call: Callable[..., Any]) -> float:
    """Seconds of CPU time for one call."""
    began = time.process_time()
    for _ in range(5000):
        await call(None)
    return (time.process_time() - began) / 5000
