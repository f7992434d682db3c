"""OpenAI's Responses API as the core sees it: what is peeked from a request, how errors and ends are said.

https://platform.openai.com/docs/api-reference/responses and …/responses-streaming
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from headrace.dialects import USAGE_BYTES, USAGE_TRIES, Endpoint, Events, Peek, Tokens
from headrace.errors import GatewayError, envelope, error_object
from headrace.exchange import Usage
from headrace.vetting import Vetting

if TYPE_CHECKING:
    from headrace.translation import Translation

NAME, PATH = "responses", "/v1/responses"
LAST = frozenset(("response.completed", "response.incomplete"))
"""Events after which nothing is missing."""
FAILS = frozenset(("error", "response.failed"))
NULL = msgspec.Raw(b"null")


class ResponsesPeek(Peek, kw_only=True):
    checks: ClassVar[Mapping[str, Any]] = {"input": str | list[dict[str, msgspec.Raw]] | None}

    input: msgspec.Raw = msgspec.field(default_factory=lambda: NULL)
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None

    @property
    def max_tokens(self) -> int | None:
        """By the name under which limits and budgets look for it."""
        return self.max_output_tokens


class _Event(msgspec.Struct):
    type: str = ""


class _InputDetails(msgspec.Struct):
    cached_tokens: Tokens | None = None


class _Counts(msgspec.Struct):
    input_tokens: Tokens
    output_tokens: Tokens = 0
    input_tokens_details: _InputDetails | None = None


_event = msgspec.json.Decoder(_Event).decode
_counts = msgspec.json.Decoder(_Counts).decode
_OBJECT = re.compile(rb"\s*:\s*(\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\})")
"""What follows a `"usage"` key: numbers, and objects of numbers."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class ResponsesDialect:
    """Errors in OpenAI's envelope; those of a stream as an event `error`."""

    name = "responses"
    offloads = True
    """Whole answers say `"usage": {…}`, and so do the last events of streams."""
    events = Events(tuple(sorted(LAST)), tuple(sorted(FAILS)))

    def error_body(self, error: GatewayError) -> bytes:
        return envelope(error)

    def error_event(self, error: GatewayError) -> bytes:
        """Said twice: flat, as the reference has it, and as the object that OpenAI sends and its clients raise.

        `sequence_number` is 0: whoever ends a stream does not know how many events a backend has sent.
        """
        said: dict[str, Any] = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        told = {**said, "sequence_number": 0, "error": error_object(error)}
        return b"event: error\ndata: " + msgspec.json.encode(told) + b"\n\n"

    def is_complete(self, tail: bytes) -> bool:
        """Whether the last event is one of those that end an answer. One that is larger than what is kept of a stream
        has its usage at its end; a stream that was cut within it has not."""
        for line in reversed(tail.splitlines()):
            if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
                continue
            try:
                return _event(line[5:]).type in LAST
            except UNREADABLE:
                return False
        return tail.rstrip().endswith(b"}") and self.usage(tail) is not None

    def vetting(self, answers: int) -> Vetting:
        return Vetting(answers, LAST, FAILS)

    def usage(self, tail: bytes) -> Usage | None:
        at = len(tail)
        for _ in range(USAGE_TRIES):
            at = tail.rfind(b'"usage"', 0, at)
            if at < 0:
                return None
            start = at + len(b'"usage"')
            usage = _read_usage(tail[start : start + USAGE_BYTES])
            if usage is not None:
                return usage
        return None


def _read_usage(text: bytes) -> Usage | None:
    found = _OBJECT.match(text)
    if found is None:
        return None
    try:
        counts = _counts(found[1])
    except UNREADABLE:
        return None
    cached = counts.input_tokens_details.cached_tokens if counts.input_tokens_details else None
    return Usage(counts.input_tokens, counts.output_tokens, cached or 0, tells_cached=cached is not None)


def endpoint(translation: Translation) -> Endpoint:
    """What the plugin registers."""
    return Endpoint(NAME, PATH, ResponsesPeek, ResponsesDialect(), "Answer with items: OpenAI's Responses", translation)
