"""Slots and turns together: what waits, what runs, and what is next. No clock, no waiting.

One `Schedule` knows all lanes that share backends, directly or by way of others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from .fair import Ticket
from .slots import Lane, Slots
from .turns import Level, Line, Turns


class Request(Ticket):
    """One request, with what it needs and whose it is."""

    __slots__ = ("caller", "lane", "level", "line", "priority", "state", "weight")

    def __init__(self, lane: Lane, caller: str, tokens: int, *, weight: float = 1.0, priority: int = 0) -> None:
        super().__init__(tokens)
        self.lane, self.caller, self.weight, self.priority = lane, caller, weight, priority
        self.state: Literal["new", "waiting", "running", "over"] = "new"
        self.level: Level | None = None
        self.line: Line | None = None


class Schedule:
    """Every change keeps this true: nobody waits for whom there is room, once `next` has returned None."""

    def __init__(self, lanes: Iterable[Lane], min_share: float = 0.0) -> None:
        self.slots = Slots(lanes)
        self.turns = Turns(min_share)
        self.waiting = 0

    @property
    def running(self) -> int:
        """How many run."""
        return self.slots.running

    def start(self, request: Request) -> bool:
        """Run a new request if there is room. Nobody is overtaken: whoever waits needs something else."""
        if not self.slots.take(request.lane):
            return False
        level, line = self._line(request)
        line.queue.start(request, request.caller, request.weight)
        level.count(line)
        request.state = "running"
        return True

    def wait(self, request: Request) -> None:
        """A new request begins to wait."""
        level, line = self._line(request)
        line.queue.push(request, request.caller, request.weight)
        self._count(level, 1)
        request.state = "waiting"

    def next(self) -> Request | None:
        """Run the next of those that wait; None if there is no room for any of them."""
        if not self.waiting:
            return None
        found = self.turns.next(self.slots.has_room)
        if found is None:
            return None
        level, line = found
        request = line.queue.pop()
        assert isinstance(request, Request)
        self.slots.take(line.lane)
        level.count(line)
        self._count(level, -1)
        request.state = "running"
        return request

    def leave(self, request: Request) -> None:
        """A request that waits does so no longer."""
        assert request.state == "waiting" and request.level is not None and request.line is not None
        request.line.queue.remove(request)
        self._count(request.level, -1)
        request.state = "over"

    def finish(self, request: Request, tokens: int | None) -> None:
        """A request that ran is over, after so many tokens; None: nobody counted them."""
        assert request.state == "running" and request.line is not None
        request.line.queue.finish(request, tokens)
        self.slots.give(request.lane)
        request.state = "over"

    def waiting_before(self, priority: int) -> int:
        """How many wait of this priority or a higher one."""
        return sum(level.waiting for level in self.turns if level.priority >= priority)

    def waiting_of(self, request: Request) -> int:
        """How many of the same caller wait in the same line."""
        return self._line(request)[1].queue.waiting_of(request.caller)

    def dispensable(self) -> tuple[Request, int] | None:
        """Who should go if no more can wait: the newest request of the caller of whom most wait, in the lowest priority
        that has any; and how many they are."""
        level = next((each for each in reversed(list(self.turns)) if each.waiting), None)
        if level is None:
            return None
        longest = [found for line in level.lines.values() if (found := line.queue.longest()) is not None]
        request, count = max(longest, key=lambda each: each[1])
        assert isinstance(request, Request)
        return request, count

    def _line(self, request: Request) -> tuple[Level, Line]:
        level = request.level or self.turns.level(request.priority)
        line = request.line or level.line(request.lane)
        request.level, request.line = level, line
        return level, line

    def _count(self, level: Level, change: int) -> None:
        level.waiting += change
        self.waiting += change
        if not level.waiting:
            level.passed = 0
