"""How much of a batch is asked at once, and what becomes of it when its client leaves or its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from headrace.testing import FakeBackend


async def test_of_one_batch_so_many_chats_are_answered_at_once(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    backend.pause = 0.05
    async with gateway(concurrency=3) as asker:
        body = (await asker.ask(kit.chats(9))).json()
    assert body["request_counts"]["completed"] == 9
    assert asker.bouncer.peak == 3


async def test_of_all_batches_so_many_chats_are_answered_at_once(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    backend.pause = 0.05
    async with gateway(concurrency=3, max_concurrency=4) as asker:
        answers = await asyncio.gather(*(asker.ask(kit.chats(5)) for _ in range(3)))
    assert [answer.json()["request_counts"]["completed"] for answer in answers] == [5, 5, 5]
    assert asker.bouncer.peak == 4


async def test_too_many_batches_are_refused_for_now(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    backend.silent = True
    async with gateway(max_batches=1) as asker:
        first = asyncio.create_task(asker.ask(kit.chats(1)))
        await asked(backend, 1)
        answer = await asker.ask(kit.chats(1))
        first.cancel()
        await asyncio.wait([first])
        await asker.emptied()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "5"


async def asked(backend: FakeBackend, count: int) -> None:
    """Wait until the backend has been asked so often."""
    async with asyncio.timeout(20):
        while len(backend.requests) < count:
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_takes_all_of_its_chats_along(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    backend.silent = True
    async with gateway(concurrency=2) as asker:
        asking = asyncio.create_task(asker.ask(kit.chats(6)))
        await asked(backend, 2)
        asking.cancel()
        await asyncio.wait([asking])
        async with asyncio.timeout(20):
            await backend.closed_early.wait()
        await asker.emptied()
        outcomes = [outcome for _, outcome in asker.bouncer.outcomes]
        assert asker.gateway.upstream.in_use == 0
    assert len(backend.requests) == 2
    assert [(outcome.aborted, outcome.completed) for outcome in outcomes] == [(True, False)] * 2
    assert asker.bouncer.running == 0


async def test_what_waits_for_its_turn_is_given_up_when_its_client_leaves(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    backend.silent = True
    async with gateway(concurrency=2, max_concurrency=1) as asker:
        asking = asyncio.create_task(asker.ask(kit.chats(6)))
        await asked(backend, 1)
        asking.cancel()
        await asyncio.wait([asking])
        await asker.emptied()
        backend.silent = False
        answer = await asker.ask(kit.chats(2))
    assert answer.json()["request_counts"]["completed"] == 2


async def test_what_is_not_answered_in_time_is_an_error_of_its_chat(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    backend.silent = True
    async with gateway(concurrency=2, timeout=0.3) as asker:
        body = (await asker.ask(kit.chats(4))).json()
        assert asker.gateway.upstream.in_use == 0
    assert [line["error"]["code"] for line in body["data"]] == ["batch_expired"] * 4
    assert len(backend.requests) == 2


async def test_a_batch_that_gets_no_turn_ends_in_time_as_well(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    async with gateway(max_concurrency=1, timeout=0.3) as asker:
        await asker.gateway.plugins["batch"]._slots.acquire()  # as another batch does that has more time
        body = (await asker.ask(kit.chats(3))).json()
    assert [line["error"]["code"] for line in body["data"]] == ["batch_expired"] * 3
    assert backend.requests == []


async def test_the_end_of_the_gateway_ends_its_batches(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    backend.silent = True
    async with asyncio.timeout(30):
        async with gateway(tables={"server": {"anonymous": True, "shutdown_timeout": 1}}, concurrency=2) as asker:
            asking = asyncio.create_task(asker.ask(kit.chats(6)))
            await asked(backend, 2)
    with pytest.raises(httpx.HTTPError):  # there is no answer
        (await asking).raise_for_status()
    assert len(backend.requests) == 2
    assert asker.bouncer.running == 0
