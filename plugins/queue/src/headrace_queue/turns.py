"""Which line is served next: the highest priority that has anybody waiting, and now and then one below it.

A line is the fair queue of one priority and one lane. Lines of one priority that compete for the same backends take
turns, each as often as callers of so much weight have requests in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .fair import FairQueue
from .slots import Lane

ROUNDING = 1e-9


class Line:
    """The requests of one priority in one lane."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.queue = FairQueue()
        self.next_at = 0.0
        """Its next turn, in the virtual time of its priority."""


class Level:
    """The lines of one priority."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.lines: dict[Lane, Line] = {}
        self.waiting = 0
        self.passed = 0
        """How often another priority was served while this one waited and could have been."""
        self._time = 0.0

    def line(self, lane: Lane) -> Line:
        """The line of that lane."""
        found = self.lines.get(lane)
        if found is None:
            found = self.lines[lane] = Line(lane)
        return found

    def first(self, has_room: Callable[[Lane], bool]) -> Line | None:
        """The line whose turn it is, of those that have somebody waiting and could be served."""
        ready = [line for line in self.lines.values() if len(line.queue) and has_room(line.lane)]
        return min(ready, key=self._turn) if ready else None

    def count(self, line: Line) -> None:
        """A request of that line has begun to run: its turn is over. After `FairQueue.pop` or `start`."""
        time, weight = self._turn(line), line.queue.weight
        self._time = time
        line.next_at = time + 1 / (weight if weight > ROUNDING else ROUNDING)

    def _turn(self, line: Line) -> float:
        """A line that nobody waited in, or that could not be served, does not save up turns."""
        return line.next_at if line.next_at > self._time else self._time


class Turns:
    """All lines of some lanes. `min_share`: of the turns, for each priority at least, while it waits."""

    def __init__(self, min_share: float) -> None:
        self._min_share = min_share
        self._levels: list[Level] = []

    def __iter__(self) -> Iterator[Level]:
        """From the highest priority to the lowest."""
        return iter(self._levels)

    def level(self, priority: int) -> Level:
        """That priority's."""
        for level in self._levels:
            if level.priority == priority:
                return level
        level = Level(priority)
        self._levels.append(level)
        self._levels.sort(key=lambda each: -each.priority)
        return level

    def next(self, has_room: Callable[[Lane], bool]) -> tuple[Level, Line] | None:
        """The line to be served now; None if nobody waits for whom there is room."""
        ready = [
            (level, line) for level in self._levels if level.waiting and (line := level.first(has_room)) is not None
        ]
        if len(ready) < 2:
            return ready[0] if ready else None
        chosen = self._overdue(ready) or ready[0]
        chosen[0].passed = 0
        return chosen

    def _overdue(self, ready: list[tuple[Level, Line]]) -> tuple[Level, Line] | None:
        """One below the first that has been passed over often enough; counts this turn for all of them."""
        for level, _ in ready[1:]:
            level.passed += 1
        level, line = max(ready[1:], key=lambda each: each[0].passed)
        return (level, line) if level.passed * self._min_share >= 1 - ROUNDING else None
