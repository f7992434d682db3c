"""The policy `latency`: who is expected to have answered first, by how fast it was and how busy it is.

What each target needs for its first token and for each that follows is learnt from the answers of either delivery. The
expected time is multiplied by the requests in flight, the new one included (as Finagle's peak EWMA balancer does,
https://twitter.github.io/finagle/guide/Clients.html#power-of-two-choices-p2c-least-loaded), so a target that is twice
as fast gets twice as many.

Three things keep a target from being forgotten for ever, or flooded when it is back. What is known of one that nobody
asks drifts towards what the best one needs. Now and then a request goes to the one that was not heard of for longest.
And one that has failed, is new, or was away looks slower than it was, until its answers have dispelled the doubts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from headrace.errors import GatewayError
from headrace.exchange import Attempt, Exchange, Outcome, Target

from .busy import in_flight
from .record import Record

AWAY = 3.0
"""Half-lives after which a target that nobody has asked has been away."""
DOUBTFUL = 4.0
"""Whatever is doubted more is not tried yet: it has just failed."""


class Latency:
    """See above.

    Args:
        half_life: seconds in which half of what is known is forgotten.
        explore: the part of all requests, 0 to 1, that may go to a target nobody has heard of for a half-life.
        tokens: of an answer that count, beside the first, when targets are compared.
        clock: that of `Attempt.started`.
    """

    def __init__(
        self,
        name: str,
        *,
        half_life: float = 10.0,
        explore: float = 0.02,
        tokens: int = 64,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self._half_life, self._explore, self._tokens = half_life, explore, tokens
        self._rng, self._clock = rng, clock
        self._records: dict[str, Record] = {}
        """By target, of which there are as many as the configuration has, or are found."""

    def order(self, exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target]:
        now, uniform = self._clock(), self._rng.random
        ranked = sorted([(score, uniform(), at) for at, score in enumerate(self._scores(targets, now))])
        ordered = [targets[at] for *_, at in ranked]
        if uniform() < self._explore:
            self._put_forward(ordered, now)
        return ordered

    def learn(self, attempt: Attempt, outcome: Outcome) -> None:
        """Take note of how one try ended."""
        now, record, error = self._clock(), self._record(attempt.target), outcome.error
        if error is not None:
            if is_targets_fault(error):
                record.failed(attempt.started, now)
        elif outcome.status < 400 or outcome.aborted:
            _learn_times(record, attempt.exchange, outcome, now)

    def why(self, exchange: Exchange, target: Target) -> str:
        """Says how fast and how busy it is, and whether it is doubted."""
        record = self._records.get(target.name)
        return ", ".join((*_times(record), *_doubts(record, self._clock()), in_flight(target)))

    def _record(self, target: Target) -> Record:
        record = self._records.get(target.name)
        if record is None:
            record = self._records[target.name] = Record(self._half_life, self._tokens)
        return record

    def _scores(self, targets: Sequence[Target], now: float) -> list[float]:
        """The seconds expected of each, times the requests it would have."""
        records = [self._record(target) for target in targets]
        known = [record.seconds for record in records if record.seconds is not None]
        best = min(known, default=1.0)
        return [
            self._seconds(record, best, busy, bool(known), now)
            * (1.0 + record.doubts(now))
            * (busy + 1)
            / target.weight
            for record, target in zip(records, targets, strict=True)
            for busy in (target.state.in_flight,)
        ]

    def _seconds(self, record: Record, best: float, busy: int, any_known: bool, now: float) -> float:
        """What one needs, as far as that is not forgotten, else what the best one needs."""
        idle = (now - record.seen) / self._half_life
        if busy:
            if any_known and idle > AWAY:
                record.begins(now)
            record.seen = now
            return best if record.seconds is None else record.seconds
        return best if record.seconds is None else best + (record.seconds - best) * 2.0**-idle

    def _put_forward(self, ordered: list[Target], now: float) -> None:
        """Let the one be asked first that was not heard of for longest, if there is one that is not at work."""
        silent = [
            (record.seen, at)
            for at, target in enumerate(ordered)
            if (record := self._records[target.name]).seen < now - self._half_life
            and target.state.condition != "down"
            and record.doubts(now) < DOUBTFUL
            and not target.state.in_flight
        ]
        if silent:
            ordered.insert(0, ordered.pop(min(silent)[1]))


def _learn_times(record: Record, exchange: Exchange, outcome: Outcome, now: float) -> None:
    first, whole = outcome.ttft_seconds, outcome.duration_seconds
    tokens = outcome.usage.completion_tokens if outcome.usage is not None else exchange.events or None
    if first is None:
        if outcome.aborted:
            record.waited(whole, now)
    elif first < 0:
        return  # the first byte came from another target, whose answer this one has taken up
    elif not exchange.streaming:
        if not outcome.aborted:
            record.answered_whole(whole, tokens, now)
    else:
        known = tokens is not None and tokens > 1 and not outcome.aborted
        record.streamed(first, (whole - first) / (tokens - 1) if known and tokens else None, now)


def is_targets_fault(error: GatewayError) -> bool:
    """Whether the target has failed, and not the caller, a plugin or the gateway."""
    return error.type == "upstream_error" or error.code == "upstream_rate_limited"


def _times(record: Record | None) -> Iterator[str]:
    if record is None or record.seconds is None:
        yield "nothing known of it yet"
        return
    if record.first_token is not None:
        yield f"first token after {record.first_token:.3g} s"
    if record.per_token is not None:
        yield f"{record.per_token * 1000:.3g} ms a token"


def _doubts(record: Record | None, now: float) -> Iterator[str]:
    doubts = record.doubts(now) if record is not None else 0.0
    if doubts >= 0.1:
        yield f"taken for {1 + doubts:.1f} times as slow until it has proved itself"
