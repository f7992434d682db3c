"""The one HTTP client: httpx's API over aiohttp's transport, one connection pool per backend.

Calls the transport with a prepared `httpx.Request`: no redirects, no cookies, no proxies from the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from .errors import GatewayError, Unavailable, UpstreamError, UpstreamTimeout
from .exchange import Exchange, Headers, Reply, Target, UpstreamRequest
from .verdict import check, check_first

WHOLE_LIMIT = 16 * 1024 * 1024
"""A reply that is no stream is read whole up to this size, so that a cut one can still be asked for elsewhere."""


class Upstream:
    """Sends requests to targets. One instance per gateway; made without I/O, closed at the end."""

    def __init__(self) -> None:
        self._transports: dict[str, AiohttpTransport] = {}

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()
        self._transports.clear()

    async def send(self, target: Target, request: UpstreamRequest, *, checked: bool = True) -> Reply:
        """Send and wait for the head of the answer and the first chunk of its body.

        With `checked`, an answer that another target might give better, and one that is the operator's business
        rather than the caller's, is raised as an error.

        Raises:
            UpstreamTimeout, UpstreamError, Unavailable, RateLimited.
        """
        timeouts = target.timeouts
        call = _Call(target)
        try:
            async with asyncio.timeout(timeouts.first_byte):
                await call.open(self._transport(target), request)
                reply = await call.reply()
                if checked:
                    check(reply, target)
                return reply
        except TimeoutError as error:
            await call.aclose()
            raise UpstreamTimeout(
                f"The backend sent nothing for {timeouts.first_byte:g} s.", detail=f"target {target.name}"
            ) from error
        except BaseException:
            await call.aclose()
            raise

    def _transport(self, target: Target) -> AiohttpTransport:
        transport = self._transports.get(target.name)
        if transport is None:
            context = _context(target)
            transport = self._transports[target.name] = AiohttpTransport(
                verify=context,
                proxy=httpx.Proxy(target.proxy.reveal()) if target.proxy else None,
                client=_session(target, context),
            )
        return transport


def _context(target: Target) -> ssl.SSLContext:
    """TLS as the target wants it: certifi's authorities or SSL_CERT_FILE's, a bundle of its own, or no check."""
    if isinstance(target.verify, str):
        path = Path(target.verify)
        return ssl.create_default_context(capath=path) if path.is_dir() else ssl.create_default_context(cafile=path)
    return httpx.create_ssl_context(verify=target.verify, trust_env=True)


def _session(target: Target, context: ssl.SSLContext) -> aiohttp.ClientSession:
    seconds = target.timeouts.keep_alive
    pool: dict[str, Any] = {"limit": target.max_connections}
    pool |= {"keepalive_timeout": seconds} if seconds else {"force_close": True}
    connector: aiohttp.BaseConnector = (
        aiohttp.UnixConnector(target.socket, **pool) if target.socket else aiohttp.TCPConnector(ssl=context, **pool)
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Content-Type"),
    )


_url = functools.lru_cache(maxsize=1024)(httpx.URL)
"""Parsing a URL costs more than the rest of building a request, and there are few of them."""


class _Call:
    """One request on the wire."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._response: httpx.Response | None = None

    async def open(self, transport: AiohttpTransport, request: UpstreamRequest) -> None:
        timeouts = self.target.timeouts
        prepared = httpx.Request(
            request.method,
            _url(request.url),
            headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in request.headers.items()],
            content=request.body,
            extensions={"timeout": {"connect": timeouts.connect, "pool": timeouts.connect}},
        )
        with _translated(self.target):
            self._response = await transport.handle_async_request(prepared)

    async def reply(self) -> Reply:
        """The reply, whole if it is no event stream, else with its first chunk already here."""
        response = self._response
        assert response is not None
        headers: Headers = [(name.lower(), value) for name, value in response.headers.raw]
        reply = Reply(response.status_code, headers, close=self.aclose)
        chunks = aiter(_chunks(response, self.target))
        if reply.is_event_stream and reply.ok:
            first = await anext(chunks, None)
            if first is None:
                raise UpstreamError("The backend sent an empty stream.", detail=f"target {self.target.name}")
            check_first(first, self.target)
            reply.stream = _watched(first, chunks, self.target.timeouts.idle)
            return reply
        await _read_whole(reply, chunks, self.target)
        if reply.content is not None:
            await self.aclose()
        return reply

    async def aclose(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            with contextlib.suppress(httpx.HTTPError, aiohttp.ClientError, OSError):
                await response.stream.aclose()  # type: ignore[union-attr]


async def _chunks(response: httpx.Response, target: Target) -> AsyncIterator[bytes]:
    with _translated(target):
        async for chunk in response.stream:  # type: ignore[union-attr]
            yield chunk


async def _read_whole(reply: Reply, chunks: AsyncIterator[bytes], target: Target) -> None:
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > WHOLE_LIMIT:
            reply.stream = _watched(b"".join(parts), chunks, target.timeouts.idle)
            return
    reply.content = b"".join(parts)


async def _watched(first: bytes, chunks: AsyncIterator[bytes], idle: float) -> AsyncIterator[bytes]:
    """All chunks, the first included; raises UpstreamTimeout if the backend is silent for `idle` seconds.

    One timer per stream, not per chunk: a chunk only notes the time. What a slow client takes does not count,
    for the backend is not asked meanwhile.
    """
    watch = _IdleWatch(idle)
    clock = watch.clock
    try:
        yield first
        while True:
            watch.waiting_since = clock()
            chunk = await anext(chunks, None)
            watch.waiting_since = None
            if chunk is None:
                return
            yield chunk
    except asyncio.CancelledError:
        if not watch.expired:
            raise
        watch.task.uncancel()
        raise UpstreamTimeout(f"The backend sent nothing for {idle:g} s.") from None
    finally:
        watch.stop()


class _IdleWatch:
    """Cancels the task that reads a stream once it has waited `idle` seconds for one chunk."""

    __slots__ = ("_idle", "_timer", "clock", "expired", "task", "waiting_since")

    def __init__(self, idle: float) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._idle = idle
        self.clock = loop.time
        self.task = task
        self.expired = False
        self.waiting_since: float | None = None
        self._timer = loop.call_later(idle, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self.clock()
        waited = now - self.waiting_since if self.waiting_since is not None else 0.0
        if waited >= self._idle:
            self.expired = True
            self.task.cancel()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._idle - waited, self._look)


@contextlib.contextmanager
def _translated(target: Target) -> Any:
    """Turn the client library's exceptions into ours."""
    try:
        yield
    except (httpx.HTTPError, aiohttp.ClientError, OSError, ValueError) as error:
        raise as_gateway_error(error, target) from error


def as_gateway_error(error: BaseException, target: Target) -> GatewayError:
    """Name what went wrong on the way to a backend; the address stays in the detail."""
    cause = error.__cause__ or error
    detail = f"target {target.name} at {target.socket or target.base_url}: {type(cause).__name__}: {cause}"
    if isinstance(cause, aiohttp.ConnectionTimeoutError | aiohttp.ServerTimeoutError):
        return UpstreamTimeout("No connection to the backend could be had in time.", detail=detail)
    if isinstance(cause, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return UpstreamError("The backend's TLS certificate was not accepted.", detail=detail)
    if isinstance(cause, aiohttp.ClientConnectorError):
        return Unavailable("The backend cannot be reached.", detail=detail)
    return UpstreamError("The connection to the backend broke.", detail=detail)


FORWARDED = (
    (b"accept", "Accept"),
    (b"content-type", "Content-Type"),
    (b"traceparent", "Traceparent"),
    (b"tracestate", "Tracestate"),
    (b"user-agent", "User-Agent"),
    (b"openai-beta", "OpenAI-Beta"),
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
