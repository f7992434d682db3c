"""How Anthropic's clients are answered: https://platform.claude.com/docs/en/api/errors

Replies of backends that speak the dialect themselves pass byte for byte: what stands here only reads them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from headrace.dialects import Events, Message, Peek, Tokens
from headrace.errors import GatewayError
from headrace.exchange import Usage
from headrace.vetting import Vetting

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""What errors are called, by status. Others of the client's are `invalid_request_error`, of ours `api_error`."""
CHECKS = {"messages": Annotated[list[Message], msgspec.Meta(min_length=1)]}
LAST = frozenset(("message_stop",))
FAILS = frozenset(("error",))
_COUNTS = re.compile(rb'\s*"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_FINISHED = re.compile(rb'"type"\s*:\s*"message_stop"')
_ERROR_EVENT = re.compile(rb'(?:^|[\r\n])(?:event:\s*error\s*[\r\n]|data:\s*\{\s*"type"\s*:\s*"error")')


class MessagesPeek(Peek, kw_only=True):
    checks = CHECKS

    messages: msgspec.Raw
    max_tokens: Annotated[int, msgspec.Meta(ge=0)]
    temperature: float | None = None


class CountPeek(Peek, kw_only=True):
    checks = CHECKS

    messages: msgspec.Raw


class AnthropicDialect:
    """`{"type": "error", "error": {…}}`, and the same as an event named `error`."""

    name = "anthropic"
    offloads = True
    events = Events(tuple(LAST), tuple(FAILS), ("message_start", "message_delta"))

    def error_body(self, error: GatewayError) -> bytes:
        return msgspec.json.encode(_told(error))

    def error_event(self, error: GatewayError) -> bytes:
        return b"event: error\ndata: " + msgspec.json.encode(_told(error)) + b"\n\n"

    def is_complete(self, tail: bytes) -> bool:
        """Whether the last event came, and none that tells of an error."""
        return _FINISHED.search(tail) is not None and _ERROR_EVENT.search(tail) is None

    def vetting(self, answers: int) -> Vetting:
        return Vetting(1, last=LAST, fails=FAILS)

    def usage(self, tail: bytes) -> Usage | None:
        """The token counts of a whole answer, or of a stream that told them at its end.

        Of a stream that was cut there are none: what its first event says of the answer is no count of it.
        """
        if tail.lstrip()[:1] == b"{":
            return _usage(None, _read(_whole, tail))
        if (counts := _COUNTS.match(tail)) is not None:  # what nginx tells of a whole answer
            return _usage(None, _read(_whole, b'{"usage":' + counts[1] + b"}"))
        return _usage(_line(tail, b'"message_start"'), _line(tail, b'"message_delta"', last=True))


class CountDialect(AnthropicDialect):
    """The same for requests that are only counted: they cost no tokens."""

    def usage(self, tail: bytes) -> Usage | None:
        return Usage()


def _told(error: GatewayError) -> dict[str, Any]:
    kind = TYPES.get(error.status) or ("invalid_request_error" if error.status < 500 else "api_error")
    told: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": error.message}}
    identifier = getattr(error, "request_id", None)
    if identifier:
        told["request_id"] = identifier
    return told


class _Counts(msgspec.Struct):
    """See `wire.Usage`. What a backend says beyond `Tokens` is no number of tokens."""

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    estimated: bool = False
    """Ours alone: the backend has not counted."""


class _Holder(msgspec.Struct):
    usage: _Counts | None = None


class _Told(msgspec.Struct):
    """A whole answer, or an event of a stream."""

    usage: _Counts | None = None
    message: _Holder | None = None


_whole = msgspec.json.Decoder(_Told)


def _read(decoder: msgspec.json.Decoder[_Told], text: bytes) -> _Counts | None:
    try:
        told = decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return told.usage or (told.message.usage if told.message else None)


def _line(tail: bytes, word: bytes, *, last: bool = False) -> _Counts | None:
    """What the event says that has this word: in a text its quotes would be escaped."""
    at = tail.rfind(word) if last else tail.find(word)
    if at < 0:
        return None
    line = tail[tail.rfind(b"\n", 0, at) + 1 :].partition(b"\n")[0].strip()
    return _read(_whole, line.removeprefix(b"data:").strip())


def _usage(start: _Counts | None, end: _Counts | None) -> Usage | None:
    """What the first event said, but for what the last one says otherwise."""
    if end is None or end.output_tokens is None:
        return None

    def latest(name: str) -> int | None:
        said: int | None = getattr(end, name)
        return said if said is not None or start is None else getattr(start, name)

    prompt, cached = latest("input_tokens"), latest("cache_read_input_tokens")
    if prompt is None:
        return None
    return Usage(
        prompt + (cached or 0) + (latest("cache_creation_input_tokens") or 0),
        end.output_tokens,
        cached or 0,
        estimated=end.estimated,
        tells_cached=cached is not None,
    )


DIALECT = AnthropicDialect()
