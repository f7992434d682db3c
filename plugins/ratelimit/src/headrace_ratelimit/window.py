"""How much was used in the last minute, hour or day: a window that slides, kept in slots.

A window of length `seconds` is cut into SLOTS slots. What is used is written into the slot of its time, and counts
until the whole slot is older than the window: so the limit holds in every span of that length, wherever it begins, and
at most one slot's worth (under two percent) of it is not used at steady load. A token bucket would let twice the limit
pass around one moment.
"""

from __future__ import annotations

SLOTS = 60
"""Of a window; one more is kept, the one that is about to leave it."""


class Window:
    """What was used lately, of one thing that is limited. Times are seconds of any clock that does not go back."""

    __slots__ = ("_newest", "_slots", "_step", "used")

    def __init__(self, seconds: float) -> None:
        self._step = seconds / SLOTS
        self._slots = [0] * (SLOTS + 1)
        self._newest = 0
        """The number of the newest slot, counted from the clock's beginning."""
        self.used = 0
        """The sum of all slots, as of the last `advance`."""

    def advance(self, now: float) -> int:
        """Forget what is too old; returns what still counts. A clock that goes back stands still."""
        slot = int(now / self._step)
        steps = slot - self._newest
        if steps > SLOTS:
            self._slots = [0] * (SLOTS + 1)
            self.used = 0
        else:
            for number in range(self._newest + 1, slot + 1):
                place = number % (SLOTS + 1)
                self.used -= self._slots[place]
                self._slots[place] = 0
        self._newest = max(slot, self._newest)
        return self.used

    def add(self, amount: int) -> int:
        """Use so much now, after `advance`; returns the number of the slot, for `correct`."""
        self._slots[self._newest % (SLOTS + 1)] += amount
        self.used += amount
        return self._newest

    def correct(self, slot: int, amount: int) -> None:
        """Less (or, above zero, more) was used than was written into that slot.

        Less is taken off where it stands, if that still counts. More counts from now on: the past cannot be limited
        any more.
        """
        if amount > 0:
            self.add(amount)
        elif self._newest - slot <= SLOTS:
            self._slots[slot % (SLOTS + 1)] += amount
            self.used += amount

    def wait(self, now: float, room: int) -> float:
        """Seconds until so much of what is used now has left the window, after `advance`; 0 if nothing need leave."""
        left = room
        for age in range(SLOTS, -1, -1):
            if left <= 0:
                break
            left -= self._slots[(self._newest - age) % (SLOTS + 1)]
            if left <= 0:
                leaves = (self._newest - age + SLOTS + 1) * self._step
                return max(0.0, leaves - now)
        return 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing counts any more: then it can be forgotten."""
        return self.used == 0
