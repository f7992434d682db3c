"""What is probably in the KV cache of one backend: the pieces of prompts it has been asked, least recently used first.

A piece stands for the whole prompt up to its end, as a block of an engine's cache does. Whoever touches a piece touches
those before it a moment later, so of one prompt the end is evicted first, and what is known of it is always its
beginning: a binary search finds how much. (One exception, harmless: when a request fails that brought pieces first,
others that share them and still run know their ends alone, until they are over.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

Chain = Sequence[int]
"""A prompt: for each piece a hash of everything up to its end."""


class Blocks:
    """An index of pieces, of bounded size.

    Args:
        capacity: pieces at most.
        ttl: seconds after which a piece is forgotten. All times are seconds above 0 that never go back.
    """

    def __init__(self, capacity: int, ttl: float) -> None:
        self.capacity, self.ttl = capacity, ttl
        self._times: OrderedDict[int, float] = OrderedDict()
        """When each was used last; negative until an answer has shown that the backend has computed it."""

    def __len__(self) -> int:
        return len(self._times)

    def depth(self, chain: Chain, now: float, guess: int = 0) -> int:
        """How many pieces of a prompt are known, from its beginning. A right guess spares most of the search."""
        get, horizon = self._times.get, now - self.ttl
        low, high = 0, len(chain)
        middle = guess - 1 if guess else 0
        while low < high:
            at = get(chain[middle])
            if at is None or -horizon <= at <= horizon:
                high = middle
                middle = low + high >> 1
            else:
                low = middle + 1
                middle = low if low == guess else low + high >> 1
        return low

    def touch(self, chain: Chain, now: float) -> list[float]:
        """A backend is asked a prompt now. Returns when the pieces were used before that it has computed, from the
        prompt's beginning."""
        self.forget_until(now - self.ttl)
        times = self._times
        get, move = times.get, times.move_to_end
        before = []
        for block in reversed(chain):
            at = get(block, -now)
            before.append(at)
            times[block] = now if at > 0 else -now
            move(block)
        before.reverse()
        self._shrink()
        return before[: self._computed(before)]

    def confirm(self, chain: Chain, now: float) -> None:
        """It has answered: the prompt is in its cache."""
        times = self._times
        for block in reversed(chain):
            at = times.get(block)
            if at is None:  # evicted, or dropped with another request
                self._insert(chain, now)
                return
            if at > 0:
                return
            times[block] = -at

    def drop(self, chain: Chain) -> None:
        """It has not answered: forget what was not in its cache before."""
        times = self._times
        for block in chain:
            if times.get(block, 0.0) < 0:
                del times[block]

    def forget_until(self, time: float) -> int:
        """Forget what was used then for the last time, or before. Returns how many pieces that were."""
        times, count = self._times, len(self._times)
        while times and abs(next(iter(times.values()))) <= time:
            times.popitem(last=False)
        return count - len(times)

    def clear(self) -> None:
        """Forget everything."""
        self._times.clear()

    def _insert(self, chain: Chain, now: float) -> None:
        for block in reversed(chain):
            self._times[block] = now
            self._times.move_to_end(block)
        self._shrink()

    def _shrink(self) -> None:
        while len(self._times) > self.capacity:
            self._times.popitem(last=False)

    @staticmethod
    def _computed(before: list[float]) -> int:
        return next((number for number, at in enumerate(before) if at < 0), len(before))
