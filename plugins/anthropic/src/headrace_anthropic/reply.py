"""A Messages answer as a chat's: whole answers, errors, and what is passed on of a backend's head."""

from __future__ import annotations

import time

import msgspec

from headrace import chat
from headrace.errors import GatewayError, Unavailable, UpstreamError, envelope
from headrace.exchange import Headers, Reply, Target, header
from headrace.verdict import TOO_LONG, check

from . import wire

OVERLOADED = 529
"""https://platform.claude.com/docs/en/api/errors"""
UNPAID = 402
REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Why an answer ended: here, and in a chat."""
OWN = (b"anthropic-ratelimit-", b"anthropic-organization-", b"anthropic-priority-", b"anthropic-fast-")
"""Headers that tell of the gateway's own account."""
_answer = msgspec.json.Decoder(wire.Answer).decode
_error = msgspec.json.Decoder(wire.ErrorBody).decode
_encode = msgspec.json.Encoder().encode


def judge(reply: Reply, target: Target) -> None:
    """As `verdict.check`, for a backend that has its own statuses for trouble of its own and of the operator's.

    Raises:
        GatewayError: another target might answer better, or the operator has to look.
    """
    detail = f"target {target.name} answered {reply.status}"
    if reply.status == OVERLOADED:
        waiting = header(reply.headers, b"retry-after")
        headers = {"Retry-After": waiting} if waiting else {}
        raise Unavailable("The backend is overloaded.", detail=detail, headers=headers)
    if reply.status == UNPAID:
        raise UpstreamError("The backend wants the gateway's account to be paid.", code="upstream_auth", detail=detail)
    check(reply, target)


def passed_on(headers: Headers) -> Headers:
    """The head of an answer in the client's own dialect."""
    return [(name, value) for name, value in headers if not name.startswith(OWN)]


def whole(content: bytes) -> bytes:
    """The body of a chat's answer. Raises UpstreamError."""
    try:
        answer = _answer(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamError("The backend's answer cannot be read.", detail=str(error)) from error
    choice = chat.Choice(message=_message(answer), finish_reason=finish(answer.stop_reason))
    completion = chat.Completion(
        id=answer.id,
        choices=[choice],
        model=answer.model,
        created=int(time.time()),
        usage=usage(answer.usage) if answer.usage else None,
    )
    return _encode(completion)


def _message(answer: wire.Answer) -> chat.Answer:
    blocks = answer.content
    calls = [
        chat.ToolCall(block.id, chat.FunctionCall(block.name, bytes(block.input).decode()))
        for block in blocks
        if block.type == "tool_use"
    ]
    said = "".join(block.text for block in blocks if block.type == "text")
    return chat.Answer(
        content=said if said or not calls else None,
        tool_calls=calls or None,
        reasoning_content="".join(block.thinking for block in blocks if block.type == "thinking") or None,
        refusal=answer.stop_details.explanation if answer.stop_details else None,
    )


def finish(reason: str | None) -> str:
    return REASONS.get(reason or "", "stop")


def usage(counted: wire.Usage) -> chat.Usage:
    """In a chat the whole prompt is counted, what was in the cache included."""
    prompt, answer = counted.prompt, counted.output_tokens or 0
    cached, details = counted.cache_read_input_tokens, counted.output_tokens_details
    thought = details.thinking_tokens if details else None
    return chat.Usage(
        prompt_tokens=prompt,
        completion_tokens=answer,
        total_tokens=prompt + answer,
        prompt_tokens_details=None if cached is None else chat.PromptDetails(cached_tokens=cached),
        completion_tokens_details=None if thought is None else chat.CompletionDetails(reasoning_tokens=thought),
    )


def refusal(reply: Reply) -> bytes:
    """The body of an error that is the caller's, in the words of the backend."""
    content = reply.content or b""
    code = "context_length_exceeded" if TOO_LONG.search(content) else None
    try:
        said = _error(content).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        said = wire.ErrorObject("invalid_request_error", "The backend refused the request.")
    return envelope(GatewayError(said.message, status=reply.status, type=said.type, code=code))
