"""The messages of a chat, as Ollama takes them: text and pictures apart, arguments as objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from headrace import chat
from headrace.errors import InvalidRequest

from .wire import Function, Message, ToolCall

Pictures = Mapping[str, str]
"""In base64, by the addresses that requests name them by."""
DATA = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
NO_PICTURES: Pictures = {}

_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def messages(given: Sequence[chat.Message], pictures: Pictures, dropped: list[str]) -> Iterator[Message]:
    """Ollama's messages; what they cannot carry is added to `dropped`. Raises InvalidRequest."""
    called: dict[str, str] = {}
    for number, message in enumerate(given):
        place = f"messages[{number}]"
        if getattr(message, "name", None):
            dropped.append("messages.name")
        if isinstance(message, chat.Assistant):
            yield _assistant(message, place, called)
        elif isinstance(message, chat.ToolResult):
            yield _tool_result(message, place, called, pictures, dropped)
        else:
            role = "user" if isinstance(message, chat.User) else "system"
            yield from _split(role, message.content, place, pictures, dropped)


def addresses(given: Sequence[chat.Message]) -> list[str]:
    """The pictures that are named by an address, each once."""
    found = (
        part.image_url.url
        for message in given
        if isinstance(message.content, list)
        for part in message.content
        if isinstance(part, chat.Image) and not part.image_url.url.startswith("data:")
    )
    return list(dict.fromkeys(found))


def _assistant(message: chat.Assistant, place: str, called: dict[str, str]) -> Message:
    texts = [message.content] if isinstance(message.content, str) else _texts(message.content or [], place)
    if message.refusal is not None:
        texts.append(message.refusal)
    calls = []
    for number, call in enumerate(message.tool_calls or ()):
        called[call.id] = call.function.name
        arguments = _arguments(call.function.arguments, f"{place}.tool_calls[{number}].function.arguments")
        calls.append(ToolCall(Function(call.function.name, arguments), call.id))
    return Message("assistant", "\n".join(texts), thinking=message.thought or None, tool_calls=calls or None)


def _arguments(text: str, place: str) -> msgspec.Raw:
    """The arguments of a call, as an object whose members keep their order and their numbers."""
    given = text.encode() if text.strip() else b"{}"
    try:
        _object(given)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidRequest(
            "Ollama takes the arguments of a call as an object, and these are none.", param=place, code="invalid_field"
        ) from error
    return msgspec.Raw(given)


def _tool_result(
    message: chat.ToolResult, place: str, called: Mapping[str, str], pictures: Pictures, dropped: list[str]
) -> Message:
    parts = list(_split("tool", message.content, place, pictures, dropped))
    images = [image for each in parts for image in each.images or ()]
    result = Message("tool", "\n".join(each.content for each in parts if each.content), images=images or None)
    result.tool_call_id = message.tool_call_id
    result.tool_name = called.get(message.tool_call_id)
    return result


def _split(role: str, content: chat.Content, place: str, pictures: Pictures, dropped: list[str]) -> Iterator[Message]:
    """A message, or several where a picture stands behind text: in one message Ollama puts pictures first."""
    if isinstance(content, str):
        yield Message(role, content)
        return
    texts: list[str] = []
    images: list[str] = []
    for number, part in enumerate(content):
        if not isinstance(part, chat.Image):
            texts.append(_text(part, f"{place}.content[{number}]"))
            continue
        if texts:
            yield Message(role, "\n".join(texts), images=images or None)
            texts, images = [], []
        images.append(_picture(part.image_url, f"{place}.content[{number}].image_url", pictures))
        if part.image_url.detail not in (None, "auto"):
            dropped.append("messages.content.image_url.detail")
    yield Message(role, "\n".join(texts), images=images or None)


def _texts(parts: Sequence[chat.Part], place: str) -> list[str]:
    return [_text(part, f"{place}.content[{number}]") for number, part in enumerate(parts)]


def _text(part: chat.Part, place: str) -> str:
    if isinstance(part, chat.Text):
        return part.text
    if isinstance(part, chat.Refusal):
        return part.refusal
    kind = str(part.__struct_config__.tag)
    raise InvalidRequest(
        f"This backend takes text and pictures, and no {kind!r} here.", param=place, code="unsupported_content"
    )


def _picture(image: chat.ImageURL, place: str, pictures: Pictures) -> str:
    found = DATA.match(image.url)
    if found is not None:
        return image.url[found.end() :]
    if image.url in pictures:
        return pictures[image.url]
    raise InvalidRequest(
        "This backend takes pictures inside the request alone: send data:image/png;base64,… in place of an address.",
        param=place,
        code="unsupported_content",
    )
