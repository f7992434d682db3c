"""Passing on a stream: everything here is paid for every chunk of every stream that the core delivers."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from .connection import Connection
from .exchange import Exchange
from .streaming import Tail, UsageHider
from .vetting import BadEvent, Vetting


class Pump:
    """Passes on one stream.

    Args:
        tail: gets what is passed on.
        hider: leaves out what the client did not ask for.
        vetting: looks at the events, if it is a stream of them.
        hurry: is called when all has been said that matters.
    """

    __slots__ = (
        *("_before", "_connection", "_exchange", "_hider", "_hurry", "_looks", "_passed", "_send_now", "_sent"),
        *("_tail", "_vetting"),
    )

    def __init__(
        self,
        exchange: Exchange,
        connection: Connection,
        tail: Tail,
        *,
        hider: UsageHider | None = None,
        vetting: Vetting | None = None,
        hurry: Callable[[], None] | None = None,
    ) -> None:
        self._exchange, self._connection, self._tail = exchange, connection, tail
        self._hider, self._vetting = hider, vetting
        self._hurry = hurry if vetting is not None else None
        self._looks = tuple(each.look for each in (hider, vetting) if each is not None)
        self._send_now = connection.send_now
        self._passed = self._sent = 0
        self._before = b""
        """Good events that came along with a bad one."""

    async def run(self, stream: AsyncIterator[bytes]) -> None:
        """Pass on all of it. Raises whatever the stream raises; BadEvent: an event is none, or tells of an error."""
        try:
            async with aclosing(_left(stream, self.take)) as rests:
                async for rest in rests:
                    await self._wait(rest)
            if self._hider is not None and (held := self._hider.rest()):
                self._looks = self._looks[1:]  # it has looked at that
                await self._wait(self.take(held))
        except BadEvent:
            if self._before:
                self._tail.add(self._before)
                await self._connection.send(self._before)
            raise
        finally:
            self._connection.bytes_sent += self._sent
            self._exchange.events = self._passed
            close = getattr(stream, "aclose", None)  # a generator suspended at its yield would stay open
            if close is not None:
                await close()

    def take(self, chunk: bytes) -> bytes:
        """Look at a chunk and send it on; returns what must wait for the client."""
        if self._exchange.first_byte_at is None:
            self._exchange.first_byte_at = time.perf_counter()
        try:
            for look in self._looks:
                chunk = look(chunk)
                if not chunk:
                    return b""
        except BadEvent as error:
            self._before = error.before
            raise
        self._tail.add(chunk)
        self._passed += chunk.count(b"data:")
        if self._hurry is not None and self._vetting is not None and self._vetting.finished:
            self._hurry()
            self._hurry = None
        if not self._send_now(chunk):
            return chunk
        self._sent += len(chunk)
        return b""

    async def _wait(self, rest: bytes) -> None:
        """Send what must wait for the client."""
        if rest:
            self._tail.unsent = True
            await self._connection.send(rest)
            self._tail.unsent = False


def _left(stream: AsyncIterator[bytes], take: Callable[[bytes], bytes]) -> AsyncGenerator[bytes, None]:
    """What is left of each chunk. A stream that can give them away itself wakes nobody for them."""
    through: Callable[[Callable[[bytes], bytes]], AsyncGenerator[bytes, None]] | None
    through = getattr(stream, "through", None)
    return through(take) if through is not None else _each(stream, take)


async def _each(stream: AsyncIterator[bytes], take: Callable[[bytes], bytes]) -> AsyncGenerator[bytes, None]:
    async for chunk in stream:
        if rest := take(chunk):
            yield rest
