"""What callers are told of their limits.

The headers are OpenAI's: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from headrace.errors import RateLimited
from headrace.exchange import Headers

from .ledger import Level, Refusal

WORDS = {"requests": "requests", "tokens": "tokens", "concurrent": "requests at the same time"}


def headers(levels: Sequence[Level]) -> Headers:
    """Of requests and of tokens, the limit that is nearest to its end."""
    found: Headers = []
    for kind in ("requests", "tokens"):
        own = [level for level in levels if level.want.kind == kind]
        if own:
            level = min(own, key=lambda each: (each.want.limit - each.used) / each.want.limit)
            found += [
                (f"x-ratelimit-limit-{kind}".encode(), str(level.want.limit).encode()),
                (f"x-ratelimit-remaining-{kind}".encode(), str(max(0, level.want.limit - level.used)).encode()),
                (f"x-ratelimit-reset-{kind}".encode(), duration(level.reset).encode()),
            ]
    return found


def duration(seconds: float) -> str:
    """As OpenAI writes it: `6m0s`, `1.5s`, `250ms`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}h" * bool(hours) + f"{minutes}m" * bool(hours or minutes) + f"{rest:g}s"


def refused(refusal: Refusal) -> RateLimited:
    """The error for a request that does not fit."""
    want = refusal.want
    span = f" in {want.seconds:g} s" if want.seconds else ""
    limit = f"{want.limit} {WORDS[want.kind]}{span}"
    if math.isinf(refusal.wait):
        return RateLimited(
            f"This request may take {want.amount} tokens, more than the limit of {limit} ever allows: ask for a "
            "smaller max_tokens, or send less.",
            headers={"X-Should-Retry": "false"},
        )
    wait = math.ceil(refusal.wait)
    return RateLimited(f"The limit of {limit} is reached: try again in {wait} s.", headers={"Retry-After": str(wait)})
