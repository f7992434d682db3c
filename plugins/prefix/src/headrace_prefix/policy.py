"""The policy: where the most of a prompt is cached, unless that backend is too busy.

Of each backend is known what part of the prompt is probably in its cache (`cached`), how many requests it has in flight
for its weight (`busy`), and how much it has had to compute of late for its weight (`work`). One is chosen of those that
have room, which means `busy`, this request included, is at most `imbalance` times the mean, or `spare`:

    score = cached - pressure * busy / (1 + mean) - balance * work / prompt

The highest score wins. All terms are parts of the prompt. The last one is the rent of an old rule, to buy once the rent
paid equals the price: a prompt moves to a backend that does less when that costs a fifth (`balance`) of what has been
done where it was. So a beginning that everybody uses is soon in every cache, and one conversation alone stays where
it is. Where nothing is cached anywhere, or nobody has room, the least busy one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .prompt import Prompt, read_prompt

if TYPE_CHECKING:
    from headrace.exchange import Exchange, Target

    from .config import PolicyConfig, PrefixConfig
    from .known import Backends, Known

STATE = "prefix"
"""Where a request's plan is kept in `exchange.state`."""


class Row(NamedTuple):
    """How it stands with one target."""

    target: Target
    known: Known
    depth: int
    """Pieces of the prompt that are probably in its cache."""
    cached: float
    """The part of the prompt they are; 0 if they are not believed."""
    busy: float
    """Requests in flight for its weight, this one included."""
    work: float
    """Bytes of prompts that it had to compute of late, for its weight."""


class Plan:
    """What was found out about a request, and who is being asked it."""

    __slots__ = ("_rows", "prompt", "room", "visits")

    def __init__(self, prompt: Prompt, rows: Sequence[_Row], room: float, visits: dict[int, Visit]) -> None:
        self.prompt, self._rows, self.room, self.visits = prompt, rows, room, visits

    def row(self, target: Target) -> Row | None:
        """How it stood with a target; None if it was not among those looked at."""
        name = target.name
        for row in self._rows:
            if row[0].name == name:
                return Row(*row)
        return None


class Visit(NamedTuple):
    """One target is asked this prompt."""

    known: Known
    generation: int
    prompt: Prompt
    times: list[float]
    """When the pieces that were surely in its cache had been used before."""


class PrefixPolicy:
    """Puts that target first which is likely to have the most of a prompt in its KV cache, and is not too busy."""

    def __init__(self, name: str, weights: PolicyConfig, config: PrefixConfig, backends: Backends) -> None:
        self.name = name
        self._backends = backends
        self._imbalance, self._spare = weights.imbalance, weights.spare
        self._pressure, self._balance = weights.pressure, weights.balance
        self._block, self._limit = config.block_bytes, config.max_bytes

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        """The best first; so are the others, should it fail."""
        prompt = read_prompt(exchange, targets, self._block, self._limit)
        rows, mean = self._look(prompt, targets)
        room = self._imbalance * mean  # how busy a target may be, with this request, and still be chosen for its cache
        if room < self._spare:
            room = self._spare
        state = exchange.state
        earlier = state.get(STATE)
        state[STATE] = Plan(prompt, rows, room, earlier.visits if earlier is not None else {})
        return self._sorted(rows, mean, room, prompt.size)

    def why(self, exchange: Exchange, target: Target) -> str:
        """What is known of a target's cache, and how busy it is."""
        plan: Plan | None = exchange.state.get(STATE)
        row = plan.row(target) if plan is not None else None
        if plan is None or row is None:
            return "not looked at"
        known = row.depth * self._block, plan.prompt.size
        return f"{_words(row, *known, plan.room)}, {target.state.in_flight} in flight"

    def _look(self, prompt: Prompt, targets: Sequence[Target]) -> tuple[list[_Row], float]:
        """Each target, and how many requests they have in flight on average, by weight, this one included."""
        backends, chain, share = self._backends, prompt.chain, self._block / prompt.size
        now = backends.clock()
        backends.age(now)
        rows: list[_Row] = []
        requests, weights, depth, find = 1, 0, 0, backends.find
        for target in targets:
            known, state, weight = find(target.name), target.state, target.weight
            if known is None or known.since != state.since:
                known = backends.of(target)
            in_flight = state.in_flight
            if in_flight or not known.absent:  # one that nobody asks does not make others busier than usual
                requests += in_flight
                weights += weight
            depth = known.blocks.depth(chain, now, depth)  # often as much as the one before
            cached = depth * share if depth and (known.record.trusted or known.record.believed()) else 0.0
            rows.append((target, known, depth, cached, (in_flight + 1) / weight, known.work / weight))
        return rows, requests / (weights or 1)

    def _sorted(self, rows: list[_Row], mean: float, room: float, size: int) -> list[Target]:
        pressure, balance = self._pressure / (1 + mean), self._balance / size
        ranked: list[tuple[bool, float, float, int]] = []
        warm = False
        for number, (_, _, _, cached, busy, work) in enumerate(rows):
            if cached:
                warm = True
            if busy > room:
                ranked.append((True, busy, work, number))
            else:
                ranked.append((False, pressure * busy + balance * work - cached, busy, number))
        if not warm:
            ranked = [(False, row[4], row[5], number) for number, row in enumerate(rows)]
        ranked.sort()
        return [rows[rank[3]][0] for rank in ranked]


_Row = tuple["Target", "Known", int, float, float, float]
"""A `Row`, at a tenth of its cost."""


def _words(row: Row, known: int, size: int, room: float) -> str:
    if not row.depth:
        return "nothing of the prompt is known to be cached"
    part = f"{known} of {size} bytes of the prompt are probably cached"
    if not row.cached:
        return f"{part}, but it was wrong too often (by {row.known.record.excess:.0%} of a prompt)"
    return f"{part}, but it is too busy" if row.busy > room else part
