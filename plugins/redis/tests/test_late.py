"""Answers that come late or never: what they may have granted does not stay taken, what was settled counts once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from headrace.ledger import Limit
from headrace.ledger.local import LocalHold
from headrace_redis.ledger import RedisHold
from headrace_redis.script import FORMAT, Caller
from headrace_redis.step import Ask, Step, claims_of, question, verdict

WINDOW = Limit("t:window", "window", 1000, 3600.0)
TOTAL = Limit("t:total", "sum", 1000)
OPEN = Limit("t:open", "open", 10)
ALL = (WINDOW, TOTAL, OPEN)
Make = Callable[..., Any]
SHORT = 0.2
"""Seconds: a deadline that is missed on purpose."""


async def used(ledger: Any) -> list[int]:
    return [level.used for level in await ledger.levels(ALL)]


def total(server: Any) -> int:
    return int(server.only_value("*s:t:total")[b"used"])


async def test_a_request_whose_answer_is_late_is_counted_by_the_gateway_and_not_by_the_server(
    server: Any, proxy_to: Make, ledger_at: Make, until: Make
) -> None:
    async with proxy_to(server.path) as proxy, ledger_at(proxy.url, deadline=SHORT) as ledger:
        proxy.answering.clear()
        hold = await ledger.reserve(ALL, (100, 100, 1))
        assert isinstance(hold, LocalHold)
        await until(lambda: server.call("KEYS", "*t:open"))  # the server has granted it
        proxy.answering.set()
        await until(lambda: ledger.state == "ok")
        assert await used(ledger) == [0, 0, 0]
        hold.settle((60, 60, 1))
        assert [level.used for level in await ledger._elsewhere.levels(ALL)] == [60, 60, 0]
        assert await used(ledger) == [0, 0, 0]


async def test_a_request_whose_answer_was_lost_is_given_back(
    server: Any, proxy_to: Make, ledger_at: Make, until: Make
) -> None:
    async with proxy_to(server.path) as proxy, ledger_at(proxy.url) as ledger:
        proxy.answering.clear()
        waiting = asyncio.create_task(ledger.reserve(ALL, (100, 100, 1)))
        await until(lambda: server.call("KEYS", "*t:open"))
        proxy.cut()
        assert isinstance(await waiting, LocalHold)
        proxy.answering.set()
        await until(lambda: ledger.state == "ok")
        assert await used(ledger) == [0, 0, 0]


async def test_what_was_settled_counts_once_though_the_answer_was_lost(
    server: Any, proxy_to: Make, ledger_at: Make, until: Make
) -> None:
    async with proxy_to(server.path) as proxy, ledger_at(proxy.url) as ledger:
        hold = await ledger.reserve(ALL, (100, 100, 1))
        assert isinstance(hold, RedisHold)
        proxy.answering.clear()
        hold.settle((60, 60, 1))
        await until(lambda: total(server) == 60)
        proxy.cut()
        proxy.answering.set()
        await until(lambda: ledger.state != "ok")
        await until(lambda: ledger.state == "ok")
        assert await used(ledger) == [60, 60, 0]


async def test_what_was_settled_during_an_outage_is_told_afterwards(
    server: Any, proxy_to: Make, ledger_at: Make, until: Make
) -> None:
    async with proxy_to(server.path) as proxy, ledger_at(proxy.url) as ledger:
        holds = [await ledger.reserve(ALL, (100, 100, 1)) for _ in range(3)]
        proxy.refuse = True
        proxy.cut()
        await until(lambda: ledger.state != "ok")
        holds[0].settle((60, 60, 1))
        holds[1].settle((160, 160, 1))
        assert total(server) == 300
        proxy.refuse = False
        await until(lambda: ledger.state == "ok")
        assert await used(ledger) == [320, 320, 1]
        assert [level.used for level in await ledger._elsewhere.levels(ALL)] == [0, 0, 0]


async def test_what_is_open_during_an_outage_has_its_place_again_afterwards(
    server: Any, proxy_to: Make, ledger_at: Make, until: Make
) -> None:
    async with proxy_to(server.path) as proxy, ledger_at(proxy.url) as ledger:
        hold = await ledger.reserve(ALL, (100, 100, 2))
        proxy.refuse = True
        proxy.cut()
        await until(lambda: ledger.state != "ok")
        server.call("FLUSHALL")
        proxy.refuse = False
        await until(lambda: ledger.state == "ok")
        assert await used(ledger) == [0, 0, 2]
        hold.settle((70, 70, 2))
        assert await used(ledger) == [0, 0, 0]


async def test_a_step_that_was_given_up_counts_for_nothing_when_it_arrives_after_all(server: Any) -> None:
    """The network may keep it for as long as it likes."""
    caller, nobody = Caller("{late}:", "me"), Any
    limits, amounts = (TOTAL,), (100,)
    asks = [Ask(limits, amounts, claims_of("{late}:" + FORMAT, limits, amounts), True, nobody)]  # type: ignore[arg-type]
    server.call(*caller.words(Step(1, {}, (), asks).encode()))
    assert verdict(server.call(*caller.words(question(2))))[0] == 1
    with pytest.raises(RuntimeError, match="STALE"):
        server.call(*caller.words(Step(2, {}, (), asks).encode()))
    with pytest.raises(RuntimeError, match="STALE"):
        server.call(*caller.words(Step(1, {}, (), asks).encode()))
    assert total(server) == 100
    server.call(*caller.words(Step(3, {}, (), asks).encode()))
    assert total(server) == 200


async def test_the_server_can_be_asked_again_what_has_become_of_a_step(server: Any) -> None:
    caller = Caller("{late}:", "me")
    server.call(*caller.words(Step(1, {}, (), ()).encode()))
    answers = [verdict(server.call(*caller.words(question(1)))) for _ in range(2)]
    assert answers[0] == answers[1]
    assert (answers[0][0], len(answers[0][1])) == (1, 1)


async def test_a_client_that_goes_while_it_waits_leaves_nothing_taken(
    server: Any, proxy_to: Make, ledger_at: Make, until: Make
) -> None:
    async with proxy_to(server.path) as proxy, ledger_at(proxy.url) as ledger:
        proxy.answering.clear()
        waiting = asyncio.create_task(ledger.reserve(ALL, (100, 100, 1)))
        await until(lambda: server.call("KEYS", "*t:open"))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        proxy.answering.set()
        assert await used(ledger) == [0, 0, 0]
        assert ledger.state == "ok"


async def test_a_client_that_goes_when_the_answer_has_just_come_leaves_nothing_taken(
    server: Any, ledger_at: Make
) -> None:
    async with ledger_at(f"unix://{server.path}") as ledger:
        waiting = asyncio.create_task(ledger.reserve(ALL, (100, 100, 1)))
        await asyncio.sleep(0)
        (ask,) = ledger._batches._flying.asks
        while not ask.future.done():
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await used(ledger) == [0, 0, 0]


async def test_what_cannot_be_told_is_kept_up_to_a_number_and_said_at_the_end(
    server: Any, proxy_to: Make, ledger_at: Make, until: Make, said: Callable[[], list[str]]
) -> None:
    many = Limit("t:many", "sum", 10**9)
    async with proxy_to(server.path) as proxy, ledger_at(proxy.url, deadline=5.0) as ledger:
        holds = await asyncio.gather(*[ledger.reserve((many,), (10,)) for _ in range(10_100)])
        proxy.refuse = True
        proxy.cut()
        await until(lambda: ledger.state != "ok")
        for hold in holds:
            assert isinstance(hold, RedisHold)
            hold.settle((4,))
        assert ledger._batches.pending == 10_000
    assert "10100 requests" in said()[-1]
