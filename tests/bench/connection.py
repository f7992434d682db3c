"""A client's HTTP/1.1 connection that costs little: one request at a time, kept open between them."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from typing import NamedTuple, cast

STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection:[^\r]*close", re.IGNORECASE)
LAST_CHUNK = b"0\r\n\r\n"


class Address(NamedTuple):
    """Where to connect; over TLS if there is a `context`."""

    host: str
    port: int
    context: ssl.SSLContext | None = None


class Answer(NamedTuple):
    """An answer as it came, without its framing. `first` is when its first byte came, by `time.perf_counter`."""

    status: int
    body: bytes
    first: float


class Cut(ConnectionError):
    """The connection ended before the answer did."""


class Connection(asyncio.Protocol):
    """Asks, and waits for the whole answer."""

    def __init__(self) -> None:
        self.usable = True
        self._waiting: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, address: Address) -> Connection:
        loop = asyncio.get_running_loop()
        name = address.host if address.context else None
        _, connection = await loop.create_connection(
            cls, address.host, address.port, ssl=address.context, server_hostname=name
        )
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a whole request. The future raises Cut."""
        self._buffer = bytearray()
        self._body_at, self._first = 0, 0.0
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            return self.close()  # bytes nobody asked for
        if not self._first:
            self._first = time.perf_counter()
        self._buffer += data
        if not self._body_at and not self._read_head():
            return None
        body = self._complete()
        if body is not None:
            self._done(body)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._waiting is None or self._waiting.done():
            return
        if self._body_at and self._length is None and not self._chunked:
            self._done(bytes(self._buffer[self._body_at :]))
        else:
            self._waiting.set_exception(Cut("the connection was closed before the answer was complete"))

    def close(self) -> None:
        self.usable = False
        self._transport.close()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[: end + 2])
        status, length = STATUS.match(head), LENGTH.search(head)
        self._status = int(status[1]) if status else 0
        self._length = int(length[1]) if length else None
        self._chunked = CHUNKED.search(head) is not None
        self._closing = CLOSE.search(head) is not None
        self._body_at = end + 4
        return True

    def _complete(self) -> bytes | None:
        """The body if it is all there. A chunked one is decoded only when it looks as if it were."""
        if self._chunked:
            return dechunked(self._buffer, self._body_at) if self._buffer.endswith(LAST_CHUNK) else None
        if self._length is not None and len(self._buffer) - self._body_at >= self._length:
            return bytes(self._buffer[self._body_at :])
        return None

    def _done(self, body: bytes) -> None:
        assert self._waiting is not None
        if not self._waiting.done():
            self._waiting.set_result(Answer(self._status, body, self._first))
        self._waiting = None
        if self._closing:
            self.close()


def dechunked(data: bytes | bytearray, at: int) -> bytes | None:
    """The content of a chunked body that starts at `at`; None if its last chunk is not there yet."""
    parts: list[bytes] = []
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line].partition(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(bytes(data[line + 2 : line + 2 + size]))
        at = line + 2 + size + 2
    return None
