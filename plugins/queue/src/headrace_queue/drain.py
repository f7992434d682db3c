"""How fast requests get done, and so when it is worth to come back."""

from __future__ import annotations

import math

LEARNING = 0.1
"""Of one request in the moving average."""
SHORTEST = 1e-6
"""Seconds that a request takes at least: no clock shows less."""
SOONEST, LATEST = 1, 300
"""Seconds: the bounds of Retry-After."""


class Drain:
    """The rate at which requests are finished: as many as run, each in the time that they take.

    That time is the moving average of those that are over, or how long those that run have been at it, if that is
    longer: a backend that hangs is noticed. The rate is that of now. One that was counted over time would sink in every
    quiet hour, and the first caller to be turned away after it would be told to stay away for minutes.
    """

    def __init__(self) -> None:
        self._average: float | None = None
        self._running = 0
        self._begun = 0.0
        """When those that run began, added up."""

    def begin(self, now: float) -> None:
        """A request begins to run. All times are seconds of one clock."""
        self._running += 1
        self._begun += now

    def end(self, begun: float, now: float | None) -> None:
        """The request that began then is over; with None, it never really ran."""
        self._running -= 1
        self._begun = self._begun - begun if self._running else 0.0  # no remainder of rounding stays
        if now is not None:
            seconds = now - begun
            self._average = seconds if self._average is None else self._average + LEARNING * (seconds - self._average)

    def rate(self, now: float) -> float | None:
        """Requests a second; None if none has finished yet."""
        if self._average is None:
            return None
        age = now - self._begun / self._running if self._running else 0.0
        return self._running / max(self._average, age, SHORTEST)

    def retry_after(self, position: int, now: float, unknown: float) -> int:
        """Whole seconds until a request at this position would be served; `unknown` if nothing is known yet."""
        rate = self.rate(now)
        seconds = position / rate if rate else unknown
        return max(SOONEST, min(LATEST, math.ceil(seconds)))
