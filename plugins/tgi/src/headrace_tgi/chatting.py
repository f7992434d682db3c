"""Chats at TGI's `/v1/chat/completions`: what it takes otherwise than OpenAI, and what it answers otherwise.

Fields are those of `ChatRequest` in `docs/openapi.json` of TGI's repository; versions from 1.4 to 3.3 are known.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec

from headrace.presets import decoded
from headrace.streaming import EventSplitter

from .wire import FINISH

SPOKEN = frozenset(
    (
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature"),
        *("top_p", "stop", "seed", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty", "tools"),
        *("tool_choice", "tool_prompt", "guideline", "response_format"),
    )
)
"""Fields that TGI looks at."""
MARKS = (b'"tool_calls"', b"eos_token", b"stop_sequence", b'"text_completion"')
"""What stands in an answer that may have to be changed."""
_decode, _encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
UNCONSTRAINED = ("text", None)


def changes(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    """What to change in a request, by field; None stands for one to leave out. Raises InvalidRequest."""
    found: dict[str, Any] = {name: None for name, value in fields.items() if bytes(value) == b"null"}
    given = {name: decoded(fields, name) for name in CHANGED if name in fields and name not in found}
    if isinstance(given.get("stop"), str):
        found["stop"] = [given["stop"]]
    if "max_completion_tokens" in given:
        found |= {"max_completion_tokens": None, "max_tokens": given["max_completion_tokens"]}
    if _is_one(given.get("top_p")):  # it means that nothing is cut off, and TGI refuses it
        found["top_p"] = None
    if given.get("presence_penalty") == 0:  # TGI would make a penalty of it: it adds 2
        found["presence_penalty"] = None
    if isinstance(options := given.get("stream_options"), dict) and "include_usage" not in options:
        found["stream_options"] = None
    if isinstance(form := given.get("response_format"), dict):
        found |= _grammar(form)
    return found


CHANGED = ("stop", "max_completion_tokens", "top_p", "presence_penalty", "stream_options", "response_format")


def _is_one(value: Any) -> bool:
    return isinstance(value, int | float) and value >= 1


def _grammar(form: dict[str, Any]) -> dict[str, Any]:
    """`response_format` in TGI's words, if it is in OpenAI's."""
    kind, schema = form.get("type"), form.get("json_schema")
    if kind in UNCONSTRAINED:
        return {"response_format": None}
    if kind == "json_schema" and isinstance(schema, dict):
        return {"response_format": {"type": "json", "value": schema.get("schema") or {"type": "object"}}}
    if kind == "json_object" and "value" not in form:
        return {"response_format": {"type": "json", "value": {"type": "object"}}}
    return {}


def marked(data: bytes) -> bool:
    """Whether an answer, or a piece of a stream, may have to be changed."""
    return any(mark in data for mark in MARKS)


def amended(data: bytes, called: set[int]) -> bytes:
    """An answer, or an event, as OpenAI has it.

    Args:
        called: indices of the choices that have called a tool; added to.
    """
    if not marked(data) and not called:
        return data
    try:
        said = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data  # for others to complain about
    if not isinstance(said, dict) or not isinstance(said.get("choices"), list):
        return data
    for choice in said["choices"]:
        if isinstance(choice, dict):
            _amend(choice, said, called)
    return _encode(said)


def _amend(choice: dict[str, Any], said: dict[str, Any], called: set[int]) -> None:
    whole = isinstance(choice.get("message"), dict)
    if said.get("object") == "text_completion":
        said["object"] = "chat.completion" if whole else "chat.completion.chunk"
    message = choice["message"] if whole else choice.get("delta")
    index = choice.get("index", 0)
    if isinstance(message, dict) and message.get("tool_calls"):
        called.add(index)
        calls = message["tool_calls"]
        message["tool_calls"] = [_call(call) for call in (calls if isinstance(calls, list) else [calls])]
    reason = FINISH.get(choice.get("finish_reason") or "")
    if reason is not None:
        choice["finish_reason"] = "tool_calls" if reason == "stop" and index in called else reason


def _call(call: Any) -> Any:
    """A tool call whose arguments are text, and whose id is."""
    if not isinstance(call, dict):
        return call
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), dict | list):
        function["arguments"] = _encode(function["arguments"]).decode()
    if isinstance(call.get("id"), int):
        call["id"] = str(call["id"])
    return call


async def stream(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The events of a chat. Comments, which keep the connection, are said anew."""
    splitter, called = EventSplitter(), set[int]()
    try:
        async for chunk in chunks:
            out = b"".join(b"data: " + amended(event.data, called) + b"\n\n" for event in splitter.feed(chunk))
            if out or chunk.startswith(b":"):
                yield out or b":\n\n"
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
