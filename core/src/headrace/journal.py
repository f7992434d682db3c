"""What a stream has delivered so far, so that another backend can go on where it broke off.

The journal reads every event; what it lets pass is one answer, whoever the events come from: one id, one role, text
without seams, and token counts that are the answer's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from .errors import UpstreamError
from .streaming import EventSplitter
from .vetting import ABORTED, FAILED, BadEvent, read_json

DONE = b"data: [DONE]\n\n"


SHORTER = "The backend's second answer is shorter than its first."


class Mismatch(UpstreamError):
    """An answer that was begun anew is not the same as before."""


class Journal:
    """The journal of one stream with one answer, of the endpoint `chat` or `completions`.

    Attributes:
        fixed: whether something was delivered that cannot be continued: a tool call, reasoning, a second answer.
        finished: whether the answer is whole.
        ended: whether the end marker has passed, too.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.fixed = self.finished = self.ended = False
        self._splitter = EventSplitter()
        self._named: dict[str, Any] = {}
        """`id` and `created` of the first backend's events."""
        self._again = ""
        """What is delivered already of an answer that begins anew."""
        self._followed = False
        """Whether the events are not the first backend's any more."""
        self._begun = False
        """Whether a role has been delivered."""
        self._before = 0
        """Pieces that were delivered by others, and stand in the prompt of the backend that goes on."""

    @property
    def text(self) -> str:
        """What has been delivered of the answer."""
        return "".join(self._texts)

    @property
    def pieces(self) -> int:
        """In how many events."""
        return len(self._texts)

    def follow(self, *, anew: bool) -> None:
        """From now on the events are another backend's: it goes on, or begins `anew`."""
        self._splitter = EventSplitter()
        self._followed = True
        self._again = self.text if anew else ""
        self._before = 0 if anew else self.pieces

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The events to deliver.

        Raises:
            UpstreamError: there is one that is no JSON, or tells of an error, or does not fit to what was delivered.
        """
        for event in self._splitter.feed(chunk):
            if event.data.strip() == b"[DONE]":
                if self._again:
                    raise Mismatch(SHORTER)
                self.ended = True
                yield DONE
                continue
            said = read_json(event.data)
            if not isinstance(said, dict) or said.get("error") or _is_aborted(said):
                raise BadEvent(FAILED, detail="an error event in the stream", evidence=repr(said)[:500])
            if self._note(said):
                yield (
                    b"data: " + (_encoded(said) if self._followed else event.data.replace(b"\n", b"\ndata: ")) + b"\n\n"
                )

    def _note(self, said: dict[str, Any]) -> bool:
        """Take note of an event, and make it one of this answer. Whether there is something left to deliver."""
        self._name(said)
        counts = self._count(said)
        choices = [each for each in said.get("choices") or () if isinstance(each, dict)]
        if not choices:
            return counts or not self._followed  # what stands before an answer is not said again
        worth = [self._choice(each) for each in choices]
        return counts or any(worth)

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
        """Whether it says something that has not been said."""
        delta = choice.get("delta")
        part, key = (delta, "content") if isinstance(delta, dict) else (choice, "text")
        if choice.get("index", 0) != 0 or (part is delta and _is_more_than_text(part)):
            self.fixed = True
        repeated = self._begun and self._followed and part.pop("role", None) is not None
        text = part.get(key)
        if isinstance(text, str) and text:
            repeated = not self._text(part, key, text)
            if part[key] != text and choice.get("logprobs"):
                choice["logprobs"] = None  # nobody knows which of them are of the rest
        elif text:
            self.fixed = True
        self._begun = True
        if choice.get("finish_reason"):
            if self._again:
                raise Mismatch(SHORTER)
            self.finished = True
        return self.finished or self.fixed or not repeated

    def _text(self, part: dict[str, Any], key: str, text: str) -> bool:
        """Whether some of it has not been said."""
        known = min(len(text), len(self._again))
        if text[:known] != self._again[:known]:
            raise Mismatch("The backend's second answer is not the same as its first.")
        self._again = self._again[known:]
        part[key] = text = text[known:]
        if text:
            self._texts.append(text)
        return bool(text)


def _is_aborted(said: dict[str, Any]) -> bool:
    """Whether the backend says that it has cut the answer off: what it says beside that is not delivered."""
    choices = said.get("choices")
    each = choices if isinstance(choices, list) else ()
    return any(isinstance(choice, dict) and choice.get("finish_reason") == ABORTED for choice in each)


def _is_more_than_text(delta: dict[str, Any]) -> bool:
    """Whether there is something in it that cannot be continued where it broke off: a call, reasoning, a refusal."""
    return any(value for name, value in delta.items() if name not in ("role", "content"))


def _encoded(said: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(said)
    except UnicodeEncodeError:  # half a pair of surrogates
        return json.dumps(said).encode()
