"""What is kept for one limit, and how time changes it. Pure arithmetic: no clock, no store.

A window is cut into SLOTS slots. What is used is written into the slot of its time, and counts until the whole slot is
older than the window: so the limit holds in every span of that length, wherever it begins, and at most one slot's worth
(under two percent) of it is not used at steady load. A token bucket would let twice the limit pass around one moment.
"""

from __future__ import annotations

import math
from array import array
from typing import ClassVar, Protocol

from . import Limit

SLOTS = 60
"""Of a window; one more is kept, the one that is about to leave it."""
RING = SLOTS + 1
HEAD = 3
"""Numbers before a window's slots: its newest slot, the sum of all slots, and its length in microseconds."""


class Cell(Protocol):
    """The state of one limit: made from what was stored (empty for a new one), and stored again with `data`."""

    data: array[int]

    @property
    def used(self) -> int: ...

    def take(self, amount: int) -> int:
        """Use so much; returns where it was written."""
        ...

    def correct(self, place: int, amount: int) -> None:
        """So much less (or, above zero, more) was used than was written there."""
        ...

    def wait(self, amount: int, now: float) -> float:
        """Seconds until so much more fits; 0 if it does; infinity if it never will."""
        ...

    def reset(self, now: float) -> float:
        """Seconds until nothing is used."""
        ...


class Window:
    """What was used lately. A clock that goes back stands still; if by more than the window, all begins anew."""

    __slots__ = ("_limit", "data")

    def __init__(self, limit: Limit, stored: bytes | None, now: float, column: int) -> None:
        self._limit = limit
        slot = int(now * SLOTS / limit.seconds)
        data = array("q", stored or b"")
        if not data or slot != data[0]:
            data = _advanced(data, slot, round(limit.seconds * 1e6))
        self.data = data

    @property
    def used(self) -> int:
        return self.data[1]

    def take(self, amount: int) -> int:
        data = self.data
        slot = data[0]
        data[HEAD + slot % RING] += amount
        data[1] += amount
        return slot

    def correct(self, place: int, amount: int) -> None:
        """Less is taken off where it stands, if that still counts. More counts from now on: the past cannot be limited
        any more."""
        if amount > 0:
            self.take(amount)
        elif 0 <= self.data[0] - place <= SLOTS:
            at = HEAD + place % RING
            taken = max(amount, -self.data[at])
            self.data[at] += taken
            self.data[1] += taken

    def wait(self, amount: int, now: float) -> float:
        over = self.used + amount - self._limit.most
        if over <= 0:
            return 0.0
        if amount > self._limit.most:
            return math.inf
        for slot in range(self.data[0] - SLOTS, self.data[0] + 1):
            over -= self.data[HEAD + slot % RING]
            if over <= 0:
                break
        return max(0.001, (slot + RING) * self._limit.seconds / SLOTS - now)

    def reset(self, now: float) -> float:
        for slot in range(self.data[0], self.data[0] - RING, -1):
            if self.data[HEAD + slot % RING]:
                return max(0.0, (slot + RING) * self._limit.seconds / SLOTS - now)
        return 0.0


def _advanced(data: array[int], slot: int, microseconds: int) -> array[int]:
    """A window's numbers when it has come to a slot: what is too old is forgotten."""
    if len(data) != HEAD + RING or abs(slot - data[0]) > SLOTS:
        return array("q", (slot, 0, microseconds, *EMPTY))
    for number in range(data[0] + 1, slot + 1):
        at = HEAD + number % RING
        data[1] -= data[at]
        data[at] = 0
    data[0] = max(slot, data[0])
    return data


EMPTY = (0,) * RING


class Sum:
    """All that was used until a moment at which it is forgotten."""

    __slots__ = ("_limit", "data")

    def __init__(self, limit: Limit, stored: bytes | None, now: float, column: int) -> None:
        self._limit = limit
        self.data = array("q", stored) if stored else array("q", (0, -1 if limit.ends == math.inf else int(limit.ends)))

    @property
    def used(self) -> int:
        return self.data[0]

    def take(self, amount: int) -> int:
        self.data[0] += amount
        return 0

    def correct(self, place: int, amount: int) -> None:
        self.take(amount)

    def wait(self, amount: int, now: float) -> float:
        if self.used + amount <= self._limit.most:
            return 0.0
        return math.inf if amount > self._limit.most else max(0.001, self._limit.ends - now)

    def reset(self, now: float) -> float:
        return max(0.0, self._limit.ends - now) if self.used else 0.0


class Open:
    """What is reserved now, a column for each worker: what a dead one held is found and given back."""

    __slots__ = ("_column", "_limit", "data", "used")

    WAIT: ClassVar = 1.0
    """Seconds after which it is worth asking again: nobody knows how long requests take."""

    def __init__(self, limit: Limit, stored: bytes | None, now: float, column: int) -> None:
        self._limit, self._column = limit, column
        self.data = array("q", stored or b"")
        if len(self.data) <= column:
            self.data.extend([0] * (column + 1 - len(self.data)))
        self.used = sum(self.data)

    def take(self, amount: int) -> int:
        self.data[self._column] += amount
        self.used += amount
        return amount

    def correct(self, place: int, amount: int) -> None:
        """What was reserved ends with the request, whatever it took."""
        given_back = min(place, self.data[self._column])
        self.data[self._column] -= given_back
        self.used -= given_back

    def wait(self, amount: int, now: float) -> float:
        if self.used + amount <= self._limit.most:
            return 0.0
        return math.inf if amount > self._limit.most else self.WAIT

    def reset(self, now: float) -> float:
        return math.inf if self.used else 0.0


CELLS: dict[str, type[Window] | type[Sum] | type[Open]] = {"window": Window, "sum": Sum, "open": Open}


def is_over(kind: str, data: array[int], now: float) -> bool:
    """Whether what is stored can be forgotten."""
    if kind == "window":
        return len(data) != HEAD + RING or now > (data[0] + RING) * data[2] / 1e6 / SLOTS
    if kind == "sum":
        return 0 <= data[1] < now
    return not any(data)


def used_of(kind: str, data: array[int]) -> int:
    """What is used of what is stored."""
    return sum(data) if kind == "open" else data[1] if kind == "window" else data[0]
