"""Limits hold over several core workers, and count the same whoever delivers the answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

HELLO = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
WORKERS = 2
LIMITS = """
[[plugins.ratelimit.limits]]
per = ["model"]
models = ["fake"]
tokens_per_day = 1_000_000
[[plugins.ratelimit.limits]]
per = ["team"]
teams = ["red"]
requests_per_day = 40
concurrent = 1000
[[plugins.ratelimit.limits]]
per = ["team"]
teams = ["blue"]
concurrent = 3
[[plugins.ratelimit.limits]]
tokens_per_hour = 200_000
"""
WAYS = ("inline", "offload", "module")


@pytest.fixture(scope="module", params=WAYS)
def stack(own_stack: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    with own_stack(way=request.param, server=f"workers = {WORKERS}", plugins=LIMITS) as stack:
        if stack.delivery == "offload":
            stack.warm_up()
        yield stack


@pytest.fixture(autouse=True)
def afresh(stack: Any) -> None:
    stack.reset()


def standing(stack: Any, key: str) -> dict[str, Any]:
    """What the caller is told of each limit, by its name; empty if nobody answers."""
    return {each["name"]: each for each in stack.limits_of(key) or ()}


def burst(stack: Any, keys: list[str], count: int, **fields: Any) -> list[int]:
    """The statuses of requests that come all at once, over a connection each."""
    route = stack.route("nginx")

    async def asking() -> list[Any]:
        bodies = ((route.request({**HELLO, **fields}, key=keys[number % len(keys)]),) for number in range(count))
        return await asyncio.gather(*(route.ask(body) for body in bodies))

    return [answer.status for answer in asyncio.run(asking())]


def test_a_limit_over_several_keys_is_exact_over_several_workers(stack: Any) -> None:
    keys = [stack.make_key("--team", "red") for _ in range(6)]
    statuses = burst(stack, keys, 80)
    assert (statuses.count(200), statuses.count(429)) == (40, 40)


def test_open_requests_of_a_team_are_counted_over_all_workers_and_end_with_the_requests(stack: Any, kit: Any) -> None:
    keys = [stack.make_key("--team", "blue") for _ in range(4)]
    stack.fake.pause = 1.0
    statuses = burst(stack, keys, 20)
    assert (statuses.count(200), statuses.count(429)) == (3, 17)
    stack.fake.pause = 0.0
    kit.until(lambda: standing(stack, keys[0])["concurrent"]["used"] == 0, "nginx's reports, which clients may outrun")
    assert burst(stack, keys[:1], 1) == [200]


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [({}, 6), ({"stream": True}, 8), ({"stream": True, "stream_options": {"include_usage": True}}, 8)],
)
def test_what_was_used_is_what_counts(stack: Any, kit: Any, fields: dict[str, Any], tokens: int) -> None:
    key = stack.make_key()
    for number in range(1, 4):
        answer = stack.route("nginx").post({**HELLO, **fields, "max_tokens": 1000}, key=key)
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-tokens"] == "200000"
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 199_000
        kit.until(partial(has_used, stack, key, number * tokens), "the settlement")


def has_used(stack: Any, key: str, tokens: int) -> bool:
    return bool(standing(stack, key)["tokens_per_hour"]["used"] == tokens)


def test_a_request_without_max_tokens_gets_one_whoever_sends_it(stack: Any) -> None:
    identifier = uuid.uuid4().hex
    assert stack.route("nginx").post(HELLO, identifier, key=stack.make_key()).status == 200
    assert json.loads(stack.fake.requests[-1][2])["max_tokens"] == 4096
    assert stack.logged(identifier)["delivery"] == stack.delivery


def test_a_stream_that_is_left_costs_what_has_passed(stack: Any, kit: Any) -> None:
    key = stack.make_key()
    stack.fake.chunks, stack.fake.pause = 10_000, 0.01
    route = stack.route("nginx")
    with route.connect() as connection:
        connection.sendall(route.request({**HELLO, "stream": True, "max_tokens": 50_000}, key=key))
        received = b""
        while received.count(b"data: ") < 20:
            received += connection.recv(65536)
        assert standing(stack, key)["tokens_per_hour"]["used"] > 50_000
    kit.until(lambda: 20 <= standing(stack, key)["tokens_per_hour"]["used"] < 1000, "the settlement by estimate")


def test_what_a_killed_worker_held_is_free_again_and_what_was_used_is_not(stack: Any, kit: Any) -> None:
    keys = [stack.make_key("--team", "blue") for _ in range(4)]
    assert burst(stack, keys[:1], 1, max_tokens=10) == [200]
    before = kit.until(lambda: standing(stack, keys[0]), "the standing")["tokens_per_hour"]["used"]
    stack.fake.silent = True
    hanging = [stack.route("nginx").connect() for _ in range(3)]
    for key, connection in zip(keys, hanging, strict=False):
        connection.sendall(stack.route("nginx").request(HELLO, key=key))
    kit.until(lambda: standing(stack, keys[0])["concurrent"]["used"] == 3, "three open requests")
    for pid in [pid for pid in kit.process_tree(stack.launched.child.pid) if is_core(pid)]:
        os.kill(pid, signal.SIGKILL)
    kit.until(lambda: ended(stack, keys[0]), "the workers' return")
    stack.reset()
    kit.until(lambda: burst(stack, keys[:1], 1) == [200], "an answer")
    assert standing(stack, keys[0])["tokens_per_hour"]["used"] >= before
    for connection in hanging:
        connection.close()


def is_core(pid: int) -> bool:
    return b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes()


def ended(stack: Any, key: str) -> bool:
    """Whether the gateway answers again, and nothing is open."""
    try:
        found = standing(stack, key)
    except (OSError, ValueError):
        return False
    return bool(found) and found["concurrent"]["used"] == 0
