"""Which requests are recorded, what backends are told of it, and the spans of those that are.

All of it is paid for each request: see `docs/tracing.md`. A request that is not recorded has no `Trace`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random
from typing import TYPE_CHECKING

from . import context
from .spans import RequestSpans, TrySpans
from .trace import Trace

if TYPE_CHECKING:
    from headrace.exchange import Attempt, Exchange, Outcome

    from .config import OtelConfig
    from .content import Content
    from .kinds import Kind
    from .names import Errors

STATE = "otel"
"""The name under which an exchange keeps its `Trace`, or None if it has been decided that it has none."""
RESTARTED = "headrace=restarted"
"""A `tracestate` in place of one that no valid `traceparent` goes with: that is not ours to pass on, and nginx can
replace a header of the client's, not leave it out."""


class Tracing:
    """Decides, and makes spans.

    Args:
        put: takes encoded spans, their size, and how many they are.
    """

    def __init__(
        self, config: OtelConfig, errors: Errors, content: Content, put: Callable[[bytes, int, int], None]
    ) -> None:
        self._ratio, self._trusts = config.sample, config.trust_incoming
        self._content, self._put = content, put
        self._requests, self._tries = RequestSpans(content), TrySpans(errors)

    def begin(self, exchange: Exchange) -> Trace | None:
        """The trace of a request, if it is to be recorded. Asked once for each."""
        exchange.state[STATE] = None
        incoming = context.read(exchange) if exchange.header(b"traceparent") is not None else None
        if incoming is not None and self._trusts:
            if not incoming.sampled:
                return None
        elif random() >= self._ratio:  # noqa: S311 (nothing secret)
            return None
        trace = exchange.state[STATE] = Trace(incoming)
        trace.answer = self._content.tap()
        return trace

    def tell(self, attempt: Attempt) -> None:
        """Tell a backend where it stands."""
        exchange, request = attempt.exchange, attempt.request
        assert request is not None  # it is built by now
        trace: Trace | None = exchange.state.get(STATE)
        if trace is not None:
            said, restarted = trace.next_try(), not trace.parent
        else:
            said, restarted = _unrecorded(exchange)
        if said:
            request.set_header("traceparent", said)
            if restarted and exchange.header(b"tracestate") is not None:
                request.set_header("tracestate", RESTARTED)

    def attempted(self, attempt: Attempt, outcome: Outcome) -> None:
        """A try is over."""
        trace: Trace | None = attempt.exchange.state.get(STATE)
        if trace is not None:
            self._tries.add(trace, attempt, outcome)

    def of(self, exchange: Exchange) -> Trace | None:
        """The trace of a request that is over. On one that was refused before its way began is decided now."""
        state = exchange.state
        trace: Trace | None = state[STATE] if STATE in state else self.begin(exchange)
        return trace

    def completed(self, trace: Trace, exchange: Exchange, outcome: Outcome, kind: Kind) -> None:
        """A request that is recorded is over."""
        self._requests.add(trace, exchange, outcome, kind)
        data = b"".join(trace.spans)
        self._put(data, len(data), len(trace.spans))


def _unrecorded(exchange: Exchange) -> tuple[str, bool]:
    """What backends are told of a request that is not recorded (empty: what the client says is passed on as it is), and
    whether its trace begins here."""
    incoming = context.read(exchange) if exchange.header(b"traceparent") is not None else None
    if incoming is None:
        return context.unrecorded(), True
    return incoming.unsampled() if incoming.sampled else "", False
