"""Listening: sockets, uvicorn, and a protocol that answers malformed requests in the OpenAI envelope."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .app import build_app
from .errors import (
    GatewayError,
    HeadersTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    envelope,
)
from .gateway import Gateway
from .sockets import bind, bind_unix, held, raise_file_limit

KEEP_ALIVE_SECONDS = 75
"""Longer than nginx keeps its connections to us (60 s), so that it never sends into one that we are closing."""
BACKLOG = 4096


async def serve(
    gateway: Gateway, sockets: Sequence[socket.socket], on_listening: Callable[[], None] = lambda: None
) -> None:
    """Run the gateway on bound sockets until SIGINT or SIGTERM, then let open requests finish.

    Raises:
        PluginError: a plugin's lifespan failed.
    """
    async with gateway.running():
        await make_server(gateway, on_listening).serve(sockets=list(sockets))


class Server(uvicorn.Server):
    """uvicorn's server, which returns when SIGINT or SIGTERM stop it.

    uvicorn itself raises the signal again at the end, and the process would die before plugins have closed anything.
    """

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    @contextlib.asynccontextmanager
    async def answering(self, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
        """Answer for as long as the context lasts, in a loop that somebody else runs; signals are left to them."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(list(sockets))
        await self.on_tick(0)  # makes the Date header
        try:
            yield
        finally:
            await self.shutdown(list(sockets))


def make_server(gateway: Gateway, on_listening: Callable[[], None] = lambda: None) -> Server:
    """A server for the gateway's application; its sockets are passed to `serve` or `answering`."""
    server = gateway.config.server
    config = uvicorn.Config(
        build_app(gateway),
        http=protocol_for(server.max_header_bytes),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(server.shutdown_timeout),
        backlog=BACKLOG,
    )
    return Server(config, on_listening)


def protocol_for(max_header_bytes: int) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with our limit on request heads and our words for malformed requests."""

    class Protocol(HttpToolsProtocol):
        _head_bytes = 0
        _refusal: GatewayError | None = None
        _data = b""

        def data_received(self, data: bytes) -> None:
            self._data = data
            in_head = self._head_bytes > 0
            super().data_received(data)
            if in_head and self._head_bytes > 0:  # a head in many pieces: the parser keeps what is incomplete
                self._grow(len(data), refuse=True)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes = 1

        def on_url(self, url: bytes) -> None:
            self._grow(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._grow(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._head_bytes = 0
            if self.parser.get_http_version() == "1.1" and sum(name == b"host" for name, _ in self.headers) != 1:
                self._refusal = InvalidRequest("The request needs one Host header.", code="invalid_http")
                raise self._refusal
            super().on_headers_complete()

        def _grow(self, size: int, refuse: bool = False) -> None:
            self._head_bytes += size
            if self._head_bytes <= max_header_bytes or self.transport.is_closing():
                return
            self._refusal = HeadersTooLarge(f"The request's head is larger than {max_header_bytes} bytes.")
            if refuse:
                self.send_400_response("")
            else:
                raise self._refusal

        def send_400_response(self, msg: str) -> None:
            error = self._refusal or _malformed(sys.exc_info()[1], self._data)
            body = envelope(error)
            phrase = HTTPStatus(error.status).phrase.encode()
            extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items()).encode()
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"%sconnection: close\r\n\r\n%s" % (error.status, phrase, len(body), extra, body)
            )
            self.transport.close()

    return Protocol


_REQUEST_LINE = re.compile(rb"[A-Z][A-Z_-]* \S")


def _malformed(cause: BaseException | None, data: bytes) -> GatewayError:
    """What the parser could not read, for the caller."""
    if isinstance(cause, httptools.HttpParserInvalidMethodError) and _REQUEST_LINE.match(data):
        return MethodNotAllowed("This method is not known here.", headers={"Allow": "GET, HEAD, POST, OPTIONS"})
    return InvalidRequest("This is not a valid HTTP request.", code="invalid_http")


@contextlib.contextmanager
def listening(gateway: Gateway, *, tcp: bool) -> Iterator[list[socket.socket]]:
    """Sockets to serve on: the core's unix socket and, with `tcp`, `server.listen`. Closed and removed at the end.

    Raises:
        CannotListen, HeadraceError.
    """
    gateway.make_dirs()
    refusal = f"another gateway listens on {gateway.core_socket}: stop it, or set another server.state_dir"
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(gateway.runtime_dir / "core.lock", refusal))
        sockets = [stack.enter_context(bind_unix(gateway.core_socket))]
        stack.callback(gateway.core_socket.unlink, missing_ok=True)
        if tcp:
            sockets.append(stack.enter_context(bind(gateway.config.server.listen)))
        yield sockets


def run(gateway: Gateway, sockets: Sequence[socket.socket], on_listening: Callable[[], None]) -> None:
    """Serve until told to stop, in an event loop of its own. Raises PluginError."""
    raise_file_limit()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(gateway, sockets, on_listening))


def loop_factory() -> Any:
    """uvloop where it exists."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
