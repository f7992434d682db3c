"""A gateway with a queue; and a backend that exists in numbers alone, with a clock of its own."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import httpx
import pytest

from headrace import hookimpl
from headrace.exchange import Exchange, Principal
from headrace.testing import FakeBackend, Running, serve
from headrace_queue import Plugin
from headrace_queue.schedule import Request, Schedule
from headrace_queue.slots import Backend, Lane
from headrace_queue.status import Status

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}


class Tenant(NamedTuple):
    """One caller of a simulation, who asks for so much."""

    name: str
    weight: float = 1.0
    priority: int = 0
    at_once: int = 1
    """How many of its requests are there at any time: as one ends, the next comes."""
    begins: float = 0.0
    """Seconds until the first of them."""
    pause: float = 0.0
    """Seconds between the end of one and the next, on average."""
    tokens: tuple[int, int] = (100, 100)
    """Of a request: between these."""
    guess: float = 1.0
    """How many times more is estimated."""


class Simulation:
    """Callers beside one another at one backend. A request takes a second per 100 tokens."""

    def __init__(self, tenants: list[Tenant], slots: int, *, seed: int = 0, min_share: float = 0.0) -> None:
        self.lane = Lane([Backend("gpu", slots)], math.inf, ["m"])
        self.schedule = Schedule([self.lane], min_share)
        self.now = 0.0
        self.tokens = {each.name: 0 for each in tenants}
        """Used by requests that are over."""
        self.waits: dict[str, list[float]] = {each.name: [] for each in tenants}
        """Seconds, of requests that have begun to run."""
        self.order: list[str] = []
        """Whose requests began to run, one after the other."""
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._who: dict[Request, tuple[Tenant, int, float]] = {}
        for each in tenants:
            for _ in range(each.at_once):
                self._come_later(each, each.begins)

    def run(self, until: Callable[[Simulation], bool]) -> Simulation:
        """Let time pass until something is so."""
        while not until(self):
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def _come_later(self, tenant: Tenant, seconds: float = 0.0) -> None:
        pause = tenant.pause * self._random.uniform(0.5, 1.5)
        self._at(self.now + seconds + pause, lambda: self._come(tenant))

    def _come(self, tenant: Tenant) -> None:
        tokens = self._random.randint(*tenant.tokens)
        guess = math.ceil(tokens * tenant.guess)
        request = Request(self.lane, tenant.name, guess, weight=tenant.weight, priority=tenant.priority)
        self._who[request] = (tenant, tokens, self.now)
        if self.schedule.start(request):
            self._run(request)
        else:
            self.schedule.wait(request)

    def _run(self, request: Request) -> None:
        tenant, tokens, came = self._who[request]
        self.waits[tenant.name].append(self.now - came)
        self.order.append(tenant.name)
        self._at(self.now + tokens / 100, lambda: self._end(request))

    def _end(self, request: Request) -> None:
        tenant, tokens, _ = self._who.pop(request)
        self.tokens[tenant.name] += tokens
        self.schedule.finish(request, tokens)
        self._come_later(tenant)
        while (following := self.schedule.next()) is not None:
            self._run(following)


@pytest.fixture(scope="session")
def tenant() -> type[Tenant]:
    return Tenant


@pytest.fixture(scope="session")
def simulation() -> type[Simulation]:
    return Simulation


class Named:
    """Callers are whoever they say they are: `X-Api-Key: NAME/TEAM`."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name, _, team = (exchange.header(b"x-api-key") or "nobody").partition("/")
        return Principal(id=name, team=team or None, role="admin" if name == "root" else "user")


class Gateway(NamedTuple):
    """A running gateway with a queue."""

    backend: FakeBackend
    client: httpx.AsyncClient
    running: Running

    async def ask(self, who: str = "ada", headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        head = {"x-api-key": who, **(headers or {})}
        return await self.client.post("/v1/chat/completions", json={**CHAT, **fields}, headers=head)

    def asks(self, *arguments: Any, **fields: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.ask(*arguments, **fields))

    @property
    def chat(self) -> dict[str, Any]:
        """The body of a request."""
        return CHAT

    @property
    def plugin(self) -> Plugin:
        plugin: Plugin = self.running.gateway.plugins["queue"]
        return plugin

    @property
    def status(self) -> Status:
        return self.plugin.status()

    async def until(self, condition: Callable[[Status], bool]) -> None:
        """Poll until the queue is so."""
        async with asyncio.timeout(20):
            while not condition(self.status):
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def run_queued(more: dict[str, Any] | None = None, **queue: Any) -> AsyncIterator[Gateway]:
    async with FakeBackend() as backend:
        document = {**backend.config(plugins={"openai": {}, "queue": queue}), **(more or {})}
        async with (
            serve(document, {"named": Named, "queue": Plugin}) as running,
            httpx.AsyncClient(base_url=running.url, timeout=30, limits=httpx.Limits()) as client,
        ):
            yield Gateway(backend, client, running)


@pytest.fixture(scope="session")
def queued() -> Any:
    """A context: a running gateway whose `[plugins.queue]` is the arguments."""
    return run_queued
