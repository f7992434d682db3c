"""Readings are kept fresh, and a driver that hangs holds nobody up."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from headrace_gpu.reader import NoGpu, Reader
from headrace_gpu.timed import Timed
from headrace_gpu.watcher import Watcher

NEVER = 3600.0


@pytest.fixture
def one(nvml: Any, device: Any) -> Any:
    """An NVML with a device; whatever hangs in it goes on afterwards."""
    found = nvml(device())
    yield found
    found.open.set()


async def test_a_reading_is_used_again_until_it_is_too_old(one: Any) -> None:
    watcher = Watcher(Reader(one), NEVER, 30)
    first = await watcher.current()
    assert first is not None
    assert await watcher.current() is first
    again = Watcher(Reader(one), 0, 30)
    assert await again.current() is not await again.current()


async def test_those_who_ask_at_the_same_time_wait_for_one_reading(one: Any) -> None:
    watcher = Watcher(Reader(one), NEVER, 30)
    found = await asyncio.gather(*(watcher.current() for _ in range(50)))
    assert len({id(each) for each in found}) == 1
    assert one.started == 1


async def test_a_driver_that_hangs_is_given_up(one: Any) -> None:
    one.open.clear()
    watcher = Watcher(Reader(one), NEVER, 0.05)
    assert await watcher.current() is None
    assert "has not answered within 0.05 s" in watcher.reason


async def test_it_is_not_asked_twice_while_it_hangs(one: Any) -> None:
    one.open.clear()
    watcher = Watcher(Reader(one), 0, 0.02)
    for _ in range(5):
        await watcher.current()
    assert one.begun == 1


async def test_the_loop_goes_on_while_it_hangs(one: Any) -> None:
    one.open.clear()
    watcher = Watcher(Reader(one), NEVER, 30)
    asking = asyncio.create_task(watcher.current())
    await asyncio.to_thread(one.asked.acquire)
    assert not asking.done()
    one.open.set()
    assert await asking is not None


async def test_what_hung_and_answers_is_read_again(one: Any) -> None:
    one.open.clear()
    watcher = Watcher(Reader(one), 0, 0.05)
    assert await watcher.current() is None
    one.open.set()
    async with asyncio.timeout(20):
        while await watcher.current() is None:
            await asyncio.sleep(0.002)
    assert watcher.reason == ""


async def test_closing_does_not_wait_for_what_hangs(one: Any) -> None:
    one.open.clear()
    watcher = Watcher(Reader(one), NEVER, 0.05)
    await watcher.current()
    async with asyncio.timeout(20):
        await watcher.aclose()


async def test_closing_lets_go_of_nvml(one: Any) -> None:
    watcher = Watcher(Reader(one), NEVER, 30)
    await watcher.current()
    await watcher.aclose()
    assert one.started == 0


async def test_somebody_who_stops_waiting_takes_nothing_from_others(one: Any) -> None:
    one.open.clear()
    watcher = Watcher(Reader(one), NEVER, 30)
    leaves, stays = asyncio.create_task(watcher.current()), asyncio.create_task(watcher.current())
    await asyncio.to_thread(one.asked.acquire)
    leaves.cancel()
    one.open.set()
    assert await stays is not None


async def test_what_is_missing_is_said_once(one: Any, nvml_error: Any, caplog: pytest.LogCaptureFixture) -> None:
    one.init_error = nvml_error(12)
    watcher = Watcher(Reader(one), 0, 30)
    for _ in range(3):
        await watcher.current()
    assert [record.getMessage() for record in caplog.records] == [
        "no GPU: no NVIDIA driver: NVML Shared Library Not Found (NVML)"
    ]


async def test_what_comes_back_is_said(one: Any, nvml_error: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headrace.gpu")
    one.init_error = nvml_error(9)
    watcher = Watcher(Reader(one), 0, 30)
    await watcher.current()
    one.init_error = None
    await watcher.current()
    assert caplog.records[-1].getMessage() == "1 GPUs, driver 580.1"


async def test_a_driver_without_devices_is_said(nvml: Any) -> None:
    watcher = Watcher(Reader(nvml()), NEVER, 30)
    assert await watcher.current() is None
    assert watcher.reason == "the driver sees no GPU"


async def test_an_old_reading_is_not_fresh(one: Any) -> None:
    watcher = Watcher(Reader(one), 0, 0)
    assert watcher.fresh is None
    kept = Watcher(Reader(one), NEVER, 30)
    await kept.current()
    assert kept.fresh is not None


async def test_a_fault_of_ours_ends_nothing(one: Any, caplog: pytest.LogCaptureFixture) -> None:
    watcher = Watcher(Reader(one), 0, 30)
    one.nvmlDeviceGetCount = "no function"
    one.nvmlSystemGetDriverVersion = None
    assert await watcher.current() is None
    assert watcher.reason


def test_without_a_loop_it_is_given_up_as_well(one: Any) -> None:
    one.open.clear()
    with pytest.raises(NoGpu, match="has not answered"):
        Timed(Reader(one).read, 0.05).wait()


def test_a_loop_that_is_gone_does_not_matter(one: Any) -> None:
    one.open.clear()
    timed = Timed(Reader(one).read, 0.02)

    async def ask() -> None:
        with pytest.raises(NoGpu):
            await timed.read()

    asyncio.run(ask())
    one.open.set()
    assert timed.wait().driver == "580.1"
