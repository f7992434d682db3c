"""Looks at every event of a stream on its way: whether it is one, whether it tells of an error, whether it is the last.

All of this is paid for every chunk of every stream that the core delivers: about a microsecond.
"""

from __future__ import annotations

import re

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


_decode = msgspec.json.Decoder(_Chunk).decode
_decode_any = msgspec.json.Decoder().decode


class Vetting:
    """Looks at one stream.

    Args:
        answers: how many there are in it.

    Attributes:
        finished: whether all of them have given their finish reasons: nothing of them is missing any more.
    """

    __slots__ = ("_answers", "_ended", "_rest", "finished")

    def __init__(self, answers: int = 1) -> None:
        self._answers = answers
        self._rest = b""
        self._ended: set[int] = set()
        self.finished = False

    def look(self, chunk: bytes) -> bytes:
        """Look at the events that are complete with this chunk, and return them: half an event is held back, for if
        the stream broke then, nothing could be said after it any more.

        Raises:
            BadEvent: one of them is no JSON, or tells of an error.
        """
        if not self._rest and chunk.endswith(END) and chunk.startswith(START) and chunk.find(b"\n\n") == len(chunk) - 2:
            self._event(chunk[6:])
            return chunk
        return self._look_slowly(self._rest + chunk)

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
        if len(data) - start > MOST_HELD:
            start = len(data)
        self._rest = data[start:]
        return data[:start]

    def rest(self) -> bytes:
        """What was held back, of a stream that has ended: an event, if nothing but its end is missing."""
        rest, self._rest = self._rest, b""
        try:
            event = parse_event(_LINE_END.sub(b"\n", rest))
            if event is not None and event.data.strip() not in (b"", b"[DONE]"):
                self._event(event.data)
        except BadEvent:
            return b""
        return rest

    def _event(self, data: bytes) -> None:
        try:
            found = _decode(data)
        except msgspec.ValidationError:  # it says something else than we know of
            found = self._read_any(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed(data) from error
        if found.error is not _NOTHING and bytes(found.error) != b"null":
            raise BadEvent(FAILED, detail="an error event in the stream", evidence=_words(data))
        for choice in found.choices:
            if choice.finish_reason is not None:
                self._ended.add(choice.index)
                self.finished = len(self._ended) >= self._answers

    def _read_any(self, data: bytes) -> _Chunk:
        """Whether at least it tells of an error."""
        try:
            said = _decode_any(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed(data) from error
        told = said.get("error") if isinstance(said, dict) else None
        return _Chunk(error=_NOTHING if told is None else msgspec.Raw(b"{}"))


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
