"""Who is asked first."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

SYSTEM = "You are a helpful assistant. "


def busy(target: Any, requests: int) -> None:
    for _ in range(requests):
        target.state.begin()


def test_a_conversation_goes_on_where_it_began(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, some = routing(), targets(4)
    homes = {
        name: {route.ask(chat(name, *["Go on"] * turn, system=f"{name} "), some).name for turn in range(6)}
        for name in ("ada", "bob", "eve", "dan")
    }
    assert all(len(home) == 1 for home in homes.values())
    assert len(set.union(*homes.values())) == 4


def test_requests_that_come_at_once_with_the_same_new_prompt_go_to_one_target(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some, asked = routing(), targets(4), []
    for number in range(3):
        exchange = chat(f"Question {number}", system=SYSTEM)
        asked.append(route.order(exchange, some)[0])
        route.begin(exchange, asked[-1])  # and none of them is answered yet
    assert len({target.name for target in asked}) == 1


def test_without_a_known_prompt_the_least_busy_goes_first(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    some = targets(3)
    busy(some[0], 2)
    busy(some[2], 1)
    assert [target.name for target in routing().order(chat("Hi", system=SYSTEM), some)] == ["gpu1", "gpu2", "gpu0"]


def test_weights_count_for_how_busy_one_is(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    some = targets(2, weights=[1, 4])
    busy(some[0], 1)
    busy(some[1], 3)
    assert routing().order(chat("Hi", system=SYSTEM), some)[0].name == "gpu1"


def test_embeddings_go_to_the_least_busy(routing: Callable[..., Any], request_of: Any, targets: Any) -> None:
    route, some = routing(), targets(2)
    asked = request_of({"model": "m", "input": "a text " * 200}, "/v1/embeddings")
    first = route.ask(asked, some)
    busy(first, 1)
    assert route.order(asked, some)[0] is not first


def test_targets_that_nothing_tells_apart_take_turns(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, some = routing(), targets(4)
    asked = {route.ask(chat(f"{number} " * 300), some).name for number in range(4)}
    assert len(asked) == 4


def test_a_longer_prefix_beats_a_shorter_one(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, some = routing(), targets(2)
    for target, turn in zip(some, ("Hello", "Tell me a long story. " * 100), strict=True):
        exchange = chat(turn, system=SYSTEM)
        route.order(exchange, some)
        route.begin(exchange, target).end()
    assert route.order(chat("Tell me a long story. " * 100, "More", system=SYSTEM), some)[0].name == "gpu1"


def test_a_warm_target_that_is_much_busier_is_left_alone(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, some = routing(imbalance=1.5, spare=4), targets(3)
    warm = route.ask(chat("Hi", system=SYSTEM), some)
    others = [target for target in some if target is not warm]
    for target in others:
        busy(target, 10)
    chosen = []
    for count in range(10, 25):
        busy(warm, count - warm.state.in_flight)
        chosen.append(route.order(chat("Hi", "Go on", system=SYSTEM), some)[0] is warm)
    assert chosen[0] and not chosen[-1] and sorted(chosen, reverse=True) == chosen
    limit = 10 + sum(chosen)  # in flight with the last request that it was chosen for
    assert limit <= 1.5 * (limit + 20) / 3


def test_with_nobody_else_there_a_few_requests_are_never_too_many(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some = routing(spare=4, pressure=0), targets(8)
    warm = route.ask(chat("Hi", system=SYSTEM), some)
    chosen = []
    for _ in range(6):
        chosen.append(route.order(chat("Hi", "Go on", system=SYSTEM), some)[0] is warm)
        busy(warm, 1)
    assert chosen == [True] * 4 + [False] * 2


def test_a_small_part_of_a_prompt_is_not_worth_a_busy_target(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some = routing(pressure=0.3), targets(2)
    warm = route.ask(chat("Hi", system=SYSTEM, size=600), some)
    busy(warm, 2)
    assert route.order(chat("Go on", system=SYSTEM, size=600), some)[0] is warm
    assert route.order(chat("A long text. " * 1000, system=SYSTEM, size=600), some)[0] is not warm


def test_a_beginning_that_everybody_uses_comes_into_every_cache(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some = routing(), targets(4)
    for number in range(200):
        route.ask(chat(f"{number} " * 100, system=SYSTEM), some)
    warm = chat("Hello", system=SYSTEM)
    route.order(warm, some)
    assert all("probably cached" in route.policy.why(warm, target) for target in some)


def test_the_work_of_long_ago_does_not_count(routing: Callable[..., Any], chat: Any, targets: Any, clock: Any) -> None:
    route, some = routing(), targets(2)
    first = route.ask(chat("A long prompt. " * 3000), some)
    second = route.ask(chat("Hello. " * 100), some)
    assert second is not first
    clock.now += 300
    assert route.backends.of(second).work > 0
    route.ask(chat("A short one. " * 60), [second])  # which has now done more than the other in a long time
    assert route.order(chat("Hi", system=SYSTEM), some)[0] is first


def test_one_conversation_alone_is_not_sent_around(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, some = routing(), targets(4)
    turns = [f"Turn {number}. " * 20 for number in range(60)]
    asked = [route.ask(chat(*turns[: number + 1], system=SYSTEM), some).name for number in range(60)]
    moves = sum(one != other for one, other in itertools.pairwise(asked))
    assert moves <= 4


def test_targets_that_do_not_answer_make_no_other_look_busy(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some = routing(), targets(4)
    warm = route.ask(chat("Hi", system=SYSTEM), some)
    busy(warm, 8)
    up = next(target for target in some if target is not warm)
    busy(up, 8)
    for target in some:
        if target not in (warm, up):
            target.state.become("down", "no answer")
    again = [target for target in route.order(chat("Hi", "Go on", system=SYSTEM), some) if target in (warm, up)]
    assert again[0] is warm


def test_why_says_what_is_known_of_a_target(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, some = routing(spare=1), targets(2)
    warm = route.ask(chat("Hi", system=SYSTEM), some)
    cold = next(target for target in some if target is not warm)
    again = chat("Hi", "Go on", system=SYSTEM)
    route.order(again, some)
    assert "of the prompt are probably cached, 0 in flight" in route.policy.why(again, warm)
    assert route.policy.why(again, cold) == "nothing of the prompt is known to be cached, 0 in flight"
    busy(warm, 5)
    route.order(again, some)
    assert route.policy.why(again, warm).endswith("probably cached, but it is too busy, 5 in flight")


def test_to_explain_a_request_teaches_nothing(routing: Callable[..., Any], chat: Any, targets: Any) -> None:
    route, some = routing(), targets(2)
    for _ in range(3):
        route.order(chat("Hi", system=SYSTEM), some)
    assert all(len(known.blocks) == 0 for known in route.backends.all)


def test_no_more_is_expected_than_fits_into_a_backends_cache(
    routing: Callable[..., Any], chat: Any, targets: Any
) -> None:
    route, some = routing(cache_tokens=1000, backends={"gpu1": 4000}, block_bytes=256), targets(2)
    for number in range(40):
        for target in some:
            exchange = chat(f"{number} " * 500)
            route.order(exchange, some)
            route.begin(exchange, target)
    assert {known.name: len(known.blocks) for known in route.backends.all} == {"gpu0": 15, "gpu1": 62}
