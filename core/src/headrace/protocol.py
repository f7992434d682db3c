"""uvicorn's HTTP protocol with a limit on request heads and our words for malformed requests."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import GatewayError, HeadersTooLarge, InvalidRequest, MethodNotAllowed, envelope
from .exchange import Headers

_UNSENDABLE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
_REQUEST_LINE = re.compile(rb"[A-Z][A-Z_-]* \S")


class Protocol(HttpToolsProtocol):
    """One client connection. A head that is too large or malformed is answered in the envelope, and that is its end."""

    max_header_bytes = 32_768

    _head_bytes = 0
    """Bytes received of a head that came in pieces and is not complete; 0 between heads."""
    _data = b""
    """What is being parsed."""
    _in_body = False
    _size = 0
    """Bytes of the headers' names and values so far."""
    _hosts = 0
    """How many of them are called Host."""
    _refusal: GatewayError | None = None

    _on_lost: Callable[[], None] | None = None
    _lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost = True
        if self._on_lost is not None:
            self._on_lost()

    @property
    def expects_body(self) -> bool:
        """Whether the current request's body is not here yet."""
        return self.cycle.more_body

    def unwatch(self, on_lost: Callable[[], None]) -> None:
        """Who gave this need not know any more; the next request over the connection may have given its own."""
        if self._on_lost == on_lost:
            self._on_lost = None

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Call this once the client has left."""
        self._on_lost = on_lost
        self.flow.resume_reading()  # it is paused behind a large body, and would not see the end
        if self._lost:
            on_lost()

    def answer(self, headers: Headers) -> None:
        """Answer the current request with these headers and no body: what its cycle would do, in one step.

        Raises:
            RuntimeError: a header has a control character in it.
        """
        cycle = self.cycle
        if cycle.disconnected:
            return
        head = b"\r\n".join([b"HTTP/1.1 200 OK", *(b"%b: %b" % header for header in headers), b"", b""])
        if head.count(b"\n") != len(headers) + 2 or _UNSENDABLE.search(head):
            raise RuntimeError("Invalid HTTP header value.")
        cycle.response_started = cycle.response_complete = True
        self.transport.write(head)
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def data_received(self, data: bytes) -> None:
        in_head = self._head_bytes
        self._data = data
        super().data_received(data)
        self._data = b""
        if in_head and self._head_bytes:  # the parser keeps what is incomplete, without a limit of its own
            self._head_bytes = in_head + len(data)
            if self._head_bytes > self.max_header_bytes and not self.transport.is_closing():
                self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["headrace.wire"] = self  # type: ignore[typeddict-unknown-key]
        self._head_bytes = 1
        self._in_body = False
        self._size = self._hosts = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """What uvicorn does, and counts. It is called for every header of every request."""
        if self._in_body:  # a trailer is no header: RFC 9110, 6.5.1
            return
        name = name.lower()
        self.headers.append((name, value))
        self._size += len(name) + len(value)
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self._in_body = True
        if len(self.url) + self._size > self.max_header_bytes:
            self._refusal = self._too_large()
            raise self._refusal
        if self._hosts != 1 and self.parser.get_http_version() == "1.1":
            self._refusal = InvalidRequest("The request needs one Host header.", code="invalid_http")
            raise self._refusal
        super().on_headers_complete()

    def _too_large(self) -> GatewayError:
        return HeadersTooLarge(f"The request's head is larger than {self.max_header_bytes} bytes.")

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when its parser, or one of the callbacks above, refuses."""
        self._refuse(self._refusal or _malformed(sys.exc_info()[1], self._data))

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
    """The protocol with this limit."""
    return type("Protocol", (Protocol,), {"max_header_bytes": max_header_bytes})


def _malformed(cause: BaseException | None, data: bytes) -> GatewayError:
    """What the parser could not read, for the caller."""
    if isinstance(cause, httptools.HttpParserInvalidMethodError) and _REQUEST_LINE.match(data):
        return MethodNotAllowed("This method is not known here.", headers={"Allow": "GET, HEAD, POST, OPTIONS"})
    return InvalidRequest("This is not a valid HTTP request.", code="invalid_http")
