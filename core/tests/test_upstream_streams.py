"""The one HTTP client and replies that come in pieces: their connections, and how long a silence may last."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import pytest

from headrace.config import TargetTimeouts
from headrace.errors import UpstreamError, UpstreamTimeout
from headrace.exchange import Reply, Target, UpstreamRequest
from headrace.incoming import Incoming
from headrace.upstream import WHOLE_LIMIT, Upstream, target_headers

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LINES = HEAD.replace(b"text/event-stream", b"application/x-ndjson; charset=utf-8")
TOKEN = b"9\r\ndata: a\n\n\r\n"
END = b"0\r\n\r\n"


class Backend:
    """Begins each answer with `answer`; what more there is to say, a test says with `send`."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.connections: list[asyncio.StreamWriter] = []
        self.requests = 0
        self.closed = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                await reader.readexactly(int(length[1]) if length else 0)
                self.requests += 1
                await self.send(self.answer)
        writer.close()
        self.closed.set()

    async def send(self, data: bytes) -> None:
        """Say it on the newest connection."""
        self.connections[-1].write(data)
        await self.connections[-1].drain()


@contextlib.asynccontextmanager
async def asking(backend: Backend, **timeouts: float) -> AsyncIterator[tuple[Upstream, Target]]:
    """Serve it on the loopback; yields a client and the target it is."""
    server = await asyncio.start_server(backend, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    upstream = Upstream()
    try:
        yield upstream, Target(name="t", provider="openai", base_url=url, timeouts=TargetTimeouts(**timeouts))
    finally:
        await upstream.aclose()
        server.close()
        for connection in backend.connections:
            connection.close()


async def post(upstream: Upstream, at: Target, *, streaming: bool = False) -> Reply:
    request = UpstreamRequest(url=f"{at.base_url}/chat", headers=target_headers(at), body=b"{}")
    return await upstream.send(at, request, streaming=streaming)


async def chunk(reply: Reply) -> bytes:
    assert reply.stream is not None
    return await anext(reply.stream)


async def test_a_stream_that_is_read_to_its_end_gives_its_connection_back() -> None:
    backend = Backend(HEAD + TOKEN + END)
    async with asking(backend) as (upstream, at):
        for _ in range(3):
            reply = await post(upstream, at)
            assert reply.stream is not None
            assert [chunk async for chunk in reply.stream] == [b"data: a\n\n"]
            await reply.aclose()
    assert (backend.requests, len(backend.connections)) == (3, 1)


async def test_a_stream_that_is_not_read_to_its_end_gives_no_connection_back() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend) as (upstream, at):
        reply = await post(upstream, at)
        assert await chunk(reply) == b"data: a\n\n"
        await reply.stream.aclose()  # type: ignore[union-attr]
        await reply.aclose()
        await reply.aclose()
        await asyncio.wait_for(backend.closed.wait(), 5)


async def test_a_stream_of_which_nothing_is_read_gives_no_connection_back() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend) as (upstream, at):
        await (await post(upstream, at)).aclose()
        await asyncio.wait_for(backend.closed.wait(), 5)


async def test_a_reader_that_is_cancelled_can_still_close_the_stream() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend) as (upstream, at):
        reply = await post(upstream, at)
        await chunk(reply)
        reading = asyncio.create_task(chunk(reply))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await reply.aclose()
        await asyncio.wait_for(backend.closed.wait(), 5)


async def test_a_silent_stream_is_given_up_whichever_task_waits_for_it() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend, idle=0.2) as (upstream, at):
        reply = await post(upstream, at)
        assert await asyncio.create_task(chunk(reply)) == b"data: a\n\n"
        with pytest.raises(UpstreamTimeout, match=r"sent nothing for 0.2 s"):
            await asyncio.wait_for(chunk(reply), 5)
        await asyncio.wait_for(backend.closed.wait(), 5)


async def test_the_time_a_slow_client_takes_is_not_the_backends_silence() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend, idle=0.6) as (upstream, at):
        reply = await post(upstream, at)
        for _ in range(2):
            assert await chunk(reply) == b"data: a\n\n"
            await backend.send(TOKEN)
        await asyncio.sleep(0.9)  # what the client takes
        assert await chunk(reply) == b"data: a\n\n"
        with pytest.raises(UpstreamTimeout, match=r"sent nothing for 0.6 s"):
            await asyncio.wait_for(chunk(reply), 5)


class Leaving:
    """Takes nothing: every chunk is left to whoever reads."""

    def __call__(self, chunk: bytes) -> bytes:
        return chunk


class Taking:
    """Takes every chunk, and tells when."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[bytes] = asyncio.Queue()

    def __call__(self, chunk: bytes) -> bytes:
        self.taken.put_nowait(chunk)
        return b""


async def all_of(reply: Reply, take: Leaving | Taking) -> list[bytes]:
    """What `take` leaves of a stream."""
    assert isinstance(reply.stream, Incoming)
    return [rest async for rest in reply.stream.through(take)]


@pytest.mark.parametrize("take", [Leaving, Taking])
async def test_a_stream_that_is_given_away_to_its_end_gives_its_connection_back(take: type[Leaving | Taking]) -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend) as (upstream, at):
        for _ in range(3):
            reply = await post(upstream, at)
            taker = take()
            reading = asyncio.create_task(all_of(reply, taker))
            await backend.send(TOKEN)
            await backend.send(END)
            left = await reading
            taken = [] if isinstance(taker, Leaving) else [taker.taken.get_nowait() for _ in range(taker.taken.qsize())]
            assert b"".join(left + taken) == b"data: a\n\n" * 2
            await reply.aclose()
    assert (backend.requests, len(backend.connections)) == (3, 1)


async def test_a_silent_stream_that_is_given_away_is_given_up() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend, idle=0.3) as (upstream, at):
        taker = Taking()
        reading = asyncio.create_task(all_of(await post(upstream, at), taker))
        for _ in range(3):
            assert await asyncio.wait_for(taker.taken.get(), 5) == b"data: a\n\n"
            await backend.send(TOKEN)
        with pytest.raises(UpstreamTimeout, match=r"sent nothing for 0.3 s"):
            await asyncio.wait_for(reading, 5)
        await asyncio.wait_for(backend.closed.wait(), 5)


async def test_the_time_a_slow_client_takes_for_what_was_left_is_not_the_backends_silence() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend, idle=0.6) as (upstream, at):
        reply = await post(upstream, at)
        assert isinstance(reply.stream, Incoming)
        rests = reply.stream.through(Leaving())
        for _ in range(2):
            assert await anext(rests) == b"data: a\n\n"
            await backend.send(TOKEN)
        await asyncio.sleep(0.9)  # what the client takes
        assert await anext(rests) == b"data: a\n\n"
        with pytest.raises(UpstreamTimeout, match=r"sent nothing for 0.6 s"):
            await asyncio.wait_for(anext(rests), 5)


async def test_a_stream_that_is_given_away_and_breaks_off_says_so() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend) as (upstream, at):
        taker = Taking()
        reading = asyncio.create_task(all_of(await post(upstream, at), taker))
        assert await asyncio.wait_for(taker.taken.get(), 5) == b"data: a\n\n"
        backend.connections[-1].close()
        with pytest.raises(UpstreamError, match="broke"):
            await asyncio.wait_for(reading, 5)


async def test_a_stream_that_broke_off_before_it_is_given_away_says_so() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend) as (upstream, at), asyncio.timeout(5):
        reply = await post(upstream, at)
        assert isinstance(reply.stream, Incoming)
        backend.connections[-1].close()
        while reply.stream._response.content.exception() is None:
            await asyncio.sleep(0.001)
        taker = Taking()
        with pytest.raises(UpstreamError, match="broke"):
            await all_of(reply, taker)
        assert taker.taken.get_nowait() == b"data: a\n\n"


async def test_a_giving_away_that_is_cancelled_closes_the_connection() -> None:
    backend = Backend(HEAD + TOKEN)
    async with asking(backend) as (upstream, at):
        reply, taker = await post(upstream, at), Taking()
        reading = asyncio.create_task(all_of(reply, taker))
        assert await asyncio.wait_for(taker.taken.get(), 5) == b"data: a\n\n"
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await reply.aclose()
        await asyncio.wait_for(backend.closed.wait(), 5)


async def test_a_reply_too_large_to_be_kept_is_passed_on_as_it_comes() -> None:
    body = b"0123456789abcdef" * (WHOLE_LIMIT // 16 + 1)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with asking(Backend(head + body)) as (upstream, at):
        reply = await post(upstream, at)
        assert reply.content is None
        assert reply.stream is not None
        assert b"".join([chunk async for chunk in reply.stream]) == body


async def test_lines_of_json_are_a_stream_for_whoever_asks_for_one() -> None:
    backend = Backend(LINES + b"3\r\n{}\n\r\n")
    async with asking(backend) as (upstream, at):
        reply = await post(upstream, at, streaming=True)
        assert await chunk(reply) == b"{}\n"
        await backend.send(b"3\r\n[]\n\r\n")
        assert await chunk(reply) == b"[]\n"
        await reply.aclose()


async def test_lines_of_json_are_a_whole_answer_for_everybody_else() -> None:
    async with asking(Backend(LINES + b"3\r\n{}\n\r\n" + END)) as (upstream, at):
        reply = await post(upstream, at)
        assert (reply.content, reply.stream) == (b"{}\n", None)


async def test_a_deadline_for_the_first_token_lets_lines_of_json_pass_at_once() -> None:
    async with asking(Backend(LINES + b"3\r\n{}\n\r\n"), first_token=30) as (upstream, at):
        reply = await asyncio.wait_for(post(upstream, at, streaming=True), 10)
        assert await chunk(reply) == b"{}\n"
        await reply.aclose()
