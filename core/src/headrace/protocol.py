"""HTTP/1.1 of the core: httptools reads, uvicorn's server runs it, and what is malformed is answered in our words.

Under nginx every request pays for each step here, so a connection does little more than parse: see `cycle.py` for the
requests over it.
"""

from __future__ import annotations

import asyncio
import re
import time
import urllib.parse
from collections import deque
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from .cycle import Cycle
from .errors import GatewayError, HeadersTooLarge, InvalidRequest, MethodNotAllowed, envelope
from .exchange import Headers

WAITING = 8
"""Requests that may wait behind one that is being answered: then the client has to."""
URLS_KEPT, URL_KEPT_BYTES = 1024, 256
_REQUEST_LINE = re.compile(rb"[A-Z][A-Z_-]* \S")
_ASGI = {"version": "3.0", "spec_version": "2.3"}


class Protocol(asyncio.Protocol):
    """One client connection. A head that is too large or malformed is answered in the envelope, and that is its end."""

    max_header_bytes = 32_768

    _head_bytes = 0
    """Bytes received of a head that came in pieces and is not complete; 0 between heads."""
    _new_head = False
    """Whether one has begun in what is being parsed."""
    _data = b""
    """What is being parsed."""
    _in_body = False
    _refusal: GatewayError | None = None
    _paused = False
    _idle_since: float | None = None
    """When the last answer was complete; None while there is a request."""
    _idle_timer: asyncio.TimerHandle | None = None
    _unsent = b""
    """A whole answer that is sent at the end of the loop's turn."""
    _with_unsent: list[Protocol]
    """The server's connections that have one."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """What uvicorn's server gives to each connection."""
        self.loop = _loop or asyncio.get_running_loop()
        self.write_paused = False
        """Whether the client has much to read before more is sent: `writable` tells when it has."""
        self.writable = asyncio.Event()
        self._config = config
        """Has the application, which may be replaced."""
        self._server = server_state
        self._app_state = app_state
        self._keep_alive_seconds = config.timeout_keep_alive
        self._waiting: deque[tuple[Cycle, Any]] = deque()
        self._cycle: Cycle | None = None
        """The request that is being answered."""
        self._last: Cycle | None = None
        """The request that is being read, or was last."""
        self._parser: Any = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # what follows the last request is ignored

    @property
    def default_headers(self) -> Headers:
        """What every answer has, unless nginx is in front: it says the date itself."""
        return [_date(int(time.time()))]

    # --- the connection -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self._client, self._address = get_remote_addr(self.transport), get_local_addr(self.transport)
        self._server.connections.add(cast(Any, self))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self.resume_writing()
        for cycle in (self._cycle, *(cycle for cycle, _ in self._waiting)):
            if cycle is not None:
                cycle.lose()
        self._waiting.clear()
        self._cycle = self._last = self._parser = None  # they point at us: the garbage collector has nothing to find

    def shutdown(self) -> None:
        """uvicorn's server stops: what is being answered is answered."""
        if self._cycle is None or self._cycle.complete:
            self._write_unsent()
            self.transport.close()
        else:
            self._cycle.close_after()

    def pause_writing(self) -> None:
        self.write_paused = True
        self.writable.clear()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.writable.set()

    def pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and len(self._waiting) < WAITING:
            self._paused = False
            self.transport.resume_reading()

    def write_soon(self, answer: bytes) -> None:
        """Send a whole answer, together with those that other connections get in this turn of the loop: nginx reads
        all of them at once, and need not be woken for each. The next request's turn comes after that."""
        if not self._with_unsent:
            self.loop.call_soon(_write_all, self._with_unsent)
        self._with_unsent.append(self)
        self._unsent = answer

    def _write_unsent(self) -> None:
        answer, self._unsent = self._unsent, b""
        if answer and not self.transport.is_closing():
            self.transport.write(answer)

    # --- what httptools reads -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._unsent:
            self._write_unsent()
        self._idle_since = None
        in_head, self._new_head = self._head_bytes, False
        self._data = data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # there is nothing to upgrade to: the request is answered as it is
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or _malformed(error, data))
        self._data = b""
        if in_head and self._head_bytes and not self._new_head:  # the parser itself sets no limit to what it keeps
            self._head_bytes = in_head + len(data)
            if self._head_bytes > self.max_header_bytes and not self.transport.is_closing():
                self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: Headers = []
        self._head_bytes = 1
        self._new_head = True
        self._in_body = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called for every header of every request; what can be done for all at once is done below."""
        if not self._in_body:  # a trailer is no header: RFC 9110, 6.5.1
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self._in_body = True
        version = self._parser.get_http_version()
        expects_continue = self._check_head(version)
        url = self._url
        path, raw_path, query = _split(url) if len(url) > URL_KEPT_BYTES else _split_again(url)
        method = self._parser.get_method().decode("ascii")
        keep_alive = version != "1.0" and self._parser.should_keep_alive()
        cycle = Cycle(self, keep_alive=keep_alive, expects_continue=expects_continue, head_only=method == "HEAD")
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self._address,
            "client": self._client,
            "scheme": "http",
            "method": method,
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy(),
            "headrace.wire": cycle,
        }
        self._last = cycle
        if self._cycle is None or self._cycle.complete:
            self._start(cycle, scope)
        else:
            self.pause_reading()
            self._waiting.append((cycle, scope))

    def _check_head(self, version: str) -> bool:
        """Whether the client waits for `100 Continue`. Raises GatewayError for a head that cannot be accepted."""
        names = [name for name, _ in self._headers]
        size = len(self._url) + sum(map(len, names)) + sum([len(value) for _, value in self._headers])
        if size > self.max_header_bytes:
            self._refusal = self._too_large()
        elif names.count(b"host") != 1 and version == "1.1":
            self._refusal = InvalidRequest("The request needs one Host header.", code="invalid_http")
        if self._refusal is not None:
            raise self._refusal
        return b"expect" in names and (b"expect", b"100-continue") in [(n, value.lower()) for n, value in self._headers]

    def on_body(self, body: bytes) -> None:
        assert self._last is not None
        self._last.feed(body)

    def on_message_complete(self) -> None:
        assert self._last is not None
        self._last.end_of_body()

    # --- requests, one after the other ----------------------------------------------------------------------------

    def _start(self, cycle: Cycle, scope: Any) -> None:
        self._cycle = cycle
        tasks = self._server.tasks
        task = self.loop.create_task(cycle.run(self._config.loaded_app, scope))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_answered(self) -> None:
        """The answer is complete: the next request, if it is here, or a pause of limited length."""
        self._server.total_requests += 1
        if self.transport.is_closing():
            return
        if self._waiting:
            self._start(*self._waiting.popleft())
        self.resume_reading()
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self._keep_alive_seconds, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        """One timer for all pauses of a connection, not one for each."""
        self._idle_timer = None
        if self._idle_since is None or self._cycle is None or not self._cycle.complete:
            return
        left = self._idle_since + self._keep_alive_seconds - self.loop.time()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._look_whether_idle)
        else:
            self.transport.close()

    # --- refusals -------------------------------------------------------------------------------------------------

    def _too_large(self) -> GatewayError:
        return HeadersTooLarge(f"The request's head is larger than {self.max_header_bytes} bytes.")

    def _refuse(self, error: GatewayError) -> None:
        body = envelope(error)
        phrase = HTTPStatus(error.status).phrase.encode()
        extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items()).encode()
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"%sconnection: close\r\n\r\n%s" % (error.status, phrase, len(body), extra, body)
        )
        self.transport.close()


def protocol_for(max_header_bytes: int) -> type[Protocol]:
    """The protocol of one server, with this limit."""
    return type("Protocol", (Protocol,), {"max_header_bytes": max_header_bytes, "_with_unsent": []})


def _write_all(connections: list[Protocol]) -> None:
    for connection in connections:
        connection._write_unsent()
    connections.clear()


@lru_cache(maxsize=1)
def _date(second: int) -> tuple[bytes, bytes]:
    """RFC 9110, 6.6.1."""
    return b"date", formatdate(second, usegmt=True).encode()


def _split(url: bytes) -> tuple[str, bytes, bytes]:
    """The path as text, the path as it came, and the query."""
    parsed = httptools.parse_url(url)
    raw_path = parsed.path
    return urllib.parse.unquote(raw_path.decode("ascii")), raw_path, parsed.query or b""


_split_again = lru_cache(maxsize=URLS_KEPT)(_split)


def _malformed(cause: BaseException, data: bytes) -> GatewayError:
    """What the parser could not read, for the caller."""
    if isinstance(cause, httptools.HttpParserInvalidMethodError) and _REQUEST_LINE.match(data):
        return MethodNotAllowed("This method is not known here.", headers={"Allow": "GET, HEAD, POST, OPTIONS"})
    return InvalidRequest("This is not a valid HTTP request.", code="invalid_http")
