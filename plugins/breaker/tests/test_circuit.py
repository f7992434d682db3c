"""One circuit: what opens it, who may pass, what closes it again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace_breaker import BreakerConfig
from headrace_breaker.judge import Verdict

GOOD, BAD, BUSY, NOTHING, KEY = Verdict.GOOD, Verdict.BAD, Verdict.BUSY, Verdict.NOTHING, Verdict.REFUSES_KEY


def test_failures_one_after_the_other_open_it(bench: Any) -> None:
    one = bench(failures=3)
    for verdict in (BAD, BAD, GOOD, BAD, BAD):
        one.end(object(), verdict)
    assert one.circuit.state == "closed"
    one.end(object(), BAD, why="It broke.")
    assert one.states == ["closed", "open"]
    assert one.circuit.reason == "it failed 3 times in a row: It broke."


def test_a_rate_opens_it_once_there_are_requests_enough(bench: Any) -> None:
    one = bench(failures=0, error_rate=0.5, minimum_requests=10, window=10)
    for _ in range(4):
        one.end(object(), BAD)
        one.end(object(), GOOD)
    one.end(object(), BAD)
    assert one.circuit.state == "closed"
    one.end(object(), BAD)
    assert one.circuit.state == "open" and "it failed 6 of 10 requests in 10 s" in one.circuit.reason


def test_failures_older_than_the_window_are_forgotten(bench: Any) -> None:
    one = bench(failures=0, error_rate=0.5, minimum_requests=10, window=10)
    for _ in range(30):
        one.end(object(), BAD)
        one.clock.forward(1.2)  # never ten of them in ten seconds
    assert one.circuit.state == "closed"


@pytest.mark.parametrize("config", [{"failures": 0}, {"failures": 0, "error_rate": 0.0}])
def test_what_is_switched_off_does_not_open_it(bench: Any, config: dict[str, Any]) -> None:
    one = bench(minimum_requests=1000, **config)
    for _ in range(500):
        one.end(object(), BAD)
    assert one.circuit.state == "closed"


@pytest.mark.parametrize("verdict", [BUSY, NOTHING])
def test_what_says_nothing_neither_counts_nor_interrupts(bench: Any, verdict: Verdict) -> None:
    one = bench(failures=3, minimum_requests=4)
    for each in (BAD, verdict, BAD, *([verdict] * 50)):
        one.end(object(), each)
    assert one.circuit.state == "closed" and one.circuit.window.counts(one.now) == (2, 2)
    one.end(object(), BAD)
    assert one.circuit.state == "open"


def test_a_refused_key_opens_it_at_once_and_for_long(bench: Any) -> None:
    one = bench(open_for=2, max_open_for=20)
    one.end(object(), KEY)
    assert one.circuit.state == "open" and "api_key" in one.circuit.reason
    assert 15 <= one.circuit.retry_in(one.now) <= 20


def test_open_it_lets_nobody_through_and_no_longer_than_that(bench: Any) -> None:
    one = bench(open_for=5).opened()
    wait = one.circuit.retry_in(one.now)
    assert 3.75 <= wait <= 5
    one.clock.forward(wait - 0.01)
    assert not one.circuit.begin("early", one.now)
    one.clock.forward(0.02)
    assert one.circuit.begin("probe", one.now) and one.circuit.state == "half_open"


def test_half_open_it_lets_only_probes_through(bench: Any) -> None:
    one = bench(probes=2).half_open()
    assert [one.circuit.begin(number, one.now) for number in range(4)] == [True, True, False, False]


def test_a_probe_that_ends_without_a_verdict_makes_room_for_another(bench: Any) -> None:
    one = bench().half_open()
    assert one.circuit.begin("left", one.now) and not one.circuit.has_room(one.now)
    one.end("left", NOTHING)
    assert one.circuit.state == "half_open" and one.circuit.begin("next", one.now)


def test_a_probe_that_ends_well_closes_it(bench: Any) -> None:
    one = bench().half_open()
    one.circuit.begin("probe", one.now)
    one.end("probe", GOOD)
    assert one.states[-1] == "closed" and one.circuit.failures == 0
    assert one.circuit.window.counts(one.now) == (0, 0)


def test_several_successes_may_be_needed(bench: Any) -> None:
    one = bench(successes=2).half_open()
    for name, state in (("first", "half_open"), ("second", "closed")):
        assert one.circuit.begin(name, one.now)
        one.end(name, GOOD)
        assert one.circuit.state == state


def test_a_probe_that_says_429_closes_it_too(bench: Any) -> None:
    one = bench().half_open()
    one.circuit.begin("probe", one.now)
    one.end("probe", BUSY)
    assert one.circuit.state == "closed"


def test_each_probe_that_fails_opens_it_for_longer_up_to_a_limit(bench: Any) -> None:
    one = bench(open_for=1, max_open_for=6).opened()
    waits = []
    for number in range(30):
        waits.append(one.circuit.retry_in(one.now))
        one.clock.forward(waits[-1])
        assert one.circuit.begin(number, one.now)
        one.end(number, BAD)
    for wait, longest in zip(waits, [1, 2, 4, *[6] * 27], strict=True):
        assert 0.75 * longest <= wait <= longest
    assert len(set(waits[3:])) > 20  # which of them is left to chance


def test_it_remembers_how_often_it_was_opened_until_it_has_been_closed_for_long(bench: Any) -> None:
    one = bench(window=30, slow_start=10).half_open()
    openings = []
    for calm in (1, 41):
        one.circuit.begin("probe", one.now)
        one.end("probe", GOOD)
        one.clock.forward(calm)
        one.opened()
        openings.append(one.circuit.openings)
        one.clock.forward(15)
        one.circuit.look(one.now)
    assert openings == [2, 1]


def test_a_probe_is_over_with_its_first_byte(bench: Any) -> None:
    one = bench().half_open()
    one.circuit.begin("stream", one.now)
    one.answered.add("stream")
    assert one.circuit.has_room(one.now) and one.circuit.state == "closed"


def test_a_stream_that_closed_it_and_is_cut_counts_as_failed(bench: Any) -> None:
    one = bench(failures=1).half_open()
    one.circuit.begin("stream", one.now)
    one.answered.add("stream")
    one.circuit.look(one.now)
    one.end("stream", BAD, counts=False)
    assert one.circuit.state == "open"


def test_a_probe_whose_first_byte_nobody_has_seen_and_which_fails_does_not_close_it(bench: Any) -> None:
    one = bench().half_open()
    one.circuit.begin("stream", one.now)
    one.answered.add("stream")
    one.end("stream", BAD)
    assert "closed" not in one.states[1:]


def test_a_probe_that_brings_nothing_makes_room_for_another_after_a_while(bench: Any) -> None:
    one = bench(probe_timeout=4).half_open()
    one.circuit.begin("hung", one.now)
    one.clock.forward(3.9)
    assert one.circuit.look(one.now) == "half_open"
    one.clock.forward(0.2)
    assert one.circuit.look(one.now) == "open" and "no answer in 4 s" in one.circuit.reason
    one.clock.forward(15)
    assert one.circuit.begin("next", one.now)


def test_the_time_in_which_nobody_looked_at_an_overdue_probe_counts_as_open(bench: Any) -> None:
    one = bench(probe_timeout=4).half_open()
    one.circuit.begin("hung", one.now)
    one.clock.forward(4 + 15)
    assert one.circuit.look(one.now) == "half_open" and one.circuit.has_room(one.now)


@pytest.mark.parametrize("wait", [0.1, 20])
def test_a_probe_that_is_answered_late_closes_it_all_the_same(bench: Any, wait: float) -> None:
    one = bench(probe_timeout=4).half_open()
    one.circuit.begin("late", one.now)
    one.clock.forward(4)
    one.circuit.look(one.now)
    one.clock.forward(wait)
    one.end("late", GOOD)
    assert one.circuit.state == "closed"


def test_a_late_probe_that_fails_does_not_end_the_next_one(bench: Any) -> None:
    one = bench(probe_timeout=4).half_open()
    one.circuit.begin("late", one.now)
    one.clock.forward(20)
    assert one.circuit.begin("next", one.now)
    one.end("late", BAD)
    assert one.circuit.state == "half_open" and one.circuit.probes == 1


@pytest.mark.parametrize("verdict", [GOOD, BAD, KEY])
def test_requests_sent_before_it_was_opened_change_nothing(bench: Any, verdict: Verdict) -> None:
    one = bench().half_open()
    since = one.circuit.since
    one.end("from before", verdict)
    assert (one.circuit.state, one.circuit.since) == ("half_open", since)


def test_what_does_not_count_any_more_does_not_open_it(bench: Any) -> None:
    one = bench(failures=1)
    one.end("from before", BAD, counts=False)
    one.end("from before", KEY, counts=False)
    assert one.circuit.state == "closed"


def test_a_longest_time_below_the_first_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"max_open_for = 15 is shorter than open_for = 20"):
        msgspec.convert({"open_for": 20}, BreakerConfig)


@pytest.mark.parametrize(("verdict", "state"), [(GOOD, "half_open"), (BAD, "open")])
def test_a_probe_that_was_answered_counts_once_and_may_still_fail(bench: Any, verdict: Verdict, state: str) -> None:
    one = bench(successes=2).half_open()
    one.circuit.begin("stream", one.now)
    one.answered.add("stream")
    one.circuit.look(one.now)
    one.end("stream", verdict)
    assert one.circuit.state == state
