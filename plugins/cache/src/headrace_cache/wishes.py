"""What a request says of caching, in its headers."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from headrace.errors import InvalidRequest
from headrace.exchange import Exchange

HEADER = b"x-headrace-cache"
Word = Literal["on", "off", "refresh"]
FORMS = "write on, off or refresh, and if you like for how many seconds, 1 to 9999999: 'on; ttl=60'"
_OWN = re.compile(r"\s*(on|off|refresh)\s*(?:;\s*ttl\s*=\s*([1-9]\d{0,6})\s*)?", re.ASCII | re.IGNORECASE)
_DIRECTIVE = re.compile(r"\s*([\w-]+)\s*(?:=\s*\"?(\d{1,12})\"?)?\s*", re.ASCII)


class Wish(msgspec.Struct, frozen=True):
    """What is asked for."""

    word: Word | None = None
    """`off`: neither look nor keep; `refresh`: do not look; `on`: as if it were deterministic."""
    max_age: int | None = None
    """Seconds: an older answer will not do."""
    ttl: int | None = None
    """Seconds that the answer may be kept."""


NOTHING = Wish()


def wish_of(exchange: Exchange) -> Wish:
    """Raises InvalidRequest: our own header cannot be read."""
    own, control = exchange.header(HEADER), exchange.header(b"cache-control")
    if own is None and control is None:
        return NOTHING
    word, ttl = _own(own) if own is not None else (None, None)
    max_age = None
    for part in (control or "").lower().split(","):
        found = _DIRECTIVE.fullmatch(part)
        if found is None:
            continue  # as RFC 9111 has it: what is not understood is ignored
        name, number = found.groups()
        if name == "no-store":
            word = "off"
        elif word != "off" and (name == "no-cache" or (name == "max-age" and number is not None and not int(number))):
            word = "refresh"
        elif name == "max-age" and number is not None:
            max_age = int(number)
    return Wish(word, max_age, ttl)


def _own(text: str) -> tuple[Word, int | None]:
    found = _OWN.fullmatch(text)
    if found is None:
        raise InvalidRequest(f"The header X-Headrace-Cache cannot be read: {FORMS}.", code="invalid_header")
    word: Word = found[1].lower()  # type: ignore[assignment]
    return word, int(found[2]) if found[2] else None
