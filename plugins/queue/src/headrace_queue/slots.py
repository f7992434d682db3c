"""How many requests may run: backends with so many slots each, shared by the models they serve.

A request needs a slot at any backend of its model. At which one it counts is not settled for good: if a model that
only has backend A needs room while another that has A and B holds it, that one's request is counted at B from then on,
if there is room. So nobody waits while all that runs, and one more, could be placed. Where a request really goes is
for the routing policy to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


class Backend:
    """One server, whatever models it serves."""

    __slots__ = ("capacity", "name", "used")

    def __init__(self, name: str, capacity: float) -> None:
        self.name = name
        self.capacity = capacity
        """Slots; infinity: not limited."""
        self.used = 0


class Lane:
    """The requests that need the same: a slot at any of some backends, and of no more than `limit` in all."""

    __slots__ = ("backends", "limit", "models", "placed", "running")

    def __init__(self, backends: Sequence[Backend], limit: float, models: Sequence[str]) -> None:
        self.backends = tuple(backends)
        self.limit = limit
        self.models = tuple(models)
        self.running = 0
        self.placed: dict[Backend, int] = dict.fromkeys(backends, 0)
        """How many of them count at which backend."""

    @property
    def capacity(self) -> float:
        """How many may run if no other lane uses the same backends."""
        return min(self.limit, sum(each.capacity for each in self.backends))

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to wait for."""
        if self.limit == math.inf:
            for each in self.backends:
                if each.capacity == math.inf:
                    return False
        return True


class Slots:
    """The slots of backends that are connected by the models they share."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self.lanes = tuple(lanes)
        self.running = 0

    def has_room(self, lane: Lane) -> bool:
        """Whether one more request could run."""
        return lane.running < lane.limit and (_free(lane) is not None or self._find(lane) is not None)

    def take(self, lane: Lane) -> bool:
        """One more request runs, if there is room."""
        if lane.running >= lane.limit:
            return False
        backend = _free(lane)
        if backend is not None:
            lane.placed[backend] += 1
            backend.used += 1
        elif (found := self._find(lane)) is not None:
            self._place(*found)
        else:
            return False
        lane.running += 1
        self.running += 1
        return True

    def give(self, lane: Lane) -> None:
        """One request less runs: it counts as that at the backend which is the fullest."""
        full = lane.backends[0]
        if len(lane.backends) > 1:
            used = [each for each in lane.backends if lane.placed[each]]
            full = max(used, key=lambda each: each.used - each.capacity)
        lane.placed[full] -= 1
        full.used -= 1
        lane.running -= 1
        self.running -= 1

    def _find(self, lane: Lane) -> tuple[Backend, Way] | None:
        """A backend that has room for this lane once others have moved, and who moves there from where."""
        if len(self.lanes) == 1:
            return None
        way: Way = dict.fromkeys(lane.backends, (lane, None))
        reached = list(lane.backends)
        for backend in reached:  # it grows while we look
            if backend.used < backend.capacity:
                return backend, way
            for other in self.lanes:
                if other.placed.get(backend):
                    new = [each for each in other.backends if each not in way]
                    way.update(dict.fromkeys(new, (other, backend)))
                    reached += new
        return None

    def _place(self, backend: Backend, way: Way) -> None:
        backend.used += 1
        place: Backend | None = backend
        while place is not None:
            mover, source = way[place]
            mover.placed[place] += 1
            if source is not None:
                mover.placed[source] -= 1
            place = source


Way = dict[Backend, tuple[Lane, Backend | None]]
"""For each backend that can be reached, which lane moves a request there, and from where."""


def _free(lane: Lane) -> Backend | None:
    """A backend of this lane that has room."""
    for backend in lane.backends:
        if backend.used < backend.capacity:
            return backend
    return None
