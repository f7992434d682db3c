"""A reply's bytes on their way: taps that watch them, and server-sent events split out of them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

    data: bytes
    name: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether this is OpenAI's end marker."""
        return self.data == b"[DONE]"

    def json(self) -> Any:
        return msgspec.json.decode(self.data)


class Tap(Protocol):
    """Watches one reply. Sync and quick: the client waits meanwhile.

    `wants` decides what `feed` is given: every chunk as `bytes`, every `Event` of an event stream (of a whole reply:
    one Event with the body), or once, at the end, the `Usage`. A tap that wants only usage does not keep nginx from
    delivering. A tap that raises is detached and logged; the reply goes on.
    """

    wants: Literal["bytes", "events", "usage"]

    def feed(self, item: Any) -> None: ...

    def close(self, completed: bool) -> None:
        """The reply is over; `completed` as in `Outcome`. Called once."""
        ...


class EventTooLarge(ValueError):
    """A server-sent event has no end."""


class EventSplitter:
    """Splits a byte stream into events, wherever the chunks were cut. Comments and empty events are dropped."""

    LIMIT = 16 * 1024 * 1024
    """Bytes of one event."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._return_held = False
        """Whether a chunk ended with a carriage return, whose line feed may come with the next."""

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that are complete with this chunk. Raises EventTooLarge."""
        start, end = 0, max(0, len(self._buffer) - 1)  # what was searched before is not searched again
        self._buffer += self._with_line_feeds(chunk)
        events = []
        while (end := self._buffer.find(b"\n\n", end)) >= 0:
            event = parse_event(bytes(self._buffer[start:end]))
            if event is not None:
                events.append(event)
            start = end = end + 2
        del self._buffer[:start]
        if len(self._buffer) > self.LIMIT:
            raise EventTooLarge(f"an event is larger than {self.LIMIT} bytes")
        return events

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        if not self._return_held and b"\r" not in chunk:
            return chunk
        data = b"\r" + chunk if self._return_held else chunk
        self._return_held = data.endswith(b"\r")
        return data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def parse_event(block: bytes) -> Event | None:
    """Read the lines of one event; None if it carries no data."""
    data: list[bytes] = []
    name = None
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return Event(b"\n".join(data), name) if data else None


_EVENT_END = re.compile(rb"\r?\n\r?\n")
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


class UsageHider:
    """Leaves out the event that tells nothing but the usage, for a client that did not ask for it.

    What was left out is in `hidden`. An event is held back until it is whole.
    """

    HELD = 65_536
    """Bytes of an event that are held back at most."""

    __slots__ = ("_held", "hidden")

    def __init__(self) -> None:
        self._held = b""
        self.hidden = b""

    def look(self, chunk: bytes) -> bytes:
        """What is shown now that this has come."""
        if not self._held and b'"usage"' not in chunk and chunk.endswith(b"\n\n"):
            return chunk
        shown, self._held = self._split(self._held + chunk)
        return shown

    def rest(self) -> bytes:
        """What was held back, of a stream that has ended."""
        held, self._held = self._held, b""
        return held

    async def shown(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """What is shown of a stream."""
        try:
            async for chunk in stream:
                if shown := self.look(chunk):
                    yield shown
            if rest := self.rest():
                yield rest
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    def _split(self, data: bytes) -> tuple[bytes, bytes]:
        """The whole events that are shown, and the beginning of the next one."""
        shown, start = [], 0
        for end in _EVENT_END.finditer(data):
            event = data[start : end.end()]
            start = end.end()
            if b'"usage"' in event and _NO_CHOICES.search(event):
                self.hidden = event
            else:
                shown.append(event)
        rest = data[start:]
        if len(rest) > self.HELD:  # no usage is so long
            return b"".join((*shown, rest)), b""
        return b"".join(shown), rest


class Tail:
    """The last bytes of a stream: all of a short one, at least `SIZE` of a long one."""

    SIZE = 4096
    """Bytes. What tells of a stream's end (finish reason, usage, `[DONE]`, an error) takes a few hundred."""

    MOST = 4 * SIZE
    """Bytes that are kept before the first are forgotten, many chunks at once."""

    HEAD = 2048
    """Bytes of a long stream's beginning that are kept besides: some dialects tell the prompt's tokens there."""

    __slots__ = ("_chunks", "_size", "head", "unsent")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self.head = b""
        """The beginning, once it is no part of the rest."""
        self.unsent = False
        """Whether the last of it has not gone out."""

    def add(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > self.MOST:
            self._forget()

    def _forget(self) -> None:
        self.head = self.head or b"".join(self._chunks)[: self.HEAD]
        while self._size - len(self._chunks[0]) >= self.SIZE:
            self._size -= len(self._chunks.popleft())

    def __bytes__(self) -> bytes:
        return b"".join(self._chunks)


class Taps:
    """The taps of one reply, fed together; `failed(plugin, error)` is told when one is detached."""

    def __init__(self, taps: Sequence[tuple[str, Tap]], failed: Callable[[str, Exception], None]) -> None:
        self._taps = list(taps)
        self._failed = failed
        self._splitter = EventSplitter()
        self.event_stream = False
        """Whether the reply is one: known once it begins."""
        self.wants_usage = any(tap.wants == "usage" for _, tap in taps)
        self.watcher = next((name for name, tap in taps if tap.wants != "usage"), None)
        """The first plugin that wants to see the bytes themselves."""

    async def watch(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same chunks, each shown to the taps before it is passed on."""
        async for chunk in stream:
            self.feed(chunk)
            yield chunk

    def feed(self, chunk: bytes) -> None:
        events: list[Event] | None = None
        for name, tap in tuple(self._taps):
            if tap.wants == "bytes":
                self._call(name, tap, chunk)
            elif tap.wants == "events":
                if events is None:
                    events = self._events(chunk)
                for event in events:
                    self._call(name, tap, event)

    def close(self, usage: object | None, completed: bool) -> None:
        for name, tap in tuple(self._taps):
            try:
                if usage is not None and tap.wants == "usage":
                    tap.feed(usage)
                tap.close(completed)
            except Exception as error:
                self._failed(name, error)
        self._taps.clear()

    def _events(self, chunk: bytes) -> list[Event]:
        """The chunk's events; those who want events are detached if there can be none."""
        if not self.event_stream:
            return [Event(chunk)]
        try:
            return self._splitter.feed(chunk)
        except EventTooLarge as error:
            for name, tap in [each for each in self._taps if each[1].wants == "events"]:
                self._taps.remove((name, tap))
                self._failed(name, error)
            return []

    def _call(self, name: str, tap: Tap, item: object) -> None:
        if (name, tap) not in self._taps:
            return
        try:
            tap.feed(item)
        except Exception as error:
            self._taps.remove((name, tap))
            self._failed(name, error)
