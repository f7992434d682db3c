"""Reports on their way: whose end a request, what is made of garbage, and those that never come."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from headrace import reporting as module
from headrace.testing import FakeBackend

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
A, B = "a" * 32, "b" * 32
HEADER = b"<190>Nov 21 10:00:00 headrace: "

Fronted = Callable[..., Any]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("udp", [False, True])
async def test_a_report_ends_the_request_it_names(
    fronted: Fronted, recorder: Any, backend: FakeBackend, udp: bool
) -> None:
    async with fronted(backend.config(), {"r": recorder}, udp=udp) as nginx:
        await nginx.ask(CHAT, A)
        await nginx.ask(CHAT, B)
        await nginx.report(B, bytes=7)
        assert (await recorder.outcome()).bytes_sent == 7
        assert len(nginx.gateway.reporting) == 1
        await nginx.report(A, bytes=8)
        assert (await recorder.outcome()).bytes_sent == 8
        assert len(nginx.gateway.reporting) == 0


async def test_a_report_of_a_stranger_is_not_believed(
    fronted: Fronted, recorder: Any, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        unknown = nginx.gateway.reporting.unknown
        await nginx.ask(CHAT)
        for mark in ("", nginx.front.mark, f"{nginx.front.mark} 0", "other 1"):
            await nginx.report(A, mark=mark, bytes=666)
        await nginx.heard()
        assert len(nginx.gateway.reporting) == 1
        assert nginx.gateway.reporting.unknown == unknown + 1  # that of `heard` alone
        await nginx.report(A)
        assert (await recorder.outcome()).bytes_sent == 100
    assert caplog.records == []


async def test_a_stranger_proves_nothing(fronted: Fronted, backend: FakeBackend) -> None:
    async with fronted(backend.config(), proven=False) as nginx:
        assert not nginx.seat.proven
        await nginx.report("c" * 32, mark="other 1")
        nginx.pid += 1
        await nginx.prove()
        nginx.pid -= 1
        assert not nginx.seat.proven


GARBAGE = {
    "an object without an end": b"{",
    "nothing that is needed": b"{}",
    "another type": b'{"id":5,"mark":"m","connection":1,"status":1,"bytes":1,"completed":true}',
    "bytes that are not UTF-8": b'{"id":"\xff"}',
    "very deep": b'{"a":' + b"[" * 30_000,
    "half of a surrogate": b'{"id":"\\ud800"}',
    "usage that is no base64": b'{"id":"","mark":"","connection":1,"status":1,"bytes":1,"completed":true,'
    b'"watched":[{"events":1,"size":1,"usage":"!"}]}',
}


async def test_a_datagram_that_cannot_be_read_is_logged_once_and_does_no_harm(
    fronted: Fronted, recorder: Any, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        for number, garbage in enumerate(GARBAGE.values(), 1):
            await nginx.say(HEADER + garbage)
            await nginx.heard()
            assert len(caplog.records) == number
        await nginx.report(A)
        assert (await recorder.outcome()).completed
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert [each for each in said if not each.startswith("a report of nginx cannot be read: ")] == []


async def test_a_datagram_that_is_no_report_is_passed_over(
    fronted: Fronted, recorder: Any, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        for datagram in (b"", b"\0", b"<190>", b"hello", b"a: b", HEADER, HEADER + b"[1]", b"\xff" * 60_000):
            await nginx.say(datagram)
        await nginx.report(A)
        assert (await recorder.outcome()).completed
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_a_report_that_comes_twice_counts_once(
    fronted: Fronted, recorder: Any, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        await nginx.report(A, bytes=1)
        await nginx.report(A, bytes=2)
        assert (await recorder.outcome()).bytes_sent == 1
        unknown = nginx.gateway.reporting.unknown
        await nginx.report(A, bytes=3)
        await nginx.heard()
        assert nginx.gateway.reporting.unknown == unknown + 2
        assert recorder.is_told_no_more()
    assert caplog.records == []


async def test_as_many_reports_as_a_busy_moment_brings_are_all_taken(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    keys = [f"{number:032x}" for number in range(module.DRAIN_AT_ONCE + 44)]
    async with fronted(backend.config(), {"r": recorder}, udp=True) as nginx:
        for key in keys:
            assert "x-accel-redirect" in (await nginx.ask(CHAT, key)).headers
        for number, key in enumerate(keys):  # all of them before the core reads one
            said = {"id": key, "mark": nginx.mark, "connection": 1, "status": 200, "bytes": number, "completed": True}
            nginx.socket.sendto(HEADER + msgspec.json.encode(said), nginx.address)
        outcomes = [await recorder.outcome() for _ in keys]
    assert sorted(each.bytes_sent for each in outcomes) == list(range(len(keys)))
    assert len(nginx.gateway.reporting) == 0


# --- What nginx complains of ---


@pytest.mark.parametrize("doing", ["while reading upstream", "while sending to client"])
async def test_a_complaint_makes_the_next_report_of_its_connection_one_of_a_cut_answer(
    fronted: Fronted, recorder: Any, backend: FakeBackend, doing: str
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.complain(7, doing=doing)
        completed = []
        for connection in (6, 7, 7):
            await nginx.ask(CHAT)
            await nginx.report(A, connection=connection)
            completed.append((await recorder.outcome()).completed)
        assert completed == [True, False, True]


@pytest.mark.parametrize(
    "other",
    [{"pid": 1}, {"doing": "while connecting to upstream"}, {"doing": "while reading response header from upstream"}],
)
async def test_a_complaint_about_something_else_changes_nothing(
    fronted: Fronted, recorder: Any, backend: FakeBackend, other: dict[str, Any]
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.complain(7, **other)
        await nginx.ask(CHAT)
        await nginx.report(A, connection=7)
        assert (await recorder.outcome()).completed


# --- What never comes ---


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is overdue is looked for more often than once a second."""
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(module, "DEADLINES_SECONDS", 0.05)


async def test_a_report_that_does_not_come_in_time_is_lost_and_counted(
    fronted: Fronted, recorder: Any, backend: FakeBackend, often: None
) -> None:
    document = backend.config(server={"anonymous": True, "report_timeout": 0.1})
    async with fronted(document, {"r": recorder}) as nginx:
        await nginx.ask(STREAM)
        outcome = await recorder.outcome()
        assert (outcome.status, outcome.completed, outcome.aborted) == (502, False, False)
        assert outcome.error.code == "report_lost"
        assert nginx.gateway.reporting.lost == 1
        assert len(nginx.gateway.reporting) == 0
        await nginx.report(A)
        await nginx.heard()
        assert recorder.is_told_no_more()


async def test_a_whole_answer_is_not_waited_for_as_long_as_a_stream(
    fronted: Fronted, recorder: Any, backend: FakeBackend, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARGIN_SECONDS", 0.0)
    limits = {"connect": 0.05, "first_byte": 0.05, "idle": 0.05}
    document = backend.config()
    document["backends"]["fake"]["timeouts"] = limits
    async with fronted(document, {"r": recorder}) as nginx:
        await nginx.ask(STREAM, B)
        await nginx.ask(CHAT, A)
        assert (await recorder.outcome()).error.code == "report_lost"
        assert len(nginx.gateway.reporting) == 1
        await nginx.report(B, watched=[{"events": 1, "size": 1}])
        assert (await recorder.outcome()).completed


async def test_what_a_worker_took_with_it_into_its_grave_is_lost(
    fronted: Fronted, recorder: Any, backend: FakeBackend, often: None
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        mine, other = nginx.pid, subprocess.Popen(["sleep", "60"])
        try:
            nginx.pid = other.pid
            await nginx.prove()
            await nginx.ask(STREAM, A)
            nginx.pid = mine
            await nginx.ask(STREAM, B)
        finally:
            other.kill()
            other.wait()
        started = time.monotonic()
        assert (await recorder.outcome()).error.code == "report_lost"
        assert time.monotonic() - started < 5.0
        assert len(nginx.gateway.reporting) == 1  # the living worker's
        nginx.pid = other.pid
        await until(lambda: not nginx.seat.proven)  # a new worker of that number is trusted when it has reported
        nginx.pid = mine
        await nginx.report(B, watched=[{"events": 1, "size": 1}])
        assert (await recorder.outcome()).completed


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the system does not tell when a process ends")
@pytest.mark.parametrize("reaped", [True, False])
async def test_a_workers_end_is_noticed_at_once_and_its_last_report_is_read_before(
    fronted: Fronted, recorder: Any, backend: FakeBackend, reaped: bool
) -> None:
    """Also while it is a zombie, because its master has not looked: then a signal can still be sent to it."""
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        other = subprocess.Popen(["sleep", "60"])
        try:
            nginx.pid = other.pid
            await nginx.prove()
            await nginx.ask(STREAM, A)
            await nginx.report(A, watched=[{"events": 1, "size": 1}])
            other.kill()
            os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
            if reaped:
                other.wait()
            assert (await recorder.outcome()).completed
            assert nginx.gateway.reporting.lost == 0
            seats = nginx.gateway.reporting._seats
            await until(lambda: all(seat.pid != other.pid for seat in seats.values()))
        finally:
            other.kill()
            other.wait()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the system does not tell when a process ends")
async def test_what_a_worker_had_is_lost_the_moment_it_ends(
    fronted: Fronted, recorder: Any, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 3600.0)
    monkeypatch.setattr(module, "DEADLINES_SECONDS", 3600.0)
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        other = subprocess.Popen(["sleep", "60"])
        try:
            nginx.pid = other.pid
            await nginx.prove()
            await nginx.ask(STREAM, A)
        finally:
            other.kill()
        assert (await recorder.outcome()).error.code == "report_lost"
        other.wait()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the system does not tell when a process ends")
async def test_an_open_stream_wakes_the_core_every_ten_seconds_and_not_more_often(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.ask(STREAM, A)
        sweep = nginx.gateway.reporting._sweep
        assert 9.0 < sweep.when() - asyncio.get_running_loop().time() <= 10.0
        await nginx.report(A, watched=[{"events": 1, "size": 1}])
        assert (await recorder.outcome()).completed


@pytest.mark.parametrize("told", [False, True])
async def test_without_word_of_a_workers_end_it_is_looked_for(
    fronted: Fronted, recorder: Any, backend: FakeBackend, often: None, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    def refuse(pid: int) -> int:
        raise OSError

    if told:
        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    else:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        other = subprocess.Popen(["sleep", "60"])
        try:
            nginx.pid = other.pid
            await nginx.prove()
            await nginx.ask(STREAM, A)
        finally:
            other.kill()
            other.wait()
        assert (await recorder.outcome()).error.code == "report_lost"


async def test_a_worker_that_cannot_be_seen_is_not_taken_for_dead(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        nginx.pid = 2**22 + 1  # more than the system gives: that of another container
        await nginx.prove()
        await nginx.ask(STREAM)
        nginx.gateway.reporting._look_after()
        assert len(nginx.gateway.reporting) == 1
        await nginx.report(A, watched=[{"events": 1, "size": 1}])
        assert (await recorder.outcome()).completed
