"""Which of the requests that went well are logged."""

from __future__ import annotations

import zlib

RANGE = 1 << 32


class Sampling:
    """Decides by the request's id: every worker, and every gateway with the same ratio, decides alike. What is chosen
    with a lower ratio is chosen with a higher one, too.

    Args:
        ratio: from 0 to 1.
        slow_seconds: requests that took so long are chosen anyway.
    """

    def __init__(self, ratio: float, slow_seconds: float | None) -> None:
        self._ratio = ratio
        self._below = round(ratio * RANGE)
        self._slow = float("inf") if slow_seconds is None else slow_seconds

    def share(self, identifier: str, seconds: float) -> float | None:
        """For how large a share of such requests this one stands; 0 if it is not logged, None if every such one is."""
        if seconds >= self._slow:
            return None
        return self._ratio if zlib.crc32(identifier.encode()) < self._below else 0.0
