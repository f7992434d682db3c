"""Who has used how much: windows and counts by what they belong to, and reservations over several of them at once.

Nothing here waits, so that a reservation is taken whole or not at all whatever else goes on in the process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from .window import Window

Kind = Literal["requests", "tokens", "concurrent"]
SWEEP_EVERY = 256
"""Reservations between two looks at the oldest windows, whether they can be forgotten."""
SWEEP_COUNT = 4 * SWEEP_EVERY
"""How many are looked at: more than can have come since."""


class Want(msgspec.Struct, frozen=True):
    """One limit that a request must fit into."""

    key: str
    """What is limited, of whom: equal keys share one count."""
    kind: Kind
    limit: int
    amount: int
    """What the request needs of it: 1, or its tokens at most."""
    seconds: float = 0.0
    """Length of the window; unused for `concurrent`."""


class Refusal(msgspec.Struct, frozen=True):
    """The limit that a request did not fit into."""

    want: Want
    wait: float
    """Seconds until it would fit, if nobody else asks; infinity if it never will."""


class Level(msgspec.Struct, frozen=True):
    """How a limit stands."""

    want: Want
    used: int
    reset: float
    """Seconds until nothing of it is used, if nobody asks."""


class Reservation:
    """What one request holds. `settle` ends it, once: whatever comes later changes nothing."""

    __slots__ = ("_ledger", "_slots", "wants")

    def __init__(self, ledger: Ledger, wants: Sequence[Want], slots: Sequence[int]) -> None:
        """`slots`: for each want, where it was written."""
        self._ledger = ledger
        self._slots: Sequence[int] | None = slots
        self.wants = wants

    def settle(self, tokens: int) -> None:
        """The request is over and has cost so many tokens: what was reserved beyond is free again."""
        slots, self._slots = self._slots, None
        if slots is not None:
            self._ledger.settle(self.wants, slots, tokens)


class Ledger:
    """Counts in this process's memory. `clock` gives seconds and does not go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self._concurrent: dict[str, int] = {}
        self._until_sweep = SWEEP_EVERY

    def __len__(self) -> int:
        return len(self._windows) + len(self._concurrent)

    def reserve(self, wants: Sequence[Want]) -> Reservation | Refusal:
        """Take all of it, or nothing: then the refusal is that of the limit with the longest wait."""
        now = self._clock()
        refusals = [Refusal(want, wait) for want in wants if (wait := self._wait(want, now)) > 0]
        if refusals:
            return max(refusals, key=lambda refusal: refusal.wait)
        slots = [self._take(want, now) for want in wants]
        self._sweep(now)
        return Reservation(self, wants, slots)

    def _take(self, want: Want, now: float) -> int:
        if want.kind == "concurrent":
            self._concurrent[want.key] = self._concurrent.get(want.key, 0) + 1
            return 0
        return self._window(want, now).add(want.amount)

    def settle(self, wants: Sequence[Want], slots: Sequence[int], tokens: int) -> None:
        """What `Reservation.settle` does."""
        now = self._clock()
        for want, slot in zip(wants, slots, strict=True):
            if want.kind == "tokens" and tokens != want.amount:
                self._window(want, now).correct(slot, tokens - want.amount)
            elif want.kind == "concurrent":
                self._leave(want.key)

    def _leave(self, key: str) -> None:
        left = self._concurrent[key] - 1
        if left:
            self._concurrent[key] = left
        else:
            del self._concurrent[key]

    def level(self, want: Want) -> Level:
        """How one limit stands now."""
        if want.kind == "concurrent":
            return Level(want, self._concurrent.get(want.key, 0), 0.0)
        now = self._clock()
        window = self._window(want, now)
        return Level(want, window.used, window.wait(now, window.used))

    def _wait(self, want: Want, now: float) -> float:
        if want.amount > want.limit:
            return float("inf")
        if want.kind == "concurrent":
            return 1.0 if self._concurrent.get(want.key, 0) >= want.limit else 0.0
        window = self._window(want, now)
        over = window.used + want.amount - want.limit
        return max(window.wait(now, over), 0.001) if over > 0 else 0.0

    def _window(self, want: Want, now: float) -> Window:
        window = self._windows.get(want.key)
        if window is None:
            window = self._windows[want.key] = Window(want.seconds)
        window.advance(now)
        return window

    def _sweep(self, now: float) -> None:
        """Forget windows in which nothing counts any more; those in which something does go to the end of the line."""
        self._until_sweep -= 1
        if self._until_sweep > 0:
            return
        self._until_sweep = SWEEP_EVERY
        for _ in range(min(SWEEP_COUNT, len(self._windows))):
            key, window = self._windows.popitem(last=False)
            if window.advance(now):
                self._windows[key] = window
