"""Slots that follow what an engine says of itself: as many as it runs without letting any of them wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.exchange import Target
    from headrace.fleet import EngineLoad

ANY_NUMBER = 1_000_000
"""Slots of a backend that nobody has limited, until its engine lets somebody wait."""
LOOK_SECONDS = 0.25
"""How often somebody looks whether an engine has said something new."""
FULL = 0.95
"""Of the KV cache: with so much taken no more requests are let in than before."""
PART = 8
"""By this part of them slots grow, each time that the engine has room and we have used all."""


class Followed:
    """The slots of one backend.

    Requests that wait in it twice in a row are too many: a moment of waiting is how requests come in. Then it has as
    many slots as it runs of ours. If all of them are used and nobody waits it has a few more, from one word of its
    engine to the next.
    """

    __slots__ = ("_heard", "_most", "slots", "target")

    def __init__(self, target: Target, most: int | None) -> None:
        self.target = target
        self._most = most if most is not None else ANY_NUMBER
        self.slots = self._most
        self._heard: EngineLoad | None = None

    def look(self) -> bool:
        """Whether the engine has said something by which it is another number now."""
        load, last = self.target.state.engine, self._heard
        if load is None or load is last:
            return False
        self._heard = load
        before, busy = self.slots, self.target.state.in_flight
        if load.waiting and last is not None and last.waiting:
            self.slots = max(1, min(before, busy - load.waiting))
        elif not load.waiting and busy >= before and load.cache_usage < FULL:
            self.slots = min(self._most, before + max(1, before // PART))
        return self.slots != before


@asynccontextmanager
async def following(followed: Sequence[Followed], set_capacity: Callable[[str, int], None]) -> AsyncIterator[None]:
    """Gives backends their slots meanwhile. Where there are none that follow nobody wakes up to look."""
    if not followed:
        yield
        return
    looking = asyncio.create_task(_look(followed, set_capacity))
    try:
        yield
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking


async def _look(followed: Sequence[Followed], set_capacity: Callable[[str, int], None]) -> None:
    while True:
        for each in followed:
            if each.look():
                set_capacity(each.target.name, each.slots)
        await asyncio.sleep(LOOK_SECONDS)
