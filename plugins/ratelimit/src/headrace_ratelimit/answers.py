"""What callers are told of their limits.

The headers are OpenAI's: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import RateLimited
from headrace.exchange import Headers
from headrace.ledger import Level, Limit, Refusal
from headrace.ledger.cells import RING, SLOTS
from headrace.limits import Standing, moment

if TYPE_CHECKING:
    from .rules import Applied

WORDS = {"requests": "request", "tokens": "token", "concurrent": "request"}


class Told(NamedTuple):
    """What answers say of one limit: two headers that are always the same, and the name of the third."""

    limit: tuple[bytes, bytes]
    reset: tuple[bytes, bytes]
    remaining: bytes
    most: int


def told(limit: Limit, unit: str) -> Told:
    """Right after a request its window is used until it has passed, and its slot: that is what `reset` says."""
    reset = duration(math.ceil(limit.seconds * RING / SLOTS)).encode()
    most, remaining, until = (f"x-ratelimit-{what}-{unit}".encode() for what in ("limit", "remaining", "reset"))
    return Told((most, b"%d" % limit.most), (until, reset), remaining, limit.most)


def headers(applied: Applied, used: Sequence[int]) -> Headers:
    """Of requests and of tokens, the limit that is nearest to its end, with so much used of each."""
    found: Headers = []
    for places in applied.places:
        at = places[0] if len(places) == 1 else max(places, key=lambda at: used[at] / applied.limits[at].most)
        limit, reset, remaining, most = applied.told[at]
        left = most - used[at]
        found += (limit, reset, (remaining, b"%d" % left if left > 0 else b"0"))
    return found


def duration(seconds: int) -> str:
    """As OpenAI writes it: `6m0s`, `1s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h" * bool(hours) + f"{minutes}m" * bool(hours or minutes) + f"{rest}s"


def refused(refusal: Refusal, applied: Applied) -> RateLimited:
    """The error for a request that does not fit."""
    limit = refusal.level.limit
    at = applied.limits.index(limit)
    words = f"{limit.most} {WORDS[applied.units[at]]}{'s' * (limit.most != 1)}"
    words += (f" in {limit.seconds:g} s" if limit.seconds else " at the same time") + f" {_whose(applied.of[at])}"
    if math.isinf(refusal.wait):
        return RateLimited(
            f"This request may take {refusal.amount} tokens, more than the limit of {words} ever allows: ask for a "
            "smaller max_tokens, or send less.",
            headers={"X-Should-Retry": "false"},
        )
    wait = math.ceil(refusal.wait)
    return RateLimited(f"The limit of {words} is reached: try again in {wait} s.", headers={"Retry-After": str(wait)})


def _whose(of: Mapping[str, str]) -> str:
    """Who is counted, said to the caller."""
    parts = ["this key" if kind == "key" else f"the {kind} {name!r}" for kind, name in of.items()]
    return "of " + (" with ".join(parts) or "all callers together")


def standing(level: Level, unit: str, name: str, of: Mapping[str, str]) -> Standing:
    """One limit as `GET /v1/usage` tells it."""
    return Standing(
        name=name,
        of=dict(of),
        unit=unit,
        limit=level.limit.most,
        used=level.used,
        remaining=level.remaining,
        resets_at=moment(level.reset),
    )
