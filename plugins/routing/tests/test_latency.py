"""What the policy `latency` learns, and what it makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from headrace.errors import Forbidden, GatewayError, PluginFault, RateLimited, Unavailable, UpstreamTimeout
from headrace_routing.record import PEAK, Record


@pytest.fixture
def record() -> Record:
    return Record(half_life=10.0, tokens=100)


def test_an_answer_is_expected_to_take_its_first_token_and_the_usual_number_of_others(record: Record) -> None:
    record.streamed(0.5, 0.01, 0.0)
    assert record.seconds == pytest.approx(1.5)


def test_slower_answers_count_at_once_and_faster_ones_by_and_by(record: Record) -> None:
    record.streamed(1.0, None, 0.0)
    record.streamed(2.0, None, 0.1)
    assert record.first_token == 2.0
    record.streamed(1.0, None, 0.2)
    assert 1.9 < (record.first_token or 0) < 2.0
    record.streamed(1.0, None, 10.2)  # a half-life later
    assert record.first_token == pytest.approx(1.5, abs=0.01)


def test_a_single_answer_that_took_very_long_counts_as_four_times_slower_at_most(record: Record) -> None:
    record.streamed(0.1, None, 0.0)
    record.streamed(60.0, None, 1.0)
    assert record.first_token == pytest.approx(0.1 * PEAK)


def test_the_time_for_a_token_is_an_average_that_a_slow_reader_cannot_raise_at_once(record: Record) -> None:
    record.streamed(0.1, 0.01, 0.0)
    record.streamed(0.1, 1.0, 0.1)
    assert (record.per_token or 0) < 0.02


def test_whole_answers_are_learnt_from_by_what_a_token_took(record: Record) -> None:
    record.answered_whole(2.0, 200, 0.0)
    assert record.per_token == pytest.approx(0.01)
    record.answered_whole(8.0, 200, 1.0)
    assert record.per_token == pytest.approx(0.04)


def test_a_whole_answer_is_not_taken_for_a_late_first_token(record: Record) -> None:
    record.streamed(0.1, 0.01, 0.0)
    record.answered_whole(0.1 + 999 * 0.01, 1000, 1.0)  # exactly as long as it had to be
    assert record.first_token == pytest.approx(0.1) and record.per_token == pytest.approx(0.01)


def test_what_has_no_tokens_is_learnt_from_by_its_time(record: Record) -> None:
    record.answered_whole(0.3, 0, 0.0)
    assert (record.first_token, record.per_token) == (0.3, None)


def test_who_left_without_a_first_token_has_waited_at_least_so_long(record: Record) -> None:
    record.streamed(1.0, None, 0.0)
    record.waited(0.2, 1.0)
    assert record.first_token == 1.0
    record.waited(3.0, 2.0)
    assert record.first_token == 3.0


def test_doubts_double_with_each_failure_and_halve_with_each_half_life(record: Record) -> None:
    record.failed(0.0, 0.0)
    assert record.doubts(0.0) == 4.0 and record.doubts(10.0) == pytest.approx(2.0)
    record.failed(10.0, 10.0)
    assert record.doubts(10.0) == pytest.approx(8.0)
    for number in range(50):
        record.failed(11.0 + number, 11.0 + number)
    assert record.doubts(61.0) <= 1000.0
    assert record.doubts(1e6) == pytest.approx(0.0)


def test_requests_that_fail_together_count_as_one_failure(record: Record) -> None:
    for _ in range(20):
        record.failed(began=5.0, now=6.0)
    assert record.doubts(6.0) == 4.0


def test_each_answer_takes_away_three_quarters_of_the_doubts(record: Record) -> None:
    record.failed(0.0, 0.0)
    left = []
    for _ in range(5):
        record.streamed(0.1, None, 0.0)
        left.append(record.doubts(0.0))
    assert left == [1.0, 0.25, 0.0625, 0.015625, 0.0]


def order(kit: Any, policy: Any, targets: Any) -> list[str]:
    return [each.name for each in policy.order(kit.exchange(targets), targets)]


def test_the_fastest_is_the_first_if_all_are_as_busy(kit: Any) -> None:
    policy, targets = kit.policy("latency", clock=kit.clock(), explore=0.0), kit.targets(3)
    for target, first in zip(targets, (0.3, 0.1, 0.2), strict=True):
        kit.learn(policy, target, first=first, whole=first + 1.0, tokens=101)
    assert order(kit, policy, targets) == ["gpu1", "gpu2", "gpu0"]


def test_a_target_that_is_twice_as_fast_may_have_twice_as_many_requests(kit: Any) -> None:
    policy, targets = kit.policy("latency", clock=kit.clock(), explore=0.0), kit.targets(2)
    for target, first in zip(targets, (0.2, 0.1), strict=True):
        kit.learn(policy, target, first=first, whole=first)
    chosen = []
    for _ in range(30):
        first = policy.order(kit.exchange(targets), targets)[0]
        first.state.begin()
        chosen.append(first.name)
    assert chosen.count("gpu1") == pytest.approx(20, abs=1)


def test_the_time_for_a_token_counts_as_often_as_an_answer_has_tokens(kit: Any) -> None:
    targets = kit.targets(2)
    for tokens, first in ((0, "gpu0"), (100, "gpu1")):
        policy = kit.policy("latency", clock=kit.clock(), tokens=tokens, explore=0.0)
        kit.learn(policy, targets[0], first=0.1, whole=5.1, tokens=101)  # starts soon, goes slowly
        kit.learn(policy, targets[1], first=0.5, whole=1.5, tokens=101)
        assert order(kit, policy, targets)[0] == first


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (Unavailable("It cannot be reached."), True),
        (UpstreamTimeout("It was silent."), True),
        (RateLimited("It has too much to do.", code="upstream_rate_limited"), True),
        (RateLimited("You ask too much."), False),
        (Forbidden("Not you."), False),
        (PluginFault("mine", "prepare_attempt", KeyError("x")), False),
    ],
)
def test_failures_of_the_target_count_as_slow_and_those_of_others_do_not(
    kit: Any, error: GatewayError, counts: bool
) -> None:
    clock = kit.clock()
    policy, targets = kit.policy("latency", clock=clock, explore=0.0), kit.targets(2)
    kit.learn(policy, targets[0], first=0.1, whole=0.1)
    kit.learn(policy, targets[1], first=0.2, whole=0.2)
    kit.learn(policy, targets[0], began=clock.now, error=error)
    assert (order(kit, policy, targets)[0] == "gpu1") is counts


def test_a_refusal_that_comes_fast_does_not_make_a_target_look_fast(kit: Any) -> None:
    policy, targets = kit.policy("latency", clock=kit.clock(), explore=0.0), kit.targets(2)
    kit.learn(policy, targets[0], first=0.2, whole=0.2)
    kit.learn(policy, targets[1], first=0.1, whole=0.1)
    kit.learn(policy, targets[0], first=0.001, whole=0.001, status=400, stream=False)
    assert order(kit, policy, targets)[0] == "gpu1"


def test_clients_who_leave_without_an_answer_make_a_target_look_slow(kit: Any) -> None:
    policy, targets = kit.policy("latency", clock=kit.clock(), explore=0.0), kit.targets(2)
    kit.learn(policy, targets[0], first=0.1, whole=0.1)
    kit.learn(policy, targets[1], first=0.2, whole=0.2)
    kit.learn(policy, targets[0], whole=30.0, aborted=True, completed=False, status=499)
    assert order(kit, policy, targets)[0] == "gpu1"


def test_an_answer_that_another_target_had_begun_says_nothing_of_the_first_token(kit: Any) -> None:
    policy, targets = kit.policy("latency", clock=kit.clock(), explore=0.0), kit.targets(2)
    kit.learn(policy, targets[0], first=-3.0, whole=2.0, tokens=100)
    assert policy.why(kit.exchange(targets), targets[0]) == "nothing known of it yet, 0 in flight"


def test_what_is_known_of_a_target_that_nobody_asks_drifts_towards_the_best(kit: Any) -> None:
    clock = kit.clock()
    policy, targets = kit.policy("latency", clock=clock, explore=0.0, half_life=10.0), kit.targets(2)
    kit.learn(policy, targets[0], first=0.9, whole=0.9)
    for _ in range(30):
        clock.now += 1.0
        kit.learn(policy, targets[1], first=0.1, whole=0.1)
    targets[1].state.begin()  # one more there, and the other one is taken for 0.1 + 0.8 / 8
    assert order(kit, policy, targets)[0] == "gpu1"
    for _ in range(10):
        clock.now += 1.0
        kit.learn(policy, targets[1], first=0.1, whole=0.1)
    assert order(kit, policy, targets)[0] == "gpu0"


def test_the_target_that_was_not_heard_of_for_longest_is_tried_now_and_then(kit: Any) -> None:
    clock = kit.clock()
    policy, targets = kit.policy("latency", clock=clock, explore=0.05), kit.targets(3)
    kit.learn(policy, targets[1], first=0.2, whole=0.2)
    clock.now += 11.0
    kit.learn(policy, targets[0], first=0.1, whole=0.1)
    kit.learn(policy, targets[2], first=0.5, whole=0.5)
    orders = [tuple(order(kit, policy, targets)) for _ in range(2000)]
    tried = sum(each[0] == "gpu1" for each in orders)
    assert tried == pytest.approx(100, abs=40)
    assert all(each == ("gpu0", "gpu1", "gpu2") for each in orders if each[0] != "gpu1")


@pytest.mark.parametrize("known", ["", "is down", "is at work", "has just failed"])
def test_a_target_is_not_tried_if_it_is_known_how_it_is(kit: Any, known: str) -> None:
    clock = kit.clock()
    policy, targets = kit.policy("latency", clock=clock, explore=0.5), kit.targets(2)
    kit.learn(policy, targets[0], first=0.5, whole=0.5)
    if known == "has just failed":
        for _ in range(6):
            clock.now += 1.0
            kit.learn(policy, targets[0], began=clock.now, error=Unavailable("No."))
    clock.now += 11.0
    kit.learn(policy, targets[1], first=0.1, whole=0.1)
    if known == "is down":
        targets[0].state.become("down")
    if known == "is at work":
        targets[0].state.begin()
    firsts = [order(kit, policy, targets)[0] for _ in range(100)]
    assert ("gpu0" in firsts) is (known == "")


def test_nothing_is_expected_of_times_that_are_zero(kit: Any) -> None:
    policy, targets = kit.policy("latency", clock=kit.clock()), kit.targets(2)
    kit.learn(policy, targets[0], first=0.0, whole=0.0, tokens=0, stream=False)
    kit.learn(policy, targets[0], first=0.0, whole=0.0, tokens=5)
    assert sorted(order(kit, policy, targets)) == ["gpu0", "gpu1"]
    assert all(math.isfinite(score) for score in policy._scores(targets, 1e9))


def test_it_says_how_fast_and_how_busy_a_target_is(kit: Any) -> None:
    clock = kit.clock()
    policy, targets = kit.policy("latency", clock=clock), kit.targets(2)
    exchange = kit.exchange(targets)
    assert policy.why(exchange, targets[0]) == "nothing known of it yet, 0 in flight"
    kit.learn(policy, targets[0], first=0.25, whole=1.25, tokens=101)
    assert policy.why(exchange, targets[0]) == "first token after 0.25 s, 10 ms a token, 0 in flight"
    kit.learn(policy, targets[0], began=clock.now, error=Unavailable("No."))
    assert "taken for 5.0 times as slow until it has proved itself" in policy.why(exchange, targets[0])
