"""What the requests of one session have in common: a header, a field of the body, the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.exchange import ANONYMOUS, Exchange

FIELDS = ("prompt_cache_key", "safety_identifier", "user")
"""Of OpenAI's requests, those that tell sessions or people apart
(https://platform.openai.com/docs/api-reference/chat/create)."""
HEADER = "header:"
Source = Callable[[Exchange], bytes | None]


class Session:
    """Reads a request's session from the first of several places that has one."""

    def __init__(self, places: Sequence[str]) -> None:
        """`places`: `header:NAME`, `key`, `team`, or one of `FIELDS`. Raises ValueError for anything else."""
        self._places = [(place, _source(place)) for place in places]

    def of(self, exchange: Exchange) -> tuple[str, bytes] | None:
        """Where it stands, and what; None if the request belongs to no session."""
        for place, source in self._places:
            value = source(exchange)
            if value:
                return place, value
        return None


def _source(place: str) -> Source:
    if place.startswith(HEADER) and place.isascii() and len(place) > len(HEADER):
        return _header(place.removeprefix(HEADER).lower().encode())
    if place in FIELDS:
        return lambda exchange: _field(exchange, place)
    if place == "key":
        return _key
    if place == "team":
        return _team
    raise ValueError(f"by: {place!r} is none of header:NAME, key, team, {', '.join(FIELDS)}")


def _header(name: bytes) -> Source:
    def read(exchange: Exchange) -> bytes | None:
        value = exchange.header(name)
        return None if value is None else value.encode("latin-1")

    return read


def _field(exchange: Exchange, name: str) -> bytes | None:
    """A field that is a string, as the client wrote it. It is only ever compared with itself."""
    raw = exchange.fields.get(name)
    if raw is None:
        return None
    text = bytes(raw)
    return text if text.startswith(b'"') and text != b'""' else None


def _key(exchange: Exchange) -> bytes | None:
    who = exchange.principal
    return None if who is None or who.id == ANONYMOUS.id else who.id.encode()


def _team(exchange: Exchange) -> bytes | None:
    who = exchange.principal
    return None if who is None or not who.team else who.team.encode()
