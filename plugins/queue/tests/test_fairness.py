"""Shares and waits over real sockets: one slow backend, and more callers than it has room for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import pytest

SLOTS = 6


class Caller:
    """One key that always has requests on so many connections; counts its answers."""

    def __init__(self, gate: Any, name: str, done: Counter[str]) -> None:
        self.name, self._done = name, done
        self._address = urlsplit(gate.running.url)
        body = json.dumps(gate.chat)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: {name}\r\nContent-Length: {len(body)}\r\n"
        self._request = f"{head}Content-Type: application/json\r\n\r\n{body}".encode()

    async def keep_asking(self) -> None:
        """Ask again as soon as there is an answer, until cancelled."""
        reader, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
        with contextlib.closing(writer):
            while True:
                await self.ask(reader, writer)
                self._done[self.name] += 1

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))


@contextlib.asynccontextmanager
async def asking(callers: list[Caller], at_once: int) -> Any:
    """Callers that do not stop, each with so many connections."""
    tasks = [asyncio.create_task(each.keep_asking()) for each in callers for _ in range(at_once)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        failed = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in failed} == {asyncio.CancelledError}


async def test_fifty_keys_get_what_their_weights_say(queued: Any) -> None:
    weights = {f"key-{number}": 1.0 + number % 2 for number in range(50)}
    async with queued(max_concurrency=SLOTS, key_weights=weights) as gate:
        gate.backend.pause, done = 0.002, Counter[str]()
        async with asking([Caller(gate, name, done) for name in weights], 2):
            await gate.until(lambda now: now.waiting + now.running == 100)
            before = done.copy()
            async with asyncio.timeout(60):
                while (done - before).total() < 75 * 25:
                    await asyncio.sleep(0.002)
            after = done - before
    for name, weight in weights.items():
        assert after[name] / after.total() == pytest.approx(weight / 75, rel=0.1), (name, after)


class Turns:
    """How many requests of others began to run while one waited: a wait that no noise of the machine touches."""

    def __init__(self, gate: Any) -> None:
        self._counts = gate.status.classes["default"]

    async def of(self, caller: Caller, times: int) -> list[int]:
        """Of so many requests of this caller, one after the other, sorted."""
        reader, writer = await asyncio.open_connection(caller._address.hostname, caller._address.port)
        found = []
        with contextlib.closing(writer):
            for _ in range(times):
                before = self._counts.served
                await caller.ask(reader, writer)
                found.append(self._counts.served - before)
        return sorted(found)


async def test_beside_a_flood_a_light_key_waits_no_longer_than_beside_its_likes(queued: Any) -> None:
    """Its wait alone: that for a slot at a backend that others, one connection each, keep busy."""
    found = []
    for others, at_once in ((SLOTS, 1), (1, 20 * SLOTS)):
        async with queued(max_concurrency=SLOTS) as gate:
            gate.backend.pause, done = 0.01, Counter[str]()
            async with asking([Caller(gate, f"other-{number}", done) for number in range(others)], at_once):
                await gate.until(lambda now, all=others * at_once: now.waiting + now.running == all)
                found.append(await Turns(gate).of(Caller(gate, "light", done), 60))
    alone, beside = (each[-2] for each in found)  # of sixty, all but one
    assert beside <= 2 * alone, found
