"""A stream of lines as a stream of events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from headrace.errors import GatewayError, UpstreamError
from headrace.exchange import Reply
from headrace.verdict import has_begun

from .answering import ChatTranslation, CompletionTranslation

CUT = "The backend ended the stream before the answer was complete."
LONGEST = 16 * 1024 * 1024
"""Bytes of one line."""


class Lines:
    """Splits bytes into lines, wherever the chunks were cut."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are complete with this chunk. Raises UpstreamError: one is too long."""
        *lines, rest = chunk.split(b"\n")
        if lines and self._parts:
            lines[0] = self.rest() + lines[0]
        if rest:
            self._parts.append(rest)
            self._held += len(rest)
            if self._held > LONGEST:
                raise UpstreamError(f"The backend sent a line of more than {LONGEST} bytes.")
        return lines

    def rest(self) -> bytes:
        """What has no end of line yet, taken out."""
        rest, self._parts, self._held = b"".join(self._parts), [], 0
        return rest


class Events:
    """The events of an answer, as `Reply.stream` wants them. Every line below `__anext__` is paid for every chunk."""

    def __init__(self, reply: Reply, translation: ChatTranslation | CompletionTranslation) -> None:
        self._reply, self._translation = reply, translation
        self._chunks = aiter(reply.stream) if reply.stream is not None else _one(reply.content or b"")
        self._lines = Lines()
        self._first = b""
        self._over = False
        self._error: GatewayError | None = None
        """To be raised once what came before it has been said."""

    async def until_token(self, *, or_anything: bool) -> None:
        """Wait for the first event, or for the first with something of the answer. Raises GatewayError."""
        while not self._over and not (self._first and (or_anything or has_begun(self._first))):
            self._first += await self._next()
            if self._error is not None:  # nothing has been said yet: somebody else may answer
                raise self._error

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        while not self._translation.finished:
            if events := await self._next():
                return events
        await self._farewell()
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        """The events of the next chunk. Raises GatewayError: it broke off, or is no answer."""
        if self._error is not None:
            raise self._error
        try:
            lines = self._lines.feed(await anext(self._chunks))
        except StopAsyncIteration:
            self._over = True
            lines = [self._lines.rest()]
        events = b""
        try:
            for line in lines:
                events += self._translation.feed(line)
        except GatewayError as error:
            if not events:
                raise
            self._error = error
            return events
        self._over = self._over or self._translation.finished
        if self._over and not self._translation.finished:
            raise UpstreamError(CUT)
        return events

    async def _farewell(self) -> None:
        """Read to the end, so that the connection can be used again. Nothing is missing if that fails."""
        hurry: Callable[[], None] | None = getattr(self._reply.stream, "hurry", None)
        if hurry is not None:
            hurry()
        with contextlib.suppress(GatewayError):
            async for _ in self._chunks:
                pass

    async def aclose(self) -> None:
        await self._reply.aclose()


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content
