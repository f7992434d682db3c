"""What a stream has delivered so far, so that another backend can go on where it broke off.

The journal reads every event; what it lets pass is one answer, whoever the events come from: one id, one role, text
without seams, and token counts that are the answer's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from .errors import UpstreamError
from .streaming import EventSplitter
from .vetting import FAILED, BadEvent, malformed

DONE = b"data: [DONE]\n\n"


class Mismatch(UpstreamError):
    """An answer that was begun anew is not the same as before."""


class Journal:
    """The journal of one stream with one answer, of the endpoint `chat` or `completions`.

    Attributes:
        text: what has been delivered of the answer.
        pieces: in how many events.
        fixed: whether something was delivered that cannot be continued: a tool call, reasoning, a second answer.
        finished: whether the answer is whole.
        ended: whether the end marker has passed, too.
    """

    def __init__(self) -> None:
        self.text = ""
        self.pieces = 0
        self.fixed = self.finished = self.ended = False
        self._splitter = EventSplitter()
        self._named: dict[str, Any] = {}
        """`id` and `created` of the first backend's events."""
        self._again = ""
        """What is delivered already of an answer that begins anew."""
        self._begun = False
        """Whether a role has been delivered."""
        self._before = 0
        """Pieces that were delivered by others, and stand in the prompt of the backend that goes on."""

    def follow(self, *, anew: bool) -> None:
        """From now on the events are another backend's: it goes on, or begins `anew`."""
        self._splitter = EventSplitter()
        self._again = self.text if anew else ""
        self._before = 0 if anew else self.pieces

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The events to deliver.

        Raises:
            UpstreamError: there is one that is no JSON, or tells of an error, or does not fit to what was delivered.
        """
        for event in self._splitter.feed(chunk):
            if event.data.strip() == b"[DONE]":
                self.ended = True
                yield DONE
                continue
            try:
                said = event.json()
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise malformed(event.data) from error
            if not isinstance(said, dict) or said.get("error"):
                raise BadEvent(FAILED, detail="an error event in the stream", evidence=repr(said)[:500])
            if self._note(said):
                yield b"data: " + msgspec.json.encode(said) + b"\n\n"

    def _note(self, said: dict[str, Any]) -> bool:
        """Take note of an event, and make it one of this answer. Whether there is something left to deliver."""
        self._name(said)
        worth = self._count(said)
        choices = said.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                worth = self._choice(choice) or worth
        return worth

    def _name(self, said: dict[str, Any]) -> None:
        if self._named:
            said.update(self._named)
        else:
            self._named = {name: said[name] for name in ("id", "created") if name in said}

    def _count(self, said: dict[str, Any]) -> bool:
        """Whether it has token counts; those of a backend that went on have its beginning in the prompt."""
        usage = said.get("usage")
        if not isinstance(usage, dict):
            return False
        for name, change in (("prompt_tokens", -self._before), ("completion_tokens", self._before)):
            if isinstance(usage.get(name), int):
                usage[name] = max(0, usage[name] + change)
        return True

    def _choice(self, choice: dict[str, Any]) -> bool:
        delta = choice.get("delta")
        part, key = (delta, "content") if isinstance(delta, dict) else (choice, "text")
        if choice.get("index", 0) != 0 or any(part.get(each) for each in UNSPLICEABLE):
            self.fixed = True
        if self._begun:
            part.pop("role", None)
        worth = self._text(part, key) or self.fixed or not self._begun
        self._begun = True
        if choice.get("finish_reason"):
            if self._again:
                raise Mismatch("The backend's second answer is shorter than its first.")
            self.finished = worth = True
        return worth

    def _text(self, part: dict[str, Any], key: str) -> bool:
        """Whether there is text to deliver."""
        text = part.get(key)
        if not isinstance(text, str) or not text:
            return False
        known = min(len(text), len(self._again))
        if text[:known] != self._again[:known]:
            raise Mismatch("The backend's second answer is not the same as its first.")
        self._again = self._again[known:]
        part[key] = text = text[known:]
        self.text += text
        self.pieces += bool(text)
        return bool(text)


UNSPLICEABLE = ("tool_calls", "function_call", "reasoning_content", "reasoning")
"""What cannot be continued where it broke off."""
