"""A reply's bytes on their way: taps that watch them, and server-sent events split out of them."""

from __future__ import annotations

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


class EventSplitter:
    """Splits a byte stream into events, wherever the chunks were cut. Comments and empty events are dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Event]:
        buffer = self._rest + chunk if self._rest else chunk
        if b"\r" in buffer:
            held = buffer.endswith(b"\r")  # its line feed may be in the next chunk
            body = buffer[:-1] if held else buffer
            buffer = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + (b"\r" if held else b"")
        *blocks, self._rest = buffer.split(b"\n\n")
        return [event for event in map(parse_event, blocks) if event is not None]


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


class Tail:
    """The last bytes of a stream: all of a short one, at least `SIZE` of a long one."""

    SIZE = 4096
    """Bytes. What tells of a stream's end (finish reason, usage, `[DONE]`, an error) takes a few hundred."""

    __slots__ = ("_chunks", "_size")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def add(self, chunk: bytes) -> None:
        chunks = self._chunks
        chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(chunks[0]) >= self.SIZE:
            self._size -= len(chunks.popleft())

    def __bytes__(self) -> bytes:
        return b"".join(self._chunks)


class Taps:
    """The taps of one reply, fed together; `failed(plugin, error)` is told when one is detached."""

    def __init__(
        self, taps: Sequence[tuple[str, Tap]], failed: Callable[[str, Exception], None], event_stream: bool
    ) -> None:
        self._taps = list(taps)
        self._failed = failed
        self._event_stream = event_stream
        self._splitter = EventSplitter()
        self.watches_bytes = any(tap.wants != "usage" for _, tap in taps)

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
                    events = self._split(chunk)
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

    def _split(self, chunk: bytes) -> list[Event]:
        return self._splitter.feed(chunk) if self._event_stream else [Event(chunk)]

    def _call(self, name: str, tap: Tap, item: object) -> None:
        if (name, tap) not in self._taps:
            return
        try:
            tap.feed(item)
        except Exception as error:
            self._taps.remove((name, tap))
            self._failed(name, error)
