"""Logs what becomes of a backend: each change once, and not every one of a backend that keeps changing."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from headrace.fleet import TargetState

logger = logging.getLogger("headrace.health")

CHANGES = 6
"""So many changes …"""
WITHIN_SECONDS = 300.0
"""… in this time, and nothing more is logged …"""
QUIET_SECONDS = 120.0
"""… until it has been the same for so long."""


class Teller:
    """Logs for one backend."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name, self._clock = name, clock
        self._told: tuple[str, str] = ("unknown", "")
        self._changes: deque[float] = deque(maxlen=CHANGES)
        self._silent = False

    def tell(self, state: TargetState, changed: bool, refused: bool) -> None:
        """It is in this condition now; `refused`: because of our key."""
        oddity = "refused" if refused else state.reason if state.condition == "up" else ""
        if not changed and (state.condition, oddity) == self._told:
            return
        self._told = (state.condition, oddity)
        self._changes.append(self._clock())
        if self._silent:
            return
        if len(self._changes) == CHANGES and self._changes[-1] - self._changes[0] < WITHIN_SECONDS:
            self._silent = True
            logger.warning(
                "target %s keeps changing, %d times in %.0f s, and is %s now (%s): no more is logged until it is the "
                "same for %.0f s",
                *(self._name, CHANGES, self._changes[-1] - self._changes[0], state.condition, state.reason or "well"),
                QUIET_SECONDS,
            )
            return
        logger.log(_level(state, refused), "target %s is %s%s", self._name, state.condition, _because(state))

    def quiet(self, state: TargetState) -> None:
        """A check has ended: if it has long been the same, what happens next is told again."""
        if self._silent and self._clock() - self._changes[-1] >= QUIET_SECONDS:
            self._silent = False
            self._changes.clear()
            refused = self._told[1] == "refused"
            logger.log(_level(state, refused), "target %s stays %s%s", self._name, state.condition, _because(state))


def _level(state: TargetState, refused: bool) -> int:
    if refused:
        return logging.ERROR
    return logging.WARNING if state.condition == "down" or (state.condition == "up" and state.reason) else logging.INFO


def _because(state: TargetState) -> str:
    return f": {state.reason}" if state.reason else ""
