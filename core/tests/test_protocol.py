"""HTTP/1.1 as the core speaks it: any ASGI application, a real server, raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from headrace import hookimpl
from headrace import protocol as module
from headrace.cycle import HIGH_WATER, Cycle
from headrace.exchange import Exchange
from headrace.protocol import Protocol, protocol_for
from headrace.testing import FakeBackend, serve

DEADLINE = 20.0
App = Callable[[Any, Any, Any], Awaitable[None]]


class Server(NamedTuple):
    """A running server; `connect` opens a connection to it."""

    uvicorn: uvicorn.Server
    port: int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, sent: bytes) -> bytes:
        """Send bytes and read until the server closes."""
        reader, writer = await self.connect()
        writer.write(sent)
        async with asyncio.timeout(DEADLINE):
            got = await reader.read()
        writer.close()
        return got


@contextlib.asynccontextmanager
async def serving(app: App, keep_alive: float = 60.0) -> AsyncIterator[Server]:
    config = uvicorn.Config(
        app,
        http=protocol_for(32_768),
        lifespan="off",
        log_config=None,
        timeout_keep_alive=keep_alive,  # type: ignore[arg-type]
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve([listener]))
        async with asyncio.timeout(DEADLINE):
            while not server.started:
                await asyncio.sleep(0.01)
        try:
            yield Server(server, listener.getsockname()[1])
        finally:
            server.should_exit = True
            await task


def request(path: str = "/", method: str = "GET", headers: str = "", body: bytes = b"") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode() + body


CLOSE = "Connection: close\r\n"


async def say(send: Any, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


class Wire(asyncio.Transport):
    """Notes what is written."""

    def __init__(self, written: list[Any]) -> None:
        super().__init__()
        self._written, self._closing = written, False

    def write(self, data: Any) -> None:
        assert not self._closing
        self._written.append((self, data))

    def close(self) -> None:
        self._closing = True

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Answering:
    """Connections of one server whose requests are answered in one step, the path being the answer."""

    def __init__(self) -> None:
        self.written: list[tuple[Wire, bytes]] = []
        self.answered: list[str] = []
        self._config = uvicorn.Config(self._answer, interface="asgi3", proxy_headers=False, log_config=None)
        self._config.load()
        self._kind, self._state = protocol_for(32_768), ServerState()

    def connect(self) -> tuple[Wire, Protocol]:
        wire, connection = Wire(self.written), self._kind(self._config, self._state, {})
        connection.connection_made(wire)
        return wire, connection

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        scope["headrace.wire"].answer([(b"x-path", scope["raw_path"])])
        self.answered.append(scope["path"])

    def paths(self) -> list[tuple[Wire, bytes]]:
        return [(wire, sent.partition(b"x-path: ")[2].partition(b"\r\n")[0]) for wire, sent in self.written]

    async def all_answered(self, count: int) -> None:
        """Return in the turn of the loop in which the last of so many answers is made."""
        async with asyncio.timeout(DEADLINE):
            while len(self.answered) < count:
                await asyncio.sleep(0)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path, the query and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await say(send, b"%b?%b:%b" % (scope["path"].encode(), scope["query_string"], body))


async def test_requests_over_one_connection_are_answered_in_their_order() -> None:
    async with serving(echo) as server:
        sent = request("/a%20b?c=%64") + request("/two", "POST", "Content-Length: 3\r\n", b"abc")
        got = await server.ask(sent + request("/three", headers=CLOSE))
    assert [each.rpartition(b"\r\n")[2] for each in got.split(b"HTTP/1.1 200 OK\r\n")[1:]] == [
        b"/a b?c=%64:",
        b"/two?:abc",
        b"/three?:",
    ]


async def test_answers_made_in_one_step_are_sent_together_once_all_that_are_due_are_made() -> None:
    server = Answering()
    (first, one), (second, two) = server.connect(), server.connect()
    one.data_received(request("/1"))
    two.data_received(request("/2"))
    await server.all_answered(2)
    assert server.written == []
    await asyncio.sleep(0)
    assert server.paths() == [(first, b"/1"), (second, b"/2")]


async def test_an_answer_that_is_due_is_sent_before_anything_else_is_done_on_its_connection() -> None:
    server = Answering()
    wire, connection = server.connect()
    connection.data_received(request("/1"))
    await server.all_answered(1)
    connection.data_received(b"what?")
    assert server.paths()[0] == (wire, b"/1") and server.written[1][1].startswith(b"HTTP/1.1 400 ")
    assert wire.is_closing()
    await asyncio.sleep(0)
    assert len(server.written) == 2


async def test_answers_to_requests_that_came_together_keep_their_order() -> None:
    server = Answering()
    wire, connection = server.connect()
    connection.data_received(request("/1") + request("/2") + request("/3", headers=CLOSE))
    await _until(wire.is_closing)
    assert server.paths() == [(wire, b"/1"), (wire, b"/2"), (wire, b"/3")]


async def test_an_answer_that_is_due_is_sent_before_the_server_closes_its_connection() -> None:
    server = Answering()
    wire, connection = server.connect()
    connection.data_received(request("/1"))
    await server.all_answered(1)
    connection.shutdown()
    assert server.paths() == [(wire, b"/1")] and wire.is_closing()


async def test_an_answer_to_a_client_that_has_left_keeps_nobody_elses_from_being_sent() -> None:
    server = Answering()
    (gone, one), (there, two) = server.connect(), server.connect()
    one.data_received(request("/1"))
    two.data_received(request("/2"))
    await server.all_answered(2)
    gone.close()
    one.connection_lost(None)
    await asyncio.sleep(0)
    assert server.paths() == [(there, b"/2")]


async def test_a_client_that_sends_requests_without_end_waits_before_they_fill_the_memory() -> None:
    started, go_on = 0, asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        nonlocal started
        started += 1
        await go_on.wait()
        await say(send, b"x")

    async with serving(slow) as server:
        reader, writer = await server.connect()
        one = request("/" + "x" * 1000)
        count = 40_000
        writing = asyncio.create_task(_write_all(writer, one * count))
        (connection,) = await _connections(server)
        await _until(lambda: connection._paused)
        await asyncio.sleep(0)
        assert started == 1 and len(connection._waiting) < 262_144 / len(one) + module.WAITING
        go_on.set()
        async with asyncio.timeout(120):
            for _ in range(count):
                await reader.readuntil(b"\r\n\r\nx")
        assert started == count
        await writing
        writer.close()


async def test_a_head_request_is_answered_without_its_body() -> None:
    async with serving(echo) as server:
        got = await server.ask(request("/x", "HEAD") + request("/y", headers=CLOSE))
    assert b"content-length: 4" in got and got.endswith(b"\r\n\r\n/y?:") and b"/x" not in got


async def test_an_answer_of_unknown_length_is_chunked() -> None:
    async def parts(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        assert scope["headrace.wire"].send_now(b"two")
        await send({"type": "http.response.body", "body": b"three"})

    async with serving(parts) as server:
        got = await server.ask(request(headers=CLOSE))
    assert got.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_by_its_status_is_not_chunked(status: int) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": b""})

    async with serving(nothing) as server:
        got = await server.ask(request() + request(headers=CLOSE))
    assert got.count(b"HTTP/1.1 %d " % status) == 2 and b"transfer-encoding" not in got and got.endswith(b"\r\n\r\n")


async def test_a_client_that_asks_first_is_told_to_go_on_once_its_body_is_wanted() -> None:
    async with serving(echo) as server:
        reader, writer = await server.connect()
        writer.write(request("/x", "POST", "Expect: 100-Continue\r\nContent-Length: 2\r\n"))
        async with asyncio.timeout(DEADLINE):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"ok")
            assert (await reader.readuntil(b"/x?:ok")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_a_large_body_waits_until_somebody_reads_it() -> None:
    go_on = asyncio.Event()
    held: list[int] = []

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await go_on.wait()
        held.append(scope["headrace.wire"]._size)
        await echo(scope, receive, send)

    body = b"x" * 8_000_000
    async with serving(late) as server:
        reader, writer = await server.connect()
        writing = asyncio.create_task(
            _write_all(writer, request("/", "POST", f"{CLOSE}Content-Length: {len(body)}\r\n", body))
        )
        (connection,) = await _connections(server)
        await _until(lambda: connection._paused)
        go_on.set()
        async with asyncio.timeout(DEADLINE):
            got = await reader.read()
        await writing
        writer.close()
    assert got.endswith(b"\r\n\r\n/?:" + body) and held[0] < HIGH_WATER + 300_000


async def test_an_application_learns_that_its_client_has_left() -> None:
    said: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    called = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        scope["headrace.wire"].watch(called.set)
        said.set_result([await receive(), await receive()])

    async with serving(waits) as server:
        _, writer = await server.connect()
        writer.write(request())
        await _connections(server)
        writer.close()
        async with asyncio.timeout(DEADLINE):
            assert (await said)[-1] == {"type": "http.disconnect"} and await called.wait()


async def test_who_watches_after_the_client_has_left_is_told_at_once() -> None:
    told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def looks(scope: Any, receive: Any, send: Any) -> None:
        wire = scope["headrace.wire"]
        await _until(lambda: wire.lost)
        wire.watch(lambda: told.set_result(True))
        await send({"type": "http.response.start", "status": 200})  # nobody is there: nothing happens

    async with serving(looks) as server:
        _, writer = await server.connect()
        writer.write(request())
        await _connections(server)
        writer.close()
        assert await asyncio.wait_for(told, DEADLINE)


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\nb: c"),
        (b"x", b"a\nb"),
        (b"x", b"a\0"),
        (b"x y", b"1"),
        (b"x:", b"1"),
        (b"", b"1"),
        (b"x\r\ny", b"1"),
    ],
)
async def test_a_header_that_would_be_read_as_something_else_is_not_sent(
    header: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def bad(scope: Any, receive: Any, send: Any) -> None:
        await say(send, b"x", header)

    async def bad_answer(scope: Any, receive: Any, send: Any) -> None:
        scope["headrace.wire"].answer([header])

    for app in (bad, bad_answer):
        async with serving(app) as server:
            got = await server.ask(request())
        assert got.startswith(b"HTTP/1.1 500 ") and b"b: c" not in got and got.endswith(b"Internal Server Error")
    assert "a header of the answer cannot be sent" in caplog.text


@pytest.mark.parametrize("sent", [b"12345", b"123"])
async def test_an_answer_of_another_length_than_it_promised_breaks_the_connection(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def wrong(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": sent})

    async with serving(wrong) as server:
        got = await server.ask(request())
    assert got.endswith(b"\r\n\r\n") and "not as long as its Content-Length" in caplog.text


async def test_an_application_that_answers_nothing_or_fails_is_answered_for(caplog: pytest.LogCaptureFixture) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise ValueError("in between")

    async def twice(scope: Any, receive: Any, send: Any) -> None:
        await say(send, b"x")
        await say(send, b"y")

    got = []
    for app in (nothing, half, twice):
        async with serving(app) as server:
            got.append(await server.ask(request(headers=CLOSE)))
    assert got[0].startswith(b"HTTP/1.1 500 ") and b"connection: close" in got[0]
    assert got[1].endswith(b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
    assert got[2].endswith(b"\r\n\r\nx") and b"y" not in got[2].partition(b"\r\n\r\n")[2]
    assert [record.levelno for record in caplog.records if record.name == "headrace.protocol"] == [logging.ERROR] * 3


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await go_on.wait()
        await say(send, b"done")

    async with serving(app, keep_alive=0.1) as server:
        reader, writer = await server.connect()
        writer.write(request())
        async with asyncio.timeout(DEADLINE):
            await reader.readuntil(b"done")
            writer.write(request("/slow"))
            (connection,) = await _connections(server)
            await _until(lambda: connection._idle_timer is None)  # it has looked, and found a request
            go_on.set()
            await reader.readuntil(b"done")
            assert await reader.read() == b""
        writer.close()


async def test_the_end_of_the_server_lets_an_answer_finish_and_closes_its_connection() -> None:
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await go_on.wait()
        await say(send, b"done")

    async with serving(slow) as server:
        _, idle = await server.connect()
        asking = asyncio.create_task(server.ask(request()))
        await begun.wait()
        server.uvicorn.should_exit = True
        await _until(lambda: len(server.uvicorn.server_state.connections) == 1)
        go_on.set()
        assert (await asking).endswith(b"connection: close\r\n\r\ndone")
        idle.close()


async def chat(url: str) -> None:
    fields = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
    async with httpx.AsyncClient(base_url=url) as client:
        assert (await client.post("/v1/chat/completions", json=fields)).status_code == 200


class Tapping:
    """Watches every reply."""

    wants = "bytes"

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    def open_tap(self, exchange: Exchange) -> Any:
        return self

    def feed(self, item: bytes) -> None: ...

    def close(self, completed: bool) -> None: ...


@pytest.mark.parametrize("plugins", [{}, {"tapping": Tapping}], ids=["alone", "watched"])
async def test_a_request_leaves_nothing_for_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch, plugins: dict[str, type[Any]]
) -> None:
    alive: list[weakref.ref[Any]] = []
    for kind in (Exchange, Cycle, Protocol):
        monkeypatch.setattr(kind, "__init__", _remembering(kind, alive))
    async with FakeBackend() as backend, serve(backend.config(server={"anonymous": True}), plugins) as running:
        await chat(running.url)
        gc.collect()
        alive.clear()
        gc.disable()
        try:
            for _ in range(3):
                await chat(running.url)
            left = [each() for each in alive if isinstance(each(), Exchange)]
            assert len(alive) >= 3 and left == []
        finally:
            gc.enable()


def _remembering(kind: Any, alive: list[weakref.ref[Any]]) -> Callable[..., None]:
    before = kind.__init__

    def remember(self: Any, *arguments: Any, **named: Any) -> None:
        before(self, *arguments, **named)
        with contextlib.suppress(TypeError):  # of those with slots, nothing can be known
            alive.append(weakref.ref(self))

    return remember


async def _write_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _connections(server: Server) -> list[Any]:
    """Those over which a request has come."""

    def found() -> list[Any]:
        connections: set[Any] = server.uvicorn.server_state.connections
        return [each for each in connections if each._last is not None]

    await _until(lambda: bool(found()))
    return found()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


async def test_every_answer_says_the_date_at_which_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(echo) as server:
        for second, date in (
            (784111777, b"Sun, 06 Nov 1994 08:49:37 GMT"),
            (784111778, b"Sun, 06 Nov 1994 08:49:38 GMT"),
        ):
            monkeypatch.setattr("headrace.protocol.time.time", lambda second=second: second + 0.5)
            assert b"\r\ndate: " + date + b"\r\n" in await server.ask(request(headers=CLOSE))
