"""What checks and requests make of a backend's condition. No I/O, and no clock but the one it is given."""

from __future__ import annotations

import time
from collections.abc import Callable

from headrace.exchange import Target
from headrace.fleet import Condition

from .checks import Found
from .config import Rules
from .teller import Teller

Clock = Callable[[], float]


class Judge:
    """Counts what goes well and what fails in a row, and sets `target.state`."""

    def __init__(self, target: Target, rules: Rules, clock: Clock = time.monotonic) -> None:
        self.target, self.rules = target, rules
        self._state = target.state
        self._clock = clock
        self._begun = clock()
        self._teller = Teller(target.name, clock)
        self._good = 0
        """Checks and requests in a row that went well, while it is down."""
        self._bad = 0
        """Checks in a row that failed."""
        self._failures = 0
        """Requests in a row that failed; each try counts."""
        self._been_up = False
        self._warm = False
        """Whether it has been up since it was last out of reach."""
        self._refused = False
        self.any_model = bool(rules.any_model)
        """Whether it answers to every name."""
        self._doubted = False
        """Whether requests alone say that it is down: no check has failed since."""

    # --- what checks say -----------------------------------------------------------------------------------------

    def checked(self, found: Found) -> None:
        """A check has ended."""
        if found.serves is not None:
            self._state.serves = found.serves
        verdict = self._resolved(found)
        if verdict != "well":
            self._note(found.reason)
        if verdict == "well":
            self._bad = 0
            self._goes_well(self._oddity(found))
        elif verdict == "starting":
            self._good = self._bad = 0
            self._become("starting", found.reason)
        elif verdict == "refused":
            self.key_refused(found.reason)
        else:
            self._check_failed(found)
        self._teller.quiet(self._state)

    def _resolved(self, found: Found) -> str:
        """What that means of this backend: one that has not been up yet may be starting."""
        if found.verdict == "unready":
            return "failed" if self._warm else "starting"
        young = self._clock() - self._begun < self.rules.start_period
        if found.verdict == "unreachable" and young and not self._been_up:
            return "starting"
        return found.verdict

    def _check_failed(self, found: Found) -> None:
        self._good = 0
        self._bad += 1
        self._doubted = self._refused = False
        if found.verdict == "unreachable":
            self._warm = False
        if self._state.condition in ("unknown", "down") or self._bad >= self.rules.fall:
            self._become("down", found.reason)

    def _oddity(self, found: Found) -> str:
        """What is odd about a backend that is well."""
        wanted, given = self.target.model, self.rules.any_model
        self.any_model = found.any_model if given is None else given
        if wanted is None or found.serves is None or wanted in found.serves or self.any_model:
            return found.reason
        return f"answers, but does not list the model {wanted!r}: is its name right?"

    # --- what requests say ---------------------------------------------------------------------------------------

    def concerns(self, duration: float) -> bool:
        """Whether a request that took so many seconds began under the present condition: only then it says something
        about it."""
        return duration <= time.monotonic() - self._state.since

    def request_succeeded(self) -> None:
        """A request was answered to its end."""
        self._failures = self._bad = 0
        if self._state.condition != "up":
            self._goes_well("")

    def request_failed(self, reason: str) -> bool:
        """A request failed by the backend's fault. Returns whether it is time to check it."""
        self._note(reason)
        self._good = 0
        self._failures += 1
        if self._failures >= self.rules.failures and self._state.condition != "down":
            self._doubted = True
            self._become("down", f"{self._failures} tries in a row failed, the last with: {reason}")
        return self._failures == 1 and self._state.condition != "down"

    def key_refused(self, reason: str) -> None:
        """It does not accept our key: more tries would only make it worse."""
        self._note(reason)
        self._good = 0
        self._refused, self._doubted = True, False
        self._become("down", reason)

    # --- what follows --------------------------------------------------------------------------------------------

    def pause(self) -> float:
        """Seconds until the next check."""
        condition, rules = self._state.condition, self.rules
        rising = condition == "down" and self._good > 0 and not (self._doubted or self._refused)
        falling = condition == "up" and self._bad > 0
        return rules.fast_interval if rising or falling or condition in ("unknown", "starting") else rules.interval

    def _goes_well(self, reason: str) -> None:
        self._good += 1
        if self._state.condition == "down" and self._good < self.rules.rise:
            return
        self._good = 0
        if self._state.condition != "up":
            self._failures = 0
        self._been_up = self._warm = True
        self._refused = self._doubted = False
        self._become("up", reason)

    def _become(self, condition: Condition, reason: str) -> None:
        changed = self._state.become(condition, reason)
        self._teller.tell(self._state, changed, self._refused)

    def _note(self, reason: str) -> None:
        self._state.failure, self._state.failed_at = reason, time.time()
