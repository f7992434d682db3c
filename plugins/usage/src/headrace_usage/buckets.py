"""Distributions of times as counts in buckets: they can be added up, and tell quantiles.

A bucket's upper bound is the one before times the square root of 2, so that a quantile is off by 41 % at the very most,
and mostly by a few: it is put where it would be if times were spread evenly within its bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

COUNT = 44
"""How many buckets there are. The last one has no upper bound."""
FIRST = 1000
"""The upper bound of the first bucket: microseconds."""
STEP: float = 2.0**0.5
BOUNDS = tuple(round(FIRST * STEP**number) for number in range(COUNT - 1))
"""Upper bounds, which belong to their buckets: from a millisecond to 35 minutes."""


def bucket(microseconds: int) -> int:
    """Which bucket a time falls into."""
    return bisect_left(BOUNDS, microseconds)


def quantile(counts: Sequence[int], part: float) -> float | None:
    """The time, in seconds, that this part of all is not above; None if nothing was counted."""
    below = list(accumulate(counts))
    if not below[-1]:
        return None
    wanted = part * below[-1]
    number = bisect_left(below, wanted)
    while not counts[number]:  # a part so small that nothing is below it
        number += 1
    return _within(number, 1 - (below[number] - wanted) / counts[number]) / 1e6


def _within(number: int, part: float) -> float:
    """Microseconds: a bucket's lower bound, and this part of the way to its upper one."""
    if number == 0:
        return FIRST * part
    low = BOUNDS[number - 1]
    return low * float(STEP**part)
