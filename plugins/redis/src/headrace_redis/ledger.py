"""The ledger that several gateways share: counts in Redis or Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence

from headrace.ledger import Hold, Kind, Ledger, Level, Limit, Refusal

from .batches import Batches
from .config import RedisConfig, address_of
from .fallback import Closed, Open
from .link import MEANWHILE, Link
from .script import FORMAT
from .step import Ask, Given


class RedisHold:
    """See `headrace.ledger.Hold`."""

    __slots__ = ("_batches", "_given", "used")

    def __init__(self, batches: Batches, given: Given) -> None:
        self._batches: Batches | None = batches
        self._given, self.used = given, given.used

    @property
    def levels(self) -> Sequence[Level]:
        """How the limits stood when it was taken."""
        return self._given.levels

    def settle(self, amounts: Sequence[int]) -> None:
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.settle(self._given, amounts)


class RedisLedger:
    """See `headrace.ledger.Ledger`. Made without I/O.

    Args:
        config: where the server is, and what happens while it does not answer.
        local: makes the ledger that counts then, if `on_failure` is `local`.
    """

    def __init__(self, config: RedisConfig, local: Callable[[], Ledger]) -> None:
        self._config, self._local = config, local
        self._elsewhere: Ledger = Closed(config.probe_seconds)
        self._link = Link(
            address_of(config),
            config.prefix,
            os.urandom(8).hex(),
            config.deadline / 2,  # a request may have to wait for the call before its own
            config.probe_seconds,
            MEANWHILE[config.on_failure],
            (config.ca, config.certificate),
        )
        self._batches = self._link.batches

    @property
    def state(self) -> str:
        """`ok`, or `failing since …` with the time: then requests do not wait for the server."""
        return self._link.state

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._elsewhere = self._choose()
        async with self._elsewhere.running(), self._link.running():
            yield

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        self._elsewhere = self._choose()
        async with self._elsewhere.reading(), self._link.running():
            yield

    def _choose(self) -> Ledger:
        match self._config.on_failure:
            case "local":
                return self._local()
            case "open":
                return Open()
            case "closed":
                return Closed(self._config.probe_seconds)

    take = None

    async def reserve(self, limits: Sequence[Limit], amounts: Sequence[int]) -> Hold | Refusal:
        if self._batches.attached:
            found = await self._answer(self._batches.ask(limits, amounts, take=True))
            if isinstance(found, Given):
                return RedisHold(self._batches, found)
            if isinstance(found, Refusal):
                return found
        return await self._elsewhere.reserve(limits, amounts)

    async def levels(self, limits: Sequence[Limit]) -> Sequence[Level]:
        if self._batches.attached:
            found = await self._answer(self._batches.ask(limits, [0] * len(limits), take=False))
            if found is not None and not isinstance(found, Given | Refusal):
                return found
        return await self._elsewhere.levels(limits)

    async def scan(self, kind: Kind, prefix: str) -> list[tuple[str, int]]:
        """Keys of sums that begin with `prefix`, in order, with what is used of each in the server; keys that are too
        long to be kept as they are come shortened. Other kinds are not listed. Raises Unavailable."""
        return await self._link.sums(f"{self._config.prefix}{FORMAT}s:", prefix) if kind == "sum" else []

    async def _answer(self, ask: Ask) -> Given | Refusal | Sequence[Level] | None:
        try:
            return await ask.future
        except asyncio.CancelledError:
            if ask.future.done() and not ask.future.cancelled():  # it came in the same moment
                found = ask.future.result()
                if isinstance(found, Given):
                    self._batches.give_back(found)
            raise
