"""The connections to one backend: its TLS, its proxy, its limits."""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import ssl
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import aiohttp
import certifi
import httptools
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from .body import Body
from .exchange import Target, UpstreamRequest


class Pool:
    """The connections to one target."""

    def __init__(self, target: Target) -> None:
        self.session = _session(target)
        self._proxy, self._login = _proxy(target)

    @property
    def in_use(self) -> int:
        """Connections on which something is asked or answered now."""
        return len(getattr(self.session.connector, "_acquired", ()))

    def request(self, request: UpstreamRequest) -> Awaitable[aiohttp.ClientResponse]:
        url = _url(request.url)
        headers = CIMultiDict([(k, v if v.isascii() else header_text(v)) for k, v in request.headers.items()])
        options: dict[str, Any] = {}
        if self._proxy is not None:
            options["proxy"] = self._proxy
            if self._login is not None:
                if url.scheme == "https":
                    options["proxy_headers"] = {"Proxy-Authorization": self._login}
                else:
                    headers["Proxy-Authorization"] = self._login
        if "User-Agent" not in headers or "Content-Type" not in headers:
            options["skip_auto_headers"] = _NOT_ADDED
        return self.session.request(
            request.method, url, headers=headers, data=request.body or None, allow_redirects=False, **options
        )


_NOT_ADDED = ("User-Agent", "Content-Type")
"""What aiohttp would add to a request that lacks it."""
_url = functools.lru_cache(maxsize=1024)(URL)
"""A URL keeps what was worked out about it, and there are few of them."""


def header_text(value: str) -> str:
    """The value of a header as aiohttp wants it: it encodes in UTF-8 what we hold as latin-1.

    Bytes that are not UTF-8 cannot be sent through aiohttp; each becomes the character it is in latin-1.
    """
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _proxy(target: Target) -> tuple[URL | None, str | None]:
    """The proxy's address, and what to log in with: apart, for addresses are named in errors."""
    if not target.proxy:
        return None, None
    url = URL(target.proxy.reveal())
    if url.user is None and url.password is None:
        return url, None
    login = f"{url.user or ''}:{url.password or ''}".encode()
    return url.with_user(None), f"Basic {base64.b64encode(login).decode()}"


class Handler(ResponseHandler):
    """aiohttp's end of a connection, from which a body can be taken over.

    After each chunk aiohttp says that reading may go on, feeds its parser nothing and starts its transport again: left
    out where reading was not stopped.
    """

    MOST_RECEIVED = 16_384
    """Bytes of an answer after which its body stays with aiohttp, as long as nobody has taken it over."""

    body: Body | None = None
    """What is read here and not by aiohttp."""
    _received: list[bytes] | None = None
    """All that came of the answer; None if that is too much."""
    _room = 0
    """Bytes that it may still have."""

    def set_response_params(self, **params: Any) -> None:
        """A request is sent."""
        ResponseHandler.set_response_params(self, **params)
        self.body, self._received, self._room = None, [], self.MOST_RECEIVED

    def data_received(self, data: bytes) -> None:
        if self.body is not None:
            self.body.feed(data)
            return
        if self._received is not None:
            self._keep(data)
        ResponseHandler.data_received(self, data)

    def _keep(self, data: bytes) -> None:
        assert self._received is not None
        self._received.append(data)
        self._room -= len(data)
        if self._room < 0:
            self._received = None

    def connection_lost(self, exc: BaseException | None) -> None:
        ResponseHandler.connection_lost(self, exc)
        if self.body is not None:
            self.body.lost()
            self.body = None

    def take_over(self, content: aiohttp.StreamReader) -> Body | None:
        """Have the rest of a chunked body given away as it comes; None if it must be read from `content`."""
        received, self._received = self._received, None
        if not received or content.exception() is not None:
            return None
        try:
            body = Body(self, content, received)
        except httptools.HttpParserError:
            return None
        if body.ended:
            body.leave()
            return None
        body.begin()
        return body

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._reading_paused:
            super().resume_reading(resume_parser)


def _session(target: Target) -> aiohttp.ClientSession:
    timeouts = target.timeouts
    pool: dict[str, Any] = {"limit": target.max_connections}
    pool |= {"keepalive_timeout": timeouts.keep_alive} if timeouts.keep_alive else {"force_close": True}
    connector: aiohttp.BaseConnector = (
        aiohttp.UnixConnector(target.socket, **pool)
        if target.socket
        else aiohttp.TCPConnector(ssl=_context(target.verify), **pool)
    )
    setattr(connector, "_factory", functools.partial(Handler, loop=asyncio.get_running_loop()))  # noqa: B010
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(connect=timeouts.connect, sock_connect=timeouts.connect),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
    )


def _context(verify: bool | str) -> ssl.SSLContext:
    """TLS as the target wants it: certifi's authorities or SSL_CERT_FILE's, a bundle of its own, or no check."""
    if verify is False:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if verify is True:
        verify = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR") or certifi.where()
    path = Path(verify)
    return ssl.create_default_context(capath=path) if path.is_dir() else ssl.create_default_context(cafile=path)
