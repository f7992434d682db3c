"""What counts, or does not, while the server does not answer. A third choice is core's `LocalLedger`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Sequence

from headrace.errors import Unavailable
from headrace.ledger import Level, Limit


class Nobody:
    """What is held where nothing is counted."""

    def __init__(self, count: int) -> None:
        self.used: Sequence[int] = (0,) * count

    def settle(self, amounts: Sequence[int]) -> None:
        pass


class Open:
    """Everything is granted, and nothing of it is counted."""

    take = None

    async def reserve(self, limits: Sequence[Limit], amounts: Sequence[int]) -> Nobody:
        return Nobody(len(limits))

    async def levels(self, limits: Sequence[Limit]) -> Sequence[Level]:
        return [Level(limit, 0, 0.0) for limit in limits]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    reading = running


class Closed:
    """Nothing is granted. `retry_seconds`: when it is worth asking again."""

    take = None

    def __init__(self, retry_seconds: float) -> None:
        self._headers = {"Retry-After": str(math.ceil(retry_seconds))}

    async def reserve(self, limits: Sequence[Limit], amounts: Sequence[int]) -> Nobody:
        raise self._unavailable()

    async def levels(self, limits: Sequence[Limit]) -> Sequence[Level]:
        raise self._unavailable()

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            "The limits cannot be checked now: try again later.", detail="redis does not answer", headers=self._headers
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    reading = running
