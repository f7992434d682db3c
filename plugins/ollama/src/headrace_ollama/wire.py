"""Ollama's own API, as far as it is spoken here (https://docs.ollama.com/api, `api/types.go`)."""

from __future__ import annotations

from typing import Any

import msgspec


class _Plain(msgspec.Struct, omit_defaults=True):
    pass


class Function(_Plain, omit_defaults=False):
    name: str
    arguments: msgspec.Raw
    """A JSON object."""


class ToolCall(_Plain):
    function: Function
    id: str | None = None


class Message(_Plain):
    role: str
    content: str
    thinking: str | None = None
    images: list[str] | None = None
    """In base64, without anything before."""
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Request(_Plain):
    """What every kind of request may have."""

    model: str
    options: dict[str, Any] | None = None
    keep_alive: str | int | None = None
    truncate: bool | None = None
    shift: bool | None = None


class Asking(Request):
    """What a chat and a completion have in common."""

    stream: bool | None = None
    """Where it is left out, it is true."""
    think: bool | str | None = None
    format: Any = None
    """`json`, or a JSON schema."""
    logprobs: bool | None = None
    top_logprobs: int | None = None


class ChatRequest(Asking, kw_only=True):
    """`POST /api/chat`."""

    messages: list[Message]
    tools: list[Any] | None = None


class GenerateRequest(Asking, kw_only=True):
    """`POST /api/generate`."""

    prompt: str
    suffix: str | None = None
    raw: bool | None = None


class EmbedRequest(Request, kw_only=True):
    """`POST /api/embed`."""

    input: str | list[str]
    dimensions: int | None = None


# --- answers ---


class SaidFunction(msgspec.Struct):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class SaidCall(msgspec.Struct):
    function: SaidFunction
    id: str | None = None


class Said(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[SaidCall] | None = None


class Token(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class Logprob(Token):
    top_logprobs: list[Token] | None = None


class Answer(msgspec.Struct):
    """One line of a stream of `/api/chat` or `/api/generate`, or all of an answer that is none."""

    model: str = ""
    message: Said | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: Any = None
    prompt_eval_cached_count: Any = None
    eval_count: Any = None
    logprobs: list[Logprob] | None = None
    error: Any = None


class Embedded(msgspec.Struct):
    """An answer of `/api/embed`; the numbers stay as they were written."""

    embeddings: list[msgspec.Raw]
    model: str = ""
    prompt_eval_count: Any = None


MOST_TOKENS = 2**33


def count(said: Any) -> int | None:
    """A number of tokens; None if it is none: an answer is not lost for that."""
    return said if type(said) is int and 0 <= said <= MOST_TOKENS else None
