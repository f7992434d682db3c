"""Where a request stands in a trace: W3C Trace Context, `traceparent` in and out.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from random import getrandbits
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from headrace.exchange import Exchange

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
SAMPLED, RANDOM = 1, 2
"""Bits of the flags: it is recorded; its id was left to chance."""
_IDS, _SPAN = 192, 64
_NOT_ZERO = 1 << _SPAN | 1
"""Sets a bit of both ids."""


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """A client's `traceparent`."""

    trace_id: str
    span_id: str
    flags: int

    @property
    def sampled(self) -> bool:
        return bool(self.flags & SAMPLED)

    def unsampled(self) -> str:
        """The same for backends, of a request that is not recorded here."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags & RANDOM:02x}"


def read(exchange: Exchange) -> Incoming | None:
    """What the client says; None if it says nothing, or nothing that holds good."""
    text = exchange.header(b"traceparent")
    if text is None or sum(name == b"traceparent" for name, _ in exchange.headers) > 1:
        return None
    found = _TRACEPARENT.fullmatch(text.strip(" \t"))
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    return Incoming(found[2], found[3], int(found[4], 16))


def new_ids() -> bytes:
    """Of a trace, 16 bytes, and of a span in it, 8."""
    return (getrandbits(_IDS) | _NOT_ZERO).to_bytes(24, "big")


def new_span_id() -> bytes:
    return (getrandbits(_SPAN) | 1).to_bytes(8, "big")


def unrecorded() -> str:
    """What backends are told of a request that is not recorded and whose trace begins here."""
    ids = new_ids().hex()
    return f"00-{ids[:32]}-{ids[32:]}-00"
