"""Values of labels, bounded: whatever clients and backends say, there are no more series than what is configured asks
for."""

from __future__ import annotations

import re
from collections.abc import Iterable

UNKNOWN, NONE, OTHER = "(unknown)", "(none)", "(other)"
"""No model of ours; no target was asked; more than are counted each for itself."""
OWN = frozenset((UNKNOWN, NONE, OTHER))

CODES = frozenset(
    (
        *("budget_exceeded", "circuit_open", "context_length_exceeded", "deadline_exceeded", "embeddings_disabled"),
        *("forbidden", "headers_too_large", "incomplete_answer", "insufficient_quota", "internal_error"),
        *("invalid_api_key", "invalid_encoding", "invalid_field", "invalid_http", "invalid_json"),
        *("invalid_request", "missing_field", "model_not_found", "model_not_priced", "not_found"),
        *("overloaded", "queue_timeout", "rate_limit_exceeded", "report_lost", "request_timeout"),
        *("request_too_large", "server_error", "shutting_down", "stream_truncated", "unavailable"),
        *("unsupported_endpoint", "unsupported_parameter", "upstream_auth", "upstream_error"),
        *("upstream_rate_limited", "upstream_timeout"),
    )
)
"""Codes of the core's errors and of this repository's plugins."""
MORE_CODES = 64
"""Of others: a backend's words may become the code of an error."""
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Names:
    """Admits so many names beyond those that are known from the start."""

    def __init__(self, known: Iterable[str], more: int) -> None:
        self._known, self._room = set(known), more

    def __call__(self, name: str) -> str:
        """The name itself, or `(other)`."""
        if name in self._known:
            return name
        if not self._room:
            return OTHER
        self._room -= 1
        self._known.add(name)
        return name


class Codes:
    """Codes of errors as values of labels."""

    def __init__(self) -> None:
        self._names = Names(CODES, MORE_CODES)

    def __call__(self, code: str | None) -> str:
        return self._names(code) if code is not None and _CODE.fullmatch(code) else OTHER
