"""What is seen of an answer when its content is captured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from headrace.streaming import Event

TEXTS = frozenset(("content", "text", "reasoning_content", "reasoning", "refusal", "partial_json", "thinking", "delta"))
"""Where the dialects keep what a model said."""
MOST_CHOICES = 128


class Choice:
    """One of the answers: what was said, which functions are to be called, and why it ended."""

    __slots__ = ("calls", "finish", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: dict[int, dict[str, str]] = {}
        self.finish: str | None = None


class AnswerTap:
    """Collects an answer, whole or streamed, up to so many characters."""

    wants: Literal["bytes", "events", "usage"] = "events"

    def __init__(self, room: int) -> None:
        self._room = room
        self.choices: dict[int, Choice] = {}
        self.model: str | None = None
        self.id: str | None = None

    def feed(self, item: Event) -> None:
        if item.is_done:
            return
        try:
            answer = item.json()
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if not isinstance(answer, dict):
            return
        self._name(answer)
        choices = answer.get("choices")
        for part in choices if isinstance(choices, list) else [answer]:
            if isinstance(part, dict):
                self._read(part)

    def close(self, completed: bool) -> None:
        """Nothing to release."""

    def _name(self, answer: dict[str, Any]) -> None:
        """Chat says it at the top; messages and responses in an object of their first events."""
        inner = answer.get("message", answer.get("response"))
        for said in (answer, inner):
            if isinstance(said, dict) and isinstance(said.get("model"), str):
                self.model = self.model or said["model"]
                self.id = self.id or (said["id"] if isinstance(said.get("id"), str) else None)

    def _read(self, part: dict[str, Any]) -> None:
        index = part.get("index") if "finish_reason" in part or "delta" in part or "message" in part else 0
        if not isinstance(index, int) or (index not in self.choices and len(self.choices) >= MOST_CHOICES):
            return
        choice = self.choices.setdefault(index, Choice())
        reason = part.get("finish_reason") or part.get("stop_reason")
        if isinstance(reason, str):
            choice.finish = reason
        said = part.get("delta") or part.get("message") or part
        calls = said.pop("tool_calls", None) if isinstance(said, dict) else None
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            self._call(choice, place, call)
        for text in _texts(said if isinstance(said, dict | list) else {"delta": said}):
            choice.texts.append(self._taken(text))

    def _call(self, choice: Choice, place: int, call: Any) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return
        number = call.get("index", place)
        kept = choice.calls.setdefault(number if isinstance(number, int) else place, {})
        for name in ("name", "arguments"):
            if isinstance(function.get(name), str):
                kept[name] = kept.get(name, "") + self._taken(function[name])

    def _taken(self, text: str) -> str:
        taken = text[: self._room]
        self._room -= len(taken)
        return taken


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, str):
                if name in TEXTS:
                    yield item
            else:
                yield from _texts(item)
