"""Whether an answer that was delivered completely is one that others should get, too."""

from __future__ import annotations

from typing import Any

import msgspec

from .entry import Kind

_BAD_ENDS = frozenset(("abort", "error"))
_NO_ERRORS: tuple[object, ...] = (None, "", False, {}, [])


class _Choice(msgspec.Struct):
    finish_reason: Any = None


class _Answer(msgspec.Struct):
    error: Any = None
    choices: list[_Choice] | None = None
    data: list[msgspec.Raw] | None = None
    content: list[msgspec.Raw] | None = None
    status: Any = None
    type: Any = None


_decode = msgspec.json.Decoder(_Answer).decode


def is_whole(endpoint: str, kind: Kind, body: bytes) -> bool:
    """Whether it says what such an answer must say, and tells of no error. `body` came with status 200, to its end."""
    if kind == "stream":  # the core has looked at its events; one end of a response is no completion
        return endpoint != "responses" or b'"response.completed"' in body
    try:
        answer = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    if answer.error not in _NO_ERRORS:
        return False
    match endpoint:
        case "chat" | "completions":
            ends = [choice.finish_reason for choice in answer.choices or ()]
            return bool(ends) and not any(isinstance(each, str) and each in _BAD_ENDS for each in ends)
        case "embeddings":
            return bool(answer.data)
        case "messages":
            return bool(answer.type == "message") and answer.content is not None
        case _:
            return bool(answer.status == "completed")
