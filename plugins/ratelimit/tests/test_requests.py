"""Limits as callers meet them: a real gateway, a backend that counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from headrace import hookimpl
from headrace.errors import PluginError
from headrace.exchange import Exchange, Principal
from headrace.limits import RateLimits
from headrace.testing import FakeBackend, serve
from headrace_ratelimit import LimitConfig, Plugin, RatelimitConfig

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}


class Named:
    """Callers are whoever they say they are: `X-Api-Key: NAME/TEAM`."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name, _, team = (exchange.header(b"x-api-key") or "nobody").partition("/")
        return Principal(id=name, team=team or None, limits=LIMITS.get(name))


LIMITS = {"strict": RateLimits(requests_per_minute=1)}


class Gate(NamedTuple):
    """A running gateway with limits."""

    backend: FakeBackend
    client: httpx.AsyncClient

    async def ask(self, who: str = "ada", **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={**CHAT, **fields}, headers={"x-api-key": who})

    @property
    def sent(self) -> list[Any]:
        """What the backend was asked."""
        return [json.loads(body) for _, _, body in self.backend.requests]


@contextlib.asynccontextmanager
async def limited(
    *limits: dict[str, Any], state_dir: str | None = None, stingy: type[Any] | None = None, **config: Any
) -> AsyncIterator[Gate]:
    plugins: dict[str, type[Any]] = {"named": Named, "ratelimit": Plugin}
    plugins |= {"stingy": stingy} if stingy else {}
    server = {"state_dir": state_dir} if state_dir else {}
    async with FakeBackend() as backend:
        document = backend.config(
            server=server, plugins={"openai": {}, "ratelimit": {"limits": list(limits), **config}}
        )
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
    assert refused.status_code == 429 and "3 requests in 60 s of this key" in refused.json()["error"]["message"]


async def test_a_request_larger_than_the_limit_is_told_so_and_not_to_wait() -> None:
    async with limited({"tokens_per_minute": 100}) as gate:
        refused = await gate.ask(max_tokens=500)
    assert refused.status_code == 429 and "retry-after" not in refused.headers
    assert "more than the limit of 100 tokens in 60 s of this key" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
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


async def test_limits_of_a_key_come_on_top_of_those_of_the_configuration() -> None:
    async with limited({"requests_per_minute": 3}) as gate:
        own = [(await gate.ask("strict")).status_code for _ in range(3)]
        others = [(await gate.ask("ada")).status_code for _ in range(4)]
    assert own == [200, 429, 429]
    assert others == [200, 200, 200, 429]


async def test_a_request_without_max_tokens_is_sent_on_with_what_was_reserved() -> None:
    async with limited({"tokens_per_minute": 300}) as gate:
        assert (await gate.ask(max_tokens=None)).status_code == 200
        asked = gate.sent[0]
    assert 100 < asked["max_tokens"] < 300


async def test_a_limit_below_zero_is_none_and_gets_one() -> None:
    async with limited({"tokens_per_minute": 300}) as gate:
        assert (await gate.ask(max_tokens=-1)).status_code == 200
        assert 100 < gate.sent[0]["max_tokens"] < 300


async def test_what_callers_say_themselves_is_not_touched() -> None:
    async with limited({"tokens_per_minute": 300}) as gate:
        await gate.ask(max_tokens=17)
        await gate.ask(max_tokens=None, max_completion_tokens=18)
        first, second = gate.sent
    assert first == {**CHAT, "model": "fake-model", "max_tokens": 17}
    assert "max_tokens" not in second or second["max_tokens"] is None


async def test_answers_are_not_capped_if_the_configuration_says_so() -> None:
    async with limited({"tokens_per_minute": 300}, cap_answers=False) as gate:
        await gate.ask(max_tokens=None)
        assert gate.sent[0]["max_tokens"] is None


async def test_counts_survive_a_restart(tmp_path: Path) -> None:
    statuses = []
    for _ in range(3):
        async with limited({"requests_per_day": 2}, state_dir=str(tmp_path)) as gate:
            statuses.append((await gate.ask()).status_code)
    assert statuses == [200, 200, 429]


async def test_a_whole_answer_that_nobody_waited_for_counts_as_reserved() -> None:
    """Nobody can say how far the backend came: to leave just before the end must not be a way around a limit."""
    async with limited({"tokens_per_minute": 1000}) as gate:
        gate.backend.silent = True
        left = asyncio.create_task(gate.ask(max_tokens=500))
        while not gate.backend.requests:
            await asyncio.sleep(0.01)
        left.cancel()
        await gate.backend.closed_early.wait()
        gate.backend.silent = False
        assert (await gate.ask(max_tokens=600)).status_code == 429
        assert (await gate.ask(max_tokens=300)).status_code == 200


async def test_what_a_backend_refuses_costs_no_tokens() -> None:
    async with limited({"tokens_per_minute": 1000}) as gate:
        gate.backend.status = 400
        for _ in range(5):
            assert (await gate.ask(max_tokens=900)).status_code == 400


def test_two_rules_for_the_same_callers_are_refused() -> None:
    with pytest.raises(ValueError, match="make them one"):
        RatelimitConfig(limits=(LimitConfig(requests_per_minute=1), LimitConfig(tokens_per_day=1)))


async def test_prompts_are_counted_by_the_backend_if_asked_for() -> None:
    async with limited({"tokens_per_minute": 1000}, exact_prompts=True) as gate:
        gate.backend.counted = 700
        answer = await gate.ask(max_tokens=100)
        assert answer.headers["x-ratelimit-remaining-tokens"] == "200"
        path, headers, body = gate.backend.requests[0]
        assert (path, headers["content-type"]) == ("/tokenize", "application/json")
        assert json.loads(body) == {"model": "fake-model", "messages": CHAT["messages"]}
        gate.backend.counted = 995
        assert (await gate.ask(max_tokens=10)).status_code == 429


@pytest.mark.parametrize("counted", [None, -1])
async def test_a_backend_that_does_not_count_leaves_prompts_estimated_and_is_told_of_once(
    counted: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with limited({"tokens_per_minute": 1000}, exact_prompts=True) as gate:
        gate.backend.counted = counted
        for _ in range(2):
            assert (await gate.ask(max_tokens=100)).status_code == 200
    assert sum("prompts are estimated" in record.message for record in caplog.records) == 1


async def test_a_request_without_max_tokens_takes_what_is_left() -> None:
    async with limited({"tokens_per_minute": 1000}, minimum_answer=100) as gate:
        assert (await gate.ask(max_tokens=400)).status_code == 200
        gate.backend.silent = True
        holding = asyncio.create_task(gate.ask(max_tokens=500))
        while len(gate.backend.requests) < 2:
            await asyncio.sleep(0.01)
        gate.backend.silent = False
        assert (await gate.ask(max_tokens=None)).status_code == 200
        assert 300 < gate.sent[2]["max_tokens"] < 500
        holding.cancel()


async def test_a_request_without_max_tokens_is_refused_when_too_little_is_left() -> None:
    async with limited({"tokens_per_minute": 1000}, minimum_answer=990) as gate:
        assert (await gate.ask(max_tokens=10)).status_code == 200
        refused = await gate.ask(max_tokens=None)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0


async def test_a_rule_for_a_model_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(PluginError, match="no model 'nosuch'"):
        async with limited({"requests_per_minute": 1, "models": ["nosuch"]}):
            pass


async def test_a_smaller_cap_of_another_plugin_stays() -> None:
    class Stingy:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        async def transform_request(self, exchange: Exchange) -> None:
            exchange.answer_limit = 33

    async with limited({"tokens_per_minute": 1000}, stingy=Stingy) as gate:
        assert (await gate.ask(max_tokens=None)).status_code == 200
        assert gate.sent[0]["max_tokens"] == 33
