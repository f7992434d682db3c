"""The policy `sticky`: a session always asks the same target, unless that one is much busier than the others.

Rendezvous hashing (https://en.wikipedia.org/wiki/Rendezvous_hashing): each target gets a number from the session's name
and its own, and the highest is asked first. Every worker and every gateway comes to the same result, and when a target
comes or goes only its own sessions move. With bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016): who has more
than its part of all requests in flight, times a factor, is passed over.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from hashlib import blake2b

from headrace.exchange import Exchange, Target

from .busy import LeastBusy, in_flight
from .memory import PerModel, rivals
from .session import Session

WORD = 2**64 - 1


class Sticky:
    """See above.

    Args:
        by: where a session's name may stand, see `Session`.
        load_factor: how many times its part a target may have.
        load_floor: requests in flight up to which a target is not too busy in any case.
    """

    def __init__(
        self,
        name: str,
        *,
        by: Sequence[str] = ("header:x-session-id", "prompt_cache_key", "user"),
        load_factor: float = 1.25,
        load_floor: int = 4,
        rng: random.Random,
    ) -> None:
        self.name = name
        self._session = Session(by)
        self._factor, self._floor = load_factor, load_floor
        self._otherwise = LeastBusy(name, rng=rng)
        self._seeds = PerModel(lambda targets: [number_of(each.name.encode()) for each in targets])

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        session = self._session.of(exchange)
        if session is None:
            return self._otherwise.order(exchange, targets)
        busy = [target.state.in_flight for target in targets]
        part = self._part(targets, busy)
        floor, scores = self._floor, self._scores(session[1], targets)
        ranked = sorted(
            [
                (busy[at] >= floor and busy[at] >= math.ceil(part * each.weight), scores[at], at)
                for at, each in enumerate(targets)
            ]
        )
        return [targets[at] for *_, at in ranked]

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says how close the session is to it, and whether it is too busy."""
        session = self._session.of(exchange)
        if session is None:
            return f"no session, {in_flight(target)}"
        targets = rivals(exchange, target)
        place = sorted(zip(self._scores(session[1], targets), (each.name for each in targets), strict=True))
        choice = [name for _, name in place].index(target.name) + 1
        part = self._part(targets, [each.state.in_flight for each in targets])
        most = max(self._floor, math.ceil(part * target.weight))
        return f"choice {choice} of this session ({session[0]}), {in_flight(target)}, not first from {most} on"

    def _part(self, targets: Sequence[Target], busy: Sequence[int]) -> float:
        """Requests that a target of weight 1 may have, the new one included."""
        return self._factor * (sum(busy) + 1) / (sum([target.weight for target in targets]) or 1)

    def _scores(self, session: bytes, targets: Sequence[Target]) -> list[float]:
        """The lowest is the session's own: of times until something happens, each with a target's weight as rate."""
        number, log = number_of(session), math.log
        return [
            -log((mixed(number ^ seed) + 0.5) * 2.0**-64) / target.weight
            for seed, target in zip(self._seeds.of(targets), targets, strict=True)
        ]


def number_of(name: bytes) -> int:
    """64 bits of a name, the same in every process."""
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big")


def mixed(number: int) -> int:
    """64 bits of which each depends on all of the given ones: the end of SplitMix64
    (https://prng.di.unimi.it/splitmix64.c)."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & WORD
    return number ^ (number >> 31)
