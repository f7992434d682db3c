"""A backend that fails in every way backends are known to fail, and speaks as vLLM 0.32 does while it can.

    with upstream("a-large") as a:
        a.script(Fail(500), Answer(cut=3, then="reset"))     # for the next two requests
        a.default = Silent()                                 # for all the others

It answers with the words of `TEXT`, a token each, and goes on with an assistant's message where that one ends, if it is
asked to as vLLM is (`continue_final_message`): what was put together of two answers can be compared with the whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from .backends import in_thread
from .fault_words import NO_PREFILL, SHUT_DOWN, TEXT, Refused, Said, encoded, error, event

T = TypeVar("T")
FOR_EVER = 3600.0


class Hangup(Exception):
    """The connection ends here; with a reset if `reset`."""

    def __init__(self, reset: bool = False) -> None:
        self.reset = reset


@dataclass(eq=False)
class Asked:
    """A request as it came. Times are `time.monotonic()`."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)
    over_at: float | None = None
    """When all was said that was to be said."""
    left_at: float | None = None
    """When whoever asked closed the connection before that."""

    @property
    def fields(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def open(self) -> bool:
        return self.over_at is None and self.left_at is None


class Call:
    """One request, and the connection on which it is answered."""

    def __init__(self, upstream: Upstream, asked: Asked, writer: asyncio.StreamWriter) -> None:
        self.upstream, self.asked, self._writer = upstream, asked, writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, *fields: str, status: int = 200, kind: str = "application/json") -> None:
        lines = [f"HTTP/1.1 {status} Told", "server: uvicorn", f"content-type: {kind}", *fields]
        await self.write("\r\n".join([*lines, "", ""]).encode())

    async def whole(self, said: Any, status: int = 200, headers: tuple[str, ...] = ()) -> None:
        body = encoded(said)
        await self.head(f"content-length: {len(body)}", *headers, status=status)
        await self.write(body)

    async def piece(self, data: bytes) -> None:
        """One chunk of a chunked answer; the last one, if it is empty."""
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))


Behaviour = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True)
class Fail:
    """An answer that says that there is none."""

    status: int
    said: Any = None
    headers: tuple[str, ...] = ()

    async def __call__(self, call: Call) -> None:
        said = self.said or error("the backend's own words", "InternalServerError", self.status)
        await call.whole(said, self.status, self.headers)


def busy(retry_after: float | str | None = None, status: int = 429) -> Fail:
    """Too many requests."""
    said = error("the backend's own words", "RateLimitError", status)
    return Fail(status, said, () if retry_after is None else (f"retry-after: {retry_after}",))


WRONG_KEY = Fail(401, error("Incorrect API key provided: sk-up…", "invalid_request_error", "invalid_api_key"))


@dataclass(frozen=True)
class Break:
    """No answer at all: the connection ends."""

    reset: bool = True

    async def __call__(self, call: Call) -> None:
        raise Hangup(self.reset)


@dataclass(frozen=True)
class Silent:
    """It listens, and that is all."""

    async def __call__(self, call: Call) -> None:
        await asyncio.sleep(FOR_EVER)


End = Literal["done", "no [DONE]", "no end", "close", "reset", "silence", "half", "malformed", "error"]
"""How an answer ends: as it should; a stream with a reason, yet without `[DONE]`; a stream without either; with the
connection; not at all; in the middle of an event; after an event that is no JSON; with an error event and `[DONE]`, as
vLLM's when it is stopped. Of a whole answer only half is said then, unless it is `done` or `malformed`."""


@dataclass(frozen=True)
class Answer:
    """What was asked for, or a part of it."""

    cut: int | None = None
    """After so many pieces of the answer it ends as `then` says; -1: before the role is said."""
    then: End = "done"
    pause: float = 0.0
    """Seconds before each piece; before the head if it is no stream."""
    before: float = 0.0
    """Seconds before the head."""
    finish: str = "stop"
    text: str = TEXT
    prefill: bool = True
    """Whether it can go on with an assistant's message."""

    async def __call__(self, call: Call) -> None:
        await asyncio.sleep(self.before)
        asked = call.asked.fields
        try:
            if asked.get("continue_final_message") and not self.prefill:
                raise Refused(NO_PREFILL)
            said = Said.to(asked, call.upstream.model, call.upstream.prompt_tokens, self.finish, self.text)
        except Refused as refused:
            return await call.whole(refused.said, 400)
        return await (self._stream(call, said) if asked.get("stream") else self._whole(call, said))

    async def _whole(self, call: Call, said: Said) -> None:
        await asyncio.sleep(self.pause)
        body = encoded(said.completion())
        if self.then == "malformed":
            body = b"}" + body[1:]
        await call.head(f"content-length: {len(body)}")
        if self.then in ("done", "malformed"):
            return await call.write(body)
        await call.write(b"" if self.cut == -1 else body[: len(body) // 2])
        if self.then == "silence":
            await asyncio.sleep(FOR_EVER)
        raise Hangup(self.then == "reset")

    async def _stream(self, call: Call, said: Said) -> None:
        await call.head("transfer-encoding: chunked", kind="text/event-stream; charset=utf-8")
        events = said.events()
        pieces = None if self.cut is None else self.cut + 1  # the role is one of them
        for number, each in enumerate(itertools.islice(events, pieces)):
            await asyncio.sleep(self.pause if number else 0)
            await call.piece(event(each))
        await self._end(call, said, events)

    async def _end(self, call: Call, said: Said, rest: Iterator[Any]) -> None:
        if self.then == "silence":
            await asyncio.sleep(FOR_EVER)
        if self.then == "half":
            await call.piece(event(next(rest))[:25])
            await asyncio.sleep(self.pause)
        if self.then in ("close", "reset", "half"):
            raise Hangup(self.then == "reset")
        for each in self._last(said, rest):
            await call.piece(each)
        await call.piece(b"")

    def _last(self, said: Said, rest: Iterator[Any]) -> Iterator[bytes]:
        if self.then == "malformed":
            yield b"data: }" + event(next(rest))[7:]
            yield from map(event, rest)
        if self.then in ("done", "no [DONE]", "malformed"):
            yield from map(event, said.last())
        if self.then == "error":
            yield event(SHUT_DOWN)
        if self.then in ("done", "error", "malformed"):
            yield event("[DONE]")


class Flapping:
    """`bad` for so many seconds, then `good` for as many, and so on, from now on."""

    def __init__(self, bad: Behaviour, good: Behaviour, seconds: float) -> None:
        self._bad, self._good, self._seconds = bad, good, seconds
        self._began = time.monotonic()

    async def __call__(self, call: Call) -> None:
        turn = int((time.monotonic() - self._began) / self._seconds)
        await (self._good if turn % 2 else self._bad)(call)


async def well(call: Call) -> None:
    """What a backend says whose health is asked for."""
    if call.asked.path.endswith("/models"):
        return await call.whole({"object": "list", "data": [{"id": call.upstream.model, "object": "model"}]})
    known = call.asked.path == "/health"
    return await call.whole({} if known else {"detail": "Not Found"}, 200 if known else 404)


class Upstream:
    """The backend. What it is told holds from the next request on, and may be told from any thread.

    Attributes:
        model: its own name for what it serves, as its answers say.
        prompt_tokens: what every prompt is said to have: by it one backend's usage is told from another's.
        default: what it does when there is no script.
        checks: what it does with a GET.
        requests: every POST since the last `reset`.
    """

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self.model, self.prompt_tokens, self.url = model, prompt_tokens, ""
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything; from now on every request is answered as it should be."""
        self.default: Behaviour = Answer()
        self.checks: Behaviour = well
        self.requests: list[Asked] = []
        self.script()

    def script(self, *behaviours: Behaviour) -> None:
        """What to do with the next requests, one after the other."""
        self._script = deque(behaviours)

    @property
    def open(self) -> int:
        """Requests that have not come to an end."""
        return sum(each.open for each in self.requests)

    @property
    def connections(self) -> int:
        """How many are open, whether or not a request is."""
        return len(self._connections)

    def go_away(self) -> None:
        """Break every connection, and refuse new ones."""
        self._wait_for(self._go_away())

    def come_back(self) -> None:
        """Listen again, where it did."""
        self._wait_for(self._listen())

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def __aenter__(self) -> Upstream:
        self._loop = asyncio.get_running_loop()
        self._seat = socket.socket()  # keeps the port for us while nobody listens there
        self._seat.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._seat.bind(("127.0.0.1", 0))
        self._port = self._seat.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        await self._listen()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._go_away()
        self._seat.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, reuse_address=True)

    async def _go_away(self) -> None:
        for each in self._server.sockets:
            self._loop.remove_reader(each.fileno())
        for _ in range(5):  # what is being accepted must be so before the end: asyncio would forget to close it
            await asyncio.sleep(0)
        self._server.close()
        for task, writer in tuple(self._connections.items()):
            _reset(writer)
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            with contextlib.closing(writer), contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            del self._connections[task]

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Returns whether the connection can take another."""
        method, asked = await _read(reader)
        behaviour = self.checks
        if method == "POST":
            self.requests.append(asked)
            behaviour = self._script.popleft() if self._script else self.default
        gone = asyncio.ensure_future(reader.read(1))
        answering = asyncio.ensure_future(behaviour(Call(self, asked, writer)))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
                asked.over_at = time.monotonic()
            return answering.done() and not gone.done()
        except Hangup as hangup:
            asked.over_at = time.monotonic()
            if hangup.reset:
                _reset(writer)
            return False
        except asyncio.CancelledError:  # we are to go away
            asked.over_at = time.monotonic()
            raise
        finally:
            asked.left_at = None if asked.over_at else time.monotonic()
            for task in (answering, gone):
                task.cancel()
            await asyncio.gather(answering, gone, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> tuple[str, Asked]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    method, path, _ = first.split(" ")
    return method, Asked(path, headers, body)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the other side be told of a broken connection, not of its end."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@contextlib.contextmanager
def upstream(model: str, prompt_tokens: int = 11) -> Iterator[Upstream]:
    """A backend in a thread of its own."""
    with in_thread(cast(Any, lambda: Upstream(model, prompt_tokens))) as found:
        yield found
