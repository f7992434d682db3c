"""A running gateway, and the ways that lead to it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai

from headrace.testing import FakeBackend

from .backends import RawBackend, whole
from .processes import Launched, process_tree, until

MODELS = ("smollm2-135m", "fake", "rescued", "raw", "native", "raw_rescued", "lost", "impatient", "kept")
"""What clients may ask the shared stack for."""
WARM_UP_REQUESTS = 20
WARM_UP_SECONDS = 60.0


class Answer:
    """An HTTP/1.1 answer as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        line, *fields = head.decode("latin-1").split("\r\n")
        self.status = int(line.split(" ")[1])
        pairs = (field.encode("latin-1").partition(b": ") for field in fields if field)
        self.headers = httpx.Headers([(name, value) for name, _, value in pairs])
        self.body = body
        self.whole = True
        """Whether it ended as HTTP says an answer ends."""

    @classmethod
    def read(cls, data: bytes) -> Answer:
        """All that came over a connection until its end."""
        head, _, rest = data.partition(b"\r\n\r\n")
        answer = cls(head, rest)
        if answer.headers.get("transfer-encoding") == "chunked":
            answer.body, answer.whole = _from_chunks(rest)
        else:
            answer.whole = len(rest) == int(answer.headers.get("content-length", -1))
        return answer

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The data of a stream's events."""
        return [each.removeprefix("data: ") for each in self.body.decode().split("\n\n") if each]


def _from_chunks(data: bytes) -> tuple[bytes, bool]:
    """The body, and whether its last chunk came."""
    body = b""
    while True:
        line, _, data = data.partition(b"\r\n")
        if not line or (size := int(line, 16)) > len(data):
            return body + data, False
        if size == 0:
            return body, data == b"\r\n"
        body, data = body + data[:size], data[size + 2 :]


class Route:
    """One way to the gateway, with the clients that take it."""

    def __init__(self, name: str, stack: Stack) -> None:
        self.name, self.stack = name, stack
        self.origin = stack.origin if name == "nginx" else "http://localhost"
        self.delivery = stack.delivery if name == "nginx" else "inline"

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
        if self.name == "core":  # there is no TLS, and loading authorities would take longer than most tests
            return {"uds": str(self.stack.core_socket), "verify": False}
        return {"verify": self.stack.tls()}

    def client(self, key: str | None = None, *, keeps: bool = True) -> httpx.Client:
        """`keeps`: whether it uses a connection again."""
        headers = {"Authorization": f"Bearer {key or self.stack.key}"}
        limits = httpx.Limits(max_keepalive_connections=None if keeps else 0)
        transport = httpx.HTTPTransport(**self._way(), limits=limits)
        return httpx.Client(base_url=self.origin, headers=headers, transport=transport, timeout=60)

    def connect(self) -> socket.socket:
        """A connection, ready for the first byte of a request."""
        if self.name == "core":
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(60)
            connection.connect(str(self.stack.core_socket))
            return connection
        plain = socket.create_connection(("127.0.0.1", self.stack.port), timeout=60)
        return self.stack.tls().wrap_socket(plain, server_hostname="localhost")

    def request(
        self,
        body: Any,
        identifier: str = "",
        *,
        path: str = "/v1/chat/completions",
        key: str | None = "",
        headers: Iterable[str] = (),
    ) -> bytes:
        """The bytes of a request that wants its connection closed. `key`: None sends none, "" the stack's own."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json"]
        lines += [f"X-Request-ID: {identifier}"] if identifier else []
        lines += [f"Authorization: Bearer {key or self.stack.key}"] if key is not None else []
        return "\r\n".join([*lines, *headers, f"Content-Length: {len(data)}", "", ""]).encode("latin-1") + data

    def post(self, body: Any, identifier: str = "", **more: Any) -> Answer:
        """The answer to one request over a connection of its own."""
        return Answer.read(self.speak(self.request(body, identifier, **more)))

    def speak(self, data: bytes) -> bytes:
        """Send bytes; everything that comes until the other side closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            received = []
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                while piece := connection.recv(65536):
                    received.append(piece)
        return b"".join(received)

    def raw(self, *parts: bytes) -> Answer:
        """Send bytes while listening, for the answer may come before everything is sent."""
        return asyncio.run(self.ask(parts))

    async def ask(self, parts: Iterable[bytes]) -> Answer:
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
    """A running gateway: engine, core and nginx. `fake` and `raw` are backends of the models named so."""

    def __init__(
        self, launched: Launched, folder: Path, port: int, backends: tuple[FakeBackend, RawBackend], delivery: str
    ) -> None:
        ready = launched.ready()
        self.launched, self.folder, self.port, self.delivery = launched, folder, port, delivery
        self.fake, self.raw = backends
        self.url, self.key, self.model = ready["url"], ready["key"], ready["model"]
        self.origin = self.url.removesuffix("/v1")
        self.state = folder / "state"
        self.ca = self.state / "tls" / "ca.pem"
        self.core_socket = self.state / "run" / "core.sock"
        self.engine_socket = self.state / "run" / "embedded.sock"
        self.logs = self.state / "log"
        self.models = list(MODELS)

    def route(self, name: str) -> Route:
        """The way through `nginx`, or straight to the `core`."""
        return Route(name, self)

    @functools.cache  # noqa: B019 there are few stacks
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca)

    def engine_counters(self) -> dict[str, float]:
        """llama.cpp's own counters."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.engine_socket), verify=False)) as client:
            lines = client.get("http://engine/metrics").text.splitlines()
        pairs = (line.removeprefix("llamacpp:").split() for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def engine_is_idle(self) -> bool:
        counters = self.engine_counters()
        return counters["requests_processing"] == counters["requests_deferred"] == 0

    @property
    def scripted(self) -> bool:
        """Whether nginx looks at replies with a script."""
        return self.delivery == "offload" and not (self.state / "nginx-module").exists()

    def core_pid(self) -> int:
        """The process id of the core."""
        return self._pids(b"\0serve\0")[0]

    def worker_pids(self) -> list[int]:
        """The process ids of nginx's workers."""
        return self._pids(b"nginx: worker process")

    def _pids(self, words: bytes) -> list[int]:
        return [pid for pid in process_tree(self.launched.child.pid) if words in _command(pid)]

    def logged(self, identifier: str) -> dict[str, Any]:
        """The request's line in the log, once it is there."""
        marked = f'"request_id":"{identifier}"'

        def line() -> str | None:
            whole = self.logs.joinpath("requests.log").read_text().rpartition("\n")[0]  # the last may be half written
            return next((each for each in whole.splitlines() if marked in each), None)

        found: dict[str, Any] = json.loads(until(line, f"the log line of the request {identifier}"))
        return found

    def warm_up(self) -> None:
        """Ask until every worker of nginx delivers: each has to be seen to report first."""
        end = time.monotonic() + WARM_UP_SECONDS
        while not all(each == "offload" for each in asyncio.run(self._deliveries())):
            assert time.monotonic() < end, f"no offload:\n{self.launched.stderr}"

    async def _deliveries(self) -> list[str]:
        """Who delivered the answers to requests that came all at once, each over a connection of its own."""
        names = [f"warm-up-{uuid.uuid4().hex}" for _ in range(WARM_UP_REQUESTS)]
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        route = Route("nginx", self)
        await asyncio.gather(*(route.ask((route.request(body, name),)) for name in names))
        return [self.logged(name)["delivery"] for name in names]

    def make_key(self, *options: str) -> str:
        """A new key, which every worker knows."""
        config = str(self.folder / "headrace.toml")
        command = [sys.executable, "-m", "headrace", "--config", config, "keys", "create", uuid.uuid4().hex, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        key = next(word for word in done.stdout.split() if word.startswith("hr-"))
        until(lambda: self.limits_of(key) is not None, "the key's being known")
        return key

    def limits_of(self, key: str) -> list[dict[str, Any]] | None:
        """How the limits of a caller stand, as the caller is told; None if the key is not known, or nobody answers."""
        with Route("nginx", self).client(key) as client:
            answer = client.get("/v1/usage")
        return list(answer.json()["limits"]) if answer.status_code == 200 else None

    def reset(self) -> None:
        """Make the backends forget what the test before told them."""
        url = self.fake.url
        FakeBackend.__init__(self.fake)
        self.fake.url = url
        self.raw.tell(whole())


def _command(pid: int) -> bytes:
    """A process's command line; nothing if it has ended meanwhile."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
