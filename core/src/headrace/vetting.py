"""Looks at every event of a stream on its way: whether it is one, whether it tells of an error, whether it is the last.

All of this is paid for every chunk of every stream that the core delivers: about a microsecond.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from .errors import UpstreamError
from .streaming import parse_event

MOST_HELD = 1_048_576
"""Bytes of one event: a longer one is not looked at."""
START, END = b"data: {", b"}\n\n"
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"\r\n?")
_NOTHING = msgspec.Raw(b"null")


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    """What matters of https://platform.openai.com/docs/api-reference/chat/streaming."""

    choices: tuple[_Choice, ...] = ()
    error: msgspec.Raw = _NOTHING
    type: str | None = None
    """Of dialects whose events have names."""


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_any = msgspec.json.Decoder().decode


NAMELESS: frozenset[str] = frozenset()
ABORTED = "abort"
"""vLLM's finish reason for an answer that its own end has cut off."""


class Vetting:
    """Looks at one stream.

    Args:
        answers: how many there are in it.
        last: types of events after which nothing is missing, in dialects whose events have types.
        fails: types of events that tell of an error.

    Attributes:
        finished: whether all of them have given their finish reasons: nothing of them is missing any more.
    """

    __slots__ = ("_ended", "_fails", "_held", "_last", "_parts", "_tail", "answers", "finished", "said_last")

    def __init__(self, answers: int = 1, last: frozenset[str] = NAMELESS, fails: frozenset[str] = NAMELESS) -> None:
        self.answers = answers
        self._last, self._fails = last, fails
        self._parts: list[bytes] = []
        """What is held back, as it came: `_held` bytes, and the `_tail` that may be half an end."""
        self._held, self._tail = 0, b""
        self._ended: set[int] = set()
        self.finished = False
        self.said_last = False
        """Whether an event has come that is its dialect's last."""

    def look(self, chunk: bytes) -> bytes:
        """Look at the events that are complete with this chunk, and return them: half an event is held back, for if
        the stream broke then, nothing could be said after it any more.

        Raises:
            BadEvent: one of them is no JSON, or tells of an error.
        """
        if not self._held and chunk.endswith(END) and chunk.startswith(START) and chunk.find(b"\n\n") == len(chunk) - 2:
            try:
                found = _decode(chunk[6:])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return self._look_slowly(chunk)
            self._note(found)
            return chunk
        if self._held and not _EVENT_END.search(self._tail + chunk):
            return self._hold(chunk)
        return self._look_slowly(self._taken() + chunk)

    def _hold(self, chunk: bytes) -> bytes:
        """Half an event, or more of it. What is too long for that is shown."""
        self._parts.append(chunk)
        self._held += len(chunk)
        self._tail = (self._tail + chunk)[-3:]
        return self._taken() if self._held > MOST_HELD else b""

    def _taken(self) -> bytes:
        """What was held back until now."""
        parts, self._parts, self._held, self._tail = self._parts, [], 0, b""
        return b"".join(parts)

    def _look_slowly(self, data: bytes) -> bytes:
        """Events that come in parts, several at once, with comments, or with other ends of lines."""
        start = 0
        for end in _EVENT_END.finditer(data):
            event = parse_event(_LINE_END.sub(b"\n", data[start : end.start()]))
            if event is not None and event.data and event.data.strip() != b"[DONE]":
                try:
                    self._event(event.data)
                except BadEvent as error:
                    error.before = data[:start]
                    raise
            start = end.end()
        return data[:start] + self._hold(data[start:]) if start < len(data) else data

    def rest(self) -> bytes:
        """What was held back, of a stream that has ended: an event, if nothing but its end is missing."""
        rest = self._taken()
        try:
            event = parse_event(_LINE_END.sub(b"\n", rest))
            if event is not None and event.data.strip() not in (b"", b"[DONE]"):
                self._event(event.data)
        except BadEvent:
            return b""
        return rest

    def _event(self, data: bytes) -> None:
        """What the quick way could not read, or has not tried."""
        said = read_json(data)
        if not isinstance(said, dict):
            return
        given = said.get("type")
        kind = given if isinstance(given, str) else ""
        if said.get("error") or kind in self._fails:
            raise BadEvent(FAILED, detail="an error event in the stream", evidence=_words(data))
        if kind in self._last:
            self.finished = self.said_last = True
        choices = said.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("finish_reason"):
                self._end(choice.get("index", 0), choice["finish_reason"])

    def _note(self, found: _Chunk) -> None:
        if found.error is not _NOTHING and bytes(found.error) not in NO_ERROR:
            raise BadEvent(FAILED, detail="an error event in the stream", evidence=_words(bytes(found.error)))
        if found.type is not None:
            if found.type in self._fails:
                raise BadEvent(FAILED, detail="an error event in the stream")
            if found.type in self._last:
                self.finished = self.said_last = True
        for choice in found.choices:
            if choice.finish_reason is not None:
                self._end(choice.index, choice.finish_reason)

    def _end(self, answer: int, reason: object) -> None:
        if reason == ABORTED:
            raise BadEvent(FAILED, detail="the backend aborted the answer")
        self._ended.add(answer)
        self.finished = len(self._ended) >= self.answers


NO_ERROR = (b"null", b'""', b"{}", b"false", b"[]")
"""What stands in events that tell of none."""


def read_json(data: bytes) -> Any:
    """What an event says, in whatever way it is written: with half a character, or half a pair of surrogates.

    Raises:
        BadEvent: it is no JSON.
    """
    try:
        return _decode_any(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise malformed(data) from error


FAILED = "The backend failed before the answer was complete."
MALFORMED = "The backend sent an event that cannot be read."


class BadEvent(UpstreamError):
    """A stream has an event that is no part of an answer.

    Attributes:
        before: good events that came along with it.
    """

    before = b""


def malformed(data: bytes) -> BadEvent:
    """An event that cannot be read."""
    return BadEvent(MALFORMED, detail="no JSON", evidence=_words(data))


def _words(data: bytes) -> str:
    return data[:500].decode("utf-8", "replace")
