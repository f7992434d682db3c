"""Many streams at once, and memory that stays where it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

STREAMS = 300
CHUNKS = 20
WARM_UP, MORE = 1_000, 2_000
AT_ONCE = 32
CORE_GROWTH, NGINX_GROWTH = 4.0, 2.0
"""MiB that a process may grow from the first thousand requests to the third."""
ASK = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
EXPECTED = "".join(f"t{number} " for number in range(CHUNKS))


@contextlib.asynccontextmanager
async def session(route: Any, limit: int) -> AsyncIterator[aiohttp.ClientSession]:
    connector: aiohttp.BaseConnector
    if route.name == "core":
        connector = aiohttp.UnixConnector(str(route.stack.core_socket), limit=limit)
    else:
        connector = aiohttp.TCPConnector(limit=limit, ssl=route.stack.tls())
    headers = {"Authorization": f"Bearer {route.stack.key}"}
    async with aiohttp.ClientSession(route.origin, connector=connector, headers=headers) as found:
        yield found


async def one_stream(client: aiohttp.ClientSession) -> tuple[int, str, bool]:
    """A stream's status, its text, and whether it ended with [DONE]."""
    async with client.post("/v1/chat/completions", json={**ASK, "stream": True}) as answer:
        body = await answer.read()
    *chunks, done = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
    text = "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks)
    return answer.status, text, done == b"[DONE]"


async def test_300_streams_at_once_all_arrive_whole(route: Any) -> None:
    route.stack.fake.chunks, route.stack.fake.pause = CHUNKS, 0.2
    async with asyncio.timeout(60), session(route, STREAMS) as client:
        found = await asyncio.gather(*(one_stream(client) for _ in range(STREAMS)))
    assert [each for each in found if each != (200, EXPECTED, True)] == []


def test_300_requests_reach_the_backend_before_any_is_answered(route: Any, kit: Any) -> None:
    fake = route.stack.fake
    fake.silent = True
    body = json.dumps({**ASK, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {route.stack.key}\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(STREAMS):
            connection = stack.enter_context(route.connect())
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        kit.until(lambda: sum("chat" in path for path, _, _ in fake.requests) == STREAMS, "300 requests at the backend")


def resident(pid: int) -> float:
    """A process's resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def watched(stack: Any, kit: Any) -> dict[int, str]:
    """The core's and nginx's processes."""
    found = {}
    for pid in kit.process_tree(stack.launched.child.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        if command.startswith(b"nginx: worker"):
            found[pid] = "nginx"
        elif b" serve " in command:
            found[pid] = "core"
    return found


async def ask_many(route: Any, count: int) -> None:
    """Half of them streams, all of them answered."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> int:
        async with (
            room,
            client.post("/v1/chat/completions", json={**ASK, "stream": number % 2 == 0}) as answer,
        ):
            await answer.read()
            return answer.status

    async with session(route, AT_ONCE) as client:
        assert set(await asyncio.gather(*map(one, range(count)))) == {200}


@pytest.fixture
def processes(front: Any, kit: Any) -> dict[int, str]:
    found = watched(front.stack, kit)
    assert sorted(found.values()) == ["core", "nginx", "nginx"]
    return found


async def test_memory_stays_where_it_is_after_the_first_thousand_requests(
    front: Any, processes: dict[int, str]
) -> None:
    await ask_many(front, WARM_UP)
    before = {pid: resident(pid) for pid in processes}
    await ask_many(front, MORE)
    grown = {pid: resident(pid) - before[pid] for pid in processes}
    for pid, name in processes.items():
        print(f"{name}: {before[pid]:.1f} MiB, {grown[pid]:+.2f} MiB after {MORE} more requests")
    limits = {"core": CORE_GROWTH, "nginx": NGINX_GROWTH}
    assert {name: grown[pid] for pid, name in processes.items() if grown[pid] > limits[name]} == {}
