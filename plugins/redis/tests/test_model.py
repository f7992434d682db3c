"""The script agrees with the ledger of one gateway, whatever happens in whatever order.

Here alone the server's clock is set by hand: its line of the script is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from headrace.ledger import Level, Limit, Refusal
from headrace.ledger.local import LocalHold, LocalLedger
from headrace_redis.script import SCRIPT
from headrace_redis.step import Ask, Correction, Given, Step, claims_of, numbers

MINUTE = Limit("t:minute", "window", 100, 60.0)
HOUR = Limit("t:hour", "window", 300, 3600.0)
MONTH = Limit("t:month", "sum", 2000, ends=1e11)
OPEN = Limit("t:open", "open", 4)
ALL = (MINUTE, HOUR, MONTH, OPEN)
BEGIN = 1_000_000_000_000_000
"""Microseconds."""


class Scripted:
    """Calls the script as one client would that has no network and knows the time."""

    def __init__(self, call: Any) -> None:
        self._call = call
        clock = SCRIPT.replace(b"call('TIME')", b"{ARGV[3], ARGV[4]}")
        assert clock != SCRIPT
        self._digest = call("SCRIPT", "LOAD", clock)
        self._number, self._held = 0, 0
        self._changed = False

    def step(self, micros: int, amounts: Sequence[int], take: bool, corrections: Sequence[Correction] = ()) -> Any:
        self._number += 1
        claims = claims_of("{m}:", ALL, amounts)
        opens = {claims[-1].key: self._held} if self._changed else {}
        nobody: Any = None
        step = Step(self._number, opens, corrections, [Ask(ALL, amounts, claims, take, nobody)])
        seconds, rest = divmod(micros, 1_000_000)
        answer = self._call("EVALSHA", self._digest, 2, "{m}:c", "{m}:l", "me", step.encode(), seconds, rest)
        (found,) = step.read(numbers(answer))
        self._changed = False
        if isinstance(found, Given):
            self._held += amounts[-1]
        return found

    def leave(self, given: Given) -> None:
        self._held -= given.claims[-1].amount
        self._changed = True


class Agreement(RuleBasedStateMachine):
    """Two ledgers that are told the same."""

    call: ClassVar[Any]
    folder: ClassVar[Path]
    count: ClassVar[int] = 0
    holds = Bundle("holds")

    @initialize()
    def begin(self) -> None:
        self.call("FLUSHALL")
        Agreement.count += 1
        self.micros, self.script = BEGIN, Scripted(self.call)
        self.local = LocalLedger(self.folder / str(self.count), clock=lambda: self.micros / 1e6)
        self.local.open()
        self.due: list[Correction] = []

    @rule(target=holds, amount=st.integers(0, 120), tokens=st.integers(0, 120), slots=st.integers(0, 3))
    def reserve(self, amount: int, tokens: int, slots: int) -> tuple[LocalHold, Given] | None:
        amounts = (amount, tokens, tokens, slots)
        here, due, self.due = self.local.take(ALL, amounts), self.due, []
        there = self.script.step(self.micros, amounts, True, due)
        if isinstance(here, Refusal):
            assert isinstance(there, Refusal)
            assert (there.level.limit, there.amount) == (here.level.limit, here.amount)
            assert there.wait == pytest.approx(here.wait, abs=0.002)
            same(there.levels, here.levels)
            return None
        assert isinstance(there, Given)
        assert list(there.used) == list(here.used)
        return here, there

    @rule(hold=consumes(holds), parts=st.tuples(*[st.floats(0, 1.2)] * 3))
    def settle(self, hold: tuple[LocalHold, Given] | None, parts: tuple[float, ...]) -> None:
        if hold is not None:
            here, there = hold
            amounts = [int(claim.amount * part) for claim, part in zip(there.claims, (*parts, 1.0), strict=True)]
            here.settle(amounts)
            self.due += there.corrections(amounts)
            self.script.leave(there)
            self.look()

    @rule(micros=st.integers(0, 90_000_000))
    def wait(self, micros: int) -> None:
        self.micros += micros

    @rule()
    def wait_long(self) -> None:
        self.micros += 3_000_000_000

    @invariant()
    def look(self) -> None:
        if not hasattr(self, "local"):
            return
        due, self.due = self.due, []
        found = self.script.step(self.micros, (0,) * len(ALL), False, due)
        same(found, levels(self.local))

    def teardown(self) -> None:
        if hasattr(self, "local"):
            self.local.close()


def levels(ledger: LocalLedger) -> list[Level]:
    """What `LocalLedger.levels` gives, which does not wait for anything."""
    coroutine = ledger.levels(ALL)
    try:
        coroutine.send(None)
    except StopIteration as done:
        found: list[Level] = done.value
        return found
    raise AssertionError("it has waited")


def same(these: Sequence[Level], those: Sequence[Level]) -> None:
    assert [(level.limit, level.used) for level in these] == [(level.limit, level.used) for level in those]
    assert [level.reset for level in these] == pytest.approx([level.reset for level in those], abs=0.002)


def test_the_script_agrees_with_the_ledger_of_one_gateway(server: Any, tmp_path: Path) -> None:
    Agreement.call, Agreement.folder = staticmethod(server.call), tmp_path
    run_state_machine_as_test(
        Agreement,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_server_clock_that_goes_back_stands_still_and_one_set_back_by_hours_begins_anew(server: Any) -> None:
    script = Scripted(server.call)
    script.step(BEGIN, (10, 0, 0, 0), True)
    script.step(BEGIN - 10_000_000, (5, 0, 0, 0), True)
    assert script.step(BEGIN + 59_000_000, (0, 0, 0, 0), False)[0].used == 15
    assert script.step(BEGIN - 90_000_000, (0, 0, 0, 0), False)[0].used == 0
