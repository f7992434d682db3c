"""Reservations over several limits: whole or not at all, and nothing is left when all are settled."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace_ratelimit.ledger import Ledger, Refusal, Reservation, Want
from headrace_ratelimit.window import SLOTS

MINUTE = 60.0
REQUESTS, TOKENS, CONCURRENT = 5, 200, 3


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def wants(key: str, tokens: int) -> list[Want]:
    return [
        Want(f"r:{key}", "requests", REQUESTS, 1, MINUTE),
        Want(f"t:{key}", "tokens", TOKENS, tokens, MINUTE),
        Want(f"c:{key}", "concurrent", CONCURRENT, 1),
        Want("t:all", "tokens", 2 * TOKENS, tokens, MINUTE),
    ]


def test_a_request_takes_from_each_of_its_limits_or_from_none() -> None:
    ledger = Ledger(Clock())
    first = ledger.reserve(wants("a", TOKENS))
    assert isinstance(first, Reservation)
    refused = ledger.reserve(wants("a", 1))
    assert isinstance(refused, Refusal) and (refused.want.key, refused.want.kind) == ("t:a", "tokens")
    assert [ledger.level(want).used for want in wants("a", 1)] == [1, TOKENS, 1, TOKENS]


def test_what_was_reserved_beyond_the_use_is_free_again_once() -> None:
    ledger = Ledger(Clock())
    held = ledger.reserve(wants("a", TOKENS))
    assert isinstance(held, Reservation)
    for _ in range(2):
        held.settle(50)
    assert [ledger.level(want).used for want in wants("a", 1)] == [1, 50, 0, 50]


def test_a_request_that_costs_more_than_was_reserved_is_charged_for_all_of_it() -> None:
    ledger = Ledger(Clock())
    held = ledger.reserve(wants("a", 100))
    assert isinstance(held, Reservation)
    held.settle(150)
    assert isinstance(ledger.reserve(wants("a", 51)), Refusal)
    assert isinstance(ledger.reserve(wants("a", 50)), Reservation)


def test_a_request_larger_than_its_limit_is_told_that_waiting_does_not_help() -> None:
    refused = Ledger(Clock()).reserve(wants("a", TOKENS + 1))
    assert isinstance(refused, Refusal) and refused.wait == math.inf


def test_after_the_wait_that_is_told_the_request_fits() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    for _ in range(REQUESTS):
        clock.now += 3
        held = ledger.reserve(wants("a", 10))
        assert isinstance(held, Reservation)
        held.settle(10)
    refused = ledger.reserve(wants("a", 10))
    assert isinstance(refused, Refusal) and 0 < refused.wait < MINUTE
    clock.now += refused.wait + 0.001
    assert isinstance(ledger.reserve(wants("a", 10)), Reservation)


def test_who_has_used_nothing_for_long_is_forgotten() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    for number in range(200_000):
        clock.now += 0.1
        held = ledger.reserve([Want(f"t:{number}", "tokens", 10, 5, MINUTE), Want(f"c:{number}", "concurrent", 1, 1)])
        assert isinstance(held, Reservation)
        held.settle(3)
    assert len(ledger) < 30_000


class Interleavings(RuleBasedStateMachine):
    """Requests of two keys begin, end, are aborted and wait, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ledger = Ledger(self.clock)
        self.open: list[tuple[str, int, Reservation]] = []
        self.used: list[tuple[float, str, int]] = []

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(key=st.sampled_from("ab"), tokens=st.integers(0, 120))
    def begin(self, key: str, tokens: int) -> None:
        held = self.ledger.reserve(wants(key, tokens))
        if isinstance(held, Reservation):
            self.open.append((key, tokens, held))
            self.used.append((self.clock.now, key, tokens))

    @rule(which=st.integers(0, 50), share=st.floats(0, 1))
    def end(self, which: int, share: float) -> None:
        if self.open:
            _, tokens, held = self.open.pop(which % len(self.open))
            cost = round(tokens * share)
            held.settle(cost)
            held.settle(cost + 7)

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        for key in "ab":
            levels = [self.ledger.level(want).used for want in wants(key, 0)]
            assert all(0 <= used <= want.limit for used, want in zip(levels, wants(key, 0), strict=True))
            assert levels[2] == sum(each[0] == key for each in self.open)
            recent = [at for at, whose, _ in self.used if whose == key and at > self.clock.now - MINUTE]
            assert len(recent) <= REQUESTS

    def teardown(self) -> None:
        for _, _, held in self.open:
            held.settle(0)
        self.clock.now += MINUTE * (SLOTS + 2) / SLOTS
        assert all(self.ledger.level(want).used == 0 for key in "ab" for want in wants(key, 0))


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
