"""A gateway with batches before a backend that does what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.errors import RateLimited, Unauthenticated
from headrace.exchange import Exchange, Outcome, Principal
from headrace.testing import FakeBackend, serve
from headrace_batch import Plugin

PATH = "/v1/batch/chat/completions"


class Bouncer:
    """Knows one caller, has a limit, and sees what is asked and how it ends.

    Attributes:
        most: how many chats the caller may ask.
        seen: every exchange; `outcomes`: how each ended.
        running, peak: how many are open now, and were at most.
    """

    def __init__(self, config: Any, gateway: Any) -> None:
        self.most = 10_000
        self.seen: list[Exchange] = []
        self.outcomes: list[tuple[str, Outcome]] = []
        self.running = self.peak = 0
        gateway.bouncer = self

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        if exchange.header(b"authorization") != "Bearer right":
            raise Unauthenticated("Who are you?")
        return Principal(id="ada")

    @hookimpl
    def admit(self, exchange: Exchange) -> Any:
        return self._held(exchange)

    @contextlib.asynccontextmanager
    async def _held(self, exchange: Exchange) -> AsyncIterator[None]:
        self.seen.append(exchange)
        if len(self.seen) > self.most:
            raise RateLimited("That is enough.")
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            yield
        finally:
            self.running -= 1

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.outcomes.append((exchange.id, outcome))


class Asker:
    """A gateway and a client of it."""

    def __init__(self, client: httpx.AsyncClient, running: Any) -> None:
        self.client, self.gateway, self.url = client, running.gateway, running.url
        self.bouncer: Bouncer = running.gateway.bouncer

    async def ask(self, body: Any, key: str = "right", **headers: str) -> httpx.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await self.client.post(PATH, content=data, headers=given)

    async def emptied(self) -> None:
        """Wait until no request is open any more."""
        async with asyncio.timeout(20):
            while self.gateway.open_requests:
                await asyncio.sleep(0.01)


@pytest.fixture
async def backend() -> AsyncIterator[FakeBackend]:
    async with FakeBackend() as backend:
        yield backend


@pytest.fixture
def gateway(backend: FakeBackend) -> Callable[..., Any]:
    """`async with gateway(max_items=3) as asker`."""

    @contextlib.asynccontextmanager
    async def run(tables: Any = None, **options: Any) -> AsyncIterator[Asker]:
        document = backend.config(**(tables or {}), plugins={"batch": options})
        async with (
            serve(document, plugins={"bouncer": Bouncer, "batch": Plugin}) as running,
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as client,
        ):
            yield Asker(client, running)

    return run


def chats(count: int, **more: Any) -> dict[str, Any]:
    """A batch of so many, told apart by what they say."""
    return {"requests": [chat(str(number), **more) for number in range(count)]}


def chat(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "test", "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def kit() -> Any:
    """The helpers of this file."""
    return type("Kit", (), {"chats": staticmethod(chats), "chat": staticmethod(chat), "PATH": PATH})
