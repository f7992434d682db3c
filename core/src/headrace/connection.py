"""The client's side of an exchange: its body, its departure, and the answer on its way out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .cycle import Cycle
from .errors import InvalidRequest, PayloadTooLarge, RequestTimeout
from .exchange import Headers
from .front import MORE

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


PATIENCE_SECONDS = 2.0
"""So long a client who does not read may hold up others who wait for the same answer."""


class ClientLeft(Exception):
    """The client closed the connection before its body was complete."""


class Connection:
    """Wraps ASGI's receive and send for one request.

    `status` is that of the head that went out, None while none has; `bytes_sent` counts body bytes.
    """

    __slots__ = (
        *("_receive", "_released", "_send", "_task", "_wanted", "_watch", "_wire"),
        *("away", "bytes_sent", "ended", "events", "left", "scope", "status"),
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._wire = _wire_of(send)
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._released: asyncio.Event | None = None
        self._wanted: Callable[[], bool] | None = None
        self.away = False
        """Whether nginx has the request, so that nothing can be sent from here."""
        self.left = False
        self.status: int | None = None
        self.bytes_sent = 0
        self.ended = False
        self.events = False
        """Whether server-sent events are going out, so that an error can be one of them."""

    async def read_body(self, limit: int, timeout: float) -> bytes:
        """The whole request body.

        Raises:
            PayloadTooLarge: more than `limit` bytes, declared or sent.
            RequestTimeout: not complete after `timeout` seconds.
            ClientLeft: the client closed the connection.
        """
        wire = self.scope.get("headrace.wire")
        if wire is None or wire.more_body:
            self._check_declared(limit)
            message = await self._next_message(timeout)
        else:
            message = await self._receive()  # it is all here
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            return body
        return await self._read_rest(self._unless_left(message), limit, timeout)

    async def _read_rest(self, message: Any, limit: int, timeout: float) -> bytes:
        parts, size = [message.get("body", b"")], len(message.get("body", b""))
        deadline = asyncio.get_running_loop().time() + timeout
        while message.get("more_body"):
            message = await self._next_message(deadline - asyncio.get_running_loop().time())
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
        return b"".join(parts)

    async def _next_message(self, timeout: float) -> Any:
        try:
            async with asyncio.timeout(timeout):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout(
                "The request's body did not arrive in time.", headers={"Connection": "close"}
            ) from None
        return self._unless_left(message)

    def _unless_left(self, message: Any) -> Any:
        if message["type"] == "http.disconnect":
            self.left = True
            raise ClientLeft
        return message

    def _check_declared(self, limit: int) -> None:
        for name, value in self.scope["headers"]:
            if name == b"content-length":
                if not value.isdigit():
                    raise InvalidRequest("The Content-Length header is not a number.")
                if int(value) > limit:
                    raise _too_large(limit)

    def watch(self) -> None:
        """From now on, cancel the current task when the client leaves."""
        self._task = asyncio.current_task()
        wire = self.scope.get("headrace.wire")
        if wire is None:  # another server's: it can only be asked
            self._watch = asyncio.create_task(self._wait_for_departure())
        else:
            wire.watch(self._departed)

    def watched(self) -> Connection:
        """What is left behind the context is finished even if the client leaves now: slots are given back in peace."""
        return self

    def __enter__(self) -> None:
        return

    def __exit__(self, *exception: object) -> None:
        self.unwatch()

    def unwatch(self) -> None:
        """The client's departure no longer matters."""
        self._task = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        elif (wire := self.scope.get("headrace.wire")) is not None:
            wire.unwatch()

    async def _wait_for_departure(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._departed()

    def _departed(self) -> None:
        if self._task is not None:
            self.left = True
            self.stay(self._wanted)

    def stay(self, wanted: Callable[[], bool] | None) -> None:
        """See `Exchange.share`; None: see `Exchange.abandon`."""
        self._wanted = wanted
        if self.left and self._task is not None and not (wanted is not None and wanted()):
            self._task.cancel()

    async def hand_over(self, headers: Headers) -> None:
        """Answer nginx instead of the client: it goes on with the request, and nothing counts as sent."""
        self.unwatch()
        if self._wire is not None:
            self._wire.answer(headers)
        else:  # somebody wraps our answers, and may add headers to them
            await self._send({"type": "http.response.start", "status": 200, "headers": [*headers, (MORE, b"1")]})
            await self._send({"type": "http.response.body", "body": b""})
        self.away = True
        self.release()

    def adopt(self, other: Connection) -> None:
        """nginx has given the request back on another connection: go on with that one."""
        self.scope, self._receive, self._send, self._released = other.scope, other._receive, other._send, other._gone()
        self._wire = other._wire
        self.away = False
        self.watch()

    def _gone(self) -> asyncio.Event:
        if self._released is None:
            self._released = asyncio.Event()
        return self._released

    async def released(self) -> None:
        """Wait until whoever adopted this connection is done with it."""
        await self._gone().wait()

    def release(self) -> None:
        """The connection is not needed any more."""
        if self._released is not None:
            self._released.set()
            self._released = None

    async def start(self, status: int, headers: Headers) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, chunk: bytes) -> None:
        self.bytes_sent += len(chunk)
        await self._say({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _say(self, message: Any) -> None:
        """Send; but while others want the answer, too, a client who does not read it holds them up only so long."""
        if self._wanted is None:
            await self._send(message)
            return
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._send(message)
        except TimeoutError:
            if self._wanted is not None and self._wanted():
                self.left = True
                self.abort()
            else:
                await self._send(message)

    @property
    def send_now(self) -> Callable[[bytes], bool]:
        """Sends without waiting; False if that cannot be: then `send` does it. Add to `bytes_sent` what it has sent."""
        return self._wire.send_now if self._wire is not None else _never

    async def end(self, chunk: bytes = b"") -> None:
        """Send the last bytes. From here on there is nothing to leave: servers report a complete answer as a
        disconnect, too."""
        self.unwatch()
        self.ended = True
        self.bytes_sent += len(chunk)
        await self._say({"type": "http.response.body", "body": chunk})

    def abort(self) -> None:
        """Break the connection."""
        if self._wire is not None:
            self._wire.abort()


def _never(chunk: bytes) -> bool:
    return False


def _wire_of(send: Send) -> Cycle | None:
    """What answers go through, if it is our own server's and nobody has wrapped it."""
    wire = getattr(send, "__self__", None)
    return wire if isinstance(wire, Cycle) else None


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The body is larger than {limit} bytes (server.max_body_bytes).", headers={"Connection": "close"}
    )
