"""What was asked and answered, as attributes of a span: only if the configuration asks for it.

`gen_ai.input.messages` and `gen_ai.output.messages` are JSON texts of the form that OpenTelemetry gives them:
https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-spans.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from .answers import AnswerTap, Choice
from .redaction import MARGIN, Redactor
from .wire import Attribute

if TYPE_CHECKING:
    from headrace.exchange import Exchange

    from .config import OtelConfig

INPUT, OUTPUT = Attribute("gen_ai.input.messages"), Attribute("gen_ai.output.messages")
SYSTEM = Attribute("gen_ai.system_instructions")
RESPONSE_MODEL, RESPONSE_ID = Attribute("gen_ai.response.model"), Attribute("gen_ai.response.id")
OMITTED, MESSAGE = Attribute("headrace.content.omitted"), Attribute("headrace.error.message")
PARSE_LIMIT = 1_048_576
"""Bodies beyond this many bytes are not looked into: everybody would wait meanwhile."""
MOST_PARTS = 1000
Part = dict[str, Any]


class Content:
    """Captures, or does not; what it lets out is redacted in either case."""

    def __init__(self, config: OtelConfig) -> None:
        self._captures, self._limit = config.capture_content, config.content_limit
        self._redactor = Redactor(config.redact)
        self.name = self._redactor.name
        """An id, without what looks like a secret."""

    def tap(self) -> AnswerTap | None:
        """What looks at an answer; None if nothing is captured."""
        return AnswerTap(self._limit + MARGIN) if self._captures else None

    def attributes(self, exchange: Exchange, answer: AnswerTap) -> bytes:
        """What was asked and answered, and what the client was told of an error."""
        found = [*self._asked(exchange), *self._answered(answer)]
        if exchange.error is not None:
            found.append(MESSAGE.text(self._redactor.prefix(exchange.error.message, self._limit)))
        return b"".join(found)

    def _asked(self, exchange: Exchange) -> Iterator[bytes]:
        if exchange.peek is None:
            return
        if len(exchange.body) > PARSE_LIMIT:
            yield OMITTED.true
            return
        room = _Room(self._redactor, self._limit)
        fields = exchange.fields
        for name in ("system", "instructions"):
            if name in fields:
                yield SYSTEM.text(_json(list(_parts(_decoded(fields[name]), room))))
        for name in ("messages", "prompt", "input"):
            if name in fields:
                yield INPUT.text(_json(list(_messages(_decoded(fields[name]), room))))

    def _answered(self, answer: AnswerTap) -> Iterator[bytes]:
        room = _Room(self._redactor, self._limit)
        if answer.model:
            yield RESPONSE_MODEL.text(room.label(answer.model))
        if answer.id:
            yield RESPONSE_ID.text(room.label(answer.id))
        if answer.choices:
            yield OUTPUT.text(_json([_said(choice, room) for _, choice in sorted(answer.choices.items())]))


class _Room:
    """Lets out so many characters, and no secrets."""

    def __init__(self, redactor: Redactor, limit: int) -> None:
        self._redactor, self._left, self._parts = redactor, limit, MOST_PARTS

    def text(self, text: str) -> str:
        shown = self._redactor.prefix(text, self._left)
        self._left = max(0, self._left - len(shown))
        return shown

    def label(self, text: object) -> str:
        """A role, a type or an id."""
        return self._redactor.prefix(str(text), 128)

    @property
    def more(self) -> bool:
        """Whether another part may be shown."""
        self._parts -= 1
        return self._left > 0 and self._parts > 0


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _messages(value: Any, room: _Room) -> Iterator[Part]:
    """Each message with its role; a text or several are the user's."""
    for item in value if isinstance(value, list) else [value]:
        if not room.more:
            return
        if isinstance(item, dict) and "role" in item:
            yield {"role": room.label(item["role"]), "parts": list(_message_parts(item, room))}
        else:
            yield {"role": "user", "parts": list(_parts(item, room))}


def _message_parts(message: dict[str, Any], room: _Room) -> Iterator[Part]:
    content, call = message.get("content"), message.get("tool_call_id")
    if call is not None:
        yield {"type": "tool_call_response", "id": room.label(call), "result": room.text(_plain(content))}
        return
    if content is not None:
        yield from _parts(content, room)
    calls = message.get("tool_calls")
    for each in calls if isinstance(calls, list) else ():
        function = each.get("function") if isinstance(each, dict) else None
        if isinstance(function, dict) and room.more:
            yield _call(function, room) | {"id": room.label(each.get("id", ""))}


def _parts(content: Any, room: _Room) -> Iterator[Part]:
    """Texts as they are; of pictures, sounds and tokens only that they were there."""
    for item in content if isinstance(content, list) else [content]:
        if not room.more:
            return
        text = item.get("text") if isinstance(item, dict) else item
        if isinstance(text, str):
            yield {"type": "text", "content": room.text(text)}
        else:
            yield {"type": room.label(item.get("type", "object") if isinstance(item, dict) else "tokens")}


def _plain(content: Any) -> str:
    return content if isinstance(content, str) else _json(content)


def _call(function: dict[str, Any], room: _Room) -> Part:
    arguments = room.text(str(function.get("arguments", "")))
    return {"type": "tool_call", "name": room.label(function.get("name", "")), "arguments": arguments}


def _said(choice: Choice, room: _Room) -> Part:
    text = "".join(choice.texts)
    parts: list[Part] = [{"type": "text", "content": room.text(text)}] if text else []
    parts += [_call(call, room) for _, call in sorted(choice.calls.items())]
    return {"role": "assistant", "parts": parts, "finish_reason": room.label(choice.finish or "")}
