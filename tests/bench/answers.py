"""What the upstream answers: known in advance, so that clients can compare what reaches them byte for byte."""

from __future__ import annotations

import json
from functools import cache

MODEL = "bench-model"
_COMMON = {"id": "chatcmpl-bench", "created": 1_700_000_000, "model": MODEL}
_PROMPT_TOKENS = 12

MODELS = json.dumps(
    {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "bench"}]}
).encode()


@cache
def unary(tokens: int) -> bytes:
    """The body of a whole chat completion."""
    message = {"role": "assistant", "content": "Water turns the wheel. " * 8}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return json.dumps({**_COMMON, "object": "chat.completion", "choices": [choice], "usage": _usage(tokens)}).encode()


@cache
def events(chunks: int) -> tuple[bytes, ...]:
    """A stream's server-sent events with text, one for each of `chunks` tokens."""
    return tuple(_event({"choices": [_choice({"content": f" token{number:04}"})]}) for number in range(chunks))


@cache
def ending(chunks: int, usage: bool) -> bytes:
    """The events after the last token: the finish, the usage if it was asked for, and `[DONE]`."""
    finish = _event({"choices": [_choice({}, "stop")]})
    return finish + (_event({"choices": [], "usage": _usage(chunks)}) if usage else b"") + b"data: [DONE]\n\n"


@cache
def stream(chunks: int, usage: bool) -> bytes:
    """The body of a whole stream."""
    return b"".join(events(chunks)) + ending(chunks, usage)


def _choice(delta: dict[str, str], finish: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _event(fields: dict[str, object]) -> bytes:
    return b"data: " + json.dumps({**_COMMON, "object": "chat.completion.chunk", **fields}).encode() + b"\n\n"


def _usage(tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": _PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": _PROMPT_TOKENS + tokens,
    }
