"""Collectors that cannot be reached, refuse, hang or close: requests go on, memory is bounded, the log says it once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from headrace_otel.sending import Sender
from headrace_otel.transport import Problem, Taken

TRACES = {"metrics": False, "shutdown_timeout": 0.3}


async def ask_many(gateway: Any, number: int = 5) -> float:
    """Seconds that the slowest of some requests took."""
    slowest = 0.0
    for _ in range(number):
        began = time.perf_counter()
        assert (await gateway.ask()).status_code == 200
        slowest = max(slowest, time.perf_counter() - began)
    return slowest


@pytest.mark.parametrize("mood", ["hangs", "closes", 503, 404, 429, 301])
async def test_requests_do_not_wait_for_a_broken_collector(
    traced: Any, collector: Any, until: Any, said: Any, mood: Any
) -> None:
    collector.mood = mood
    async with traced({**TRACES, "timeout": 5.0}) as gateway:
        await ask_many(gateway, 1)
        await until(lambda: collector.exports)
        assert await ask_many(gateway) < 2.0


async def test_a_collector_that_is_not_there_is_said_once(
    exporting_to: Any, closed_port: int, until: Any, said: Any
) -> None:
    async with exporting_to(f"http://127.0.0.1:{closed_port}", TRACES) as gateway:
        for _ in range(3):
            await ask_many(gateway, 2)
            await until(lambda: said())
    first, last = said()
    assert "does not take spans: it cannot be reached" in first
    assert last == "12 spans were dropped: the collector did not take them"
    assert gateway.plugin.results() == {"taken": 0, "dropped": 12}


async def test_what_waited_is_taken_when_the_collector_is_back(
    traced: Any, collector: Any, until: Any, said: Any
) -> None:
    collector.mood = 503
    async with traced({"metrics": False}) as gateway:
        await ask_many(gateway)
        await until(lambda: said())
        collector.mood = "takes"
        await until(lambda: len(collector.spans) == 10)
        await until(lambda: len(said()) == 2)
        assert said()[0].endswith("it answered with status 503; they are kept, up to 8388608 bytes of them")
        assert said()[1].endswith("takes spans again; 0 were dropped")
    assert gateway.plugin.results() == {"taken": 10, "dropped": 0}


async def test_what_is_refused_for_good_is_dropped_and_counted(
    traced: Any, collector: Any, until: Any, said: Any
) -> None:
    collector.mood = 400
    async with traced({"metrics": False}) as gateway:
        for number in range(1, 4):
            await gateway.ask()
            await until(lambda: gateway.plugin.results()["dropped"] == 2 * number)  # noqa: B023
        assert [each for each in said() if "status 400; they are dropped" in each] == said()
        assert len(said()) == 1


async def test_spans_that_the_collector_rejects_are_counted(traced: Any, collector: Any, until: Any, said: Any) -> None:
    collector.mood = "rejects"
    async with traced({"metrics": False}) as gateway:
        await gateway.ask()
        await until(lambda: sum(gateway.plugin.results().values()) == 2)
        await gateway.ask()
        await until(lambda: sum(gateway.plugin.results().values()) == 4)
    assert gateway.plugin.results() == {"taken": 2, "dropped": 2}
    assert "it rejected 1 of 2" in said()[0]
    assert not any("again" in each for each in said())


async def test_a_collector_that_hangs_does_not_hold_up_the_end(traced: Any, collector: Any, until: Any) -> None:
    collector.mood = "hangs"
    async with traced({**TRACES, "timeout": 60.0}) as gateway:
        await gateway.ask()
        await until(lambda: collector.exports)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert gateway.plugin.results() == {"taken": 0, "dropped": 2}


async def test_no_more_waits_than_is_configured(traced: Any, collector: Any, until: Any) -> None:
    collector.mood = "hangs"
    async with traced({**TRACES, "queue_bytes": 65_536, "timeout": 60.0}) as gateway:
        sender = gateway.plugin._exporting.spans
        await gateway.ask()
        await until(lambda: collector.exports)
        for _ in range(1000):
            sender.put(b"x" * 1000, 1000, 1)
        assert sender._size <= 65_536
        assert 900 < sender.dropped < 1000


async def test_a_kept_connection_that_the_collector_closed_is_no_failure(
    traced: Any, collector: Any, until: Any, said: Any
) -> None:
    async with traced({"metrics": False}) as gateway:
        await gateway.ask()
        await until(lambda: len(collector.spans) == 2)
        collector.mood = "closes once"
        await gateway.ask()
        await until(lambda: len(collector.spans) == 4)
    assert (collector.exports, said()) == (3, [])


class Slow:
    """Stands in for the way to the collector where time is what matters."""

    def __init__(self, *answers: Problem | Taken) -> None:
        self.answers = list(answers)
        self.seconds: list[float] = []

    def post(self, data: bytes, seconds: float) -> Problem | Taken:
        self.seconds.append(seconds)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None: ...


def sender(transport: Any, **more: Any) -> Sender[bytes]:
    return Sender("spans", "http://x/v1/traces", transport, b"".join, timeout=10.0, **{"limit": 1 << 20, **more})


async def test_a_collector_that_asks_for_patience_gets_it(traced: Any, collector: Any, until: Any) -> None:
    collector.mood, collector.wait = 429, "1"
    async with traced({"metrics": False}) as gateway:
        await gateway.ask()
        await until(lambda: collector.exports)
        collector.mood, began = "takes", time.monotonic()
        await until(lambda: collector.spans)
        assert time.monotonic() - began > 0.5


async def test_at_the_end_a_collector_known_to_be_away_is_asked_once_more() -> None:
    transport = Slow(Problem("gone", again=True))
    waiting = sender(transport)
    waiting.start()
    waiting.put(b"x", 1, 1)
    async with asyncio.timeout(10):
        while not transport.seconds:
            await asyncio.sleep(0.005)
    await asyncio.to_thread(waiting.stop, 5.0)
    assert len(transport.seconds) == 2
    assert waiting.dropped == 1


async def test_of_metrics_only_the_newest_wait() -> None:
    waiting = sender(Slow(Taken()), limit=2, newest=True)
    for number in range(5):
        waiting.put(str(number).encode(), 1, 1)
    waiting.start()
    await asyncio.to_thread(waiting.stop, 5.0)
    assert (waiting.taken, waiting.dropped) == (1, 0)


async def test_what_cannot_be_encoded_does_not_end_the_export(said: Any) -> None:
    def wrap(items: list[bytes]) -> bytes:
        if b"bad" in items:
            raise ValueError("no")
        return b"".join(items)

    waiting: Sender[bytes] = Sender("spans", "http://x", Slow(Taken()), wrap, timeout=1.0, limit=1 << 20)  # type: ignore[arg-type]
    waiting.start()
    waiting.put(b"bad", 3, 1)
    async with asyncio.timeout(10):
        while not waiting.dropped:
            await asyncio.sleep(0.005)
    waiting.put(b"good", 4, 1)
    await asyncio.to_thread(waiting.stop, 5.0)
    assert (waiting.taken, waiting.dropped) == (1, 1)
