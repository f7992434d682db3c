"""An answer as it is kept: its bytes as the client got them, and what has to be known to give them again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

from headrace.exchange import Headers, Reply

Kind = Literal["stream", "whole"]
OVERHEAD = 1024
"""Bytes that an entry takes beside its answer."""
PIECE = 65_536
"""Bytes of a stream that are given on at once."""
NO_EPOCH = ("", "")
TYPES: dict[Kind, Headers] = {
    "stream": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")],
    "whole": [(b"content-type", b"application/json")],
}


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One answer. `key` is its own: whoever is handed the wrong one notices."""

    key: str
    model: str
    kind: Kind
    body: bytes
    at: float
    """When it was complete, `time.time()`."""
    ends: float
    """When it must not be given any more, the same."""
    dropped: tuple[str, ...] = ()
    """What of the request the backend was not asked: clients are told so."""
    epoch: tuple[str, str] = NO_EPOCH
    """What `cache clear` changes: an entry of another epoch than the present is gone."""

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self.body) + OVERHEAD

    @property
    def age(self) -> int:
        """Seconds."""
        return max(0, int(time.time() - self.at))


def encode(entry: Entry) -> bytes:
    """As it lies on a server."""
    return msgspec.msgpack.encode(entry)


def decode(data: bytes) -> Entry | None:
    """None if it is no entry, or one of another version."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError:
        return None


_decoder = msgspec.msgpack.Decoder(Entry)


def reply_of(entry: Entry) -> Reply:
    """The answer, once more."""
    headers = hit_headers(entry.kind, entry.age)
    if entry.kind == "whole":
        return Reply(200, headers, content=entry.body, source="cache")
    return Reply(200, headers, stream=_pieces(entry.body), source="cache")


def hit_headers(kind: Kind, age: int) -> Headers:
    """The head of an answer that comes from here, but for `X-Cache`: the core lets none of a backend's pass."""
    return [*TYPES[kind], (b"age", b"%d" % age)]


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]
