"""Whatever happens, in whatever order: what a circuit never does, and what it always does in the end."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace_breaker import BreakerConfig
from headrace_breaker.circuit import Circuit, State
from headrace_breaker.judge import Verdict

SECONDS = st.floats(min_value=0, max_value=40)
CONFIGS = st.builds(
    BreakerConfig,
    failures=st.integers(0, 4),
    error_rate=st.sampled_from([0.0, 0.2, 1.0]),
    minimum_requests=st.integers(1, 5),
    window=st.floats(1, 20),
    open_for=st.floats(0.1, 5),
    max_open_for=st.floats(5, 20),
    probes=st.integers(1, 3),
    successes=st.integers(1, 3),
    probe_timeout=st.floats(1, 10),
    slow_start=st.sampled_from([0.0, 5.0]),
)


class Traffic(RuleBasedStateMachine):
    """Requests come, are answered, end and are forgotten, and time passes."""

    @initialize(config=CONFIGS, seed=st.integers(0, 5))
    def start(self, config: BreakerConfig, seed: int) -> None:
        self.config, self.now, self.numbers = config, 1000.0, 0
        self.running: set[int] = set()
        self.answered: set[Any] = set()
        self.probing: dict[int, float] = {}
        """Requests let through since it was last half open, not answered yet, and since when."""
        self.changes: list[tuple[State, State]] = []
        self.circuit = Circuit(
            "gpu",
            config,
            now=self.now,
            chance=random.Random(seed),
            changed=self.changed,
            has_answered=lambda probe: probe in self.answered,
        )

    def changed(self, circuit: Circuit, before: State) -> None:
        self.changes.append((before, circuit.state))
        self.probing.clear()

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_request_comes(self) -> None:
        self.numbers += 1
        admitted = self.circuit.begin(self.numbers, self.now)
        assert admitted or self.circuit.state != "closed"
        assert not (admitted and self.circuit.state == "open")
        if admitted:
            self.running.add(self.numbers)
            if self.circuit.state == "half_open":
                self.probing[self.numbers] = self.now

    @rule(data=st.data())
    def one_is_answered(self, data: st.DataObject) -> None:
        if self.running:
            number = data.draw(st.sampled_from(sorted(self.running)))
            self.answered.add(number)
            self.circuit.look(self.now)
            self.probing.pop(number, None)

    @rule(data=st.data(), verdict=st.sampled_from(Verdict), counts=st.booleans())
    def one_ends(self, data: st.DataObject, verdict: Verdict, counts: bool) -> None:
        if self.running:
            number = data.draw(st.sampled_from(sorted(self.running)))
            self.running.discard(number)
            self.probing.pop(number, None)
            self.circuit.end(number, verdict, self.now, counts=counts)
            if verdict is Verdict.BUSY:
                self.circuit.slow(self.now, 1.0)

    @rule(verdict=st.sampled_from([Verdict.GOOD, Verdict.BAD]))
    def one_from_before_ends(self, verdict: Verdict) -> None:
        before = self.circuit.look(self.now)
        self.circuit.end(object(), verdict, self.now)
        assert before == "closed" or self.circuit.state == before

    @invariant()
    def no_more_wait_for_an_answer_than_probes_while_it_is_half_open(self) -> None:
        if self.circuit.state == "half_open":
            assert len(self.probing) <= self.config.probes
            assert self.circuit.probes <= self.config.probes

    @invariant()
    def it_is_not_open_for_longer_than_the_longest_time(self) -> None:
        if self.circuit.state == "open":
            assert 0 < self.circuit.until - self.circuit.since <= self.config.max_open_for + 1e-6

    @invariant()
    def it_remembers_no_request_that_has_ended(self) -> None:
        known = {*self.circuit._waiting, *self.circuit._going}
        assert known <= self.running

    @invariant()
    def it_goes_only_the_ways_that_there_are(self) -> None:
        ways = {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}
        late = ("open", "closed")  # a probe that was overdue has been answered
        assert set(self.changes) <= {*ways, late}

    def teardown(self) -> None:
        """Somebody is always let through in the end, be the probes of before answered or not; and all are, once it
        answers well."""
        if not hasattr(self, "circuit"):
            return
        bound = self.config.probe_timeout + self.config.max_open_for
        for _ in range(1 + self.config.successes):
            self.circuit.look(self.now)
            self.now += bound
            assert self.circuit.begin("last", self.now)
            self.circuit.end("last", Verdict.GOOD, self.now)
        assert self.circuit.state == "closed"


Traffic.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTraffic = Traffic.TestCase
