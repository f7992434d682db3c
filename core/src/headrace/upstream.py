"""The one HTTP client: aiohttp, with one connection pool per backend.

No redirects, no cookies, no proxies from the environment; bodies stay as packed as they came.
"""

from __future__ import annotations

import asyncio

import aiohttp

from .errors import GatewayError, Unavailable, UpstreamError, UpstreamTimeout
from .exchange import Exchange, Reply, Target, UpstreamRequest
from .pool import Pool
from .timelimit import Deadline
from .verdict import EVIDENCE_LIMIT, check, check_first, has_begun, unreached

WHOLE_LIMIT = 16 * 1024 * 1024
"""A reply that is no stream is read whole up to this size, so that a cut one can still be asked for elsewhere."""
FAREWELL_SECONDS = 2.0
"""For so long a stream that has given its finish reason is waited for: its token counts, and its end."""
MOST_HELD = 65_536
"""Bytes of a stream in which its first token is looked for."""
LINES = "application/x-ndjson"
"""Streams of JSON, one value a line, as Ollama gives them: whoever asks for a stream is given this one, too."""
BROKEN = (aiohttp.ClientError, OSError, ValueError)
"""What the client library raises when a request fails."""


class Upstream:
    """Sends requests to targets. One instance per gateway; made without I/O, closed at the end."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, float], Pool] = {}

    @property
    def in_use(self) -> int:
        """Connections to backends on which something is asked or answered now."""
        return sum(pool.in_use for pool in self._pools.values())

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.session.close()
        self._pools.clear()

    async def send(
        self, target: Target, request: UpstreamRequest, *, checked: bool = True, streaming: bool = False
    ) -> Reply:
        """Send and wait for the head of the answer and the first chunk of its body; of a stream, for its first token
        if the target has a deadline for that.

        With `checked`, an answer that another target might give better, and one that is the operator's business
        rather than the caller's, is raised as an error. With `streaming`, lines of JSON are a stream as well as events
        are; whether they have a token is for the caller to see.

        Raises:
            UpstreamTimeout, UpstreamError, Unavailable, RateLimited.
        """
        timeouts = target.timeouts
        try:
            if not streaming or timeouts.first_token is None:
                with Deadline(timeouts.first_byte, lambda: _silent(timeouts.first_byte, target)):
                    return await self._ask(target, request, checked, streaming)
            with Deadline(timeouts.first_token, lambda: _silent(timeouts.first_token, target, "no token")):
                return await self._ask_for_token(target, request, checked)
        except BROKEN as error:
            raise as_gateway_error(error, target) from error

    async def _ask(self, target: Target, request: UpstreamRequest, checked: bool, streaming: bool) -> Reply:
        return await _reply(await self._pool(target).request(request), target, checked, streaming)

    async def _ask_for_token(self, target: Target, request: UpstreamRequest, checked: bool) -> Reply:
        with Deadline(target.timeouts.first_byte, lambda: _silent(target.timeouts.first_byte, target)):
            reply = await self._ask(target, request, checked, True)
        if isinstance(reply.stream, _Stream) and reply.is_event_stream:
            try:
                await reply.stream.until_token()
            except BaseException:
                await reply.aclose()
                raise
        return reply

    def _pool(self, target: Target) -> Pool:
        key = target.name, target.timeouts.connect
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(target)
        return pool


async def _reply(response: aiohttp.ClientResponse, target: Target, checked: bool, streaming: bool) -> Reply:
    """The reply, whole if it is no stream, else with its first chunk already here."""
    stream = _Stream(response, target)
    headers = [(name.lower(), value) for name, value in response.raw_headers]
    reply = Reply(response.status, headers, close=stream.aclose)
    try:
        if reply.ok and (reply.is_event_stream or (streaming and reply.media_type == LINES)):
            await stream.open()
            reply.stream = stream
        else:
            await _read_whole(reply, stream, response.content)
        if checked:
            check(reply, target)
    except BaseException:
        stream.close()
        raise
    return reply


async def _read_whole(reply: Reply, stream: _Stream, content: aiohttp.StreamReader) -> None:
    parts: list[bytes] = []
    size = 0
    while not content.at_eof():
        part = await content.readany()
        parts.append(part)
        size += len(part)
        if size > WHOLE_LIMIT:
            stream.first = b"".join(parts)
            reply.stream = stream
            return
    reply.content = b"".join(parts)
    stream.close()


class _Stream:
    """The chunks of a body; raises UpstreamTimeout if the backend is silent for `timeouts.idle` seconds.

    One timer per stream, not per chunk: a chunk only notes the time. What a slow client takes does not count,
    for the backend is not asked meanwhile.
    """

    __slots__ = ("_clock", "_expired", "_idle", "_read", "_response", "_target", "_timer", "_waiting_since", "first")

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

    def __aiter__(self) -> _Stream:
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
        if self._waiting_since is None:
            return
        left = self._waiting_since + self._idle - self._clock()
        if left > 0:
            self._watch(left)
        else:
            self._expired = True
            self._response.close()  # which wakes the reader

    def _failure(self, error: Exception) -> GatewayError:
        self.close()
        return _silent(self._idle, self._target) if self._expired else as_gateway_error(error, self._target)

    def close(self) -> None:
        """End it. The connection of a body that was not read to its end is closed, any other is in the pool already."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._response.closed:
            self._response.close()

    async def aclose(self) -> None:
        self.close()


def _silent(seconds: float | None, target: Target, what: str = "nothing") -> UpstreamTimeout:
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


FORWARDED = (
    (b"accept", "Accept"),
    (b"content-type", "Content-Type"),
    (b"traceparent", "Traceparent"),
    (b"tracestate", "Tracestate"),
    (b"user-agent", "User-Agent"),
    (b"openai-beta", "OpenAI-Beta"),
    (b"anthropic-version", "Anthropic-Version"),
    (b"anthropic-beta", "Anthropic-Beta"),
)
"""The client's request headers that go upstream; its credentials and cookies never do."""


def forwarded_headers(exchange: Exchange, target: Target) -> dict[str, str]:
    """Headers of a request to a backend: the client's that may pass, the target's own, its key, our request id."""
    headers = {"Accept-Encoding": "identity", "X-Request-ID": exchange.id}
    for name, title in FORWARDED:
        value = exchange.header(name)
        if value is not None:
            headers[title] = value
    headers.setdefault("Content-Type", "application/json")
    return headers | target_headers(target)


def target_headers(target: Target) -> dict[str, str]:
    """Headers that every request to a target carries: the configured ones, and its key."""
    headers = {"Accept-Encoding": "identity", **{name: value.reveal() for name, value in target.headers.items()}}
    if target.api_key:
        headers["Authorization"] = f"Bearer {target.api_key.reveal()}"
    return headers
