"""What backends report, what becomes of wrong predictions, and of backends that lose their caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headrace.errors import Unavailable, UpstreamError
from headrace.exchange import Outcome, Usage
from headrace_prefix.record import Record
from headrace_prefix.status import status

SYSTEM = "You are a helpful assistant. "
TOKENS = 1000


def told(cached: int, prompt: int = TOKENS) -> Outcome:
    return Outcome(status=200, completed=True, usage=Usage(prompt, 10, cached))


def failed(error: Exception) -> Outcome:
    return Outcome(status=503, completed=False, error=error)  # type: ignore[arg-type]


def depth(route: Any, exchange: Any, targets: Any) -> int:
    """Pieces of a prompt that are known of the first target."""
    route.order(exchange, targets)
    return int(exchange.state["prefix"].row(targets[0]).depth)


def known(route: Any, targets: Any) -> Any:
    return route.backends.of(targets[0])


def test_what_comes_true_is_a_hit(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, one = routing(), targets(1)
    route.ask(chat("Hi", system=SYSTEM), one, 0)
    route.ask(chat("Hi", "Go on", system=SYSTEM), one, 900)
    record = known(route, one).record
    assert (record.predictions, record.checked, record.hits, record.trusted) == (1, 1, 1, True)
    assert record.error < 0.02


def test_a_backend_that_reports_nothing_is_not_wrong(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, one = routing(), targets(1)
    for _ in range(50):
        route.ask(chat("Hi", system=SYSTEM), one, 0)
    record = known(route, one).record
    assert (record.checked, record.error, record.trusted, record.reports) == (0, 0.0, True, False)


def test_a_backend_that_says_that_nothing_was_cached_is_taken_at_its_word(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, one = routing(), targets(1)
    for _ in range(2):
        exchange = chat("Hi", system=SYSTEM)
        route.order(exchange, one)
        usage = Usage(TOKENS, 10, 0, tells_cached=True)
        route.end(route.begin(exchange, one[0]), Outcome(status=200, completed=True, usage=usage))
    record = known(route, one).record
    assert (record.checked, record.hits, record.reports) == (1, 0, True)


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 1}, {"echo": True}], ids=lambda fields: next(iter(fields)))
def test_what_an_engine_computes_anew_on_purpose_is_not_compared(
    routing: Callable[..., Any], chat: Any, targets: Any, fields: dict[str, Any]
) -> None:
    route, one = routing(), targets(1)
    route.ask(chat("Hi", system=SYSTEM), one, 900)
    for _ in range(20):
        route.ask(chat("Hi", system=SYSTEM, **fields), one, 0)
    assert known(route, one).record.checked == 0


def test_more_than_predicted_is_no_mistake(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, one = routing(), targets(1)
    route.ask(chat("Hi", system=SYSTEM, size=600), one, 0)
    for number in range(20):  # another gateway has sent the same before
        route.ask(chat(f"{number} " * 2000, system=SYSTEM, size=600), one, 1000)
    record = known(route, one).record
    assert record.trusted and record.hits == record.checked == 20 and record.excess == 0 and record.error > 0.3


def test_a_backend_without_a_prefix_cache_is_chosen_by_load_alone(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some = routing(probe_every=1000), targets(2)
    first = route.ask(chat("Hi", system=SYSTEM), some, 900)
    for _ in range(10):
        route.ask(chat("Hi", system=SYSTEM), [first], 0)
    assert not route.backends.of(first).record.trusted
    first.state.begin()
    again = chat("Hi", system=SYSTEM)
    assert route.order(again, some)[0] is not first
    assert "wrong too often" in route.policy.why(again, first)


def test_a_backend_is_believed_again_once_predictions_come_true(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some = routing(probe_every=5), targets(2)
    first = route.ask(chat("Hi", system=SYSTEM), some, 900)
    for _ in range(10):
        route.ask(chat("Hi", system=SYSTEM), [first], 0)
    first.state.begin()  # so that load alone would not choose it
    other = route.backends.of(next(target for target in some if target is not first))
    rounds = 0
    while not route.backends.of(first).record.trusted:
        rounds += 1
        route.ask(chat("Hi", f"{rounds}", system=SYSTEM), some, 900)
        other.blocks.clear()  # so that there is a reason to try
        assert rounds < 200
    assert route.ask(chat("Hi", system=SYSTEM), some, 900) is first


def test_trust_comes_back_later_than_it_goes() -> None:
    record = Record(max_error=0.3, probe_every=20)
    for _ in range(5):
        record.check(0.9, 0.0, TOKENS)
    assert record.excess > 0.3
    for _ in range(15):
        record.check(0.9, 0.9, TOKENS)
        assert record.trusted is (record.excess < 0.15)


def test_while_a_backend_is_not_believed_one_request_in_so_many_tries_it(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some = routing(probe_every=5), targets(2)
    first = route.ask(chat("Hi", system=SYSTEM), some, 900)
    for _ in range(20):
        route.ask(chat("Hi", system=SYSTEM), [first], 0)
    first.state.begin()
    tried = sum(route.order(chat("Hi", system=SYSTEM), some)[0] is first for _ in range(50))
    assert tried == 10


def test_after_a_flush_what_was_older_than_what_was_missing_is_forgotten(
    routing: Callable[..., Any], chat: Any, targets: Any, clock: Any
) -> None:
    route, one = routing(), targets(1)
    for name in ("old", "middle", "young"):
        clock.now += 1
        route.ask(chat("Hi", system=name), one, 900)
    clock.now += 1
    route.ask(chat("Hi", system="middle"), one, 0)  # it has been evicted, and is computed again
    depths = [depth(route, chat("Hi", system=name), one) > 0 for name in ("old", "middle", "young")]
    assert depths == [False, True, True]


def test_of_what_is_still_being_computed_nothing_is_expected(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, one = routing(), targets(1)
    route.ask(chat("other", system="other"), one, 900)
    exchanges = [chat("Hi", system=SYSTEM) for _ in range(4)]
    attempts = []
    for exchange in exchanges:
        route.order(exchange, one)
        attempts.append(route.begin(exchange, one[0]))
    for attempt in attempts:
        route.end(attempt, told(0))
    record = known(route, one).record
    assert record.checked == 0 and record.predictions == 3
    assert depth(route, chat("Hi", system=SYSTEM), one) > 0


def test_a_request_that_fails_leaves_nothing_behind(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, one, exchange = routing(), targets(1), chat("Hi", system=SYSTEM)
    route.order(exchange, one)
    route.end(route.begin(exchange, one[0]), failed(UpstreamError("told to fail")))
    assert depth(route, chat("Hi", system=SYSTEM), one) == 0


def test_a_backend_that_refuses_connections_has_lost_its_cache(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, one = routing(), targets(1)
    route.ask(chat("Hi", system=SYSTEM), one)
    refused = Unavailable("The backend cannot be reached.")
    refused.reached = False
    exchange = chat("Hello", system="Something else. ")
    route.order(exchange, one)
    route.end(route.begin(exchange, one[0]), failed(refused))
    assert depth(route, chat("Hi", system=SYSTEM), one) == 0


def test_a_backend_that_answers_again_counts_among_the_others_again(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, one, exchange = routing(), targets(1), chat("Hi", system=SYSTEM)
    route.order(exchange, one)
    route.end(route.begin(exchange, one[0]), failed(UpstreamError("told to fail")))
    assert known(route, one).absent
    route.ask(chat("Hi", system=SYSTEM), one)
    assert not known(route, one).absent


def test_a_backend_that_is_only_too_busy_keeps_its_cache(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, one = routing(), targets(1)
    route.ask(chat("Hi", system=SYSTEM), one)
    exchange = chat("Hello", system="Something else. ")
    route.order(exchange, one)
    route.end(route.begin(exchange, one[0]), failed(Unavailable("The backend is not available.")))
    assert depth(route, chat("Hi", system=SYSTEM), one) > 0


@pytest.mark.parametrize(("condition", "kept"), [("up", True), ("down", False), ("starting", False)])
def test_a_backend_that_was_away_has_lost_its_cache(
    routing: Callable[..., Any], chat: Any, targets: Any, condition: Any, kept: bool
) -> None:
    route, one = routing(), targets(1)
    route.ask(chat("Hi", system=SYSTEM), one)
    one[0].state.become(condition)
    assert (depth(route, chat("Hi", system=SYSTEM), one) > 0) is kept


def test_one_that_went_down_and_came_back_between_two_requests_has_lost_its_cache(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, one = routing(), targets(1)
    one[0].state.become("up")
    route.ask(chat("Hi", system=SYSTEM), one)
    one[0].state.become("down")
    one[0].state.become("up")
    assert depth(route, chat("Hi", system=SYSTEM), one) == 0


def test_the_second_target_of_a_request_learns_like_the_first(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some, exchange = routing(), targets(2), chat("Hi", system=SYSTEM)
    first, second = route.order(exchange, some)
    route.end(route.begin(exchange, first, 1), failed(UpstreamError("told to fail")))
    route.end(route.begin(exchange, second, 2), told(0))
    assert route.order(chat("Hi", "Go on", system=SYSTEM), some)[0] is second


def test_a_request_that_is_ordered_again_while_it_runs_confirms_what_was_asked(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, one, exchange = routing(), targets(1), chat("Hi", system=SYSTEM)
    route.order(exchange, one)
    attempt = route.begin(exchange, one[0])
    exchange.replace_fields(model="a-fallback")
    route.order(exchange, one)
    route.end(attempt, told(0))
    again = chat("Hi", system=SYSTEM)
    route.order(again, one)
    assert route.begin(again, one[0]) and len(again.state["prefix"].visits[1].times) > 5


def test_the_status_adds_up(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, some = routing(block_bytes=256), targets(2)
    for cached in (100, 900, 900):
        route.ask(chat("Hi", system=SYSTEM), some, cached)
    found = status(0, route.backends.all, 256)
    assert (found.predictions, found.checked, found.hits) == (2, 2, 2)
    assert found.bytes == found.blocks * 256 == sum(each.bytes for each in found.targets.values()) > 1500
    asked = [each for each in found.targets.values() if each.prompt_tokens]
    assert [(each.prompt_tokens, each.cached_tokens) for each in asked] == [(3000, 1900)]
