"""Backends that fail and recover, a gateway with a breaker before them, and a clock that tests turn."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.exchange import Exchange, Principal
from headrace.testing import CHUNK, FakeBackend, Running, _chunk, serve
from headrace_breaker import BreakerConfig, Plugin, Status
from headrace_breaker.circuit import Circuit, State

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


class Bench:
    """One circuit, with everything that it may be told. Probes are whatever a test likes."""

    def __init__(self, **config: Any) -> None:
        self.config = BreakerConfig(**config)
        self.clock = Clock()
        self.states: list[State] = ["closed"]
        self.answered: set[Any] = set()
        self.circuit = Circuit(
            "gpu",
            self.config,
            now=self.clock.now,
            chance=random.Random(1),
            changed=lambda circuit, before: self.states.append(circuit.state),
            has_answered=lambda probe: probe in self.answered,
        )

    @property
    def now(self) -> float:
        return self.clock.now

    def end(self, request: object, verdict: Any, **more: Any) -> None:
        self.circuit.end(request, verdict, self.now, **more)

    def opened(self) -> Bench:
        """Fail until it is open."""
        from headrace_breaker.judge import Verdict

        while self.circuit.state == "closed":
            self.end(object(), Verdict.BAD, why="It broke.")
        return self

    def half_open(self) -> Bench:
        """Open, and then half open."""
        self.opened().clock.forward(self.config.max_open_for)
        assert self.circuit.look(self.now) == "half_open"
        return self


class Root:
    """Whoever says so is an administrator."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name = exchange.header(b"x-api-key")
        return Principal(id=name, role="admin" if name == "root" else "user") if name else None


class Backend(FakeBackend):
    """One that can also hold its answers back.

    Attributes:
        stall_after: say nothing more after this many chunks; None: go on.
        hold: whoever comes while it is set waits for it.
        held: requests in progress.
        most: the most of them so far.
    """

    stall_after: int | None = None
    hold: asyncio.Event | None = None
    held = most = 0

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        self.held += 1
        self.most = max(self.most, self.held)
        try:
            if self.hold is not None:
                await self.hold.wait()
            return await super()._answer(path, body, writer)
        finally:
            self.held -= 1

    async def _stream(self, writer: asyncio.StreamWriter, fields: Any) -> bool:
        if self.stall_after is None:
            return await super()._stream(writer, fields)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(self.stall_after):
            _chunk(writer, CHUNK % number)
        await writer.drain()
        self.streaming.set()
        await asyncio.Event().wait()
        return False


class Stage:
    """A running gateway before backends `a`, `b`, …; its breaker's time is `clock`."""

    def __init__(self, backends: dict[str, Backend], running: Running, client: httpx.AsyncClient, clock: Clock):
        self.backends, self.running, self.client, self.clock = backends, running, client, clock

    def __getattr__(self, name: str) -> Backend:
        try:
            return self.backends[name]
        except KeyError:
            raise AttributeError(name) from None

    async def ask(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={**CHAT, **fields})

    def asks(self, **fields: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.ask(**fields))

    async def ask_often(self, times: int, **fields: Any) -> list[int]:
        """One after the other; the statuses."""
        return [(await self.ask(**fields)).status_code for _ in range(times)]

    def asked(self) -> dict[str, int]:
        """How many requests each backend has had since this was asked last."""
        counts = {name: len(backend.requests) for name, backend in self.backends.items()}
        for backend in self.backends.values():
            backend.requests.clear()
        return counts

    @property
    def plugin(self) -> Plugin:
        plugin: Plugin = self.running.gateway.plugins["breaker"]
        return plugin

    @property
    def status(self) -> Status:
        return self.plugin.status()

    def state(self, name: str) -> str:
        return self.status.targets[name].state

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)

    def turn_to(self, name: str, state: str) -> None:
        """Let time pass until its circuit is so."""
        for _ in range(200):
            if self.state(name) == state:
                return
            self.clock.forward(0.5)
        raise AssertionError(f"{name} stays {self.state(name)}")


@contextlib.asynccontextmanager
async def run_stage(
    names: str = "ab",
    *,
    models: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    backend: dict[str, Any] | None = None,
    plugins: dict[str, type[Any]] | None = None,
    real_time: bool = False,
    providers: dict[str, str] | None = None,
    order: dict[str, list[str]] | None = None,
    **breaker: Any,
) -> AsyncIterator[Stage]:
    clock = Clock()

    class Timed(Plugin):
        def __init__(self, config: BreakerConfig, gateway: Any) -> None:
            timing = {} if real_time else {"clock": clock}
            super().__init__(config, gateway, chance=random.Random(7), **timing)

    async with contextlib.AsyncExitStack() as stack:
        backends = {name: Backend() for name in names}
        for each in backends.values():
            await stack.enter_async_context(each)
        tables: dict[str, dict[str, Any]] = {
            name: {"provider": (providers or {}).get(name, "openai"), "base_url": each.url}
            for name, each in backends.items()
        }
        tables[names[0]] |= backend or {}
        first = {"targets": list(names), "retry": {"rounds": 1}, **(model or {})}
        document = {
            "server": {"anonymous": True},
            "backends": tables,
            "models": {"test": first, **(models or {})},
            "plugins": {"openai": {}, "breaker": breaker},
            "order": order or {},
        }
        running = await stack.enter_async_context(serve(document, {"root": Root, "breaker": Timed, **(plugins or {})}))
        limits = httpx.Limits(max_connections=None)
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=30, limits=limits))
        yield Stage(backends, running, client, clock)


@pytest.fixture(scope="session")
def staged() -> Any:
    """A context: a running gateway with a breaker. `names`: its backends, all of them targets of the model `test`;
    `backend`: more about the first of them; `model`: more about that model."""
    return run_stage


@pytest.fixture(scope="session")
def bench() -> type[Bench]:
    """One circuit by itself."""
    return Bench
