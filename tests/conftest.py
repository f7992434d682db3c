"""The real stack, started once for many tests: `headrace up` as a process, nginx, a real model, real sockets.

`stack` is the running gateway, `route` one of the two ways to it: through nginx over TLS, or straight to the core.
Both must give the same answers, so most tests run once with each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from headrace.testing import FakeBackend
from headrace_embedded.fetch import fetch
from headrace_embedded.weights import SMOLLM2

from .processes import SKIPPED, Launched, free_port, need, process_tree, still_there, until

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"

DELIVERIES = {"inline": 'delivery = "inline"'}
"""Ways to deliver an answer, each with its line in `[server]`. Every test of the stack runs with each of them."""


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary directory whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as name:
        yield Path(name)


class Answer:
    """An HTTP/1.1 answer as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        line, *fields = head.decode("latin-1").split("\r\n")
        self.status = int(line.split(" ")[1])
        pairs = (field.partition(": ") for field in fields if field)
        self.headers = httpx.Headers([(name, value) for name, _, value in pairs])
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


class Route:
    """One way to the gateway, with the clients that take it."""

    def __init__(self, name: str, stack: Stack) -> None:
        self.name, self.stack = name, stack
        self.origin = stack.origin if name == "nginx" else "http://localhost"

    def sdk(self, key: str | None = None) -> openai.OpenAI:
        """OpenAI's client as people make it, but for the way it takes."""
        own = openai.DefaultHttpxClient(transport=httpx2.HTTPTransport(**self._way()))
        return openai.OpenAI(
            base_url=self.origin + "/v1", api_key=key or self.stack.key, http_client=own, max_retries=0
        )

    def async_sdk(self) -> openai.AsyncOpenAI:
        own = openai.DefaultAsyncHttpxClient(transport=httpx2.AsyncHTTPTransport(**self._way()))
        return openai.AsyncOpenAI(base_url=self.origin + "/v1", api_key=self.stack.key, http_client=own, max_retries=0)

    def _way(self) -> dict[str, Any]:
        return {"uds": str(self.stack.core_socket)} if self.name == "core" else {"verify": self.stack.tls()}

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.stack.key}"}
        return httpx.Client(
            base_url=self.origin, headers=headers, transport=httpx.HTTPTransport(**self._way()), timeout=60
        )

    def connect(self) -> socket.socket:
        """A connection, ready for the first byte of a request."""
        if self.name == "core":
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(60)
            connection.connect(str(self.stack.core_socket))
            return connection
        plain = socket.create_connection(("127.0.0.1", self.stack.port), timeout=60)
        return self.stack.tls().wrap_socket(plain, server_hostname="localhost")

    def raw(self, *parts: bytes) -> Answer:
        """Send bytes while listening, for the answer may come before everything is sent."""
        return asyncio.run(self._raw(parts))

    async def _raw(self, parts: Iterable[bytes]) -> Answer:
        async with asyncio.timeout(60):
            wire = await (Wire.tls(self.stack) if self.name == "nginx" else Wire.plain(self.connect()))
            sending = asyncio.create_task(wire.send_all(parts))
            try:
                head = await wire.read_until_blank_line()
                length = Answer(head, b"").headers.get("content-length")
                return Answer(head, await wire.read(int(length or 0)))
            finally:
                sending.cancel()
                wire.close()


class Wire:
    """A connection that can still be read when the other side has stopped listening."""

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        receive: Callable[[], Awaitable[bytes]],
        close: Callable[[], None],
    ) -> None:
        self._send, self._receive, self.close = send, receive, close
        self._buffer = b""

    @classmethod
    async def plain(cls, connection: socket.socket) -> Wire:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        return cls(
            lambda data: loop.sock_sendall(connection, data),
            lambda: loop.sock_recv(connection, 65536),
            connection.close,
        )

    @classmethod
    async def tls(cls, stack: Stack) -> Wire:
        reader, writer = await asyncio.open_connection("localhost", stack.port, ssl=stack.tls())

        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        return cls(send, lambda: reader.read(65536), writer.transport.abort)

    async def send_all(self, parts: Iterable[bytes]) -> None:
        with contextlib.suppress(OSError):
            for part in parts:
                await self._send(part)

    async def read_until_blank_line(self) -> bytes:
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head

    async def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        return self._buffer[:size]

    async def _more(self) -> None:
        data = await self._receive()
        assert data, f"the connection was closed in the middle of an answer: {self._buffer!r}"
        self._buffer += data


class Stack:
    """A running gateway: engine, core and nginx. `fake` is the backend of the models `fake` and `rescued`."""

    def __init__(self, launched: Launched, folder: Path, port: int, fake: FakeBackend, delivery: str) -> None:
        ready = launched.ready()
        self.launched, self.folder, self.port, self.fake, self.delivery = launched, folder, port, fake, delivery
        self.url, self.key, self.model = ready["url"], ready["key"], ready["model"]
        self.origin = self.url.removesuffix("/v1")
        self.state = folder / "state"
        self.ca = self.state / "tls" / "ca.pem"
        self.core_socket = self.state / "run" / "core.sock"
        self.engine_socket = self.state / "run" / "embedded.sock"
        self.logs = self.state / "log"

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    def engine_counters(self) -> dict[str, float]:
        """llama.cpp's own counters."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.engine_socket))) as client:
            lines = client.get("http://engine/metrics").text.splitlines()
        pairs = (line.removeprefix("llamacpp:").split() for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def engine_is_idle(self) -> bool:
        counters = self.engine_counters()
        return counters["requests_processing"] == counters["requests_deferred"] == 0

    def reset(self) -> None:
        """Make the fake backend forget what the test before told it."""
        url = self.fake.url
        FakeBackend.__init__(self.fake)
        self.fake.url = url


@contextlib.asynccontextmanager
async def _backend(told: Callable[[FakeBackend], None]) -> AsyncIterator[None]:
    async with FakeBackend() as backend:
        told(backend)
        yield


@contextlib.contextmanager
def fake_backend() -> Iterator[FakeBackend]:
    """A FakeBackend in a thread of its own, for tests that block."""
    found: list[FakeBackend] = []
    loop = asyncio.new_event_loop()
    end = asyncio.Event()

    async def run() -> None:
        async with _backend(found.append):
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    try:
        until(lambda: found, "the fake backend's start")
        yield found[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
        loop.close()


@pytest.fixture(scope="session")
def kit() -> Any:
    """The helpers of this file, for tests to use."""
    helpers = (need, until, free_port, process_tree, still_there, short_folder, fake_backend, Launched)
    return type("Kit", (), {each.__name__: staticmethod(each) for each in helpers} | {"repository": REPOSITORY})


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The real model, fetched once into the repository's state directory."""
    return fetch(SMOLLM2, REPOSITORY / ".headrace").path


@pytest.fixture(scope="session")
def page_port() -> int:
    """The port of the web page whose origin the stack lets in."""
    return free_port()


@pytest.fixture(scope="session")
def launch() -> Callable[..., Any]:
    """A context with a `headrace` process: `with launch(folder, "-c", file, "up") as launched`."""

    @contextlib.contextmanager
    def launch(
        folder: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        python: Path | str = sys.executable,
    ) -> Iterator[Launched]:
        launched = Launched(folder, arguments, environment or {}, python)
        try:
            yield launched
        finally:
            launched.end()

    return launch


@pytest.fixture(scope="session", params=DELIVERIES)
def shared_stack(
    request: pytest.FixtureRequest, launch: Callable[..., Any], model_file: Path, page_port: int
) -> Iterator[Stack]:
    if "nginx" not in SKIPPED:
        need("nginx")
    with short_folder() as folder, fake_backend() as fake:
        port = free_port()
        config = folder / "headrace.toml"
        text = (
            (Path(__file__).parent / "stack.toml")
            .read_text()
            .format(
                folder=folder,
                core_port=free_port(),
                closed_port=free_port(),
                page_port=page_port,
                backend=fake.url,
                model=model_file,
                delivery=DELIVERIES[request.param],
                nginx="" if "nginx" in SKIPPED else f"[plugins.nginx]\nport = {port}\nrequired = true\nworkers = 2",
            )
        )
        config.write_text(text)
        with launch(folder, "--config", str(config), "up") as launched:
            yield Stack(launched, folder, port, fake, request.param)


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    """The stack, with nothing left of the test before."""
    shared_stack.reset()
    until(shared_stack.engine_is_idle, "the engine's rest")
    return shared_stack


@pytest.fixture(params=["nginx", "core"])
def route(request: pytest.FixtureRequest, stack: Stack) -> Route:
    """Through nginx over TLS, and straight to the core."""
    if request.param == "nginx":
        need("nginx")
    return Route(request.param, stack)


@pytest.fixture
def front(stack: Stack) -> Route:
    """Through nginx over TLS, for clients that can take no other way."""
    need("nginx")
    return Route("nginx", stack)
