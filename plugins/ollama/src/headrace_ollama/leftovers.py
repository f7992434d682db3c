"""What of a request nobody here has read: every field beyond those of `headrace.chat`, by its path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from headrace import chat

_OBJECTS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Shape = Mapping[str, Any]
"""The fields that are read, and the shape of what is in them; None: whatever is in them is read. A shape stands for an
object and for each of a list of objects alike."""


def _of(kind: Any, **inner: Shape) -> Shape:
    return {**dict.fromkeys(kind.__struct_fields__), **inner}


_FUNCTION = {"name": None, "arguments": None}
_PART: Shape = {
    **dict.fromkeys(("type", "text", "refusal", "input_audio", "file")),
    "image_url": _of(chat.ImageURL),
}
_MESSAGE: Shape = {
    **dict.fromkeys(("role", "name", "refusal", "reasoning_content", "reasoning", "tool_call_id")),
    "content": _PART,
    "tool_calls": {"id": None, "type": None, "index": None, "function": _FUNCTION},
}
SHAPE: Shape = _of(
    chat.Request,
    messages=_MESSAGE,
    tools={"type": None, "function": _of(chat.Function)},
    tool_choice={"type": None, "function": {"name": None}},
    response_format={"type": None, "json_schema": _of(chat.JSONSchema)},
    stream_options={"include_usage": None},
)
"""A chat."""


def leftovers(fields: Mapping[str, msgspec.Raw], shape: Shape = SHAPE) -> list[str]:
    """The paths of fields that have a value and are not read, each once: `top_a`, `messages.cache_control`."""
    return list(dict.fromkeys(_unread(fields, shape, "")))


def _unread(fields: Mapping[str, msgspec.Raw], shape: Shape, place: str) -> Iterator[str]:
    for name, value in fields.items():
        if name not in shape:
            if bytes(value) != b"null":
                yield f"{place}{name}"
            continue
        inner = shape[name]
        if inner is not None:
            for each in _objects(value):
                yield from _unread(each, inner, f"{place}{name}.")


def _objects(value: msgspec.Raw) -> list[dict[str, msgspec.Raw]]:
    """The objects in a value; none if it is something else."""
    first = bytes(memoryview(value)[:1])
    if first == b"{":
        return [_OBJECT(value)]
    try:
        return _OBJECTS(value) if first == b"[" else []
    except msgspec.ValidationError:  # a list of something else
        return []
