"""What waits for the collector, and the thread that takes it there: no request ever waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from .transport import Taken, Transport

T = TypeVar("T")
logger = logging.getLogger("headrace.otel")

BATCH_BYTES = 524_288
"""One export has so much at most, and with so much there is no waiting for more."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before an export is tried again."""
SHORTEST = 0.2
"""Seconds that an export is given at the very end."""


class Sender(Generic[T]):
    """A bounded buffer and the thread that empties it, in order.

    Args:
        what: what the log calls the items.
        wrap: makes an encoded request of a batch.
        timeout: seconds for one export.
        limit: bytes that may wait.
        gather: seconds to wait for more.
        newest: whether what waits is of no use any more when something newer comes.

    Attributes:
        taken, dropped: so many items.
    """

    def __init__(
        self,
        what: str,
        url: str,
        transport: Transport,
        wrap: Callable[[list[T]], bytes],
        *,
        timeout: float,
        limit: int,
        gather: float = 0.0,
        newest: bool = False,
    ) -> None:
        parts = urlsplit(url)
        self._what, self._where = what, f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._transport, self._wrap = transport, wrap
        self._timeout, self._limit, self._gather, self._newest = timeout, limit, gather, newest
        self._batch_bytes = min(BATCH_BYTES, limit // 2)
        self.taken = self.dropped = 0
        self._told = 0
        """How many of those dropped the log has heard of."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: list[tuple[T, int, int]] = []
        self._size = self._count = 0
        """Bytes and items that wait or are under way."""
        self._deadline: float | None = None
        """When the end comes, once it is near: `time.monotonic()`."""
        self._over = False
        """Nobody waits for the thread any more."""
        self._failing = False
        self._kept = "kept, the newest of them" if newest else f"kept, up to {limit} bytes of them"
        self._thread = threading.Thread(target=self._run, name=f"headrace-otel-{what}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: T, size: int, count: int) -> None:
        """Hand over something of `size` bytes, `count` items. Never waits, never raises."""
        with self._lock:
            if self._newest:
                self._forget_waiting()
            before = self._size
            if self._over or before + size > self._limit:
                self.dropped += count
                return
            self._waiting.append((item, size, count))
            self._size = before + size
            self._count += count
            if len(self._waiting) == 1 or before < self._batch_bytes <= before + size:
                self._changed.notify()

    def stop(self, seconds: float) -> None:
        """Export what is left, within so many seconds; what then is left is dropped. Blocks."""
        with self._changed:
            self._deadline = time.monotonic() + seconds
            self._changed.notify()
        self._thread.join(seconds + SHORTEST)
        with self._lock:
            self._over = True
            self.dropped += self._count
            self._forget_waiting()
        if self.dropped > self._told:
            logger.warning("%d %s were dropped: the collector did not take them", self.dropped - self._told, self._what)

    def _forget_waiting(self) -> None:
        self._size -= sum(size for _, size, _ in self._waiting)
        self._count -= sum(count for _, _, count in self._waiting)
        self._waiting.clear()

    def _run(self) -> None:
        while batch := self._take():
            count = sum(each[2] for each in batch)
            try:
                taken = self._deliver(self._wrap([item for item, _, _ in batch]), count)
            except Exception:
                logger.exception("%d %s could not be exported", count, self._what)
                taken = 0
            with self._lock:
                if self._over:  # they have been counted as dropped
                    break
                self._size -= sum(size for _, size, _ in batch)
                self._count -= count
                self.taken += taken
                self.dropped += count - taken
        self._transport.close()

    def _take(self) -> list[tuple[T, int, int]]:
        """The next batch; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._deadline is not None)
            self._changed.wait_for(lambda: self._size >= self._batch_bytes or self._deadline is not None, self._gather)
            end = size = 0
            while end < len(self._waiting) and (not end or size + self._waiting[end][1] <= self._batch_bytes):
                size += self._waiting[end][1]
                end += 1
            batch = self._waiting[:end]
            del self._waiting[:end]
            return batch

    def _deliver(self, data: bytes, count: int) -> int:
        """Export a batch, again and again if need be. Returns how many items the collector took."""
        pause, tries = FIRST_PAUSE, 0
        while True:
            known, tries = self._failing, tries + 1
            came = self._transport.post(data, self._seconds())
            if isinstance(came, Taken):
                return self._note(came, count)
            if came.broke and tries == 1 and not known:
                continue
            self._say_failing(came.reason, waiting=came.again)
            if not came.again or (self._deadline is not None and (known or self._left() <= SHORTEST)):
                return 0
            self._rest(max(pause, came.wait))
            pause = min(pause * 2, LONGEST_PAUSE)

    def _seconds(self) -> float:
        """What one export may take."""
        return self._timeout if self._deadline is None else min(self._timeout, self._left())

    def _left(self) -> float:
        """Seconds until the end, a moment at least."""
        return max(SHORTEST, (self._deadline or 0.0) - time.monotonic())

    def _rest(self, seconds: float) -> None:
        """Wait, until the end is near at the longest; then for a moment."""
        with self._changed:
            if self._deadline is None:
                self._changed.wait_for(lambda: self._deadline is not None, seconds)
            else:
                self._changed.wait_for(lambda: self._over, SHORTEST)

    def _note(self, came: Taken, count: int) -> int:
        rejected = min(came.rejected, count)
        if rejected:
            self._say_failing(f"it rejected {rejected} of {count}", waiting=False)
        elif self._failing:
            self._failing = False
            lost, self._told = self.dropped - self._told, self.dropped
            logger.warning("the collector at %s takes %s again; %d were dropped", self._where, self._what, lost)
        return count - rejected

    def _say_failing(self, reason: str, *, waiting: bool) -> None:
        """Once, until it is over."""
        if self._failing:
            return
        self._failing = True
        kept = self._kept if waiting else "dropped from now on"
        logger.warning("the collector at %s does not take %s: %s; they are %s", self._where, self._what, reason, kept)
