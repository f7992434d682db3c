"""Answers that are kept by a real Redis and a real Memcached."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest

from headrace.config import Secret
from headrace_cache.config import address_of
from headrace_cache.entry import Entry
from headrace_cache.key import Keys
from headrace_cache.remote import connect
from headrace_cache.shared import Shared

PATIENT = {"deadline": 1.0, "probe_seconds": 0.05}
"""Whoever is slow here is the machine."""


async def test_gateways_share_answers(cached: Any, server: Any, stream: Any, chat: Any, until: Any) -> None:
    async with cached(url=server.url, **PATIENT) as one:
        first, whole = await one.ask(stream), await one.ask(chat)
        assert first.headers["x-cache"] == "miss"
        await until(lambda: not one.desk.shared._calls)  # they are written beside the requests
        async with cached(url=server.url, memory=False, **PATIENT) as other:
            again = await other.ask(stream)
            assert (again.headers["x-cache"], again.content) == ("hit", first.content)
            assert (await other.ask(chat)).content == whole.content
            assert other.asked == 2  # by the first gateway


async def test_a_clearing_holds_for_all_gateways(cached: Any, server: Any, chat: Any, until: Any) -> None:
    options = {"url": server.url, "memory": False, **PATIENT}
    async with cached(**options) as one, cached(**options) as other:
        await one.ask(chat)
        await until(lambda: not one.desk.shared._calls)
        assert (await other.ask(chat)).headers["x-cache"] == "hit"
        assert await one.desk.clear("test")
        assert (await other.ask(chat)).headers["x-cache"] == "miss"
        await until(lambda: not other.desk.shared._calls)
        assert await one.desk.clear(None)
        assert (await other.ask(chat)).headers["x-cache"] == "miss"


async def test_tenants_are_apart_there_too(cached: Any, server: Any, chat: Any, until: Any) -> None:
    async with cached(url=server.url, memory=False, **PATIENT) as gateway:
        await gateway.ask(chat, x_who="a")
        await until(lambda: not gateway.desk.shared._calls)
        assert (await gateway.ask(chat, x_who="b")).headers["x-cache"] == "miss"


async def test_the_first_level_is_filled_from_the_second(cached: Any, server: Any, chat: Any, until: Any) -> None:
    async with cached(url=server.url, **PATIENT) as gateway:
        await gateway.ask(chat)
        await until(lambda: not gateway.desk.shared._calls)
        gateway.desk.memory.drop(None)
        assert (await gateway.ask(chat)).headers["x-cache"] == "hit"
        server.kill()
        assert (await gateway.ask(chat)).headers["x-cache"] == "hit"


async def test_requests_go_on_when_the_server_is_gone_and_it_is_used_again_when_it_is_back(
    cached: Any, server: Any, chat: Any, until: Any
) -> None:
    async with cached(url=server.url, memory=False, **PATIENT) as gateway:
        await gateway.ask(chat)
        server.kill()
        answers = [await gateway.ask({**chat, "seed": number}) for number in range(3)]
        assert [each.status_code for each in answers] == [200] * 3
        await until(lambda: not gateway.desk.shared.up)
        server.start()
        await until(lambda: gateway.desk.shared.up)
        await gateway.ask(chat)
        await until(lambda: not gateway.desk.shared._calls)
        assert (await gateway.ask(chat)).headers["x-cache"] == "hit"


async def test_a_gateway_starts_without_its_server(cached: Any, server: Any, chat: Any, until: Any) -> None:
    server.kill()
    async with cached(url=server.url, **PATIENT) as gateway:
        assert (await gateway.ask(chat)).status_code == 200
        assert (await gateway.ask(chat)).headers["x-cache"] == "hit"  # from memory
        server.start()
        await until(lambda: gateway.desk.shared.up)


async def test_a_server_that_hangs_costs_no_more_than_the_deadline(server: Any) -> None:
    failed: list[str] = []
    address = address_of(Secret(server.url))
    shared = Shared(lambda: connect(address), "t:", 0.02, 60.0, failed.append)
    async with shared.running():
        assert shared.up, "the machine is too busy for this test"
        failed.clear()
        server.signal(signal.SIGSTOP)
        took = []
        for _ in range(20):
            start = time.perf_counter()
            assert (await shared.find(Keys("k", None), "m")).epoch is None
            took.append(time.perf_counter() - start)
        assert len(failed) == 3
        assert sorted(took)[-4] < 0.005  # nobody waits once it is known
        assert sorted(took)[-3] < 0.2
        server.signal(signal.SIGCONT)


async def test_an_answer_to_another_question_is_no_answer(server: Any) -> None:
    """Clients have mixed up connections before."""
    shared = Shared(lambda: connect(address_of(Secret(server.url))), "t:", 5.0, 60.0)
    async with shared.running():
        epoch = (await shared.find(Keys("mine", None), "m")).epoch
        assert epoch is not None
        now = time.time()
        entry = Entry("mine", "m", "whole", b"{}", now, now + 60, epoch=epoch)
        remote = shared._remote
        assert remote is not None
        shared.keep(entry)
        await asyncio.gather(*shared._calls)
        (found,) = (await shared.find(Keys("mine", None), "m")).entries
        assert found is not None and found.body == b"{}"
        (value,) = await remote.several(["t:a:mine"])
        assert value is not None
        await remote.put("t:a:yours", value, 60)
        assert (await shared.find(Keys("yours", None), "m")).entries == ()


async def test_requests_that_leave_do_not_mix_up_answers(server: Any) -> None:
    shared = Shared(lambda: connect(address_of(Secret(server.url))), "t:", 5.0, 60.0)
    async with shared.running():
        epoch = (await shared.find(Keys("0", None), "m")).epoch
        assert epoch is not None
        now = time.time()
        for number in range(20):
            shared.keep(Entry(f"{number}", "m", "whole", b"%d" % number, now, now + 60, epoch=epoch))
        await asyncio.gather(*shared._calls)
        for turn in range(10):
            asks = [asyncio.create_task(shared.find(Keys(f"{number}", None), "m")) for number in range(20)]
            for _ in range(turn):
                await asyncio.sleep(0)
            for ask in asks[::2]:
                ask.cancel()
            done = await asyncio.gather(*asks, return_exceptions=True)
            for number, found in enumerate(done):
                if not isinstance(found, BaseException):
                    assert [entry.body for entry in found.entries] == [b"%d" % number]
        assert shared.up


@pytest.mark.parametrize("scheme", ["redis", "memcached"])
async def test_a_server_that_ends_in_the_middle_of_an_answer_stops_nobody(scheme: str) -> None:
    """aiomcache by itself would read for ever, and the whole process with it."""

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    ending = await asyncio.start_server(half, "127.0.0.1", 0)
    async with ending:
        port = ending.sockets[0].getsockname()[1]
        remote = connect(address_of(Secret(f"{scheme}://127.0.0.1:{port}")))
        for call in (remote.put("k", b"v", 1), remote.add("k", b"v"), remote.several(["k", "l"])):
            with pytest.raises(remote.errors):
                await asyncio.wait_for(call, 20)
        await remote.close()


async def test_entries_end_in_time(cached: Any, server: Any, chat: Any, until: Any) -> None:
    async with cached(url=server.url, memory=False, ttl=1, **PATIENT) as gateway:
        await gateway.ask(chat)
        await until(lambda: not gateway.desk.shared._calls)
        assert (await gateway.ask(chat)).headers["x-cache"] == "hit"
        await asyncio.sleep(1.1)
        assert (await gateway.ask(chat)).headers["x-cache"] == "miss"


@pytest.mark.parametrize("server", ["memcached"], indirect=True)
async def test_what_a_server_does_not_take_is_a_count_and_nothing_else(
    cached: Any, server: Any, stream: Any, backend: Any, until: Any
) -> None:
    backend.pieces = [b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * 2_000_000)]
    backend.pieces.append(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
    async with cached(url=server.url, memory=False, max_entry_bytes=4_000_000, **PATIENT) as gateway:
        await gateway.ask(stream)
        await until(lambda: gateway.counts().errors == 1)
        assert gateway.desk.shared.up
