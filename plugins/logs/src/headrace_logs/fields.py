"""The fields of a request's line.

Names with dots are OpenTelemetry's (https://opentelemetry.io/docs/specs/semconv/: http, url, client, user, error, and
https://github.com/open-telemetry/semantic-conventions-genai: gen_ai); where it has none the name is plain.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from headrace.errors import GatewayError
from headrace.exchange import Exchange, Outcome, Principal, Usage

from .redaction import Redactor

OPERATIONS = {"completions": "text_completion"}
"""`gen_ai.operation.name` where it is not the endpoint's own name (`chat`, `embeddings`)."""

TEXT_LIMIT = 2000
"""Characters of an error's message or detail that are logged."""


def level_of(outcome: Outcome) -> int:
    """info: answered. warning: the caller's error or departure. error: failed, or cut."""
    if outcome.status >= 500:
        return logging.ERROR
    if outcome.aborted or outcome.status >= 400:
        return logging.WARNING
    return logging.INFO if outcome.completed else logging.ERROR


def request_fields(exchange: Exchange, outcome: Outcome, redactor: Redactor, *, bodies: bool = False) -> dict[str, Any]:
    """Everything known about a request; fields that do not apply to it are left out.

    With `bodies` also what a backend said about its failure, which may repeat what it was asked.
    """
    fields: dict[str, Any] = {
        "request_id": redactor.text(exchange.id),
        "http.response.status_code": outcome.status,
        "completed": outcome.completed,
        "aborted": outcome.aborted,
        "duration_seconds": round(outcome.duration_seconds, 6),
    }
    if outcome.ttft_seconds is not None:
        fields["gen_ai.response.time_to_first_chunk"] = round(outcome.ttft_seconds, 6)
    peek = exchange.peek
    fields |= _asked(exchange.method, exchange.path, exchange.endpoint.name)
    fields["client.address"] = exchange.client
    if exchange.principal is not None:
        fields.update(_principal(exchange.principal, redactor))
    if peek is not None:
        fields["gen_ai.request.model"] = redactor.known(peek.model)
        fields["gen_ai.request.stream"] = exchange.streaming
    if outcome.target is not None:
        fields["target"] = outcome.target
    if exchange.attempts:
        fields["gen_ai.provider.name"] = exchange.attempts[-1].target.provider
    fields["attempts"] = outcome.attempts
    if outcome.delivery_reason:  # empty: it was refused before a delivery was chosen
        fields["delivery"] = outcome.delivery
        fields["delivery_reason"] = outcome.delivery_reason
    fields["http.response.body.size"] = outcome.bytes_sent
    if outcome.usage is not None:
        fields.update(_usage(outcome.usage))
    if outcome.error is not None:
        fields.update(_error(outcome.error, redactor, bodies))
    return fields


@functools.lru_cache(maxsize=64)
def _asked(method: str, path: str, endpoint: str) -> dict[str, str]:
    """What requests to an endpoint have in common."""
    return {
        "http.request.method": method,
        "url.path": path,
        "gen_ai.operation.name": OPERATIONS.get(endpoint, endpoint),
    }


def _principal(principal: Principal, redactor: Redactor) -> dict[str, str]:
    fields = {"user.id": redactor.known_secrets(principal.id)}
    if principal.name:
        fields["user.name"] = redactor.known_secrets(principal.name)
    if principal.team:
        fields["team"] = redactor.known_secrets(principal.team)
    return fields


def _usage(usage: Usage) -> dict[str, int | bool]:
    return {
        **({"usage_estimated": True} if usage.estimated else {}),
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }


def _error(error: GatewayError, redactor: Redactor, evidence: bool) -> dict[str, str]:
    fields = {"error.type": error.type}
    if error.code is not None:
        fields["error.code"] = str(error.code)
    fields["error.message"] = redactor.prefix(error.message, TEXT_LIMIT)
    if error.detail:
        fields["error.detail"] = redactor.prefix(error.detail, TEXT_LIMIT)
    if evidence and error.evidence:
        fields["error.evidence"] = redactor.prefix(error.evidence, TEXT_LIMIT)
    return fields
