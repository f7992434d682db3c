"""Limits as callers meet them: a real gateway, a backend that counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest

from headrace import hookimpl
from headrace.errors import ConfigError
from headrace.exchange import Exchange, Principal
from headrace.testing import FakeBackend, serve
from headrace_ratelimit import Plugin

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}


class Named:
    """Callers are whoever they say they are: `X-Api-Key: NAME/TEAM`."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name, _, team = (exchange.header(b"x-api-key") or "nobody").partition("/")
        return Principal(id=name, team=team or None)


class Gate(NamedTuple):
    """A running gateway with limits."""

    backend: FakeBackend
    client: httpx.AsyncClient

    async def ask(self, who: str = "ada", **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={**CHAT, **fields}, headers={"x-api-key": who})


@contextlib.asynccontextmanager
async def limited(*limits: dict[str, Any], **server: Any) -> AsyncIterator[Gate]:
    plugins = {"named": Named, "ratelimit": Plugin}
    async with FakeBackend() as backend:
        document = backend.config(server=server, plugins={"openai": {}, "ratelimit": {"limits": list(limits)}})
        async with (
            serve(document, plugins) as running,
            httpx.AsyncClient(base_url=running.url, timeout=30) as client,
        ):
            yield Gate(backend, client)


async def test_more_requests_than_the_limit_are_told_when_to_come_back() -> None:
    async with limited({"requests_per_minute": 2}) as gate:
        answers = [await gate.ask() for _ in range(3)]
        other = await gate.ask("grace")
    assert [each.status_code for each in (*answers, other)] == [200, 200, 429, 200]
    error = answers[2].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(answers[2].headers["retry-after"]) <= 61
    assert f"try again in {answers[2].headers['retry-after']} s" in error["message"]


async def test_answers_say_how_much_is_left() -> None:
    async with limited({"requests_per_minute": 5, "tokens_per_hour": 1000}) as gate:
        headers = (await gate.ask()).headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("5", "4")
    assert headers["x-ratelimit-limit-tokens"] == "1000" and 900 < int(headers["x-ratelimit-remaining-tokens"]) < 990
    assert headers["x-ratelimit-reset-requests"].endswith("s")


async def test_calls_at_the_same_time_cannot_spend_more_tokens_than_there_are() -> None:
    async with limited({"tokens_per_minute": 100}) as gate:
        answers = await asyncio.gather(*(gate.ask(max_tokens=10) for _ in range(40)))
    passed = sum(each.status_code == 200 for each in answers)
    assert {each.status_code for each in answers} == {200, 429}
    assert len(gate.backend.requests) == passed <= 100 // 10


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
async def test_what_a_request_did_not_use_is_free_again(fields: dict[str, Any]) -> None:
    async with limited({"tokens_per_minute": 1000}) as gate:
        answers = [await gate.ask(max_tokens=900, **fields) for _ in range(5)]
    assert [each.status_code for each in answers] == [200] * 5


async def test_a_backend_that_fails_costs_no_tokens_but_counts_as_a_request() -> None:
    async with limited({"tokens_per_minute": 1000, "requests_per_minute": 3}) as gate:
        gate.backend.status = 500
        assert [(await gate.ask(max_tokens=900)).status_code for _ in range(4)][:3].count(429) == 0
        refused = await gate.ask(max_tokens=900)
    assert refused.status_code == 429 and "3 requests in 60 s" in refused.json()["error"]["message"]


async def test_a_request_larger_than_the_limit_is_told_so_and_not_to_wait() -> None:
    async with limited({"tokens_per_minute": 100}) as gate:
        refused = await gate.ask(max_tokens=500)
    assert refused.status_code == 429 and "retry-after" not in refused.headers
    assert "more than the limit of 100 tokens" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": -1_000_000},
        {"max_tokens": 1, "max_completion_tokens": 90_000},
        {"max_tokens": 90_000, "max_completion_tokens": 1},
        {"n": int("9" * 4000)},
    ],
)
async def test_no_number_of_a_request_makes_it_cheaper_than_it_is(fields: dict[str, Any]) -> None:
    async with limited({"tokens_per_minute": 100}) as gate:
        assert (await gate.ask(**fields)).status_code == 429
        assert gate.backend.requests == []


async def test_several_answers_to_one_request_are_all_reserved() -> None:
    async with limited({"tokens_per_minute": 100}) as gate:
        assert (await gate.ask(max_tokens=20, n=5)).status_code == 429
        assert (await gate.ask(max_tokens=20, n=2)).status_code == 200


async def test_open_requests_are_limited_and_free_when_they_end_or_are_left() -> None:
    async with limited({"concurrent": 1}) as gate:
        gate.backend.silent = True
        left = asyncio.create_task(gate.ask())
        while not gate.backend.requests:
            await asyncio.sleep(0.01)
        assert (await gate.ask()).status_code == 429
        left.cancel()
        await gate.backend.closed_early.wait()
        gate.backend.silent = False
        async with asyncio.timeout(10):
            while (await gate.ask()).status_code != 200:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("per", "statuses"),
    [(["key"], [200, 200, 200]), (["team"], [200, 429, 200]), ([], [200, 429, 429]), (["address"], [200, 429, 429])],
)
async def test_what_is_counted_together_is_what_the_rule_says(per: list[str], statuses: list[int]) -> None:
    async with limited({"per": per, "requests_per_minute": 1}) as gate:
        answers = [await gate.ask(who) for who in ("ada/red", "grace/red", "edsger/blue")]
    assert [each.status_code for each in answers] == statuses


async def test_a_rule_may_be_for_some_alone() -> None:
    async with limited(
        {"requests_per_minute": 1, "keys": ["ada"]}, {"requests_per_minute": 2, "teams": ["red"]}
    ) as gate:
        found = {who: [(await gate.ask(who)).status_code for _ in range(3)] for who in ("ada", "bob/red", "carl")}
    assert found == {"ada": [200, 429, 429], "bob/red": [200, 200, 429], "carl": [200, 200, 200]}


async def test_a_limit_over_several_keys_and_several_workers_are_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="counts several keys"):
        async with limited({"per": ["team"], "requests_per_minute": 1}, workers=2):
            pass
