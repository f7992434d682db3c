"""How much of its share of the requests a backend gets: less for a while once it has come back, or has said 429.

A pause, then a share that grows evenly to the whole. Each 429 after a pause halves the share there was.
"""

from __future__ import annotations

import math
import random

FIRST_SHARE = 0.1
"""Of a backend that has come back."""
LEAST_SHARE = 0.05
"""Of one that answers 429 again and again."""
FIRST_PAUSE = 1.0
"""Seconds after a 429 that does not say how long to wait; doubled with each further one."""
DOUBLINGS = 16


class Pace:
    """Of one backend. Times are seconds of a clock that only goes forward.

    Args:
        growth: seconds from no share to the whole.
        max_pause: seconds.
    """

    __slots__ = ("_from", "_growth", "_max_pause", "_pauses", "_random", "_since", "is_slowed", "paused_until")

    def __init__(self, growth: float, max_pause: float, chance: random.Random) -> None:
        self._growth, self._max_pause, self._random = growth, max_pause, chance
        self.is_slowed = False
        """Whether it got less than its share when somebody last looked."""
        self.paused_until = -math.inf
        self._from, self._since = 1.0, -math.inf
        self._pauses = 0

    def share(self, now: float) -> float:
        """0 to 1; 0 during a pause."""
        if not self.is_slowed:
            return 1.0
        if now < self.paused_until:
            return 0.0
        grown = (now - self._since) / self._growth if self._growth > 0 else 1.0
        share = self._from + grown
        if share < 1.0:
            return share
        self.is_slowed, self._pauses = False, 0
        return 1.0

    def begin(self, now: float) -> None:
        """It has come back."""
        self.is_slowed, self._from, self._since = True, FIRST_SHARE, now
        self.paused_until = -math.inf
        self.share(now)

    def slow(self, now: float, asked: float) -> None:
        """It has said 429, and `asked` for so many seconds: 0 if it did not say. What the others say who were sent
        before is the same news, not more of it."""
        if now < self.paused_until:
            self.paused_until = max(self.paused_until, now + min(asked, self._max_pause))
        else:
            share = self.share(now)
            self._pauses += 1
            own = FIRST_PAUSE * 2 ** min(self._pauses - 1, DOUBLINGS) * self._random.uniform(0.75, 1.0)
            self.paused_until = now + min(asked or own, self._max_pause)
            self._from = max(LEAST_SHARE, share / 2)
        self.is_slowed, self._since = True, self.paused_until
