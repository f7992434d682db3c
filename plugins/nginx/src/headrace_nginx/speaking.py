"""Dialects whose streams our module looks after: what it is told of each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from headrace.dialects import OPENAI, Dialect, Events

from .quoting import quoted_event
from .scripts import ending_events

if TYPE_CHECKING:
    from headrace.gateway import Gateway

COUNTED = 2
"""Types of events that the module can keep."""
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REQUEST_ID = "REQUEST-ID"
"""Stands in an event for the variable: `$` is refused in all that others say."""


class Spoken(msgspec.Struct, frozen=True):
    """One dialect. The types of its events are those of `headrace.dialects.Events`."""

    name: str
    types: Events
    endings: tuple[str, ...]
    """The events that end a stream, as nginx reads them."""

    def lines(self) -> list[str]:
        """For nginx's configuration."""
        words = (self.types.last, self.types.fails, self.types.counts)
        return [
            f"headrace_dialect {self.name} {' '.join(_words(each) for each in words)}",
            *(f"    {ending}" for ending in self.endings),
            ";",
        ]


def _words(words: tuple[str, ...]) -> str:
    return ",".join(words) or '""'


def spoken(gateway: Gateway) -> list[Spoken]:
    """Those of the gateway's endpoints. One that nginx cannot be told of is left out: the core delivers its streams."""
    found: dict[str, Spoken | None] = {}
    for endpoint in gateway.endpoints.values():
        if endpoint.dialect is not OPENAI:
            told = _told(endpoint.dialect)
            name = endpoint.dialect.name
            found[name] = told if found.get(name, told) == told else None
    return [each for each in found.values() if each is not None]


def _told(dialect: Dialect) -> Spoken | None:
    types = getattr(dialect, "events", None)
    if not isinstance(types, Events) or not types.last or len(types.counts) > COUNTED:
        return None
    if not all(map(_WORD.fullmatch, (dialect.name, *types.last, *types.fails, *types.counts))):
        return None
    try:
        endings = [quoted_event(event) for event in ending_events(dialect, _REQUEST_ID)]
    except ValueError:
        return None
    return Spoken(dialect.name, types, tuple(each.replace(_REQUEST_ID, "$headrace_request_id") for each in endings))
