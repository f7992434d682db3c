"""Items become the messages of a chat.

What an assistant thought, said and called are items of their own, and one message of a chat. A call must be followed by
its result there, so whatever an assistant says between two calls joins the message that has them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from headrace import chat
from headrace.dialects import invalid_field
from headrace.errors import InvalidRequest

from .items import (
    KINDS,
    REFERENCE,
    Content,
    FunctionCall,
    FunctionCallOutput,
    InputAudio,
    InputFile,
    InputImage,
    InputText,
    Item,
    Message,
    OutputRefusal,
    OutputText,
    Part,
    Reasoning,
    head_of,
)
from .naming import Dropped

_decoders = {kind: msgspec.json.Decoder(item).decode for kind, item in KINDS.items()}
_known = {kind: frozenset((*item.__struct_fields__, "type")) for kind, item in KINDS.items()}
_known_of_parts = {
    str(part.__struct_config__.tag): frozenset((*part.__struct_fields__, "type"))
    for part in (InputText, InputImage, InputFile, InputAudio, OutputText, OutputRefusal)
}
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_parts = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_KNOWN_OF_TEXTS = frozenset(("type", "text"))
TOLD = 64
"""Characters of a client's own words that are repeated in an error."""
PARTED = ("content", "output", "summary")
"""Fields of items that may be lists of parts."""


class Conversation:
    """Collects messages.

    Attributes:
        messages: what has been collected.
        dropped: what was met that no message says.
    """

    def __init__(self, dropped: Dropped) -> None:
        self.messages: list[chat.Message] = []
        self.dropped = dropped
        self._turn: chat.Assistant | None = None
        """The last message, if it is an assistant's."""

    def add_all(self, items: Iterable[msgspec.Raw]) -> None:
        """Raises InvalidRequest: an item that is none, or that a chat cannot say."""
        for number, raw in enumerate(items):
            self.add(raw, f"input[{number}]")

    def add(self, raw: msgspec.Raw, place: str) -> None:
        try:
            kind = head_of(raw).kind
            if kind not in KINDS:
                raise _unsaid(kind, raw, place)
            item: Item = _decoders[kind](raw)
        except msgspec.ValidationError as error:
            raise invalid_field(error, place) from error
        self._name_unknown(raw, kind)
        self._take(item, place)

    def say(self, message: chat.Message) -> None:
        """Somebody else than the assistant says something."""
        self._turn = None
        self.messages.append(message)

    def _take(self, item: Item, place: str) -> None:
        match item:
            case Message():
                self._message(item, place)
            case FunctionCall():
                call = chat.ToolCall(item.call_id, chat.FunctionCall(item.name, item.arguments))
                turn = self._assistant(anew=False)
                turn.tool_calls = [*(turn.tool_calls or ()), call]
            case FunctionCallOutput():
                content = self._content(item.output, f"{place}.output")
                self.say(chat.ToolResult(item.call_id, content))
            case Reasoning():
                self._thought(item)

    def _message(self, item: Message, place: str) -> None:
        content = self._content(item.content, f"{place}.content")
        match item.role:
            case "user":
                self.say(chat.User(content))
            case "system":
                self.say(chat.System(content))
            case "developer":
                self.say(chat.Developer(content))
            case "assistant":
                self._said(content)

    def _said(self, content: chat.Content) -> None:
        turn = self._assistant(anew=True)
        turn.content = content if turn.content is None else _joined(turn.content, content)

    def _thought(self, item: Reasoning) -> None:
        self.dropped.note("input.encrypted_content", item.encrypted_content)
        text = "\n\n".join(part.text for part in item.content or item.summary)
        if item.content and item.summary:
            self.dropped.add("input.summary")
        if text:
            turn = self._assistant(anew=True)
            turn.reasoning_content = f"{turn.thought}\n\n{text}" if turn.thought else text

    def _assistant(self, *, anew: bool) -> chat.Assistant:
        """The assistant's message to add to; with `anew` another one if this one has spoken, and called nothing."""
        turn = self._turn
        if turn is None or (anew and turn.content is not None and not turn.tool_calls):
            turn = self._turn = chat.Assistant()
            self.messages.append(turn)
        return turn

    def _content(self, content: Content, place: str) -> chat.Content:
        """One text as such, anything else as parts."""
        if isinstance(content, str):
            return content
        parts = [self._part(part, f"{place}[{number}]") for number, part in enumerate(content)]
        if len(parts) == 1 and isinstance(parts[0], chat.Text):
            return parts[0].text
        return parts or ""

    def _part(self, part: Part, place: str) -> chat.Part:
        match part:
            case InputText():
                return chat.Text(part.text)
            case OutputText():
                self.dropped.note("input.content.annotations", part.annotations)
                self.dropped.note("input.content.logprobs", part.logprobs)
                return chat.Text(part.text)
            case OutputRefusal():
                return chat.Refusal(part.refusal)
            case InputImage():
                return _image(part, place)
            case InputFile():
                return _file(part, place)
            case InputAudio():
                return chat.Audio(part.input_audio)

    def _name_unknown(self, raw: msgspec.Raw, kind: str) -> None:
        fields = _fields(raw)
        self.dropped.unknown_in(fields, _known[kind], "input")
        for name in PARTED:
            given = fields.get(name)
            if given is None or bytes(memoryview(given)[:1]) != b"[":
                continue
            for part in _parts(given):
                known = _known_of_parts.get(
                    msgspec.json.decode(part["type"]) if "type" in part else "", _KNOWN_OF_TEXTS
                )
                self.dropped.unknown_in(part, known, f"input.{name}")

    def finished(self) -> list[chat.Message]:
        """The messages. An assistant's that has nothing but thoughts says an empty text: servers want one."""
        for message in self.messages:
            if isinstance(message, chat.Assistant) and message.content is None and not message.tool_calls:
                message.content = ""
        return self.messages


def _joined(before: chat.Content, more: chat.Content) -> chat.Content:
    return [*_as_parts(before), *_as_parts(more)]


def _as_parts(content: chat.Content) -> list[chat.Part]:
    return [chat.Text(content)] if isinstance(content, str) else content


def _image(part: InputImage, place: str) -> chat.Part:
    if part.image_url is None:
        raise InvalidRequest(
            "A picture is told to this model's backend by its address or as data: give image_url.",
            param=f"{place}.{'image_url' if part.file_id is None else 'file_id'}",
            code="unsupported_value",
        )
    return chat.Image(chat.ImageURL(part.image_url, part.detail))


def _file(part: InputFile, place: str) -> chat.Part:
    if part.file_url is not None:
        raise InvalidRequest(
            "A file is told to this model's backend as data: give file_data.",
            param=f"{place}.file_url",
            code="unsupported_value",
        )
    return chat.File(chat.FileData(part.file_data, part.file_id, part.filename))


def _unsaid(kind: str, raw: msgspec.Raw, place: str) -> InvalidRequest:
    if kind == REFERENCE:
        name = head_of(raw).id or ""
        return InvalidRequest(f"Item with id '{name[:TOLD]}' not found.", param=place, code="item_not_found")
    return InvalidRequest(
        f"Items of the type {kind[:TOLD]!r} cannot be told to this model's backend: it answers chats.",
        param=f"{place}.type",
        code="unsupported_value",
    )
