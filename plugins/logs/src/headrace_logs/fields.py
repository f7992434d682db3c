"""The fields of a request's line.

Names with dots are OpenTelemetry's (https://opentelemetry.io/docs/specs/semconv/: http, url, client, user, error, and
https://github.com/open-telemetry/semantic-conventions-genai: gen_ai); where it has none the name is plain.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import msgspec

from headrace.delivery import told
from headrace.errors import GatewayError
from headrace.exchange import Exchange, Outcome

from .redaction import Redactor

OPERATIONS = {"completions": "text_completion"}
"""`gen_ai.operation.name` where it is not the endpoint's own name (`chat`, `embeddings`)."""

TRACE = "otel"
"""Under which the plugin `otel` keeps what it knows of a request that it records."""
TEXT_LIMIT = 2000
"""Characters of an error's message or detail that are logged."""


def level_of(outcome: Outcome) -> int:
    """info: answered. warning: the caller's error or departure. error: failed, or cut."""
    if outcome.status >= 500:
        return logging.ERROR
    if outcome.aborted or outcome.status >= 400:
        return logging.WARNING
    return logging.INFO if outcome.completed else logging.ERROR


class RequestLine(
    msgspec.Struct,
    kw_only=True,
    omit_defaults=True,
    rename={
        "status": "http.response.status_code",
        "ttft_seconds": "gen_ai.response.time_to_first_chunk",
        "method": "http.request.method",
        "path": "url.path",
        "operation": "gen_ai.operation.name",
        "client": "client.address",
        "user": "user.id",
        "user_name": "user.name",
        "model": "gen_ai.request.model",
        "stream": "gen_ai.request.stream",
        "provider": "gen_ai.provider.name",
        "bytes_sent": "http.response.body.size",
        "input_tokens": "gen_ai.usage.input_tokens",
        "output_tokens": "gen_ai.usage.output_tokens",
        "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
        "error_type": "error.type",
        "error_code": "error.code",
        "error_message": "error.message",
        "error_detail": "error.detail",
        "error_evidence": "error.evidence",
    },
):
    """Everything known about a request; what does not apply to it is left out."""

    timestamp: str
    level: str
    event: str
    worker: int | None = None
    request_id: str
    status: int
    completed: bool
    aborted: bool
    duration_seconds: float
    ttft_seconds: float | None = None
    method: str
    path: str
    operation: str
    client: str
    user: str | None = None
    user_name: str | None = None
    team: str | None = None
    model: str | None = None
    stream: bool | None = None
    target: str | None = None
    provider: str | None = None
    attempts: int
    delivery: str | None = None
    delivery_reason: str | None = None
    source: str | None = None
    dropped: list[str] | None = None
    bytes_sent: int
    usage_estimated: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    error_type: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    error_detail: str | None = None
    error_evidence: str | None = None
    request_body: str | None = None
    response_text: str | None = None
    sample_ratio: float | None = None
    trace_id: str | None = None
    span_id: str | None = None


_NAMES = {field.encode_name: field.name for field in msgspec.structs.fields(RequestLine)}
NAMES = frozenset(_NAMES)
"""The fields, as the line calls them."""
ALWAYS = ("timestamp", "level", "event")
"""Those without which a line is none."""


def left_out(fields: Collection[str] | None, drop: Collection[str]) -> tuple[str, ...]:
    """The attributes of a line that are not written: all but `fields`, or those in `drop`."""
    unwanted = drop if fields is None else NAMES.difference(fields, ALWAYS)
    return tuple(_NAMES[name] for name in unwanted)


def leave_out(line: RequestLine, attributes: Collection[str]) -> None:
    for name in attributes:
        setattr(line, name, msgspec.UNSET)


def request_line(
    exchange: Exchange, outcome: Outcome, redactor: Redactor, timestamp: str, level: str, worker: int | None = None
) -> RequestLine:
    """The line of one request. Called for every one of them: what needs more than a look is done below."""
    peek, name, delivery = exchange.peek, exchange.endpoint.name, outcome.delivery_reason
    line = RequestLine(
        timestamp=timestamp,
        level=level,
        event="request",
        worker=worker,
        request_id=redactor.text(exchange.id),
        status=outcome.status,
        completed=outcome.completed,
        aborted=outcome.aborted,
        duration_seconds=round(outcome.duration_seconds, 6),
        ttft_seconds=outcome.ttft_seconds and round(outcome.ttft_seconds, 6),
        method=exchange.method,
        path=exchange.path,
        operation=OPERATIONS.get(name, name),
        client=exchange.client,
        model=redactor.known(peek.model) if peek else None,
        stream=bool(peek.stream) if peek else None,
        target=outcome.target,
        provider=exchange.attempts[-1].target.provider if exchange.attempts else None,
        attempts=outcome.attempts,
        delivery=outcome.delivery if delivery else None,  # else it was refused before one was chosen
        delivery_reason=delivery or None,
        bytes_sent=outcome.bytes_sent,
    )
    if outcome.source != "upstream":
        line.source = outcome.source
    if exchange.dropped:
        line.dropped = told(exchange.dropped)
    trace = exchange.state.get(TRACE)
    if trace is not None:
        line.trace_id, line.span_id = trace.trace_id, trace.span_id
    _add_caller(line, exchange, redactor)
    _add_usage(line, outcome)
    if outcome.error is not None:
        _add_error(line, outcome.error, redactor)
    return line


def _add_caller(line: RequestLine, exchange: Exchange, redactor: Redactor) -> None:
    principal = exchange.principal
    if principal is not None:
        known = redactor.known_secrets
        line.user = known(principal.id)
        if principal.name:
            line.user_name = known(principal.name)
        if principal.team:
            line.team = known(principal.team)


def _add_usage(line: RequestLine, outcome: Outcome) -> None:
    usage = outcome.usage
    if usage is not None:
        line.usage_estimated = usage.estimated
        line.input_tokens = usage.prompt_tokens
        line.output_tokens = usage.completion_tokens
        line.cached_tokens = usage.cached_tokens


def _add_error(line: RequestLine, error: GatewayError, redactor: Redactor) -> None:
    line.error_type = redactor.known(error.type)  # this and the next may be a backend's words
    line.error_code = redactor.known(str(error.code)) if error.code is not None else None
    line.error_message = redactor.prefix(error.message, TEXT_LIMIT)
    line.error_detail = redactor.prefix(error.detail, TEXT_LIMIT) if error.detail else None
