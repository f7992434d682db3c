"""What the end of a try says of the backend: nothing, if it was the caller's doing, or ours."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

from headrace.errors import GatewayError, Unavailable, UpstreamError, UpstreamTimeout
from headrace.retries import retry_after

if TYPE_CHECKING:
    from headrace.exchange import Attempt, Outcome

FAILURES = frozenset(("unavailable", "upstream_error", "upstream_timeout"))
"""Codes of the core's errors that are the backend's."""


class Verdict(enum.Enum):
    """What was learnt of a backend."""

    GOOD = "good"
    BAD = "bad"
    REFUSES_KEY = "refuses key"
    BUSY = "busy"
    """It has said 429."""
    NOTHING = "nothing"


def judge(attempt: Attempt, outcome: Outcome) -> Verdict:
    """What the outcome of a try says of its target."""
    error = outcome.error
    if outcome.aborted:
        return Verdict.NOTHING
    if error is None:
        return _of_answer(outcome)
    if error.code == "upstream_rate_limited":
        return Verdict.BUSY
    if error.code == "upstream_auth":
        return Verdict.REFUSES_KEY
    return Verdict.BAD if _is_of_backend(attempt, outcome, error) else Verdict.NOTHING


def _of_answer(outcome: Outcome) -> Verdict:
    """Of one that reached the client. An error that is the caller's says nothing: a server whose engine is dead may
    still refuse what is wrong."""
    if outcome.status >= 500 or outcome.status == 408:
        return Verdict.BAD
    if outcome.status == 429:
        return Verdict.BUSY
    return Verdict.GOOD if outcome.completed and outcome.status < 400 else Verdict.NOTHING


def _is_of_backend(attempt: Attempt, outcome: Outcome, error: GatewayError) -> bool:
    if error.code == "stream_truncated":
        cause = error.__cause__  # none: nginx saw the stream break
        return cause is None or _is_fault(cause)
    if error.code == "deadline_exceeded":
        return _kept_silent(attempt, outcome)
    return _is_fault(error) and error.retryable  # one that is not to be retried is of the request, or of a base_url


def _is_fault(error: BaseException) -> bool:
    return isinstance(error, UpstreamError | UpstreamTimeout | Unavailable) and error.code in FAILURES


def _kept_silent(attempt: Attempt, outcome: Outcome) -> bool:
    """Whether a backend that had most of the answer's time has sent nothing."""
    total = attempt.model.total if attempt.model is not None else None
    return outcome.ttft_seconds is None and total is not None and outcome.duration_seconds > total / 2


def asked_pause(error: GatewayError | None) -> float:
    """The seconds of an error's `Retry-After`; 0 if it does not say."""
    seconds = retry_after(error.headers.get("Retry-After", "")) if error is not None else 0.0
    return seconds if seconds < math.inf else 0.0
