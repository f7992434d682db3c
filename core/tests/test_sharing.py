"""Answers that others than their own client wait for, and answers that a cache gives."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.exchange import Exchange, Outcome, Reply, Usage
from headrace.testing import COMPLETION, FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
TYPE = (b"content-type", b"application/json")


class Sharing:
    """Has every answer go on as long as somebody else wants it, and keeps what passes."""

    wants = "bytes"

    def __init__(self, config: Any, gateway: Any) -> None:
        self.passed: list[bytes] = []
        self.closed: bool | None = None
        self.wanted = True
        self.exchange: Exchange | None = None
        self.outcome: Outcome | None = None
        self.began, self.over = asyncio.Event(), asyncio.Event()
        made.append(self)

    @hookimpl
    def open_tap(self, exchange: Exchange) -> Any:
        self.exchange = exchange
        exchange.share(lambda: self.wanted)
        return self

    def feed(self, item: bytes) -> None:
        self.passed.append(item)
        self.began.set()

    def close(self, completed: bool) -> None:
        self.closed = completed

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.outcome, self.exchange = outcome, None
        self.over.set()


made: list[Sharing] = []


async def left(url: str, body: Any, sharing: Sharing) -> None:
    """Ask, and leave once the answer has begun."""
    async with httpx.AsyncClient(base_url=url) as client, client.stream("POST", "/v1/chat/completions", json=body):
        await asyncio.wait_for(sharing.began.wait(), 10)


async def asked(backend: FakeBackend, body: Any, **plugins: type[Any]) -> httpx.Response:
    """What a gateway with these plugins answers."""
    async with serve(backend.config(), plugins=plugins) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        return await client.post("/v1/chat/completions", json=body)


async def test_an_answer_that_others_want_goes_on_without_its_client(backend: FakeBackend) -> None:
    backend.chunks, backend.pause = 40, 0.01
    async with serve(backend.config(), plugins={"sharing": Sharing}) as gateway:
        sharing = made[-1]
        await left(gateway.url, STREAM, sharing)
        await asyncio.wait_for(sharing.over.wait(), 10)
    outcome = sharing.outcome
    assert outcome is not None and b"".join(sharing.passed).endswith(b"data: [DONE]\n\n")
    assert sharing.closed is True  # the answer was whole
    assert (outcome.aborted, outcome.completed, outcome.error) == (True, False, None)  # its client has not got it
    assert outcome.usage is not None and not outcome.usage.estimated  # the backend's own, at the end of its stream
    assert not backend.closed_early.is_set()


async def test_an_answer_that_nobody_wants_any_more_ends_at_once(backend: FakeBackend) -> None:
    backend.chunks, backend.pause = 10_000, 0.01
    async with serve(backend.config(), plugins={"sharing": Sharing}) as gateway:
        sharing = made[-1]
        await left(gateway.url, STREAM, sharing)
        seen = len(sharing.passed)
        async with asyncio.timeout(10):
            while len(sharing.passed) < seen + 10:  # it has gone on
                await asyncio.sleep(0.005)
        assert sharing.exchange is not None
        sharing.exchange.abandon()
        await asyncio.wait_for(sharing.over.wait(), 10)
        await asyncio.wait_for(backend.closed_early.wait(), 10)
    assert sharing.closed is False
    assert sharing.outcome is not None and sharing.outcome.aborted


async def test_an_answer_whose_client_is_there_is_not_ended_by_others_who_go(backend: FakeBackend) -> None:
    backend.chunks, backend.pause = 20, 0.01
    async with serve(backend.config(), plugins={"sharing": Sharing}) as gateway:
        sharing = made[-1]
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=STREAM))
            await asyncio.wait_for(sharing.began.wait(), 10)
            assert sharing.exchange is not None
            sharing.exchange.abandon()
            assert (await asking).text.endswith("data: [DONE]\n\n")
    assert sharing.outcome is not None and sharing.outcome.completed


async def test_an_answer_that_is_not_wanted_when_its_client_leaves_ends_then(backend: FakeBackend) -> None:
    backend.chunks, backend.pause = 10_000, 0.01
    async with serve(backend.config(), plugins={"sharing": Sharing}) as gateway:
        sharing = made[-1]
        sharing.wanted = False
        await left(gateway.url, STREAM, sharing)
        await asyncio.wait_for(sharing.over.wait(), 10)
        await asyncio.wait_for(backend.closed_early.wait(), 10)


async def test_a_client_that_does_not_read_does_not_hold_up_others_for_long(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.connection.PATIENCE_SECONDS", 0.05)
    backend.chunks = 100_000
    async with serve(backend.config(), plugins={"sharing": Sharing}) as gateway:
        sharing, content = made[-1], msgspec.json.encode(STREAM)
        _, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]), limit=1024)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content))
        writer.write(content)
        await asyncio.wait_for(sharing.over.wait(), 30)
        writer.close()
    assert b"".join(sharing.passed[-3:]).endswith(b"data: [DONE]\n\n") and sharing.closed is True
    assert sharing.outcome is not None and (sharing.outcome.aborted, sharing.outcome.completed) == (True, False)


async def test_a_gateway_that_stops_ends_an_answer_that_others_want(backend: FakeBackend) -> None:
    backend.chunks, backend.pause = 100_000, 0.01
    config = {**backend.config(), "server": {"shutdown_timeout": 0.1, "anonymous": True}}
    async with serve(config, plugins={"sharing": Sharing}) as gateway:
        sharing = made[-1]
        await left(gateway.url, STREAM, sharing)
    assert sharing.outcome is not None and sharing.closed is False


class Caching:
    def __init__(self, config: Any, gateway: Any) -> None:
        self.outcome: Outcome | None = None
        cachings.append(self)

    @hookimpl
    async def cache_lookup(self, exchange: Exchange) -> Reply:
        return Reply(200, [TYPE], content=COMPLETION, source="cache")

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.outcome = outcome


cachings: list[Caching] = []


async def test_an_answer_from_a_cache_has_taken_no_tokens(backend: FakeBackend) -> None:
    assert (await asked(backend, CHAT, caching=Caching)).content == COMPLETION
    outcome = cachings[-1].outcome
    assert outcome is not None and (outcome.source, outcome.usage, outcome.attempts) == ("cache", Usage(), 0)


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_an_answer_of_a_backend_says_so(backend: FakeBackend, body: Any) -> None:
    await asked(backend, body, sharing=Sharing)
    outcome = made[-1].outcome
    assert outcome is not None and (outcome.source, outcome.completed) == ("upstream", True)
