"""How fast one target has been lately, and what speaks against trusting it."""

from __future__ import annotations

PEAK = 4.0
"""A single slow answer counts as at most so many times slower than usual: a very long prompt is not a slow target."""
FASTEST = 1e-4
"""Seconds; what answers faster is equally good."""
FAILED = 4.0
"""A first failure makes a target look 1 + 4 times as slow; each that follows doubles that, up to `MOST`."""
MOST = 1000.0
"""More than the requests that are usually in flight elsewhere: a target that fails at once has none in flight, and
would get them all."""
UNPROVEN = 3.0
"""What is new, or was away, looks 1 + 3 times as slow: it begins with a quarter of what it will have."""
PROVEN = 0.25
"""What each answer leaves of these doubts."""


class Record:
    """One target as a policy has found it. Times are seconds of the policy's clock.

    Args:
        half_life: seconds in which half of what is known is forgotten.
        tokens: that an answer usually has after its first one.

    Attributes:
        seconds: expected until a usual answer is complete; None if nothing is known.
        first_token: expected seconds to the first token.
        per_token: expected seconds for each that follows.
        seen: when it was last known to be at work.
    """

    __slots__ = (
        *("_doubted", "_doubts", "_failed", "_half_life", "_heard", "_tokens"),
        *("first_token", "per_token", "seconds", "seen"),
    )

    def __init__(self, half_life: float, tokens: float) -> None:
        self._half_life, self._tokens = half_life, tokens
        self._heard = self._failed = self.seen = float("-inf")
        self._doubts = self._doubted = 0.0
        self.first_token: float | None = None
        self.per_token: float | None = None
        self.seconds: float | None = None

    def doubts(self, now: float) -> float:
        """How many times slower than it was it is taken to be, beside what it was: by and by they go away."""
        if not self._doubts:
            return 0.0
        return float(self._doubts * 2.0 ** ((self._doubted - now) / self._half_life))

    def begins(self, now: float) -> None:
        """It is asked for the first time, or after it was away for long."""
        self._doubt(max(self.doubts(now), UNPROVEN), now)

    def failed(self, began: float, now: float) -> None:
        """A request that began then has failed. What had begun before the last failure failed along with it."""
        self.seen = now
        if began >= self._failed:
            self._failed = now
            self._doubt(min(MOST, self.doubts(now) * 2 + FAILED), now)

    def waited(self, seconds: float, now: float) -> None:
        """Somebody has waited so long for a first token, and has left without."""
        self.seen = now
        if self.first_token is not None and seconds > self.first_token:
            self.first_token = _peak(self.first_token, seconds, 1.0)
            self._expect()

    def streamed(self, first: float, each: float | None, now: float) -> None:
        """It has answered: seconds to the first token, and for each that followed if that is known."""
        kept = self._answered(now)
        self.first_token = first if self.first_token is None else _peak(self.first_token, first, kept)
        if each is not None:
            self.per_token = each if self.per_token is None else each + (self.per_token - each) * kept
        self._expect()

    def answered_whole(self, seconds: float, tokens: int | None, now: float) -> None:
        """It has sent an answer at once, of so many tokens if that is known; none are in what is no text. That says
        nothing of its first one alone: what was known of both is off by the same factor."""
        kept = self._answered(now)
        following = self._tokens if tokens is None else max(0, tokens - 1)
        before = (self.first_token or 0.0) + (self.per_token or 0.0) * following
        if before > 0.0:
            factor = _peak(before, seconds, kept) / before
            self.first_token = None if self.first_token is None else self.first_token * factor
            self.per_token = None if self.per_token is None else self.per_token * factor
        else:
            self.first_token = seconds / (1 + following)
            self.per_token = self.first_token if following else None
        self._expect()

    def _answered(self, now: float) -> float:
        """Returns how much of what was known before still counts."""
        kept = 2.0 ** ((self._heard - now) / self._half_life)
        self._heard = self.seen = now
        if self._doubts:
            left = self.doubts(now) * PROVEN
            self._doubt(left if left > 0.01 else 0.0, now)
        return float(kept)

    def _doubt(self, doubts: float, now: float) -> None:
        self._doubts, self._doubted = doubts, now

    def _expect(self) -> None:
        self.seconds = max(FASTEST, (self.first_token or 0.0) + (self.per_token or 0.0) * self._tokens)


def _peak(known: float, new: float, kept: float) -> float:
    """An average that follows at once when it gets slower, and by and by when it gets faster."""
    return min(new, known * PEAK) if new > known else new + (known - new) * kept
