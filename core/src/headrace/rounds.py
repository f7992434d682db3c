"""Chores that come round. A core that does nothing should sleep, and waking it costs more than most chores do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

NEVER = float("inf")


class Round:
    """Calls `work` again and again, `seconds` apart at most, until it returns false.

    A timer does that; but whoever has work for the core anyway may call `pass_by`, which takes the timer's turn from
    half that time on. Made in the running loop. `seconds` may be changed: that counts from the next time on.
    """

    __slots__ = ("_due", "_loop", "_timer", "_work", "seconds")

    def __init__(self, seconds: float, work: Callable[[], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self.seconds, self._work = seconds, work
        self._timer: asyncio.TimerHandle | None = None
        self._due = NEVER

    @property
    def running(self) -> bool:
        """Whether there is a next time."""
        return self._timer is not None

    def start(self) -> None:
        """The next time is `seconds` from now."""
        self.stop()
        self._due = self._loop.time() + self.seconds / 2
        self._timer = self._loop.call_later(self.seconds, self._go)

    def stop(self) -> None:
        """There is no next time."""
        self._due = NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pass_by(self) -> None:
        """Do it now, if it may be done by now."""
        if self._loop.time() >= self._due:
            self._go()

    def _go(self) -> None:
        self.stop()
        if self._work():
            self.start()
