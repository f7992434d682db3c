"""The same requests at the same time: one is answered, and the others with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest


@contextlib.asynccontextmanager
async def streaming(gateway: Any, body: Any) -> AsyncIterator[AsyncIterator[bytes]]:
    """A stream as it comes; left at the end."""
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield answer.aiter_raw()


async def read_all(gateway: Any, body: Any) -> bytes:
    async with streaming(gateway, body) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def opened(gateway: Any, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request on a connection of its own, written by hand: hundreds of them are cheap."""
    address = gateway.running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(*address)
    content = httpx.Request("POST", "http://x", json=body).content
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: x", "Accept: */*", f"Content-Length: {len(content)}")
    writer.write("\r\n".join((*lines, "", "")).encode() + content)
    return reader, writer


async def raw(gateway: Any, body: Any) -> bytes:
    """The text of a stream, without what HTTP puts around it."""
    reader, writer = await opened(gateway, body)
    with contextlib.closing(writer):
        await reader.readuntil(b"\r\n\r\n")
        text = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            text += (await reader.readexactly(size + 2))[:-2]
        return text


def followers(gateway: Any) -> int:
    return sum(len(flight.followers) for flight in gateway.desk._flights.values())


async def test_two_hundred_streams_at_a_time_are_one_for_the_backend(
    cached: Any, stream: Any, backend: Any, until: Any
) -> None:
    backend.steps, backend.chunks = asyncio.Semaphore(0), 20
    async with cached() as gateway:
        answers = [asyncio.create_task(raw(gateway, stream)) for _ in range(100)]
        await until(lambda: followers(gateway) == 99)
        backend.let(10)
        await until(lambda: next(iter(gateway.desk._flights.values())).size > 500)
        answers += [asyncio.create_task(raw(gateway, stream)) for _ in range(100)]  # they missed the beginning
        await until(lambda: followers(gateway) == 199)
        backend.let(10)
        texts = set(await asyncio.gather(*answers))
        assert len(texts) == 1 and texts.pop().endswith(b"data: [DONE]\n\n")
        counts = gateway.counts()
        assert (gateway.asked, counts.misses, counts.joined, counts.stored) == (1, 1, 199, 1)
        await until(lambda: len(gateway.outcomes) == 200)
        assert sum(each.source == "cache" for each in gateway.outcomes) == 199


async def test_the_others_go_on_when_the_leader_leaves(cached: Any, stream: Any, backend: Any, until: Any) -> None:
    backend.steps, backend.chunks = asyncio.Semaphore(3), 20
    async with cached() as gateway:
        async with streaming(gateway, stream) as leader:
            seen = b""
            while seen.count(b"data:") < 3:
                seen += await anext(leader)
            others = [asyncio.create_task(read_all(gateway, stream)) for _ in range(3)]
            await until(lambda: followers(gateway) == 3)
        backend.let(17)
        texts = await asyncio.gather(*others)
        assert all(text.endswith(b"[DONE]\n\n") and text.startswith(seen) for text in texts)
        assert (gateway.asked, len(set(texts))) == (1, 1)
        assert (await gateway.ask(stream)).headers["x-cache"] == "hit"


async def test_the_last_to_leave_closes_the_connection_to_the_backend(
    cached: Any, stream: Any, backend: Any, until: Any
) -> None:
    backend.steps, backend.chunks = asyncio.Semaphore(3), 20
    async with cached() as gateway:
        reader, writer = await opened(gateway, stream)
        await reader.readuntil(b"t2")
        other = asyncio.create_task(read_all(gateway, stream))
        await until(lambda: followers(gateway) == 1)
        writer.close()
        backend.let(1)
        await until(lambda: b"t3" in b"".join(next(iter(gateway.desk._flights.values()))._chunks))  # it goes on
        assert not backend.closed_early.is_set()
        other.cancel()
        await asyncio.wait_for(backend.closed_early.wait(), 20)
        await until(lambda: not gateway.desk._flights and gateway.running.gateway.open_requests == 0)
        assert gateway.counts().stored == 0


async def test_a_follower_that_leaves_disturbs_nobody(cached: Any, stream: Any, backend: Any, until: Any) -> None:
    backend.steps, backend.chunks = asyncio.Semaphore(0), 10
    async with cached() as gateway:
        leader = asyncio.create_task(read_all(gateway, stream))
        await until(lambda: gateway.desk._flights)
        other = asyncio.create_task(read_all(gateway, stream))
        await until(lambda: followers(gateway) == 1)
        other.cancel()
        await until(lambda: followers(gateway) == 0)
        backend.let(10)
        assert (await leader).endswith(b"[DONE]\n\n") and not backend.closed_early.is_set()


async def test_whole_answers_are_shared_too(cached: Any, chat: Any, backend: Any, until: Any) -> None:
    backend.pause = 0.3
    async with cached() as gateway:
        answers = await asyncio.gather(*(gateway.ask(chat) for _ in range(20)))
        assert gateway.asked == 1 and len({each.content for each in answers}) == 1
        assert sorted(each.headers["x-cache"] for each in answers) == ["hit"] * 19 + ["miss"]


async def test_a_stream_that_breaks_breaks_for_all(cached: Any, stream: Any, backend: Any, until: Any) -> None:
    backend.steps, backend.chunks, backend.cut_after = asyncio.Semaphore(0), 10, 3
    async with cached() as gateway:
        answers = [asyncio.create_task(read_all(gateway, stream)) for _ in range(5)]
        await until(lambda: followers(gateway) == 4)
        backend.let(3)
        texts = await asyncio.gather(*answers)
        assert all(b"stream_truncated" in text and b"[DONE]" not in text for text in texts)
        assert (gateway.asked, gateway.counts().stored) == (1, 0)
        assert [each.completed for each in gateway.outcomes] == [False] * 5


async def test_when_the_first_fails_another_is_asked(cached: Any, chat: Any, backend: Any, until: Any) -> None:
    backend.gate.clear()
    backend.statuses = [400]
    async with cached() as gateway:
        answers = [asyncio.create_task(gateway.ask(chat)) for _ in range(5)]
        await until(lambda: followers(gateway) == 4)
        backend.gate.set()
        statuses = [each.status_code for each in await asyncio.gather(*answers)]
        assert sorted(statuses) == [200, 200, 200, 200, 400]
        assert gateway.asked == 2


@pytest.mark.parametrize("status", [400, 500])
async def test_the_second_failure_is_told_to_all_who_wait(
    cached: Any, chat: Any, backend: Any, until: Any, status: int
) -> None:
    backend.gate.clear()
    backend.status = status
    async with cached() as gateway:
        answers = [asyncio.create_task(gateway.ask(chat)) for _ in range(10)]
        await until(lambda: followers(gateway) == 9)
        backend.gate.set()
        said = await asyncio.gather(*answers)
        assert len({each.status_code for each in said}) == 1
        assert len({each.json()["error"]["message"] for each in said}) == 1
        assert gateway.asked == 2 and not gateway.desk._flights


async def test_who_is_too_slow_is_cut_off_and_the_others_are_not(
    cached: Any, stream: Any, backend: Any, until: Any
) -> None:
    backend.steps, backend.chunks, backend.words = asyncio.Semaphore(0), 400, 40_000
    async with cached(max_entry_bytes=2_000_000) as gateway:
        leader = asyncio.create_task(read_all(gateway, stream))
        await until(lambda: gateway.desk._flights)
        (flight,) = gateway.desk._flights.values()
        reader, writer = await opened(gateway, stream)
        with contextlib.closing(writer):
            await until(lambda: followers(gateway) == 1)
            backend.let(400)
            assert (await leader).endswith(b"[DONE]\n\n")
            assert not flight.whole and flight._kept <= 2_100_000
            said = await asyncio.wait_for(drained(reader), 20)
        assert b"slow_reader" in said or b"reads too slowly" in said
        assert b"[DONE]" not in said


async def drained(reader: asyncio.StreamReader) -> bytes:
    """The end of what comes."""
    seen = b""
    while b"0\r\n\r\n" not in seen[-200:] and (chunk := await reader.read(65_536)):
        seen = (seen + chunk)[-200_000:]
    return seen


@pytest.mark.parametrize("fresh", ["no-cache"])
async def test_who_wants_a_fresh_answer_joins_nobody(
    cached: Any, stream: Any, backend: Any, until: Any, fresh: str
) -> None:
    backend.steps, backend.chunks = asyncio.Semaphore(0), 2
    async with cached() as gateway:
        leader = asyncio.create_task(read_all(gateway, stream))
        await until(lambda: gateway.asked == 1)
        other = asyncio.create_task(gateway.ask(stream, cache_control=fresh))
        await until(lambda: gateway.asked == 2)
        backend.let(4)
        assert (await other).headers["x-cache"] == "miss"
        await leader
        assert not gateway.desk._flights


async def test_nothing_is_left_when_all_is_over(cached: Any, stream: Any, until: Any) -> None:
    async with cached() as gateway:
        await asyncio.gather(*(read_all(gateway, {**stream, "seed": number % 5}) for number in range(40)))
        await until(lambda: gateway.running.gateway.open_requests == 0)
        assert not gateway.desk._flights and gateway.running.gateway.upstream.in_use == 0


async def test_a_leader_that_reads_nothing_holds_nobody_up(cached: Any, stream: Any, backend: Any, until: Any) -> None:
    backend.steps, backend.chunks, backend.words = asyncio.Semaphore(0), 200, 100_000
    async with cached(max_entry_bytes=30_000_000) as gateway:
        _, writer = await opened(gateway, stream)  # and nobody reads
        with contextlib.closing(writer):
            await until(lambda: gateway.desk._flights)
            follower = asyncio.create_task(raw(gateway, stream))
            await until(lambda: followers(gateway) == 1)
            backend.let(200)
            assert (await asyncio.wait_for(follower, 20)).endswith(b"[DONE]\n\n")


async def test_what_all_streams_take_together_is_bounded(cached: Any, stream: Any, backend: Any, until: Any) -> None:
    backend.steps, backend.chunks, backend.words = asyncio.Semaphore(0), 10, 10_000
    async with cached(memory_bytes=200_000, max_entry_bytes=150_000) as gateway:
        answers = [asyncio.create_task(raw(gateway, {**stream, "seed": number})) for number in range(10)]
        await until(lambda: len(gateway.desk._flights) == 10)
        flights, most = list(gateway.desk._flights.values()), 0
        for turn in range(1, 11):
            backend.let(10)
            await until(lambda turn=turn: sum(each.size for each in flights) >= turn * 100_000)
            most = max(most, gateway.desk.room.used)
        assert all(text.endswith(b"[DONE]\n\n") for text in await asyncio.gather(*answers))
        assert 100_000 <= most <= 220_000 and gateway.counts().stored < 10
        await until(lambda: gateway.desk.room.used == 0)
