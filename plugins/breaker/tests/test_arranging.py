"""The order in which backends are asked when some are in trouble; and when a probe counts as answered."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.exchange import Target
from headrace_breaker.arranging import arranged, refusal
from headrace_breaker.circuits import has_answered
from headrace_breaker.judge import Verdict

TARGETS = [Target(name=name, provider="openai", base_url="http://127.0.0.1") for name in "abcd"]


def names(targets: list[Target]) -> str:
    return "".join(target.name for target in targets)


def test_pauses_come_after_small_shares_and_open_circuits_nowhere(bench: Any) -> None:
    paused, back, out = bench(), bench(slow_start=1e6).half_open(), bench()
    paused.circuit.slow(paused.now, 30.0)
    back.circuit.begin("probe", back.now)
    back.end("probe", Verdict.GOOD)
    out.end(object(), Verdict.REFUSES_KEY)
    troubled = {"a": paused.circuit, "b": back.circuit, "c": out.circuit}
    now = paused.now
    orders = {names(arranged(TARGETS, troubled, now, random.Random(seed))[0]) for seed in range(50)}
    assert orders == {"dba", "bda"}  # b, which has come back, is now and then where it belongs
    assert names(arranged(TARGETS, troubled, now, random.Random(1))[1]) == "c"


@pytest.mark.parametrize(("seconds", "told"), [(0.0, "1"), (0.2, "1"), (4.1, "5")])
def test_callers_are_told_whole_seconds_and_no_names(seconds: float, told: str) -> None:
    error = refusal("chat", seconds)
    assert error.headers["Retry-After"] == told and "'chat'" in error.message
    assert (error.status, error.code, error.reached) == (503, "circuit_open", False)


@pytest.mark.parametrize(
    ("first_byte_at", "status", "expected"),
    [
        (None, None, False),
        (6.0, None, False),  # not told yet which status
        (6.0, 200, True),
        (6.0, 404, False),  # the caller's error: it says nothing
        (4.0, 200, False),  # the first byte was another backend's, before
    ],
)
def test_a_probe_is_answered_with_the_first_byte_of_its_own(
    first_byte_at: float | None, status: int | None, expected: bool
) -> None:
    exchange = SimpleNamespace(first_byte_at=first_byte_at, status=status)
    assert has_answered(SimpleNamespace(exchange=exchange, started=5.0)) is expected
