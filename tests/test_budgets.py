"""Budgets hold over several core workers, and cost the same whoever delivers the answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="module")
def make(stack: Any, kit: Any) -> Callable[..., str]:
    """Makes a key, and waits until every worker knows it."""
    command = [sys.executable, "-m", "headrace", "--config", str(stack.folder / "headrace.toml"), "keys", "create"]

    def make(*options: str) -> str:
        done = subprocess.run([*command, uuid.uuid4().hex, *options], capture_output=True, text=True, check=True)
        key = next(word for word in done.stdout.split() if word.startswith("hr-"))
        kit.until(lambda: standing(stack, key), "the key's being known")
        return key

    return make


def standing(stack: Any, key: str) -> dict[str, Any]:
    """What the caller is told of each budget, by whose it is; empty if the key is not known yet."""
    with stack.route("nginx").client(key) as client:
        answer = client.get("/v1/usage")
    if answer.status_code != 200:
        return {}
    return {next(iter(each["of"]), "all"): each for each in answer.json()["limits"]}


def test_a_budget_over_several_keys_is_exact_over_several_workers(stack: Any, make: Any) -> None:
    keys, route = [make("--team", "red") for _ in range(6)], stack.route("nginx")

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
def test_what_was_used_is_what_it_costs(stack: Any, make: Any, kit: Any, fields: dict[str, Any], cost: float) -> None:
    key = make()
    for number in range(1, 4):
        assert stack.route("nginx").post({**HELLO, **fields, "max_tokens": 1000}, key=key).status == 200
        kit.until(partial(has_used, stack, key, number * cost), "the settlement")


def has_used(stack: Any, key: str, cost: float) -> bool:
    return bool(abs(standing(stack, key)["key"]["used"] - cost) < 1e-9)


def test_a_stream_that_is_left_costs_what_has_passed(stack: Any, make: Any, kit: Any) -> None:
    key, route = make(), stack.route("nginx")
    stack.fake.chunks, stack.fake.pause = 10_000, 0.01
    with route.connect() as connection:
        connection.sendall(route.request({**HELLO, "stream": True, "max_tokens": 50_000}, key=key))
        received = b""
        while received.count(b"data: ") < 20:
            received += connection.recv(65536)
        assert standing(stack, key)["key"]["used"] > 500
    kit.until(lambda: 0.2 <= standing(stack, key)["key"]["used"] < 10, "the settlement by estimate")


def test_a_request_without_max_tokens_gets_what_is_left(stack: Any, make: Any) -> None:
    key = make("--budget", "cost_per_day=1")
    assert stack.route("nginx").post(HELLO, key=key).status == 200
    assert 16 <= json.loads(stack.fake.requests[-1][2])["max_tokens"] < 100
