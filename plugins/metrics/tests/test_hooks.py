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
from headrace_metrics import hooktimes
from headrace_metrics.hooktimes import EACH, STRIDE, HookTimes, Times

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


async def test_of_many_calls_all_are_counted_and_some_are_timed() -> None:
    looks = 0

    async def looked_at(exchange: Any) -> None:
        nonlocal looks
        looks += 1

    call, times = measured(looked_at)
    rounds = int(EACH + STRIDE * 20)
    for _ in range(rounds):
        await call(None)
    assert times.calls[0] == looks == rounds


@pytest.mark.parametrize("hook", ["authorize", "arrange", "admit"])
async def test_a_call_that_is_timed_stands_for_those_that_are_not(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call takes a second, of a clock that goes on when somebody looks: the sample says how long all took."""
    seconds = iter(range(1_000_000))
    monkeypatch.setattr(hooktimes, "perf_counter", lambda: float(next(seconds)))

    async def nothing(exchange: Any) -> None: ...

    call, times = measured(nothing if hook == "authorize" else lambda *arguments: None, hook)
    arguments = [None] * len(specifications()[hook].parameters)
    for _ in range(int(EACH + STRIDE * 10)):
        done = call(*arguments)
        if done is not None:
            await done
    assert abs(times.seconds[0] - times.calls[0]) <= STRIDE


@pytest.mark.parametrize("calls", [1, int(EACH) + 1])
async def test_a_fault_is_counted_whether_the_call_was_timed_or_not(calls: int) -> None:
    hooks = HookTimes()
    call = hooks.wrap("mine", specifications()["authorize"], breaks)
    for _ in range(calls):
        with pytest.raises(ValueError, match="broken"):
            await call("x")
        hooks.failed("mine", "authorize")
    times = hooks._times["mine", "authorize"]
    assert (times.calls[0], times.errors[0]) == (calls, calls)


def test_a_fault_where_nothing_is_measured_is_nobodys() -> None:
    HookTimes().failed("mine", "authorize")


async def test_a_refusal_passes() -> None:
    call, times = measured(refuses)
    with pytest.raises(Forbidden):
        await call("x")
    assert (times.calls[0], times.errors[0]) == (1, 0)


async def test_an_adapter_for_arguments_that_are_left_out_is_measured_to_its_end() -> None:
    call, times = measured(lambda *arguments: waits(arguments[0]), "on_complete")
    assert await call("x", "outcome") == "seen x"
    assert times.seconds[0] >= PAUSE * 0.9


def test_a_plain_function_is_measured_as_well() -> None:
    call, times = measured(lambda exchange, targets: [exchange, targets], "arrange")
    assert call(1, 2) == [1, 2]
    assert times.calls[0] == 1


async def test_of_what_is_held_the_time_to_get_it_is_counted_and_not_that_of_letting_go() -> None:
    call, times = measured(lambda exchange: held(), "admit")
    manager = call("x")
    await manager.__aenter__()
    before = times.seconds[0]
    await manager.__aexit__(None, None, None)
    assert PAUSE * 0.9 <= before == times.seconds[0]
    assert times.calls[0] == 1


def test_nothing_is_held_where_there_was_nothing_to_hold() -> None:
    call, times = measured(lambda exchange: None, "admit")
    assert call("x") is None
    assert times.calls[0] == 1


@pytest.mark.alone
async def test_measuring_a_call_costs_less_than_a_microsecond() -> None:
    """The best of several runs: some 0.2 on a machine that does nothing else."""

    async def nothing(exchange: Any) -> None: ...

    call, _ = measured(nothing)
    assert min([await _cost(call) - await _cost(nothing) for _ in range(7)]) < 1e-6


async def _cost(call: Callable[..., Any]) -> float:
    """Seconds of CPU time for one call."""
    began = time.process_time()
    for _ in range(5000):
        await call(None)
    return (time.process_time() - began) / 5000
