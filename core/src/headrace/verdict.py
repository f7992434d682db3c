"""Which answers of a backend are the caller's, and which are errors of the backend's or the operator's making."""

from __future__ import annotations

import re

import msgspec

from .errors import GatewayError, RateLimited, Unavailable, UpstreamError, UpstreamTimeout
from .exchange import Reply, Target, header

EVIDENCE_LIMIT = 500
"""Bytes of a backend's error that are kept for the log."""
ERROR_EVENT = re.compile(rb'(?:^|[\r\n])(?:data:\s*\{\s*"error"\s*:\s*["{]|event: error)')
"""How a stream tells of an error."""
_ANY_JSON = msgspec.json.Decoder(msgspec.Raw)


class Failure(msgspec.Struct, frozen=True):
    """What nginx tells of a backend that failed before its first byte."""

    status: int
    connected: bool
    answered: bool
    """Whether a head came: `status` is the backend's then, else nginx's own."""
    retry_after: str | None = None


def as_error(failure: Failure, target: Target) -> GatewayError:
    """The error that the core would have raised, had it asked the backend itself."""
    error = _fault_of_failure(failure)
    error.detail = f"target {target.name} answered {failure.status}" if failure.answered else f"target {target.name}"
    return error


def _fault_of_failure(failure: Failure) -> GatewayError:
    if failure.answered:
        headers = [(b"retry-after", failure.retry_after.encode())] if failure.retry_after else []
        fault = _fault_of_error(Reply(failure.status, headers, content=b"{"))
        return fault or UpstreamError(f"The backend failed with status {failure.status}.")
    if failure.status == 504:
        return UpstreamTimeout("The backend did not answer in time.")
    if not failure.connected:
        return unreached(Unavailable("The backend cannot be reached."))
    return UpstreamError("The connection to the backend broke.")


def unreached(error: GatewayError) -> GatewayError:
    """The same error, of a backend that has not heard of the request."""
    error.reached = False
    return error


def check(reply: Reply, target: Target) -> None:
    """Let pass an answer, and an error that is the caller's.

    Raises:
        GatewayError: another target might answer better, or the operator has to look.
    """
    error = _fault_of_answer(reply) if reply.ok else _fault_of_error(reply)
    if error is not None:
        content = reply.content or b""
        error.detail = f"target {target.name} answered {reply.status} with {len(content)} bytes"
        error.evidence = _words(content)
        raise error


class PromptTooLong(GatewayError):
    """A backend says that the prompt is too long for it; `reply` is how it says so."""

    status, type, code = 400, "invalid_request_error", "context_length_exceeded"

    def __init__(self, reply: Reply) -> None:
        super().__init__("The prompt is too long for the backend.")
        self.reply = reply


TOO_LONG = re.compile(
    rb"context_length_exceeded|exceed_context_size_error|maximum context length|maximum model length"
    rb'|"param"\s*:\s*"input_tokens"|prompt is too long|inputs` tokens \+ `max_new_tokens` must be',
    re.IGNORECASE,
)
"""How OpenAI, llama.cpp, vLLM, Anthropic and TGI say it."""


def check_length(reply: Reply) -> None:
    """Raise PromptTooLong if that is what a reply says."""
    if reply.status in (400, 413, 422) and TOO_LONG.search(reply.content or b""):
        raise PromptTooLong(reply)


_BEGUN = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|thinking|refusal|arguments|partial_json|delta|name)"\s*:\s*"[^"]'
    rb'|"tool_calls"\s*:\s*\[\s*[^\]\s]|"finish_reason"\s*:\s*"|\[DONE\]'
)


def has_begun(events: bytes) -> bool:
    """Whether the beginning of a stream has something of the answer, or its end."""
    return _BEGUN.search(events) is not None


def check_first(chunk: bytes, target: Target, *, anywhere: bool = False) -> None:
    """Raise UpstreamError if a stream begins with an error, or has one `anywhere` in what came: nothing has reached the
    client yet."""
    if (ERROR_EVENT.search if anywhere else ERROR_EVENT.match)(chunk):
        detail = f"target {target.name} began its stream with an error"
        raise UpstreamError("The backend failed before its first token.", detail=detail, evidence=_words(chunk))


def _fault_of_answer(reply: Reply) -> GatewayError | None:
    if reply.content is None or header(reply.headers, b"content-encoding"):
        return None
    if reply.media_type == "text/html":
        return UpstreamError("The backend answered with a web page: is its base_url right?", retryable=False)
    if reply.media_type == "application/json" and not _is_framed(reply) and not _is_json(reply.content):
        return UpstreamError("The backend's answer is incomplete.")
    return None


def _fault_of_error(reply: Reply) -> GatewayError | None:
    status = reply.status
    waiting = header(reply.headers, b"retry-after")
    retry_after = {"Retry-After": waiting} if waiting else {}
    if status < 400:
        return UpstreamError(f"The backend answered with status {status}, no answer: is its base_url right?")
    if status in (401, 403, 407):
        return UpstreamError("The backend refused the gateway's own credentials.", code="upstream_auth")
    if status == 429:
        message = "The backend is receiving too many requests."
        return RateLimited(message, code="upstream_rate_limited", headers=retry_after, retryable=True)
    if status == 503:
        return Unavailable("The backend is not available.", headers=retry_after)
    if status >= 500 or status == 408:
        return UpstreamError(f"The backend failed with status {status}.")
    if not (reply.content or b"").lstrip().startswith(b"{"):
        message = f"The backend answered {status} in a form that is not an API error: is its base_url right?"
        return UpstreamError(message, retryable=False)
    return None


def _is_framed(reply: Reply) -> bool:
    """Whether HTTP itself says where the answer ends."""
    return bool(header(reply.headers, b"content-length") or header(reply.headers, b"transfer-encoding"))


def _is_json(content: bytes) -> bool:
    """Whether this is one whole JSON value: a connection that just ends may have cut it."""
    try:
        _ANY_JSON.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _words(content: bytes) -> str:
    return content[:EVIDENCE_LIMIT].decode("utf-8", "replace")
