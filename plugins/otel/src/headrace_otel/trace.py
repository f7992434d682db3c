"""A request that is recorded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from . import context, wire

if TYPE_CHECKING:
    from headrace.exchange import Usage

    from .answers import AnswerTap


class Trace:
    """What is known of it until it is over."""

    __slots__ = (
        "_clock",
        "_end",
        "_trace",
        "answer",
        "counted",
        "flags",
        "own",
        "parent",
        "spans",
        "trace_id",
        "try_id",
    )

    def __init__(self, incoming: context.Incoming | None) -> None:
        if incoming is None:
            ids = context.new_ids()
            self._trace, self.own, self.parent = ids[:16], ids[16:], b""
            self.trace_id = self._trace.hex()
            self.flags = context.SAMPLED | context.RANDOM
        else:
            self.trace_id, self.own = incoming.trace_id, context.new_span_id()
            self._trace, self.parent = bytes.fromhex(incoming.trace_id), bytes.fromhex(incoming.span_id)
            self.flags = incoming.flags & context.RANDOM | context.SAMPLED
        self.try_id = b""
        """Of the try that is under way."""
        self.spans: list[bytes] = []
        """Those of tries that are over, encoded."""
        self.answer: AnswerTap | None = None
        """What is seen of the answer, if content is captured."""
        self.counted: tuple[Usage, bytes] | None = None
        """The tokens, encoded."""
        self._end = 0
        """When the last of the tries was over."""
        self._clock = time.time() - time.perf_counter()

    @property
    def span_id(self) -> str:
        """Of the request's own span, in hexadecimal, as `trace_id` is."""
        return self.own.hex()

    def next_try(self) -> str:
        """The `traceparent` of another try."""
        self.try_id = context.new_span_id()
        return f"00-{self.trace_id}-{self.try_id.hex()}-{self.flags:02x}"

    def try_span(self, began: float, seconds: float, rest: bytes) -> None:
        """Note the span of the try that was under way; it may have ended before anything was sent."""
        own, self.try_id = self.try_id or context.new_span_id(), b""
        self.spans.append(self._span(own, self.own, began, seconds, wire.SAMPLED, rest))

    def request_span(self, began: float, seconds: float, rest: bytes) -> None:
        """Note the span of the request itself."""
        flags = wire.REMOTE_PARENT if self.parent else wire.SAMPLED
        self.spans.append(self._span(self.own, self.parent, began, seconds, flags, rest))

    def _span(self, own: bytes, parent: bytes, began: float, seconds: float, flags: int, rest: bytes) -> bytes:
        """`began` is a moment of `time.perf_counter()`."""
        began += self._clock
        start, end = int(began * 1e9), int((began + seconds) * 1e9)
        if end < self._end:  # a request is not over before its tries
            end = self._end
        self._end = end
        return wire.span(self._trace, own, parent, start, end, flags, rest)
