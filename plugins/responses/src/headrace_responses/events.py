"""The events of a stream (https://platform.openai.com/docs/api-reference/responses-streaming)."""

from __future__ import annotations

from typing import Any

import msgspec

from .shape import Item, OutputRefusal, OutputText, ReasoningText, Response

_encode = msgspec.json.Encoder().encode


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    sequence_number: int


class Created(Event, tag="response.created"):
    response: Response


class InProgress(Event, tag="response.in_progress"):
    response: Response


class Completed(Event, tag="response.completed"):
    response: Response


class Incomplete(Event, tag="response.incomplete"):
    response: Response


class ItemAdded(Event, tag="response.output_item.added"):
    output_index: int
    item: Item


class ItemDone(Event, tag="response.output_item.done"):
    output_index: int
    item: Item


class _InItem(Event):
    item_id: str
    output_index: int


class _InPart(_InItem):
    content_index: int


class PartAdded(_InPart, tag="response.content_part.added"):
    part: OutputText | OutputRefusal | ReasoningText


class PartDone(_InPart, tag="response.content_part.done"):
    part: OutputText | OutputRefusal | ReasoningText


class TextDelta(_InPart, tag="response.output_text.delta"):
    delta: str
    logprobs: list[Any]


class TextDone(_InPart, tag="response.output_text.done"):
    text: str
    logprobs: list[Any]


class RefusalDelta(_InPart, tag="response.refusal.delta"):
    delta: str


class RefusalDone(_InPart, tag="response.refusal.done"):
    refusal: str


class ThoughtDelta(_InPart, tag="response.reasoning_text.delta"):
    delta: str


class ThoughtDone(_InPart, tag="response.reasoning_text.done"):
    text: str


class ArgumentsDelta(_InItem, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(_InItem, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


def written(event: Event) -> bytes:
    """An event as it is streamed."""
    kind = event.__struct_config__.tag
    assert isinstance(kind, str)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode(event))
