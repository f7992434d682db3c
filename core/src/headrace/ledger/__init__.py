"""Counting what is used, so that no limit is overspent: reserve what a request may need, settle by what it took.

A plugin says which limits a request must fit into, and how much of each it may need at most. The ledger takes all of
that or nothing, in one step, whoever else is asking at the same time in whichever process. When the request is over
the plugin says what it took, and the rest is free again. What was reserved stays used if the process dies.

`Gateway.ledger` is the ledger to use: `LocalLedger`, which all workers of one gateway share, unless a plugin has
registered another (`register_ledgers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Literal, Protocol

import msgspec

Kind = Literal["window", "sum", "open"]
LONGEST_NAME = 500
LARGEST = 2**53
"""No limit is larger: what every store can count, Redis with its floating-point numbers as well."""


class Limit(msgspec.Struct, frozen=True, dict=True):
    """One thing that is limited."""

    key: str
    """What is limited, of whom: equal keys share one count. Begins with the plugin's name and a colon."""
    kind: Kind
    """`window`: what was used in the last `seconds`; `sum`: all that was used until `ends`; `open`: what is reserved
    now, by requests that have not been settled."""
    most: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
    seconds: float = 0.0
    """Length of a window."""
    ends: float = math.inf
    """When a sum can be forgotten, in seconds since the epoch."""

    @cached_property
    def name(self) -> bytes:
        """Its kind and its key, for stores; a long key is shortened, and told from others by a hash."""
        name = self.kind[:1].encode() + self.key.encode()
        if len(name) <= LONGEST_NAME:
            return name
        return name[: LONGEST_NAME - 64] + blake2b(name, digest_size=32).hexdigest().encode()


class Level(msgspec.Struct, frozen=True):
    """How a limit stands."""

    limit: Limit
    used: int
    reset: float
    """Seconds until nothing of it is used, if nobody asks; infinity if that is not known."""

    @property
    def remaining(self) -> int:
        return max(0, self.limit.most - self.used)


class Refusal(msgspec.Struct, frozen=True):
    """A request did not fit; nothing was taken."""

    level: Level
    """Of the limit that keeps it waiting longest."""
    amount: int
    """How much of it was asked for."""
    wait: float
    """Seconds until it would fit, if nobody else asks; infinity if it never will."""
    levels: Sequence[Level]
    """Of all limits that were asked for, in their order."""


class Hold(Protocol):
    """What one request has reserved."""

    used: Sequence[int]
    """Of all limits, in their order, with what was reserved."""

    def settle(self, amounts: Sequence[int]) -> None:
        """The request is over and has taken so much of each limit, in their order. Counts once: a second call is
        ignored. Does not wait, and does not fail."""
        ...


class Ledger(Protocol):
    """Where it is counted."""

    @property
    def take(self) -> Callable[[Sequence[Limit], Sequence[int]], Hold | Refusal] | None:
        """What `reserve` does, without waiting and cheaper; None where it may have to wait for somebody."""
        ...

    async def reserve(self, limits: Sequence[Limit], amounts: Sequence[int]) -> Hold | Refusal:
        """Take so much of each limit, all of it or nothing.

        Raises:
            Unavailable: it cannot be counted now, and the configuration says that then nothing may be used.
        """
        ...

    async def levels(self, limits: Sequence[Limit]) -> Sequence[Level]:
        """How these limits stand. Raises Unavailable."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Entered before the gateway listens, left after its last request."""
        ...

    def reading(self) -> AbstractAsyncContextManager[None]:
        """Entered by a command that asks for `levels` only, while a gateway may be running."""
        ...


__all__ = ["LARGEST", "Hold", "Kind", "Ledger", "Level", "Limit", "Refusal"]
