"""Budgets hold over several core workers, and cost the same whoever delivers the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

HELLO = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
BUDGETS = """
[plugins.budget]
unpriced = "free"
[plugins.budget.prices]
fake = { input = 1000, output = 10_000 }
raw = { input = 0, output = 0, request = 1 }
[[plugins.budget.limits]]
per = ["team"]
teams = ["red"]
models = ["raw"]
cost_per_month = 10
[[plugins.budget.limits]]
per = ["key"]
models = ["fake"]
cost_per_month = 2000
[[plugins.budget.limits]]
per = []
tokens_per_month = 1_000_000_000
"""
WAYS = ("inline", "offload", "module")


@pytest.fixture(scope="module", params=WAYS)
def stack(own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    with own_stack(way=request.param, server="workers = 2", plugins=BUDGETS) as stack:
        if stack.delivery == "offload":
            stack.warm_up()
        yield stack


@pytest.fixture(autouse=True)
def afresh(stack: Any) -> None:
    stack.reset()


def standing(stack: Any, key: str) -> dict[str, Any]:
    """What the caller is told of each limit, by whose it is; empty if nobody answers."""
    return {next(iter(each["of"]), "all"): each for each in stack.limits_of(key) or ()}


def test_a_budget_over_several_keys_is_exact_over_several_workers(stack: Any) -> None:
    keys, route = [stack.make_key("--team", "red") for _ in range(6)], stack.route("nginx")

    async def asking() -> list[Any]:
        bodies = ((route.request({**HELLO, "model": "raw"}, key=keys[number % 6]),) for number in range(60))
        return await asyncio.gather(*(route.ask(body) for body in bodies))

    answers = asyncio.run(asking())
    statuses = [answer.status for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (10, 50)
    refused = next(answer for answer in answers if answer.status == 429)
    assert json.loads(refused.body)["error"]["type"] == "insufficient_quota"
    assert (refused.headers["x-should-retry"], int(refused.headers["retry-after"]) > 0) == ("false", True)


@pytest.mark.parametrize(
    ("fields", "cost"),
    [({}, 0.015), ({"stream": True}, 0.035), ({"stream": True, "stream_options": {"include_usage": True}}, 0.035)],
)
def test_what_was_used_is_what_it_costs(stack: Any, kit: Any, fields: dict[str, Any], cost: float) -> None:
    key = stack.make_key()
    for number in range(1, 4):
        assert stack.route("nginx").post({**HELLO, **fields, "max_tokens": 1000}, key=key).status == 200
        kit.until(partial(has_used, stack, key, number * cost), "the settlement")


def has_used(stack: Any, key: str, cost: float) -> bool:
    return bool(abs(standing(stack, key)["key"]["used"] - cost) < 1e-9)


def test_a_stream_that_is_left_costs_what_has_passed(stack: Any, kit: Any) -> None:
    key, route = stack.make_key(), stack.route("nginx")
    stack.fake.chunks, stack.fake.pause = 10_000, 0.01
    with route.connect() as connection:
        connection.sendall(route.request({**HELLO, "stream": True, "max_tokens": 50_000}, key=key))
        received = b""
        while received.count(b"data: ") < 20:
            received += connection.recv(65536)
        assert standing(stack, key)["key"]["used"] > 500
    kit.until(lambda: 0.2 <= standing(stack, key)["key"]["used"] < 10, "the settlement by estimate")


def test_a_request_without_max_tokens_gets_what_is_left(stack: Any) -> None:
    key = stack.make_key("--budget", "cost_per_day=1")
    assert stack.route("nginx").post(HELLO, key=key).status == 200
    assert 16 <= json.loads(stack.fake.requests[-1][2])["max_tokens"] < 100
