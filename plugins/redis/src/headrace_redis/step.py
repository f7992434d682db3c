"""What the script is asked in one call, and what its answer means: requests, holds, levels.

The script's own description of both stands at its beginning.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from headrace.ledger import LARGEST, Level, Limit, Refusal

SLOTS, RING = 60, 61
"""Of a window, and those that are kept: the script's own."""
ASK_AGAIN = 1.0
"""Seconds after which it is worth asking again for what is open: nobody knows how long requests take."""
LETTERS = {"window": "w", "sum": "s", "open": "o"}
LONGEST_KEY = 500
LONGEST_PREFIX = LONGEST_KEY - 64
BEYOND = 2 * LARGEST
"""Stands for every amount that is larger than any limit."""
SHORTEST_WAIT = 0.001


class Correction(NamedTuple):
    """What a request took is not what it had reserved."""

    letter: str
    key: str
    span: float
    place: int
    change: int


class Claim(NamedTuple):
    """One limit and the amount that is asked of it, in the script's words."""

    letter: str
    key: str
    most: int
    span: float
    amount: int


class Ask(msgspec.Struct, eq=False):
    """One caller who waits: for a hold, or, if `take` is false, for levels."""

    limits: Sequence[Limit]
    amounts: Sequence[int]
    claims: Sequence[Claim]
    take: bool
    future: asyncio.Future[Given | Refusal | Sequence[Level] | None]
    """None: not from this server, or not in time."""


class Given(msgspec.Struct, eq=False):
    """An ask that was granted."""

    limits: Sequence[Limit]
    claims: Sequence[Claim]
    used: Sequence[int]
    places: Sequence[int]
    newest: Sequence[int]
    now: float

    @property
    def levels(self) -> list[Level]:
        """Of all limits; few ask for them."""
        return _levels(self.limits, self.used, self.newest, self.now)

    def corrections(self, amounts: Sequence[int]) -> list[Correction]:
        """What must be said to the script when the request has taken so much."""
        found = []
        for claim, place, taken in zip(self.claims, self.places, amounts, strict=True):
            change = min(max(taken, 0), LARGEST) - claim.amount
            if change and claim.letter != "o":
                found.append(Correction(claim.letter, claim.key, claim.span, place, change))
        return found


class Step(msgspec.Struct, eq=False):
    """One call of the script: everything that was waiting for it."""

    number: int
    opens: Mapping[str, int]
    corrections: Sequence[Correction]
    asks: Sequence[Ask]

    def encode(self) -> bytes:
        opens = [part for pair in self.opens.items() for part in pair]
        corrections = [part for each in self.corrections for part in each]
        requests = [[int(ask.take), *(part for claim in ask.claims for part in claim)] for ask in self.asks]
        return msgspec.msgpack.encode((self.number, opens, corrections, requests))

    def read(self, values: Sequence[int]) -> list[Given | Refusal | Sequence[Level]]:
        """What each ask is given. Raises ValueError: that was no answer to this step."""
        if len(values) != 1 + sum(1 + 3 * len(ask.claims) for ask in self.asks):
            raise ValueError("the answer has another length")
        now, at, found = values[0] / 1e6, 1, []
        for ask in self.asks:
            end = at + 1 + 3 * len(ask.claims)
            found.append(_read(ask, values[at:end], now))
            at = end
        return found


_NUMBERS = msgspec.msgpack.Decoder(list[int])
_VERDICT = msgspec.msgpack.Decoder(tuple[int, list[int]])


def question(number: int) -> bytes:
    """Asks what has become of a step, and shuts it out."""
    return msgspec.msgpack.encode((number,))


def numbers(answer: bytes) -> list[int]:
    """The answer to a step. Raises msgspec.DecodeError, which is a ValueError."""
    return _NUMBERS.decode(answer)


def verdict(answer: bytes) -> tuple[int, list[int]]:
    """The number of the last step that was counted, and its answer. Raises msgspec.DecodeError."""
    return _VERDICT.decode(answer)


def claims_of(prefix: str, limits: Sequence[Limit], amounts: Sequence[int]) -> list[Claim]:
    return [
        Claim(
            letter := LETTERS[each.kind], _key(prefix, letter, each.key), min(each.most, LARGEST), _span(each), amount
        )
        for each, amount in zip(limits, [min(amount, BEYOND) for amount in amounts], strict=True)
    ]


def _key(prefix: str, letter: str, key: str) -> str:
    if not key.isascii():
        key = key.encode("utf-8", "backslashreplace").decode()  # half a character cannot be sent
    if len(key) > LONGEST_PREFIX:
        key = key[:LONGEST_PREFIX] + blake2b(key.encode(), digest_size=32).hexdigest()
    return f"{prefix}{letter}:{key}"


def _span(limit: Limit) -> float:
    if limit.kind == "window":
        return limit.seconds
    return 0 if limit.ends == math.inf else max(1, round(limit.ends * 1000))


def _read(ask: Ask, values: Sequence[int], now: float) -> Given | Refusal | Sequence[Level]:
    """`values`: whether it fits, and of each limit what is used, where it was written, and its newest slot in use."""
    used, places, newest = values[1::3], values[2::3], values[3::3]
    if ask.take and values[0]:
        return Given(ask.limits, ask.claims, used, places, newest, now)
    levels = _levels(ask.limits, used, newest, now)
    if not ask.take:
        return levels
    waits = [_wait(level, amount, place, now) for level, amount, place in zip(levels, ask.amounts, places, strict=True)]
    longest = max(range(len(waits)), key=waits.__getitem__)
    return Refusal(levels[longest], ask.amounts[longest], waits[longest], levels)


def _levels(limits: Sequence[Limit], used: Sequence[int], newest: Sequence[int], now: float) -> list[Level]:
    return [
        Level(limit, each, _reset(limit, each, last, now))
        for limit, each, last in zip(limits, used, newest, strict=True)
    ]


def _leaves(limit: Limit, slot: int, now: float) -> float:
    """Seconds until a window's slot does not count any more."""
    return max(0.0, (slot + RING) * limit.seconds / SLOTS - now)


def _reset(limit: Limit, used: int, newest: int, now: float) -> float:
    """See `Level.reset`."""
    if used <= 0:
        return 0.0
    return _RESETS[limit.kind](limit, newest, now)


_RESETS: dict[str, Callable[[Limit, int, float], float]] = {
    "window": _leaves,
    "sum": lambda limit, _, now: max(0.0, limit.ends - now),
    "open": lambda *_: math.inf,
}


def _wait(level: Level, amount: int, slot: int, now: float) -> float:
    """See `Refusal.wait`. `slot`: of a window, the one that must leave."""
    limit = level.limit
    if level.used + amount <= limit.most:
        return 0.0
    if amount > limit.most:
        return math.inf
    if limit.kind == "window":
        return max(SHORTEST_WAIT, _leaves(limit, slot, now))
    return ASK_AGAIN if limit.kind == "open" else max(SHORTEST_WAIT, limit.ends - now)
