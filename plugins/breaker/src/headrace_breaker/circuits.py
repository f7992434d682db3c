"""The circuits of all backends: which of them are in trouble, and what the log says of it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .circuit import NO_KEY, Circuit, State
from .config import BreakerConfig

logger = logging.getLogger("headrace.breaker")


class Outage(msgspec.Struct):
    """What the log has said of a circuit that was opened."""

    began: float
    key_refused: bool


class Circuits:
    """By the name of the backend. There are no more than backends.

    Attributes:
        troubled: those that are not simply closed. While there are none, nothing needs to be looked at.
    """

    def __init__(self, config: BreakerConfig, clock: Callable[[], float], chance: random.Random) -> None:
        self._config, self._clock, self._random = config, clock, chance
        self._circuits: dict[str, Circuit] = {}
        self._outages: dict[str, Outage] = {}
        self.troubled: dict[str, Circuit] = {}

    @property
    def all(self) -> Mapping[str, Circuit]:
        return self._circuits

    def get(self, name: str) -> Circuit | None:
        """That backend's, if it has one."""
        return self._circuits.get(name)

    def of(self, name: str) -> Circuit:
        """That backend's, made if it has none."""
        circuit = self._circuits.get(name)
        if circuit is None:
            circuit = self._circuits[name] = Circuit(
                name,
                self._config,
                now=self._clock(),
                chance=self._random,
                changed=self._changed,
                has_answered=has_answered,
            )
        return circuit

    def slow(self, circuit: Circuit, now: float, seconds: float) -> None:
        """A backend has said 429; see `Circuit.slow`."""
        was_slow = circuit.pace.is_slowed
        circuit.slow(now, seconds)
        if circuit.pace.is_slowed and not was_slow:
            self.troubled[circuit.name] = circuit
            logger.info("target %s: answers 429: asked last for a while, then less often", circuit.name)

    def tidy(self) -> None:
        """Forget those that are well again."""
        well = [name for name, circuit in self.troubled.items() if circuit.is_plain]
        for name in well:
            del self.troubled[name]

    def _changed(self, circuit: Circuit, before: State) -> None:
        self.troubled[circuit.name] = circuit
        if circuit.state == "open":
            self._opened(circuit)
        elif circuit.state == "closed":
            circuit.renewed = time.perf_counter()
            self._closed(circuit)
        else:
            logger.debug("target %s: circuit half open", circuit.name)

    def _opened(self, circuit: Circuit) -> None:
        """Say so, but not again and again of a backend that stays away."""
        key_refused = circuit.reason == NO_KEY
        outage = self._outages.setdefault(circuit.name, Outage(circuit.since, not key_refused))
        level = logging.DEBUG if outage.key_refused == key_refused else logging.WARNING
        outage.key_refused = key_refused
        seconds = circuit.until - circuit.since
        logger.log(level, "target %s: circuit open for %.1f s: %s", circuit.name, seconds, circuit.reason)

    def _closed(self, circuit: Circuit) -> None:
        outage = self._outages.pop(circuit.name)
        seconds = circuit.since - outage.began
        logger.info("target %s: circuit closed after %.1f s: it answers again", circuit.name, seconds)


def has_answered(attempt: Any) -> bool:
    """Whether the first byte of an answer to this try has come, of one that is no error."""
    exchange = attempt.exchange
    return (
        exchange.first_byte_at is not None
        and exchange.first_byte_at >= attempt.started
        and exchange.status is not None
        and exchange.status < 400
    )
