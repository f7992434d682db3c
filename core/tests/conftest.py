"""A stand-in for the nginx in front of the core: it shows its mark, reads what it is told, and reports how it ended."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from headrace import front as wire
from headrace import hookimpl
from headrace.exchange import Attempt, Exchange, Outcome, Principal, Reply
from headrace.gateway import Gateway
from headrace.server import make_server
from headrace.settings import parse
from headrace.sockets import bind, bind_unix
from headrace.testing import FakeBackend

DEADLINE = 10.0
EXCHANGE = "a" * 32
SECRET = "5ec4e7-d16e57"
HEADER = b"<190>Nov 21 10:00:00 headrace: "


class FakeNginx:
    """One nginx worker, as the core sees it. It asks no backend: the tests say how that went.

    Attributes:
        gateway: the core behind it.
        has: the requests that were handed over; it reports their end at the latest when it leaves.
        url: where the same core listens on TCP.
        client: sends over the core's unix socket.
        socket, address: what reports are sent by, and where to.
    """

    def __init__(self, gateway: Gateway, front: wire.Front, url: str) -> None:
        self.gateway, self.front, self.url = gateway, front, url
        self.pid = os.getpid()
        self.has: set[str] = set()
        self.client = self.connect()
        host, _, port = front.reports[0].rpartition(":")
        unix = host == "unix"
        self.address: Any = port if unix else (host, int(port))
        self.socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)

    async def aclose(self) -> None:
        for exchange in tuple(self.has):
            await self.report(exchange)
        self.socket.close()
        await self.client.aclose()

    @property
    def mark(self) -> str:
        return f"{self.front.mark} {self.pid}"

    @property
    def seat(self) -> Any:
        """What the core knows of this worker."""
        return self.gateway.reporting.seat(self.mark.encode())

    async def ask(
        self,
        body: Any,
        exchange: str = EXCHANGE,
        *,
        path: str = "/v1/chat/completions",
        mark: str | None = None,
        headers: Mapping[str, str] | list[tuple[bytes, bytes]] | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> httpx.Response:
        """Pass a client's request on; the answer is the core's, or a redirect."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        own = {"x-headrace-mark": self.mark if mark is None else mark, "x-headrace-exchange": exchange}
        given = httpx.Headers(headers or {})
        given.update({"x-real-ip": "192.0.2.1", **own})
        response = await (client or self.client).post(path, content=content, headers=given)
        if wire.REDIRECT.decode() in response.headers:
            self.has.add(exchange)
        return response

    def connect(self) -> httpx.AsyncClient:
        """More connections to the core's unix socket."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.gateway.core_socket), verify=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", trust_env=False, timeout=30)

    async def again(
        self,
        exchange: str = EXCHANGE,
        failed: str = "502|-|-",
        retry_after: str = "",
        client: httpx.AsyncClient | None = None,
    ) -> httpx.Response:
        """Ask what to do next: the backend failed before its first byte."""
        marks = {"x-headrace-mark": self.mark, "x-headrace-exchange": exchange}
        more = {"x-headrace-failed": failed, "x-headrace-retry-after": retry_after}
        return await (client or self.client).post(wire.AGAIN_PATH, headers={**marks, **more})

    async def report(self, exchange: str = EXCHANGE, **said: Any) -> None:
        """Tell how it ended; unless `said` otherwise: whole, with status 200 and 100 bytes."""
        self.has.discard(exchange)
        plain = {"id": exchange, "mark": self.mark, "connection": 1, "status": 200, "bytes": 100, "completed": True}
        await self.say(HEADER + msgspec.json.encode({**plain, "header_time": "0.012", "watched": [], **said}))

    async def complain(self, connection: int, pid: int | None = None, doing: str = "while reading upstream") -> None:
        """A line of the error log."""
        line = (
            f"<187>Nov 21 10:00:00 headrace: 2026/11/21 10:00:00 [error] {pid or self.pid}#0: *{connection} upstream "
        )
        await self.say(f"{line}prematurely closed connection {doing}, client: 192.0.2.1".encode())

    async def say(self, datagram: bytes) -> None:
        await asyncio.get_running_loop().sock_sendto(self.socket, datagram, self.address)

    async def heard(self) -> None:
        """Wait until the core has read everything said so far: a report of nobody's request comes last."""
        reporting = self.gateway.reporting
        before = reporting.unknown
        await self.report("f" * 32)
        async with asyncio.timeout(DEADLINE):
            while reporting.unknown == before:
                await asyncio.sleep(0)

    async def prove(self) -> None:
        """Be trusted: take a seat, and send a report."""
        assert (await self.again("e" * 32)).status_code == 503
        await self.heard()
        assert self.seat.proven


@contextlib.asynccontextmanager
async def _fronted(
    document: Mapping[str, Any],
    plugins: Mapping[str, type[Any]] | None = None,
    *,
    proven: bool = True,
    udp: bool = False,
    **changes: Any,
) -> AsyncIterator[FakeNginx]:
    """A core on its unix socket, and beside it on TCP, with an nginx in front. `changes` are made to its Front."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as state, contextlib.ExitStack() as stack:
        server = {"state_dir": state, "shutdown_timeout": 5.0, **document.get("server", {})}
        tables = {**document.get("plugins", {}), **{name: {} for name in plugins or {}}}
        config = parse({**document, "server": server, "plugins": tables}, source="test")
        gateway = Gateway(config, "test", plugins).assemble()
        gateway.make_dirs()
        front = wire.Front(
            mark=SECRET,
            lanes=frozenset(lane.key for model in gateway.models for lane in wire.lanes_of(model.targets).values()),
            edit_bytes=131_072,
            reports=(_free_port() if udp else f"unix:{gateway.runtime_dir}/reports.sock",),
        )
        front = msgspec.structs.replace(front, **changes)
        wire.write(gateway.runtime_dir / wire.FRONT_FILE, front)
        listeners = [stack.enter_context(contextlib.closing(each)) for each in _bound(gateway.core_socket)]
        url = f"http://127.0.0.1:{listeners[1].getsockname()[1]}"
        async with gateway.running(), make_server(gateway).answering(listeners):
            nginx = FakeNginx(gateway, front, url)
            if proven:
                await nginx.prove()
            try:
                yield nginx
            finally:
                await nginx.aclose()


def _bound(path: Path) -> Iterator[socket.socket]:
    yield bind_unix(path)
    yield bind("127.0.0.1:0")


def _free_port() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def fronted() -> Callable[..., contextlib.AbstractAsyncContextManager[FakeNginx]]:
    return _fronted


@pytest.fixture
def seen() -> Callable[..., dict[str, Any]]:
    """What nginx's script says of a reply that it watched to its end; `usage` is text."""

    def make(events: int = 1, size: int = 100, usage: str = "", **said: Any) -> dict[str, Any]:
        encoded = base64.b64encode(usage.encode()).decode()
        return {"events": events, "size": size, "usage": encoded, **said}

    return make


class Recorder:
    """Implements every hook of a request that leaves the reply alone, and notes each call."""

    calls: list[str]
    attempts: list[Outcome]
    usages: list[Any]
    exchanges: list[Exchange]
    _outcomes: asyncio.Queue[Outcome]

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @classmethod
    async def outcome(cls) -> Outcome:
        """That of the next request that ends."""
        return await asyncio.wait_for(cls._outcomes.get(), DEADLINE)

    @classmethod
    def is_told_no_more(cls) -> bool:
        return cls._outcomes.empty()

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        self.calls.append("authenticate")
        self.exchanges.append(exchange)
        return None

    @hookimpl
    async def authorize(self, exchange: Exchange) -> None:
        self.calls.append("authorize")

    @hookimpl
    async def transform_request(self, exchange: Exchange) -> None:
        self.calls.append("transform_request")

    @hookimpl
    @contextlib.asynccontextmanager
    async def admit(self, exchange: Exchange) -> AsyncIterator[None]:
        self.calls.append("admit in")
        try:
            yield
        finally:
            self.calls.append("admit out")

    @hookimpl
    async def cache_lookup(self, exchange: Exchange) -> Reply | None:
        self.calls.append("cache_lookup")
        return None

    @hookimpl
    async def prepare_attempt(self, attempt: Attempt) -> None:
        self.calls.append("prepare_attempt")

    @hookimpl
    async def on_attempt(self, attempt: Attempt, outcome: Outcome) -> None:
        self.calls.append("on_attempt")
        self.attempts.append(outcome)

    @hookimpl
    def open_tap(self, exchange: Exchange) -> Any:
        self.calls.append("open_tap")
        return SimpleNamespace(wants="usage", feed=self._fed, close=self._closed)

    def _fed(self, usage: Any) -> None:
        self.calls.append("tap fed")
        self.usages.append(usage)

    def _closed(self, completed: bool) -> None:
        self.calls.append(f"tap closed {completed}")

    @hookimpl
    async def handle_error(self, exchange: Exchange, error: Any) -> None:
        self.calls.append("handle_error")

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.calls.append("on_complete")
        self._outcomes.put_nowait(outcome)


@pytest.fixture
def recorder() -> type[Recorder]:
    class Recording(Recorder):
        calls, attempts, usages, exchanges, _outcomes = [], [], [], [], asyncio.Queue()

    return Recording


@pytest.fixture
async def backend() -> AsyncIterator[FakeBackend]:
    async with FakeBackend() as running:
        yield running
