"""Backends on real sockets, each in a thread of its own so that tests may block."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Literal, Self, TypeVar

from headrace.testing import COMPLETION, FakeBackend, Listening

from .processes import until

Backend = TypeVar("Backend", bound="FakeBackend | RawBackend")
MODELS = b'{"object":"list","data":[{"id":"raw-model","object":"model"}]}'


def whole(body: bytes = COMPLETION, status: str = "200 OK", kind: str = "application/json", *headers: str) -> bytes:
    """An answer as a proper server gives it."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*pieces: bytes, kind: str = "text/event-stream", headers: tuple[str, ...] = (), last: bool = True) -> bytes:
    """A stream as a proper server gives it; without `last`, one that is not at its end."""
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}", "Transfer-Encoding: chunked", *headers]
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body + b"0\r\n\r\n" * last


class RawBackend(Listening):
    """Says exactly the bytes it is told to, for answers that no proper server gives.

    Attributes:
        answer: said to every POST.
        then: what becomes of the connection: it waits for the next request, is closed, reset, or held open in silence.
        requests: every POST so far: its head's lines, in lower case where they are names, and its body.
        connections: how many are open.
        closed_early: set when a client left while its connection was held.
    """

    PATH = "/v1"

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.tell(whole())

    def drop(self) -> None:
        """Close the connections that are held. May be called in any thread."""
        self._loop.call_soon_threadsafe(self._dropped.set)

    def tell(self, answer: bytes, then: Literal["next", "close", "reset", "hold"] = "next") -> None:
        """Say this from now on, and forget what was asked."""
        self.answer, self.then = answer, then
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.closed_early = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop, self._dropped = asyncio.get_running_loop(), asyncio.Event()
        return await super().__aenter__()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await super()._serve(reader, writer)
        finally:
            self.connections -= 1

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if first.startswith("GET "):  # the gateway asks whether we are well
            writer.write(whole(MODELS))
            await writer.drain()
            return True
        self.requests.append((first, headers, body))
        then, left = self.then, self.closed_early
        writer.write(self.answer)
        await writer.drain()
        if then == "hold":
            await self._hold(reader, left)
        if then == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return then == "next"

    async def _hold(self, reader: asyncio.StreamReader, left: asyncio.Event) -> None:
        """Wait until the client leaves, or we are told to."""
        waiting = {asyncio.ensure_future(each) for each in (reader.read(), self._dropped.wait())}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self._dropped.is_set():
            left.set()
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@contextlib.contextmanager
def in_thread(kind: Callable[[], Backend]) -> Iterator[Backend]:
    """Run a backend until the context ends."""
    found: list[Backend] = []
    loop = asyncio.new_event_loop()
    end = asyncio.Event()

    async def run() -> None:
        backend = kind()
        async with backend:
            found.append(backend)
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    try:
        until(lambda: found, "the backend's start")
        yield found[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
        loop.close()


@contextlib.contextmanager
def fake_backend() -> Iterator[FakeBackend]:
    """An OpenAI-compatible backend that can be told how to fail."""
    with in_thread(FakeBackend) as found:
        yield found


@contextlib.contextmanager
def raw_backend() -> Iterator[RawBackend]:
    """A backend that can be told what to say, byte by byte."""
    with in_thread(RawBackend) as found:
        yield found
