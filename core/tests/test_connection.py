"""Clients that leave while others stay: each departure is noticed, and is that of one request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.testing import COMPLETION, FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
LARGE = {**CHAT, "user": "x" * 100_000}
A, B = "a" * 32, "b" * 32

Fronted = Callable[..., Any]


def raw(body: Any) -> bytes:
    content = msgspec.json.encode(body)
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)


async def arrived(backend: FakeBackend, number: int = 1) -> None:
    """Wait until so many requests are at the backend."""
    async with asyncio.timeout(10):
        while len(backend.requests) < number:
            await asyncio.sleep(0.005)


async def connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def answer(reader: asyncio.StreamReader) -> bytes:
    """The body of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return await reader.readexactly(int(length.partition(b":")[2]))


@pytest.mark.parametrize("body", [CHAT, LARGE], ids=["small", "large"])
async def test_a_client_that_leaves_while_its_backend_is_silent_is_noticed(backend: FakeBackend, body: Any) -> None:
    backend.silent = True
    async with serve(backend.config()) as gateway:
        _, writer = await connected(gateway.url)
        writer.write(raw(body))
        await arrived(backend)
        writer.close()
        await asyncio.wait_for(backend.closed_early.wait(), 10)


@pytest.mark.parametrize("body", [CHAT, LARGE], ids=["small", "large"])
async def test_requests_sent_at_once_are_answered_one_after_the_other(backend: FakeBackend, body: Any) -> None:
    async with serve(backend.config()) as gateway:
        reader, writer = await connected(gateway.url)
        writer.write(raw(body) * 3)
        for number in range(3):
            assert await answer(reader) == COMPLETION
            assert len(backend.requests) >= number + 1
        writer.close()
    assert [msgspec.json.decode(body)["model"] for _, _, body in backend.requests] == ["fake-model"] * 3


async def test_a_client_that_leaves_while_its_second_request_waits_is_noticed(backend: FakeBackend) -> None:
    async with serve(backend.config()) as gateway:
        reader, writer = await connected(gateway.url)
        writer.write(raw(CHAT) * 2)
        assert await answer(reader) == COMPLETION
        backend.silent = len(backend.requests) == 1
        await arrived(backend, 2)
        writer.close()
        if backend.silent:
            await asyncio.wait_for(backend.closed_early.wait(), 10)


async def test_the_report_of_one_request_does_not_make_the_core_blind_for_the_next_on_its_connection(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    backend.silent = True
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.ask(CHAT, A)
        asking = asyncio.create_task(nginx.ask(CHAT, B, mark=""))  # the connection is free: it is used again
        await arrived(backend)
        await nginx.report(A)
        assert (await recorder.outcome()).completed
        asking.cancel()
        await asyncio.wait_for(backend.closed_early.wait(), 10)
        assert (await recorder.outcome()).aborted


async def test_the_end_of_one_request_does_not_make_the_core_blind_for_the_next_on_its_connection(
    backend: FakeBackend,
) -> None:
    releasing, told = asyncio.Event(), asyncio.Event()

    class Slow:
        """Takes its time to let go of the first request."""

        def __init__(self, config: Any, gateway: Any) -> None:
            self.first = True

        @hookimpl
        @contextlib.asynccontextmanager
        async def admit(self) -> AsyncIterator[None]:
            first, self.first = self.first, False
            yield
            if first:
                await releasing.wait()

        @hookimpl
        async def on_complete(self) -> None:
            told.set()

    async with serve(backend.config(), {"slow": Slow}) as gateway:
        reader, writer = await connected(gateway.url)
        writer.write(raw(CHAT))
        assert await answer(reader) == COMPLETION
        backend.silent = True
        writer.write(raw(CHAT))
        await arrived(backend, 2)
        releasing.set()
        await asyncio.wait_for(told.wait(), 10)
        writer.close()
        await asyncio.wait_for(backend.closed_early.wait(), 10)


async def test_a_client_that_leaves_takes_nothing_from_another_on_its_own_connection(backend: FakeBackend) -> None:
    backend.pause = 0.2
    async with serve(backend.config()) as gateway, httpx.AsyncClient(trust_env=False, timeout=30) as client:
        staying = asyncio.create_task(client.post(f"{gateway.url}/v1/chat/completions", json=CHAT))
        await arrived(backend)
        _, writer = await connected(gateway.url)
        writer.write(raw(CHAT))
        await arrived(backend, 2)
        writer.close()
        assert (await staying).content == COMPLETION
