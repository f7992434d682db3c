"""What a chat's messages are made of, as Anthropic's say it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from headrace import chat
from headrace.errors import InvalidRequest

from . import wire

_DATA = re.compile(r"data:([^;,]*)(?:;[^;,]+)*;base64,", re.IGNORECASE)
_object = msgspec.json.Decoder(dict[str, Any]).decode


def turns(messages: Iterable[chat.Message], dropped: list[str]) -> Iterator[wire.Message]:
    """The messages but for the system's: those of one side, one after the other, are one.

    Raises:
        InvalidRequest: one has what the API has no place for.
    """
    said: list[wire.Block] = []
    sayer = ""
    for number, message in enumerate(messages):
        if isinstance(message, chat.System | chat.Developer):
            continue
        role, blocks = _turn(message, f"messages[{number}]", dropped)
        if said and blocks and role != sayer:
            yield _message(sayer, said)
            said = []
        said += blocks
        sayer = role if blocks else sayer
    if said:
        yield _message(sayer, said)


def _message(role: Any, blocks: list[wire.Block]) -> wire.Message:
    """One text is said without a block."""
    only = blocks[0] if len(blocks) == 1 else None
    return wire.Message(role, only.text if isinstance(only, wire.TextBlock) else blocks)


def _turn(message: chat.Message, place: str, dropped: list[str]) -> tuple[str, list[wire.Block]]:
    if getattr(message, "name", None):
        dropped.append("messages.name")
    if isinstance(message, chat.Assistant):
        return "assistant", list(_assistant(message, place, dropped))
    if isinstance(message, chat.ToolResult):
        given = _blocks(message.content, f"{place}.content", dropped)
        returned: Any = message.content if isinstance(message.content, str) else given
        return "user", [wire.ToolResultBlock(message.tool_call_id, returned or None)]
    return "user", _blocks(message.content, f"{place}.content", dropped)


def _assistant(message: chat.Assistant, place: str, dropped: list[str]) -> Iterator[wire.Block]:
    if message.thought:
        dropped.append("messages.reasoning_content")  # thoughts must be signed, and a chat does not keep signatures
    if message.content is not None:
        yield from _blocks(message.content, f"{place}.content", dropped)
    if message.refusal:
        yield wire.TextBlock(message.refusal)
    for number, call in enumerate(message.tool_calls or ()):
        yield wire.ToolUseBlock(call.id, call.function.name, _input(call, f"{place}.tool_calls[{number}]"))


def _input(call: chat.ToolCall, place: str) -> dict[str, Any]:
    text = call.function.arguments
    if not text.strip():
        return {}
    try:
        return _object(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        param = f"{place}.function.arguments"
        raise InvalidRequest(
            f"The field {param!r} is no JSON object: this backend takes no other.", param=param
        ) from error


def _blocks(content: chat.Content, place: str, dropped: list[str]) -> list[wire.Block]:
    """Empty texts are refused by the API, and say nothing."""
    if isinstance(content, str):
        return [wire.TextBlock(content)] if content else []
    return [block for number, part in enumerate(content) for block in _block(part, f"{place}[{number}]", dropped)]


def _block(part: chat.Part, place: str, dropped: list[str]) -> Iterator[wire.Block]:
    if isinstance(part, chat.Text | chat.Refusal):
        text = part.text if isinstance(part, chat.Text) else part.refusal
        if text:
            yield wire.TextBlock(text)
    elif isinstance(part, chat.Image):
        if part.image_url.detail not in (None, "auto"):
            dropped.append("messages.image_url.detail")
        yield wire.ImageBlock(_source(part.image_url.url))
    elif isinstance(part, chat.File):
        yield _document(part.file, place)
    else:
        raise InvalidRequest("This backend takes no sounds.", param=place)


def _source(url: str) -> wire.Base64Source | wire.URLSource:
    found = _DATA.match(url)
    if found is None:
        return wire.URLSource(url)
    return wire.Base64Source(found[1] or "image/png", url[found.end() :])


def _document(file: chat.FileData, place: str) -> wire.DocumentBlock:
    """A PDF, or a text; files that lie at OpenAI are not known elsewhere."""
    if not file.file_data:
        raise InvalidRequest("This backend does not know files by their ids: send their content.", param=place)
    found = _DATA.match(file.file_data)
    media_type = (found[1] if found else "") or "application/pdf"
    data = file.file_data[found.end() :] if found else file.file_data
    if media_type.startswith("text/"):
        return wire.DocumentBlock(wire.TextSource(_decoded(data, place)), title=file.filename)
    return wire.DocumentBlock(wire.Base64Source(media_type, data), title=file.filename)


def _decoded(data: str, place: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidRequest("The file's data is no text in base64.", param=f"{place}.file.file_data") from error
