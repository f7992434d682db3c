"""How many requests went well and how many failed in the last seconds: a ring of counters, whatever the traffic."""

from __future__ import annotations

PARTS = 10
"""Counters of a window: it is exact to a tenth of itself."""


class Window:
    """Counts over the last `seconds`. Times are seconds of a clock that only goes forward."""

    __slots__ = ("_failed", "_part", "_total", "_width")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / PARTS
        self._total = [0] * PARTS
        self._failed = [0] * PARTS
        self._part = 0

    def add(self, now: float, failed: bool) -> None:
        """A request has ended."""
        part = int(now / self._width)
        if part != self._part:
            self._move(part)
        self._total[part % PARTS] += 1
        if failed:
            self._failed[part % PARTS] += 1

    def counts(self, now: float) -> tuple[int, int]:
        """Requests in the window, and how many of them failed."""
        self._move(int(now / self._width))
        return sum(self._total), sum(self._failed)

    def clear(self) -> None:
        """Forget everything."""
        self._total = [0] * PARTS
        self._failed = [0] * PARTS

    def _move(self, part: int) -> None:
        """Empty the counters of the time in which nothing was counted."""
        for passed in range(max(self._part + 1, part - PARTS + 1), part + 1):
            self._total[passed % PARTS] = self._failed[passed % PARTS] = 0
        self._part = part
