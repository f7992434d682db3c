"""One request over a connection, and its answer: ASGI's `receive` and `send`.

https://asgi.readthedocs.io/en/latest/specs/www.html says what they do.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from .exchange import Headers

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

    from .protocol import Protocol

logger = logging.getLogger("headrace.protocol")

HIGH_WATER = 65_536
"""Bytes of a body that may wait for whoever reads it, before the client has to."""
HEADS_KEPT, FIELDS_KEPT = 1024, 2048
WITHOUT_BODY = frozenset((204, 304))
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\x00-\x08\x0a-\x1f\x7f]*\r\n")
_DISCONNECT = {"type": "http.disconnect"}


class Cycle:
    """From a request's head to the last byte of its answer. `more_body` is true until the request's body is here."""

    __slots__ = (
        *("_chunked", "_continue", "_head_only", "_keep_alive", "_left", "_on_lost", "_parts", "_protocol", "_size"),
        *("_started", "_unread", "_waiter", "complete", "lost", "more_body"),
    )

    def __init__(self, protocol: Protocol, *, keep_alive: bool, expects_continue: bool, head_only: bool) -> None:
        self._protocol = protocol
        self._keep_alive = keep_alive
        self._continue = expects_continue
        self._head_only = head_only
        self._parts: list[bytes] = []
        self._size = 0
        self._unread = False
        self.more_body = True
        self._waiter: asyncio.Future[None] | None = None
        self._on_lost: Callable[[], None] | None = None
        self.lost = False
        """Whether the client has left before the answer was complete."""
        self._started = False
        self._chunked = False
        self._left = 0
        """Bytes of the answer that its head has promised."""
        self.complete = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Have the request answered. Whatever the application leaves undone ends the connection."""
        try:
            await app(scope, self.receive, self.send)
            if not (self.complete or self.lost):
                raise RuntimeError("the application returned before its answer was complete")
        except Exception as error:
            logger.error("a request failed outside of the pipeline", exc_info=error)
            await self._fail()
        finally:
            if not (self.complete or self.lost):
                self._protocol.transport.close()

    async def _fail(self) -> None:
        if self._started or self.lost:
            return
        head = [(b"content-length", b"21"), (b"content-type", b"text/plain"), (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": 500, "headers": head})
        await self.send({"type": "http.response.body", "body": b"Internal Server Error"})

    # --- the request's body ---------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """A piece of the body has come."""
        if self.complete:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER:
            self._protocol.pause_reading()
        self._tell()

    def end_of_body(self) -> None:
        self.more_body = False
        self._tell()

    def _tell(self) -> None:
        self._unread = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Any:
        """What has come of the body, or the news that the client has left or got its answer."""
        if self._continue and not self._started:
            self._continue = False
            self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self._unread or self.lost or self.complete):
            self._protocol.resume_reading()
            self._waiter = self._protocol.loop.create_future()
            await self._waiter
        if self.lost or self.complete:
            return _DISCONNECT
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size, self._unread = [], 0, False
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    # --- the client's departure -----------------------------------------------------------------------------------

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Call this once the client has left."""
        self._on_lost = on_lost
        self._protocol.resume_reading()  # it is paused behind a large body, and would not see the end
        if self.lost:
            on_lost()

    def unwatch(self) -> None:
        """Nobody need know any more."""
        self._on_lost = None

    def lose(self) -> None:
        """The connection is gone."""
        self.lost = not self.complete
        self._wake()
        if self._on_lost is not None:
            self._on_lost()

    def abort(self) -> None:
        """Break the connection: what has not been sent never will be."""
        self._protocol.transport.abort()

    def close_after(self) -> None:
        """The gateway stops: this answer is the connection's last."""
        self._keep_alive = False

    # --- the answer -----------------------------------------------------------------------------------------------

    async def send(self, message: Any) -> None:
        """Send a head, or a piece of the body.

        Raises:
            RuntimeError: a header that cannot be sent, or not what the head has promised.
        """
        if self._protocol.write_paused and not self.lost:
            await self._protocol.writable.wait()
        if self.lost:
            return
        if message["type"] == "http.response.body" and self._started and not self.complete:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        elif message["type"] == "http.response.start" and not self._started:
            self._send_head(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"{message['type']} was sent out of turn")

    def _send_head(self, status: int, headers: Any) -> None:
        fields = [*self._protocol.default_headers, *((name.lower(), value) for name, value in headers)]
        said = dict(fields)
        bodiless = self._head_only or status in WITHOUT_BODY
        self._chunked = b"content-length" not in said and not bodiless
        if self._chunked and b"transfer-encoding" not in said:
            fields.append((b"transfer-encoding", b"chunked"))
        if b"close" in said.get(b"connection", b"").lower():
            self._keep_alive = False
        elif not self._keep_alive:
            fields.append((b"connection", b"close"))
        head = b"%b%b\r\n" % (_status_line(status), _encoded(fields))
        self._left = 0 if self._chunked or bodiless else int(said[b"content-length"])
        self._started = True
        self._protocol.transport.write(head)

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            self._protocol.transport.write(body if more else body + b"0\r\n\r\n")
        elif not self._head_only:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the answer is not as long as its Content-Length")
            self._protocol.transport.write(body)
        if not more:
            self._end()

    def send_now(self, chunk: bytes) -> bool:
        """Send a piece of the body, as `send` does; False if it must wait for the client."""
        if self.lost:
            return True
        if self._protocol.write_paused or not self._started or self.complete:
            return False
        self._send_body(chunk, True)
        return True

    def answer(self, headers: Headers) -> None:
        """Answer with these headers and no body: what `send` does of 200, in one step.

        Raises:
            RuntimeError: a header that cannot be sent.
        """
        if self.lost:
            return
        head = b"%b%b\r\n" % (_status_line(200), _encoded(headers))
        if self._keep_alive:
            self._protocol.write_soon(head)
        else:
            self._protocol.transport.write(head)
        self._started = True
        self._end()

    def _end(self) -> None:
        self.complete = True
        self._wake()
        if not self._keep_alive:
            self._protocol.transport.close()
        self._protocol.on_answered()


def _encoded(fields: Headers) -> bytes:
    """Header fields as they are sent. Raises RuntimeError for what would be read as something else."""
    return b"".join(map(_encoded_field, fields))


@lru_cache(maxsize=FIELDS_KEPT)
def _encoded_field(field: tuple[bytes, bytes]) -> bytes:
    """Most fields of an answer are as they were in the one before."""
    encoded = b"%b: %b\r\n" % field
    if _FIELD.fullmatch(encoded) is None:
        raise RuntimeError("a header of the answer cannot be sent")
    return encoded


@lru_cache(maxsize=HEADS_KEPT)
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()
