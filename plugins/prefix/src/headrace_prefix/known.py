"""What is known of the backends here: the prompts in their caches, the work they got, how good predictions were."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.weighing import BYTES_PER_TOKEN

from .blocks import Blocks
from .record import Record

if TYPE_CHECKING:
    from headrace.exchange import Target
    from headrace.fleet import Condition, TargetState

    from .config import PrefixConfig

AWAY: frozenset[Condition] = frozenset(("down", "starting"))
HALF_LIFE = 15.0
"""Seconds after which work counts half."""
TICK = 1.0
"""Seconds between two looks at how old the work is."""


class Known:
    """One backend, whatever models use it."""

    def __init__(self, name: str, blocks: Blocks, record: Record) -> None:
        self.name, self.blocks, self.record = name, blocks, record
        self.work = 0.0
        """Bytes of prompts that it had to compute of late."""
        self.absent = False
        """Whether it does not answer: it has failed, and not answered since, or somebody has found it away."""
        self.generation = 0
        """How often it has lost its cache."""
        self.since = -1.0
        """Since when it has been in the condition that was noticed last."""
        self._condition: Condition = "unknown"

    def notice(self, state: TargetState) -> None:
        """Its condition has changed. One that was up, and is again, was away between."""
        before, self._condition, self.since = self._condition, state.condition, state.since
        self.absent = self._condition in AWAY
        if self.absent or before == self._condition == "up":
            self.forget()

    def forget(self) -> None:
        """It has lost its cache."""
        self.blocks.clear()
        self.record.begin_anew()
        self.generation += 1


class Backends:
    """Every backend that has been seen. They are as many as the configuration has, and no more.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, config: PrefixConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self.clock = config, clock
        self._known: dict[str, Known] = {}
        self.find = self._known.get
        """What is known of a backend by its name, if it has been seen, without what is new in its state."""
        self._aged_at = clock()

    @property
    def all(self) -> list[Known]:
        return list(self._known.values())

    def of(self, target: Target) -> Known:
        """What is known of one; all that is new in its state has been noticed."""
        known = self._known.get(target.name)
        if known is None:
            known = self._known[target.name] = self._new(target.name)
        if target.state.since != known.since:
            known.notice(target.state)
        return known

    def age(self, now: float) -> None:
        """Let work count less as time goes by."""
        passed = now - self._aged_at
        if passed >= TICK:
            self._aged_at = now
            for known in self._known.values():
                known.work *= 0.5 ** (passed / HALF_LIFE)

    def _new(self, name: str) -> Known:
        config = self._config
        tokens = config.backends.get(name, config.cache_tokens)
        fit = config.max_blocks if tokens is None else max(1, tokens * BYTES_PER_TOKEN // config.block_bytes)
        record = Record(config.max_error, config.probe_every)
        return Known(name, Blocks(min(fit, config.max_blocks), config.ttl), record)
