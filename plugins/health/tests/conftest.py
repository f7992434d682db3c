"""Servers that say of their health what real engines say, and gateways that watch them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pytest

from headrace import hookimpl
from headrace.errors import GatewayError
from headrace.exchange import Exchange, Principal, Target
from headrace.testing import FakeBackend, Running, serve
from headrace_health import Plugin
from headrace_health.checks import Checks, Found, failure

NEVER = 3600.0
"""Seconds between checks where none but the first shall come by itself."""


class Engine:
    """An HTTP server whose answers are given by path: a status and a body. It can be stopped, and started again at the
    same address; while it is stopped its port refuses connections and is nobody else's."""

    def __init__(self, answers: dict[str, tuple[int, Any]]) -> None:
        self.answers = answers
        self.silent_at = ""
        """A path that is never answered."""
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Paths and headers."""
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_port=True)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._open:
                writer.close()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()
        self._place.close()

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        path = request.split(" ")[1]
        self.asked.append((path, headers))
        await reader.readexactly(int(headers.get("content-length", 0)))
        if path == self.silent_at:
            await reader.read()
            return
        status, body = self.answers.get(path, (404, {"detail": "Not Found"}))
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        await writer.drain()


def models(*names: str, owner: str = "somebody") -> tuple[int, Any]:
    """The answer to `GET /v1/models`."""
    entries = [{"id": name, "object": "model", "created": 1, "owned_by": owner} for name in names]
    return 200, {"object": "list", "data": entries}


def a_target(url: str = "http://127.0.0.1:9/v1", **fields: Any) -> Target:
    return Target(name=fields.pop("name", "gpu"), provider="openai", base_url=url, **fields)


class Named:
    """Callers are whoever they say they are; `X-Models` restricts them to some models."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name, allowed = exchange.header(b"x-api-key"), exchange.header(b"x-models")
        if name is None:
            return None
        role = {"root": "admin", "prometheus": "metrics"}.get(name, "user")
        return Principal(id=name, role=role, models=frozenset(allowed.split(",")) if allowed else None)  # type: ignore[arg-type]


class Watching(NamedTuple):
    """A running gateway with this plugin."""

    client: httpx.AsyncClient
    running: Running

    @property
    def plugin(self) -> Plugin:
        plugin: Plugin = self.running.gateway.plugins["health"]
        return plugin

    def state(self, name: str) -> Any:
        return self.plugin.watches[name].target.state

    async def ask(self, model: str = "test", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.client.post("/v1/chat/completions", json=body, headers={"x-api-key": "ada"})

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.client.get(path, headers={"x-api-key": "ada", **headers})

    async def until(self, condition: Callable[[], Any]) -> None:
        """Poll until it is so."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)

    async def becomes(self, name: str, condition: str) -> None:
        await self.until(lambda: self.state(name).condition == condition)


@contextlib.asynccontextmanager
async def run_watching(
    backends: dict[str, str | dict[str, Any]], more: dict[str, Any] | None = None, **health: Any
) -> AsyncIterator[Watching]:
    tables = {
        name: {"provider": "openai", **({"base_url": each} if isinstance(each, str) else each)}
        for name, each in backends.items()
    }
    document = {
        "backends": tables,
        "models": {"test": {"targets": list(backends), "retry": {"rounds": 1}}},
        "plugins": {"openai": {}, "health": {"interval": NEVER, "fast_interval": 0.02, **health}},
        **(more or {}),
    }
    async with (
        serve(document, {"named": Named, "health": Plugin}) as running,
        httpx.AsyncClient(base_url=running.url, timeout=30) as client,
    ):
        watching = Watching(client, running)
        async with asyncio.timeout(20):
            await watching.plugin.checked()
        yield watching


async def look(engine: Engine, kind: str, **fields: Any) -> Found:
    """What one check of this kind finds."""
    checks = Checks()
    try:
        provider: Any = SimpleNamespace(name="openai")
        return await checks.choose(kind, provider, None)(a_target(engine.url, **fields))
    except GatewayError as error:
        return failure(error)
    finally:
        await checks.aclose()


@pytest.fixture(scope="session")
def engine() -> type[Engine]:
    """The class of servers that say what they are told to."""
    return Engine


@pytest.fixture(scope="session")
def fake() -> type[FakeBackend]:
    return FakeBackend


@pytest.fixture(scope="session")
def listing() -> Any:
    return models


@pytest.fixture(scope="session")
def target() -> Any:
    return a_target


@pytest.fixture(scope="session")
def watching() -> Any:
    """A context: a gateway whose model `test` has these backends (addresses by name), and has checked each once. Then
    nothing is checked any more by itself, unless `interval` is given."""
    return run_watching


@pytest.fixture(scope="session")
def checking() -> Any:
    return look


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Time]:
    yield Time()
