"""What callers are told of their limits.

The headers are OpenAI's: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from headrace.errors import RateLimited
from headrace.exchange import Headers
from headrace.ledger import Level, Refusal
from headrace.limits import Standing, moment

WORDS = {"requests": "requests", "tokens": "tokens", "concurrent": "requests at the same time"}


def headers(levels: Sequence[Level], units: Sequence[str]) -> Headers:
    """Of requests and of tokens, the limit that is nearest to its end."""
    found: Headers = []
    for unit in ("requests", "tokens"):
        level = _nearest(levels, units, unit)
        if level is not None:
            found += (
                (b"x-ratelimit-limit-" + unit.encode(), b"%d" % level.limit.most),
                (b"x-ratelimit-remaining-" + unit.encode(), b"%d" % level.remaining),
                (b"x-ratelimit-reset-" + unit.encode(), duration(level.reset).encode()),
            )
    return found


def _nearest(levels: Sequence[Level], units: Sequence[str], unit: str) -> Level | None:
    nearest = None
    for level, its in zip(levels, units, strict=True):
        if its == unit and (nearest is None or _part_left(level) < _part_left(nearest)):
            nearest = level
    return nearest


def _part_left(level: Level) -> float:
    return level.remaining / level.limit.most


def duration(seconds: float) -> str:
    """As OpenAI writes it: `6m0s`, `1.5s`, `250ms`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}h" * bool(hours) + f"{minutes}m" * bool(hours or minutes) + f"{rest:g}s"


def refused(refusal: Refusal, unit: str) -> RateLimited:
    """The error for a request that does not fit."""
    limit = refusal.level.limit
    words = f"{limit.most} {WORDS[unit]}" + (f" in {limit.seconds:g} s" if limit.seconds else "")
    if math.isinf(refusal.wait):
        return RateLimited(
            f"This request may take {refusal.amount} tokens, more than the limit of {words} ever allows: ask for a "
            "smaller max_tokens, or send less.",
            headers={"X-Should-Retry": "false"},
        )
    wait = math.ceil(refusal.wait)
    return RateLimited(f"The limit of {words} is reached: try again in {wait} s.", headers={"Retry-After": str(wait)})


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
