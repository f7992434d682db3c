"""The test kit for plugin authors: a real gateway on a real socket, and a backend that does what it is told.

async with FakeBackend() as backend, serve(backend.config(), plugins={"mine": Plugin}) as running:
    ...  # any HTTP client against running.url
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Self

import msgspec

from .gateway import Gateway
from .server import make_server
from .settings import parse
from .sockets import bind


class Running(msgspec.Struct, frozen=True):
    """A gateway that answers at `url` (without `/v1`)."""

    url: str
    gateway: Gateway


@contextlib.asynccontextmanager
async def serve(document: Mapping[str, Any], plugins: Mapping[str, type[Any]] | None = None) -> AsyncIterator[Running]:
    """Run a gateway with this configuration in the current event loop, on a free port of the loopback.

    State goes to a temporary directory unless `server.state_dir` is given. `plugins` are classes that need not be
    installed: each is enabled under its name, with the `[plugins.NAME]` table of the document if there is one.

    Raises:
        ConfigError, PluginError: as at start-up.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-") as state:
        server = {"state_dir": state, "shutdown_timeout": 5.0, **document.get("server", {})}
        tables = {**document.get("plugins", {})}
        for name in plugins or ():
            tables.setdefault(name, {})
        config = parse({**document, "server": server, "plugins": tables}, source="test")
        gateway = Gateway(config, "test", plugins).assemble()
        with contextlib.closing(bind("127.0.0.1:0")) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with gateway.running(), make_server(gateway).answering([listener]):
                yield Running(url, gateway)


PORTS = range(10_000, 32_000)
"""Those that no system gives to connections unless it is told to."""


def free_port() -> int:
    """A port of the loopback for a server that is started a moment later.

    No connection gets it meanwhile, no later call, and no other process of pytest-xdist.

    Raises:
        OSError: all of them are taken.
    """
    for port in itertools.islice(_ports(), len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("there is no free port")


@functools.cache
def _ports() -> Iterator[int]:
    """This process's share of them, again and again."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = PORTS[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    start = random.randrange(len(share))  # noqa: S311 (nothing secret)
    return itertools.cycle((*share[start:], *share[:start]))


class Listening:
    """Listens on a free port of the loopback while its context lasts, and then leaves no connection behind."""

    PATH = ""
    """What its address ends with."""

    url: str

    async def __aenter__(self) -> Self:
        self._serving: set[asyncio.Task[Any]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self.PATH}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        serving = tuple(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()  # whatever could not be sent
            self._serving.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Returns whether the connection waits for another."""
        raise NotImplementedError


class FakeBackend(Listening):
    """An OpenAI-compatible backend on a real socket, for tests of what real ones cannot be made to do on demand.

    Attributes:
        status: answered to every request.
        chunks: how many content chunks a stream has.
        pause: seconds before each chunk.
        cut_after: close the connection after this many chunks; None: end properly.
        silent: never answer.
        counted: what `/tokenize` says, as vLLM says it; None: there is no such thing, and -1: it never answers.
        requests: every request so far: path, headers, body.
        closed_early: set when a client closed the connection before its answer was complete.
    """

    PATH = "/v1"

    def __init__(self) -> None:
        self.status = 200
        self.chunks = 3
        self.pause = 0.0
        self.cut_after: int | None = None
        self.silent = False
        self.counted: int | None = None
        self.error_body = b'{"error":{"message":"told to fail","type":"server_error","param":null,"code":null}}'
        self.response_headers: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.streaming = asyncio.Event()
        self.closed_early = asyncio.Event()
        self.url = ""

    def config(self, **tables: Any) -> dict[str, Any]:
        """A configuration whose model `test` is this backend; open to everybody. `tables` are added to it."""
        plugins = {"openai": {}, **tables.pop("plugins", {})}
        return {
            "server": {"anonymous": True},
            "backends": {"fake": {"provider": "openai", "base_url": self.url, "model": "fake-model"}},
            "models": {"test": {"targets": ["fake"], "retry": {"rounds": 1}}},
            "plugins": plugins,
            **tables,
        }

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = request.split(" ")[1]
        self.requests.append((path, headers, body))
        gone = asyncio.ensure_future(reader.read(1))
        answer = asyncio.ensure_future(self._answer(path, body, writer))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.closed_early.set()
                return False
            return answer.result() and not gone.done()
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if self.silent:
            await asyncio.Event().wait()
        fields = msgspec.json.decode(body) if body else {}
        if self.status != 200:
            self._whole(writer, self.error_body)
        elif path == "/tokenize":
            await self._tokenize(writer)
        elif path.endswith("/models"):
            self._whole(writer, b'{"object":"list","data":[{"id":"fake-model","object":"model"}]}')
        elif fields.get("stream"):
            return await self._stream(writer, fields)
        else:
            await asyncio.sleep(self.pause)
            self._whole(writer, COMPLETION)
        await writer.drain()
        return True

    async def _tokenize(self, writer: asyncio.StreamWriter) -> None:
        if self.counted == -1:
            await asyncio.Event().wait()
        if self.counted is None:
            self._whole(writer, b'{"detail":"Not Found"}', 404)
        else:
            said = {"count": self.counted, "max_model_len": 4096, "tokens": [1] * self.counted, "token_strs": None}
            self._whole(writer, msgspec.json.encode(said))

    def _whole(self, writer: asyncio.StreamWriter, body: bytes, status: int = 0) -> None:
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.response_headers.items())
        head = f"HTTP/1.1 {status or self.status} X\r\nContent-Type: application/json\r\n{extra}"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def _stream(self, writer: asyncio.StreamWriter, fields: Mapping[str, Any]) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(self.chunks):
            if number == self.cut_after:
                await writer.drain()
                return False
            await asyncio.sleep(self.pause)
            _chunk(writer, CHUNK % number)
            await writer.drain()
            self.streaming.set()
        for last in (FINISH, *((USAGE,) if (fields.get("stream_options") or {}).get("include_usage") else ()), DONE):
            _chunk(writer, last)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"t%d "}}]}\n\n'
FINISH = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
)
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}\n\n'
DONE = b"data: [DONE]\n\n"
COMPLETION = (
    b'{"id": "c", "object":"chat.completion","created":1,"model":"fake-model","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"hi"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}'
)


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
