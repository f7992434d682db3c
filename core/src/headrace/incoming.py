"""A backend's answer as it comes: chunks of its body, and what goes wrong meanwhile.

What is done here for a chunk is paid for every chunk of every stream that the core delivers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import aiohttp

from .body import Body, Take
from .errors import GatewayError, Unavailable, UpstreamError, UpstreamTimeout
from .exchange import Target
from .pool import Handler
from .verdict import EVIDENCE_LIMIT, check_first, has_begun, unreached

FAREWELL_SECONDS = 2.0
"""For so long a stream that has given its finish reason is waited for: its token counts, and its end."""
MOST_HELD = 65_536
"""Bytes of a stream in which its first token is looked for."""
BROKEN = (aiohttp.ClientError, OSError, ValueError)
"""What the client library raises when a request fails."""


class Incoming:
    """The chunks of a body; raises UpstreamTimeout if the backend is silent for `timeouts.idle` seconds.

    One timer per stream, not per chunk: a chunk only notes the time. What a slow client takes does not count,
    for the backend is not asked meanwhile.
    """

    __slots__ = (
        *("_body", "_clock", "_expired", "_idle", "_read", "_response", "_target", "_timer", "_waiting_since"),
        "first",
    )

    def __init__(self, response: aiohttp.ClientResponse, target: Target) -> None:
        self.first = b""
        """A chunk that was read before."""
        self._response = response
        self._read = response.content.readany
        self._target = target
        self._idle = target.timeouts.idle
        """Seconds that it may be silent."""
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_since: float | None = None
        self._expired = False
        self._body: Body | None = None
        """If it is not read from aiohttp."""

    async def open(self) -> None:
        """Wait for the first chunk, and look whether it is an error."""
        self.first = await self._read()
        if not self.first:
            raise UpstreamError("The backend sent an empty stream.", detail=f"target {self._target.name}")
        check_first(self.first, self._target)

    async def until_token(self) -> None:
        """Wait until there is more than a role and comments."""
        check_first(self.first, self._target, anywhere=True)
        while not has_begun(self.first) and len(self.first) < MOST_HELD:
            chunk = await self._read()
            if not chunk:
                raise UpstreamError("The backend ended the stream before its first token.")
            self.first += chunk
            check_first(self.first, self._target, anywhere=True)

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> bytes:
        if self._timer is None:
            if self.first:
                chunk, self.first = self.first, b""
                return chunk
            self._watch(self._idle)
        self._waiting_since = self._clock()
        try:
            chunk = await self._read()
        except BROKEN as error:
            raise self._failure(error) from error
        finally:
            self._waiting_since = None
        if not chunk:
            self.close()
            raise StopAsyncIteration
        return chunk

    async def through(self, take: Take) -> AsyncGenerator[bytes, None]:
        """Give each chunk to `take` the moment it comes. No task is woken for that: only for what it leaves, which is
        yielded; until the next one is asked for, nothing more is given.

        Raises:
            UpstreamTimeout, UpstreamError; whatever `take` raises.
        """
        first, self.first = self.first, b""
        if first and (rest := take(first)):
            yield rest
        self._body = self._taken_over()
        if self._body is None:
            async for chunk in self:
                if rest := take(chunk):
                    yield rest
            return
        try:
            while rest := await self._rest_of(self._body, take):
                yield rest
        finally:
            self._body.leave()
        self.close()

    async def _rest_of(self, body: Body, take: Take) -> bytes:
        if self._timer is None:
            self._watch(self._idle)
        try:
            return await body.rest(take)
        except aiohttp.ClientError as error:
            raise self._failure(error) from error

    def _taken_over(self) -> Body | None:
        """The rest of the body; None if it must be read from aiohttp, or is all here."""
        connection = self._response.connection
        handler = connection.protocol if connection is not None else None
        if not isinstance(handler, Handler) or self._response.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return None
        return handler.take_over(self._response.content)

    def _watch(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._timer = loop.call_later(seconds, self._look)

    def hurry(self) -> None:
        """All has been said that matters: whoever does not end now need not be waited for."""
        self._idle = min(self._idle, FAREWELL_SECONDS)
        if self._timer is not None:
            self._timer.cancel()
            self._watch(self._idle)

    def _look(self) -> None:
        """End the stream if its reader has waited too long; if nobody reads, the next one to do so starts a timer."""
        self._timer = None
        since = self._waiting_since if self._body is None else self._body.waiting_since
        if since is None:
            return
        left = since + self._idle - self._clock()
        if left > 0:
            self._watch(left)
        else:
            self._expired = True
            self._response.close()  # which wakes the reader

    def _failure(self, error: Exception) -> GatewayError:
        self.close()
        return silent(self._idle, self._target) if self._expired else as_gateway_error(error, self._target)

    def close(self) -> None:
        """End it. The connection of a body that was not read to its end is closed, any other is in the pool already."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._response.closed:
            self._response.close()

    async def aclose(self) -> None:
        self.close()


def silent(seconds: float | None, target: Target, what: str = "nothing") -> UpstreamTimeout:
    return UpstreamTimeout(f"The backend sent {what} for {seconds:g} s.", detail=f"target {target.name}")


def as_gateway_error(error: BaseException, target: Target) -> GatewayError:
    """Name what went wrong on the way to a backend; the address stays in the detail."""
    detail = f"target {target.name} at {target.socket or target.base_url}: {_named(error)}"
    if isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.ServerTimeoutError):
        return unreached(UpstreamTimeout("No connection to the backend could be had in time.", detail=detail))
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return UpstreamError("The backend's TLS certificate was not accepted.", detail=detail)
    if isinstance(error, aiohttp.ClientConnectorError):
        return unreached(Unavailable("The backend cannot be reached.", detail=detail))
    return UpstreamError("The connection to the backend broke.", detail=detail, evidence=str(error)[:EVIDENCE_LIMIT])


def _named(error: BaseException) -> str:
    """An error for the log. Those that are about what a backend has said may repeat it: only their names are told."""
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientOSError | OSError | aiohttp.ConnectionTimeoutError):
        return f"{name}: {error}"
    cause = error.__cause__
    return f"{name} ({type(cause).__name__})" if cause is not None else name
