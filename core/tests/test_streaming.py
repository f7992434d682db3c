"""Streams that are not complete, silence, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.exchange import Outcome, Usage
from headrace.streaming import EventSplitter
from headrace.testing import CHUNK, COMPLETION, DONE, FINISH, USAGE, FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
TOKEN = CHUNK % 0
ERROR = b'data: {"error":{"message":"engine died","code":500}}\n\n'
NOTICE_SECONDS = 0.25
"""A backend's connection is closed this soon after the client left."""


class Watcher:
    """Keeps the outcomes."""

    outcomes: asyncio.Queue[Outcome]

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def on_complete(self, exchange: Any, outcome: Outcome) -> None:
        self.outcomes.put_nowait(outcome)


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """A backend that reads the head of each request, plays the script and closes; yields its URL."""
    playing: set[asyncio.Task[Any]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        playing.add(asyncio.current_task())  # type: ignore[arg-type]
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            await script(reader, writer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)


def saying(*parts: bytes, pause: float = 0.0, hang: bool = False, head: bytes = SSE) -> Script:
    """Send the parts one by one; `hang` keeps the connection open until the other side closes it."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in (head, *parts):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        if hang:
            await reader.read()

    return script


@contextlib.asynccontextmanager
async def gateway(url: str, *others: str, **timeouts: float) -> AsyncIterator[SimpleNamespace]:
    """The model `test` at these backends, in order."""
    Watcher.outcomes = asyncio.Queue()
    targets = [{"provider": "openai", "base_url": each, "timeouts": timeouts} for each in (url, *others)]
    document = {"server": {"anonymous": True}, "models": {"test": {"targets": targets}}, "plugins": {"openai": {}}}
    async with (
        serve(document, {"watcher": Watcher}) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as client,
    ):

        async def chat(body: Any = STREAM) -> httpx.Response:
            return await client.post("/v1/chat/completions", json=body)

        async def outcome() -> Outcome:
            return await asyncio.wait_for(Watcher.outcomes.get(), 10)

        yield SimpleNamespace(chat=chat, client=client, outcome=outcome)


def assert_cut(content: bytes, kept: bytes) -> None:
    """The content is what had come, then one error event, and no end marker."""
    assert content.startswith(kept)
    (event,) = EventSplitter().feed(content[len(kept) :])
    assert event.json()["error"].keys() == {"message", "type", "param", "code"}
    assert event.json()["error"]["code"] == "stream_truncated"


@pytest.mark.parametrize(
    ("parts", "usage"),
    [
        ([TOKEN, FINISH, DONE], None),
        ([TOKEN, FINISH], None),
        ([TOKEN, DONE], None),
        ([TOKEN, FINISH, USAGE, DONE], Usage(5, 3)),
        ([TOKEN, FINISH, USAGE], Usage(5, 3)),
        ([TOKEN, FINISH, DONE.rstrip()], None),
    ],
)
async def test_a_stream_is_complete_with_an_end_marker_or_a_finish_reason(
    parts: list[bytes], usage: Usage | None
) -> None:
    async with scripted(saying(*parts)) as url, gateway(url) as g:
        response = await g.chat()
        outcome = await g.outcome()
    assert response.content == b"".join(parts)
    assert (outcome.completed, outcome.error, outcome.usage) == (True, None, usage)


async def test_a_stream_is_complete_however_its_bytes_were_cut() -> None:
    said = TOKEN + FINISH + USAGE + DONE
    async with (
        scripted(saying(*(said[at : at + 1] for at in range(len(said))), pause=0.0005)) as url,
        gateway(url) as g,
    ):
        response = await g.chat()
        outcome = await g.outcome()
    assert response.content == said
    assert (outcome.completed, outcome.usage) == (True, Usage(5, 3))


@pytest.mark.parametrize("parts", [[TOKEN], [TOKEN, TOKEN[:40]], [TOKEN, b": keepalive\n\n"]])
async def test_a_stream_without_end_marker_and_finish_reason_is_cut(parts: list[bytes]) -> None:
    async with scripted(saying(*parts)) as url, gateway(url) as g:
        response = await g.chat()
        outcome = await g.outcome()
    assert b"[DONE]" not in response.content
    assert b'"code":"stream_truncated"' in response.content
    assert (outcome.status, outcome.completed, outcome.aborted) == (200, False, False)


async def test_an_error_event_after_half_an_event_can_be_read() -> None:
    async with scripted(saying(TOKEN, TOKEN[:40])) as url, gateway(url) as g:
        events = EventSplitter().feed((await g.chat()).content)
    assert events[-1].json()["error"]["code"] == "stream_truncated"


@pytest.mark.parametrize("after", [1, 2])
async def test_a_connection_that_breaks_midway_ends_in_an_error_event(after: int) -> None:
    async with FakeBackend() as backend, gateway(backend.url) as g:
        backend.cut_after = after
        response = await g.chat()
        outcome = await g.outcome()
    assert_cut(response.content, b"".join(CHUNK % number for number in range(after)))
    assert (outcome.completed, outcome.error.code) == (False, "stream_truncated")


async def test_an_end_marker_after_the_backends_error_event_proves_nothing() -> None:
    async with scripted(saying(TOKEN, ERROR, DONE)) as url, gateway(url) as g:
        response = await g.chat()
        outcome = await g.outcome()
    assert_cut(response.content, TOKEN)
    assert (outcome.completed, outcome.error.code) == (False, "stream_truncated")


async def test_text_that_looks_like_an_error_or_a_finish_does_not_fool() -> None:
    text = (
        rb'data: {"choices":[{"delta":{"content":"data: {\"error\": \"finish_reason\": \"stop\" [DONE]"}}]}' + b"\n\n"
    )
    async with scripted(saying(text)) as url, gateway(url) as g:
        await g.chat()
        assert not (await g.outcome()).completed
    async with scripted(saying(text, FINISH, DONE)) as url, gateway(url) as g:
        await g.chat()
        assert (await g.outcome()).completed


async def test_a_cut_stream_still_ends_the_http_response_properly_for_the_next_request() -> None:
    async with FakeBackend() as backend, gateway(backend.url) as g:
        backend.cut_after = 1
        await g.chat()
        backend.cut_after = None
        assert (await g.chat()).content.endswith(DONE)


# --- Silence ---


async def test_a_backend_silent_between_two_chunks_is_given_up() -> None:
    async with scripted(saying(*[TOKEN] * 4, pause=0.2, hang=True)) as url, gateway(url, idle=0.5) as g:
        response = await g.chat()
        outcome = await g.outcome()
    assert_cut(response.content, TOKEN * 4)
    assert "nothing for 0.5 s" in response.text
    assert not outcome.completed


async def test_a_slow_but_steady_stream_is_not_given_up() -> None:
    async with FakeBackend() as backend, gateway(backend.url, idle=1.0) as g:
        backend.chunks, backend.pause = 6, 0.3
        assert (await g.chat()).content.endswith(DONE)


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize("said", [b"", SSE, SSE.replace(b"text/event-stream", b"application/json") + b"{"])
async def test_a_backend_silent_before_the_first_byte_is_followed_by_the_next(said: bytes, body: Any) -> None:
    async with scripted(saying(head=said, hang=True)) as url, FakeBackend() as second:
        async with gateway(url, second.url, first_byte=0.3) as g:
            assert (await g.chat(body)).status_code == 200
        async with gateway(url, first_byte=0.3) as g:
            alone = await g.chat(body)
    assert (alone.status_code, alone.json()["error"]["code"]) == (504, "upstream_timeout")


CUT_REPLIES = {
    "by length": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n" + COMPLETION[:50],
    "by chunk": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n32\r\n"
    + COMPLETION[:50] + b"\r\n",
    "in a chunk": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "in the head": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "at once": b"",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", CUT_REPLIES)
async def test_a_cut_whole_reply_is_asked_for_elsewhere_and_never_passed_on(name: str) -> None:
    async with scripted(saying(head=CUT_REPLIES[name])) as url, FakeBackend() as second:
        async with gateway(url, second.url) as g:
            assert (await g.chat(CHAT)).content == COMPLETION
        async with gateway(url) as g:
            alone = await g.chat(CHAT)
            outcome = await g.outcome()
    assert (alone.status_code, alone.json()["error"]["type"]) == (502, "upstream_error")
    assert (outcome.status, outcome.completed) == (502, False)


async def test_a_cut_reply_too_large_to_be_kept_breaks_the_connection() -> None:
    size = 18 * 1024 * 1024
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % size
    async with scripted(saying(b" " * (size - 1000), head=head)) as url, gateway(url) as g:
        with pytest.raises(httpx.RemoteProtocolError):
            await g.chat(CHAT)
        assert not (await g.outcome()).completed


# --- Clients that leave ---


async def assert_noticed(leave: Callable[[], Awaitable[asyncio.Event]]) -> None:
    """`leave` makes a client leave and returns what the backend then sets. Three tries, for busy machines."""
    delays: list[float] = []
    while len(delays) < 3 and not (delays and delays[-1] < NOTICE_SECONDS):
        noticed = await leave()
        left = time.perf_counter()
        await asyncio.wait_for(noticed.wait(), 10)
        delays.append(time.perf_counter() - left)
    assert min(delays) < NOTICE_SECONDS


@pytest.mark.parametrize("body", [CHAT, STREAM])
async def test_a_client_that_leaves_before_the_first_byte_frees_the_backend_at_once(body: Any) -> None:
    async with FakeBackend() as backend, gateway(backend.url) as g:
        backend.silent = True

        async def leave() -> asyncio.Event:
            backend.closed_early.clear()
            backend.requests.clear()
            asking = asyncio.create_task(g.chat(body))
            while not backend.requests:
                await asyncio.sleep(0.005)
            asking.cancel()
            return backend.closed_early

        await assert_noticed(leave)
        assert (await g.outcome()).aborted


async def test_a_client_that_leaves_midway_frees_the_backend_at_once() -> None:
    async with FakeBackend() as backend, gateway(backend.url) as g:
        backend.chunks, backend.pause = 10_000, 0.02

        async def leave() -> asyncio.Event:
            backend.closed_early.clear()
            async with g.client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
                await anext(response.aiter_raw())
            return backend.closed_early

        await assert_noticed(leave)
        outcome = await g.outcome()
    assert (outcome.aborted, outcome.completed) == (True, False)


async def test_a_client_that_leaves_a_silent_stream_frees_the_backend_at_once() -> None:
    gone = asyncio.Event()

    async def noticing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(TOKEN, hang=True)(reader, writer)
        gone.set()

    async with scripted(noticing) as url, gateway(url) as g:

        async def leave() -> asyncio.Event:
            gone.clear()
            async with g.client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
                await anext(response.aiter_raw())
            return gone

        await assert_noticed(leave)


async def test_many_clients_that_leave_leave_nothing_behind() -> None:
    async with FakeBackend() as backend, gateway(backend.url) as g:
        backend.chunks, backend.pause = 10_000, 0.02
        before = len(asyncio.all_tasks())
        for _ in range(20):
            async with g.client.stream("POST", "/v1/chat/completions", json=STREAM) as response:
                await anext(response.aiter_raw())
            assert (await g.outcome()).aborted
        deadline = time.monotonic() + 5
        while len(asyncio.all_tasks()) > before and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) <= before


async def test_whoever_leaves_at_the_end_marker_has_the_whole_answer() -> None:
    said = (
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
        + DONE  # and no end of HTTP
    )
    async with scripted(saying(said, hang=True)) as url, gateway(url) as g:
        async with g.client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    break
        outcome = await g.outcome()
    assert (outcome.completed, outcome.aborted, outcome.error) == (True, False, None)
