"""The one HTTP client: aiohttp, with one connection pool per backend.

No redirects, no cookies, no proxies from the environment; bodies stay as packed as they came.
"""

from __future__ import annotations

import aiohttp

from .exchange import Exchange, Reply, Target, UpstreamRequest
from .incoming import BROKEN, Incoming, as_gateway_error, silent
from .pool import Pool
from .timelimit import Deadline
from .verdict import check

WHOLE_LIMIT = 16 * 1024 * 1024
"""A reply that is no stream is read whole up to this size, so that a cut one can still be asked for elsewhere."""
LINES = "application/x-ndjson"
"""Streams of JSON, one value a line, as Ollama gives them: whoever asks for a stream is given this one, too."""


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
                with Deadline(timeouts.first_byte, lambda: silent(timeouts.first_byte, target)):
                    return await self._ask(target, request, checked, streaming)
            with Deadline(timeouts.first_token, lambda: silent(timeouts.first_token, target, "no token")):
                return await self._ask_for_token(target, request, checked)
        except BROKEN as error:
            raise as_gateway_error(error, target) from error

    async def _ask(self, target: Target, request: UpstreamRequest, checked: bool, streaming: bool) -> Reply:
        return await _reply(await self._pool(target).request(request), target, checked, streaming)

    async def _ask_for_token(self, target: Target, request: UpstreamRequest, checked: bool) -> Reply:
        with Deadline(target.timeouts.first_byte, lambda: silent(target.timeouts.first_byte, target)):
            reply = await self._ask(target, request, checked, True)
        if isinstance(reply.stream, Incoming) and reply.is_event_stream:
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
    stream = Incoming(response, target)
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


async def _read_whole(reply: Reply, stream: Incoming, content: aiohttp.StreamReader) -> None:
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
