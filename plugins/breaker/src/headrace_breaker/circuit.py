"""The circuit of one backend: closed, open, half open; and what leads from one to the other.

    closed ──fails too often──▶ open ──time is over──▶ half open ──probe ends well──▶ closed, at a slow start
                                 ▲                        │
                                 └──────probe fails───────┘

Knows nothing of requests: a probe is any object. Nothing here waits; time passes when somebody looks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable
from typing import Literal

from .config import BreakerConfig
from .judge import Verdict
from .pace import Pace
from .window import Window

State = Literal["closed", "open", "half_open"]
DOUBLINGS = 16
JITTER = 0.25
"""The part of its time by which a circuit may be open for less."""
NO_KEY = "it refuses the gateway's own credentials: look at its api_key and headers"


class Circuit:
    """Of one backend. Times are seconds of a clock that only goes forward.

    Args:
        changed: called after each change of state, with the circuit and the state before.
        has_answered: whether a probe that has not ended has been answered, its first byte at least.

    Attributes:
        state: as of the last look.
        since: when it took that state.
        until: when it will be half open, if it is open.
        reason: why it was opened last, in words an operator can act on.
        failures: requests that failed one after the other.
        openings: how often it was opened without having been closed for long in between.
        renewed: when it was closed last, by the clock of `Attempt.started`: set by whoever listens to `changed`.
    """

    __slots__ = (
        *("_changed", "_config", "_going", "_good", "_has_answered", "_random", "_waiting", "failures", "name"),
        *("openings", "pace", "reason", "renewed", "since", "state", "until", "window"),
    )

    def __init__(
        self,
        name: str,
        config: BreakerConfig,
        *,
        now: float,
        chance: random.Random,
        changed: Callable[[Circuit, State], None],
        has_answered: Callable[[Hashable], bool],
    ) -> None:
        self.name, self.since, self.renewed = name, now, -math.inf
        self.state: State = "closed"
        self.reason, self.until = "", now
        self.failures = self.openings = self._good = 0
        self.window = Window(config.window)
        self.pace = Pace(config.slow_start, config.max_pause, chance)
        self._config, self._random, self._changed, self._has_answered = config, chance, changed, has_answered
        self._waiting: dict[Hashable, float] = {}
        """Probes that hold a place, and since when."""
        self._going: dict[Hashable, bool] = {}
        """Probes that hold none any more and have not ended. True: it has been answered, and has counted."""

    @property
    def is_plain(self) -> bool:
        """Whether it may be asked like any other."""
        return self.state == "closed" and not self.pace.is_slowed

    @property
    def probes(self) -> int:
        """Requests that hold a place of a probe."""
        return len(self._waiting)

    def look(self, now: float) -> State:
        """Let the time that has passed do its work."""
        if self.state == "half_open" and self._waiting:
            self._look_at_probes(now)
        if self.state == "open" and now >= self.until:
            self._become("half_open", now)
        return self.state

    def has_room(self, now: float) -> bool:
        """Whether a request may be sent there now."""
        state = self.look(now)
        return state == "closed" or (state == "half_open" and len(self._waiting) < self._config.probes)

    def begin(self, probe: Hashable, now: float) -> bool:
        """A request is about to be sent there. Returns whether it may; while half open it holds a place until `end`,
        or until it has been answered."""
        if not self.has_room(now):
            return False
        if self.state == "half_open":
            self._waiting[probe] = now
        return True

    def is_probe(self, request: Hashable) -> bool:
        """Whether a request holds a place."""
        return request in self._waiting

    def end(self, request: Hashable, verdict: Verdict, now: float, *, why: str = "", counts: bool = True) -> None:
        """A request has ended, a probe or another.

        Args:
            why: what went wrong, in words.
            counts: False if it says nothing of how the backend is now. A probe always does.
        """
        waited = self._waiting.pop(request, None) is not None
        answered = self._going.pop(request, None)
        self.look(now)
        if verdict is Verdict.NOTHING:
            return
        if self.state == "closed":
            if counts or waited or answered is not None:
                self._count(verdict, now, why)
        elif verdict in (Verdict.GOOD, Verdict.BUSY):
            if waited or answered is False:  # a late one, too: it has been asked since the circuit was opened
                self._succeed(now)
        elif self.state == "half_open" and (waited or answered):
            self._open(now, why, verdict)

    def slow(self, now: float, seconds: float) -> None:
        """It has said 429, and to come back in so many seconds; 0: it did not say."""
        if self.state == "closed":
            self.pace.slow(now, seconds)

    def retry_in(self, now: float) -> float:
        """Seconds until it may be asked again, if it may not now: of what is not known, the least."""
        return max(0.0, self.until - now) if self.state == "open" else 0.0

    def _count(self, verdict: Verdict, now: float, why: str) -> None:
        """While it is closed."""
        if verdict is Verdict.BUSY:
            return
        self.window.add(now, verdict is not Verdict.GOOD)
        if verdict is Verdict.GOOD:
            self.failures = 0
            return
        self.failures += 1
        reason = self._too_much(now)
        if verdict is Verdict.REFUSES_KEY:
            self._open(now, NO_KEY, verdict)
        elif reason:
            self._open(now, f"{reason}: {why}" if why else reason, verdict)

    def _too_much(self, now: float) -> str:
        """Why it should be opened; empty if it should not."""
        config = self._config
        if 0 < config.failures <= self.failures:
            times = "twice" if self.failures == 2 else f"{self.failures} times"
            return "it failed" if self.failures == 1 else f"it failed {times} in a row"
        if not config.error_rate:
            return ""
        total, failed = self.window.counts(now)
        if total >= config.minimum_requests and failed >= total * config.error_rate:
            return f"it failed {failed} of {total} requests in {config.window:g} s, the last one so"
        return ""

    def _look_at_probes(self, now: float) -> None:
        for probe in list(self._waiting):
            if self._has_answered(probe):
                del self._waiting[probe]
                self._going[probe] = True
                self._succeed(now)
                if self.state == "closed":
                    return
        overdue = min(self._waiting.values(), default=math.inf) + self._config.probe_timeout
        if now >= overdue:
            self._open(overdue, f"a probe had no answer in {self._config.probe_timeout:g} s", Verdict.BAD)

    def _succeed(self, now: float) -> None:
        """A probe has been answered."""
        self._good += 1
        if self._good >= self._config.successes:
            self._close(now)

    def _close(self, now: float) -> None:
        self._let_go()
        self.window.clear()
        self.failures = self._good = 0
        self.pace.begin(now)
        self._become("closed", now)

    def _open(self, now: float, reason: str, verdict: Verdict) -> None:
        config = self._config
        if self.state == "closed":
            calm = now - self.since > config.window + config.slow_start
            self.openings = 0 if calm else self.openings
        self.openings += 1
        seconds = config.open_for * 2 ** min(self.openings - 1, DOUBLINGS)
        if verdict is Verdict.REFUSES_KEY:
            seconds, reason = config.max_open_for, NO_KEY
        self.until = now + min(seconds, config.max_open_for) * self._random.uniform(1 - JITTER, 1.0)
        self.reason = reason
        self._let_go()
        self._good = 0
        self._become("open", now)

    def _let_go(self) -> None:
        """Of the places that probes hold: they go on without."""
        self._going |= dict.fromkeys(self._waiting, False)
        self._waiting.clear()

    def _become(self, state: State, now: float) -> None:
        before, self.state, self.since = self.state, state, now
        self._changed(self, before)
