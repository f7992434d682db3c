"""The two kinds of spans: SERVER, one for each request, and CLIENT, one for each try.

Names are OpenTelemetry's where it has one (https://github.com/open-telemetry/semantic-conventions-genai, and http,
server, error, user of https://opentelemetry.io/docs/specs/semconv/); the others begin with `headrace.`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind

from .kept import Kept
from .names import CLIENT_LEFT, address, operation
from .templates import template
from .wire import Attribute

if TYPE_CHECKING:
    from headrace.exchange import Attempt, Exchange, Outcome, Usage

    from .content import Content
    from .kinds import Kind
    from .names import Errors
    from .trace import Trace

INPUT, OUTPUT = Attribute("gen_ai.usage.input_tokens"), Attribute("gen_ai.usage.output_tokens")
CACHED = Attribute("gen_ai.usage.cache_read.input_tokens")
ESTIMATED = Attribute("headrace.usage.estimated")
FIRST_CHUNK = Attribute("gen_ai.response.time_to_first_chunk")
REQUEST_ID, USER = Attribute("headrace.request.id"), Attribute("user.id")
WAITED = Attribute("headrace.queue.wait")
MOST_TEXT = 256
"""Characters of an id."""
CUT = "stream_truncated"
"""The code of an answer that ended early: its status is the backend's."""


class RequestSpans:
    """Makes the span of a request: from its arrival to the last byte of its answer."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._users: Kept[str, bytes] = Kept()

    def add(self, trace: Trace, exchange: Exchange, outcome: Outcome, kind: Kind) -> None:
        if not kind.template:
            kind.template = _request_template(exchange, outcome, kind)
        rest = [kind.template, REQUEST_ID.text(self._content.name(exchange.id)), _measured(trace, exchange, outcome)]
        principal, state = exchange.principal, exchange.state
        if principal is not None:
            rest.append(self._users.get(principal.id) or self._user(principal.id))
        if "queue" in state:
            rest.append(WAITED.double(state["queue"]))
        if trace.answer is not None:
            rest.append(self._content.attributes(exchange, trace.answer))
        trace.request_span(exchange.started, outcome.duration_seconds, b"".join(rest))

    def _user(self, name: str) -> bytes:
        return self._users.keep(name, USER.text(self._content.name(name[:MOST_TEXT])))


def _request_template(exchange: Exchange, outcome: Outcome, kind: Kind) -> bytes:
    name, error = exchange.model.name if exchange.model is not None else "", kind.error
    told = outcome.delivery if outcome.delivery_reason else None  # else it was refused before one was chosen
    said = {
        "gen_ai.operation.name": operation(exchange),
        "gen_ai.request.model": name or None,
        "gen_ai.request.stream": exchange.streaming if exchange.peek is not None else None,
        "gen_ai.provider.name": exchange.attempts[-1].target.provider if exchange.attempts else None,
        "http.request.method": exchange.method,
        "http.route": exchange.path,
        "url.path": exchange.path,
        "url.scheme": kind.scheme,
        "http.response.status_code": outcome.status,
        "error.type": error,
        "headrace.target": outcome.target,
        "headrace.attempts": outcome.attempts,
        "headrace.source": "cache" if outcome.source == "cache" else None,
        "headrace.delivery": told,
        "headrace.delivery.reason": outcome.delivery_reason or None,
    }
    failed = error is not None and error != CLIENT_LEFT and (outcome.status >= 500 or outcome.status < 400)
    return template(f"{operation(exchange)} {name}".rstrip(), SpanKind.SERVER, said, failed=failed)


class TrySpans:
    """Makes the span of a try: from when a target was chosen to its answer's last byte, or to its failure."""

    def __init__(self, errors: Errors) -> None:
        self._errors = errors
        self._templates: Kept[tuple[object, ...], bytes] = Kept()

    def add(self, trace: Trace, attempt: Attempt, outcome: Outcome) -> None:
        exchange, model, peek, said = attempt.exchange, attempt.model, attempt.exchange.peek, outcome.error
        key = (
            exchange.path,
            attempt.target.name,
            model and model.name,
            peek and peek.stream,
            attempt.number,
            attempt.handed_over,
            outcome.status,
            outcome.completed,
            outcome.aborted,
            said and (said.code or said.type),
            exchange.status,
        )
        rest = self._templates.get(key) or self._templates.keep(key, self._template(attempt, outcome))
        trace.try_span(attempt.started, outcome.duration_seconds, rest + _measured(trace, exchange, outcome))

    def _template(self, attempt: Attempt, outcome: Outcome) -> bytes:
        return _try_template(attempt, outcome, self._errors(outcome))


def _try_template(attempt: Attempt, outcome: Outcome, error: str | None) -> bytes:
    exchange, target = attempt.exchange, attempt.target
    host, port = address(target)
    name = target.model or (attempt.model.name if attempt.model is not None else "")
    said = {
        "gen_ai.operation.name": operation(exchange),
        "gen_ai.provider.name": target.provider,
        "gen_ai.request.model": name or None,
        "gen_ai.request.stream": exchange.streaming,
        "server.address": host or None,
        "server.port": port,
        "http.request.method": "POST",
        "http.request.resend_count": attempt.number - 1 or None,
        "http.response.status_code": _answered(exchange, outcome),
        "error.type": error,
        "headrace.target": target.name,
        "headrace.attempt": attempt.number,
        "headrace.delivery": "offload" if attempt.handed_over else "inline",
    }
    failed = error is not None and error != CLIENT_LEFT
    return template(f"{operation(exchange)} {name}".rstrip(), SpanKind.CLIENT, said, failed=failed)


def _answered(exchange: Exchange, outcome: Outcome) -> int | None:
    """The backend's status; None if nobody has heard it."""
    if outcome.error is None:
        return exchange.status if outcome.aborted else outcome.status
    return exchange.status if outcome.error.code == CUT else None


def _measured(trace: Trace, exchange: Exchange, outcome: Outcome) -> bytes:
    """Tokens, and how long the first of them took."""
    usage, first, counted = outcome.usage, outcome.ttft_seconds, b""
    if usage is not None:
        if trace.counted is None or trace.counted[0] is not usage:
            trace.counted = usage, _counted(usage)
        counted = trace.counted[1]
    return counted + FIRST_CHUNK.double(first) if first is not None and exchange.streaming else counted


def _counted(usage: Usage) -> bytes:
    counted = INPUT.integer(usage.prompt_tokens) + OUTPUT.integer(usage.completion_tokens)
    if usage.tells_cached:
        counted += CACHED.integer(usage.cached_tokens)
    return counted + ESTIMATED.true if usage.estimated else counted
