"""Budgets as callers meet them: a real gateway, a backend that counts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from headrace import hookimpl
from headrace.exchange import Exchange, Reply
from headrace.testing import COMPLETION

COST = 15_000
"""Millionths, of a request that is not streamed."""
NIGHT = 12 * 3600
"""Seconds from the clock's noon to midnight."""


async def test_what_a_request_has_taken_is_counted_exactly(budgeted: Any) -> None:
    async with budgeted({"cost_per_month": 5, "tokens_per_day": 1000}) as gate:
        for _ in range(3):
            assert (await gate.ask()).status_code == 200
        used = await gate.used()
    assert sorted(used.values()) == [3 * 6, 3 * COST]


async def test_a_budget_that_is_used_up_says_so_of_whom_and_when_it_begins_anew(
    budgeted: Any, clock: Any, flat: Any
) -> None:
    async with budgeted({"cost_per_day": 1}, clock=clock, prices=flat) as gate:
        assert (await gate.ask()).status_code == 200
        refused = await gate.ask()
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "insufficient_quota", "budget_exceeded")
    assert error["message"] == (
        "The budget of 1.00 USD a day of this key is used up. It begins anew at 2030-05-18 00:00 (UTC)."
    )
    assert (refused.headers["retry-after"], refused.headers["x-should-retry"]) == (str(NIGHT), "false")


class Counter:
    """Counts requests."""

    count = 0

    def __init__(self, config: Any, gateway: Any) -> None:
        type(self).count = 0

    @hookimpl
    async def on_complete(self, exchange: Exchange) -> None:
        type(self).count += 1


async def test_openais_own_client_knows_the_error_and_does_not_try_again(budgeted: Any, flat: Any) -> None:
    async with budgeted({"cost_per_day": 0}, prices=flat, plugins={"counter": Counter}) as gate:
        client = openai.AsyncOpenAI(base_url=f"{gate.running.url}/v1", api_key="any", max_retries=3)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model="test", messages=[{"role": "user", "content": "hi"}])
        await client.close()
    assert (refused.value.type, refused.value.code, Counter.count) == ("insufficient_quota", "budget_exceeded", 1)


async def test_a_request_that_does_not_fit_into_what_is_left_is_told_how_much_that_is(
    budgeted: Any, clock: Any
) -> None:
    async with budgeted({"tokens_per_month": 100}, clock=clock, time_zone="Europe/Berlin") as gate:
        assert (await gate.ask()).status_code == 200
        refused = await gate.ask(max_tokens=90)
    message = refused.json()["error"]["message"]
    assert "94 tokens are left of the budget of 100 tokens a month of this key" in message
    assert "it begins anew at 2030-06-01 00:00 (Europe/Berlin)" in message
    days, hours = 14, 10  # from 14:00 of the 17th, summer time
    assert int(refused.headers["retry-after"]) == days * 86_400 + hours * 3600


async def test_a_request_larger_than_the_whole_budget_is_not_told_to_wait(budgeted: Any) -> None:
    async with budgeted({"cost_per_month": 1}) as gate:
        refused = await gate.ask(max_tokens=1000)
    assert refused.status_code == 429 and "retry-after" not in refused.headers
    assert "more than the budget of 1.00 USD a month of this key" in refused.json()["error"]["message"]


async def test_a_day_and_a_month_begin_anew_at_their_ends(budgeted: Any, clock: Any, flat: Any) -> None:
    passed = []
    async with budgeted({"cost_per_day": 2, "cost_per_month": 5}, clock=clock, prices=flat) as gate:
        for days in (1, 1, 1, 12, 1):  # the last one begins June
            passed.append([(await gate.ask()).status_code for _ in range(3)].count(200))
            clock.now += days * 86_400
    assert passed == [2, 2, 1, 0, 2]


async def test_a_request_counts_for_the_day_on_which_it_began(budgeted: Any, clock: Any) -> None:
    async with budgeted({"tokens_per_day": 1000}, clock=clock) as gate:
        gate.backend.pause = 0.05
        asked = asyncio.create_task(gate.ask(max_tokens=500))
        while not gate.backend.requests:
            await asyncio.sleep(0.001)
        clock.now += NIGHT
        assert (await asked).status_code == 200
        assert await gate.used() == {"key:ada:tokens_per_day:2030-05-17": 6}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
async def test_midnight_is_that_of_the_time_zone(budgeted: Any, clock: Any, zone: str) -> None:
    clock.now += NIGHT - 3600  # 23:00 in UTC
    async with budgeted({"tokens_per_day": 1000}, clock=clock, time_zone=zone) as gate:
        await gate.ask()
        (key,) = await gate.used()
    assert key.endswith({"Europe/Berlin": "2030-05-18", "America/New_York": "2030-05-17"}[zone])


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
async def test_what_a_request_did_not_use_is_free_again(budgeted: Any, fields: dict[str, Any]) -> None:
    async with budgeted({"cost_per_month": 10}) as gate:
        answers = [await gate.ask(max_tokens=900, **fields) for _ in range(5)]
    assert [each.status_code for each in answers] == [200] * 5


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
async def test_fifty_calls_at_the_same_time_cannot_spend_a_budget_for_ten(
    budgeted: Any, flat: Any, fields: dict[str, Any]
) -> None:
    async with budgeted({"per": [], "cost_per_month": 10}, prices=flat) as gate:
        answers = await asyncio.gather(*(gate.ask(f"caller-{n}", **fields) for n in range(50)))
        asked, used = len(gate.backend.requests), await gate.used_in_all()
    assert sorted(each.status_code for each in answers) == [200] * 10 + [429] * 40
    assert (asked, used) == (10, 10_000_000)


async def test_a_request_without_max_tokens_gets_what_is_left_and_is_sent_on_with_that(budgeted: Any) -> None:
    async with budgeted({"cost_per_month": 1}) as gate:
        assert (await gate.ask(max_tokens=None)).status_code == 200
        reserved = gate.sent[0]["max_tokens"]
        used = await gate.used_in_all()
    assert 90 <= reserved <= 97 and used == COST  # a dollar buys 100 tokens of an answer, less the prompt


async def test_several_answers_share_what_is_left(budgeted: Any) -> None:
    async with budgeted({"tokens_per_month": 300}) as gate:
        assert (await gate.ask(max_tokens=None, n=3)).status_code == 200
        assert 80 <= gate.sent[0]["max_tokens"] <= 92


async def test_no_answer_is_begun_that_would_be_shorter_than_the_least(budgeted: Any) -> None:
    async with budgeted({"tokens_per_month": 60}, minimum_answer=40) as gate:
        assert (await gate.ask(max_tokens=None)).status_code == 429
    async with budgeted({"tokens_per_month": 60}, minimum_answer=20) as gate:
        assert (await gate.ask(max_tokens=None)).status_code == 200


async def test_answers_are_not_capped_if_the_configuration_says_so(budgeted: Any) -> None:
    async with budgeted({"cost_per_month": 1}, cap_answers=False) as gate:
        assert (await gate.ask(max_tokens=None)).status_code == 429
        assert (await gate.ask(max_tokens=20)).status_code == 200
    async with budgeted({"cost_per_month": 100}, cap_answers=False) as gate:
        assert (await gate.ask(max_tokens=None)).status_code == 200
        assert gate.sent[0]["max_tokens"] is None


async def test_what_callers_say_themselves_is_not_touched(budgeted: Any) -> None:
    async with budgeted({"cost_per_month": 10}) as gate:
        await gate.ask(max_tokens=17)
        assert gate.sent[0]["max_tokens"] == 17


async def test_a_budget_of_nothing_refuses_everything(budgeted: Any) -> None:
    free = {"test": {"input": 0, "output": 0}}
    async with budgeted({"cost_per_day": 0, "keys": ["ada"]}, prices=free) as gate:
        refused, passed = await gate.ask("ada"), await gate.ask("grace")
    assert (refused.status_code, passed.status_code) == (429, 200)
    assert "is used up" in refused.json()["error"]["message"]


async def test_a_model_that_is_free_passes_whatever_was_spent_of_money(budgeted: Any) -> None:
    async with budgeted({"cost_per_day": 0.001}, prices={"test": {"input": 0, "output": 0}}) as gate:
        assert [(await gate.ask(max_tokens=5000)).status_code for _ in range(3)] == [200] * 3
        assert await gate.used() == {}


@pytest.mark.parametrize(
    ("per", "statuses"),
    [(["key"], [200, 200, 200]), (["team"], [200, 429, 200]), ([], [200, 429, 429]), (["model"], [200, 429, 429])],
)
async def test_what_is_counted_together_is_what_the_rule_says(
    budgeted: Any, flat: Any, per: list[str], statuses: list[int]
) -> None:
    async with budgeted({"per": per, "cost_per_day": 1}, prices=flat) as gate:
        answers = [await gate.ask(who) for who in ("ada/red", "grace/red", "edsger/blue")]
    assert [each.status_code for each in answers] == statuses


async def test_a_key_brings_its_own_budget_along(budgeted: Any) -> None:
    async with budgeted() as gate:
        poor = [(await gate.ask("poor", max_tokens=1)).status_code for _ in range(4)]
        assert (await gate.ask("spent")).status_code == 429
        assert [(await gate.ask("ada")).status_code for _ in range(4)] == [200] * 4
        (key,) = await gate.used()
    assert poor[0] == 200 and poor[-1] == 429 and key.startswith("own:poor:cost_per_day:")


async def test_a_budget_that_is_not_enforced_is_counted_and_refuses_nothing(budgeted: Any) -> None:
    async with budgeted({"cost_per_day": 0.001, "enforce": False, "tokens_per_day": 1}) as gate:
        answers = [await gate.ask(max_tokens=10**9), *[await gate.ask() for _ in range(2)]]
        used = await gate.used()
    assert [each.status_code for each in answers] == [200] * 3
    assert sorted(used.values()) == [18, 3 * COST]


async def test_a_model_without_a_price_is_refused_to_a_key_with_money_of_its_own(budgeted: Any) -> None:
    async with budgeted(prices={}) as gate:
        refused, passed = await gate.ask("poor"), await gate.ask("ada")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_priced")
    assert passed.status_code == 200


async def test_what_was_used_survives_a_restart(budgeted: Any, flat: Any, tmp_path: Path) -> None:
    statuses = []
    for _ in range(3):
        async with budgeted({"cost_per_month": 2}, prices=flat, state_dir=tmp_path) as gate:
            statuses.append((await gate.ask()).status_code)
    assert statuses == [200, 200, 429]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"max_tokens": 1, "max_completion_tokens": 90_000}),
        ("chat/completions", {"n": int("9" * 4000)}),
        ("chat/completions", {"max_tokens": 2**63 - 1, "n": 2**63 - 1}),
        ("completions", {"prompt": "hi", "max_tokens": 1, "best_of": 10**6}),
        ("completions", {"prompt": ["hi"] * 60, "max_tokens": 10}),
    ],
    ids=["two limits", "digits", "large", "best_of", "prompts"],
)
async def test_no_number_of_a_request_makes_it_cheaper_than_it_is(
    budgeted: Any, path: str, fields: dict[str, Any]
) -> None:
    async with budgeted({"tokens_per_month": 500}) as gate:
        assert (await gate.ask(path=path, **fields)).status_code == 429
        assert gate.backend.requests == []


async def test_a_request_beyond_all_numbers_is_refused_in_plain_words(budgeted: Any) -> None:
    async with budgeted({"cost_per_month": 5}) as gate:
        refused = await gate.ask(n=int("9" * 4000))
    message = refused.json()["error"]["message"]
    assert "may take more than can be counted, more than the budget of 5.00 USD a month" in message


async def test_prompts_are_counted_by_the_backend_if_that_is_asked_for(budgeted: Any) -> None:
    async with budgeted({"tokens_per_month": 400}, exact_prompts=True) as gate:
        gate.backend.counted = 500
        assert (await gate.ask()).status_code == 429
        gate.backend.counted = 389
        assert (await gate.ask(max_tokens=10)).status_code == 200


async def test_embeddings_reserve_their_input_alone(budgeted: Any) -> None:
    async with budgeted({"cost_per_month": 0.1}) as gate:
        answer = await gate.ask(path="embeddings", input="a text of a few words")
        assert answer.status_code == 200
        assert (await gate.ask(path="embeddings", input="word " * 500)).status_code == 429
        assert await gate.used_in_all() == COST


class Cache:
    """Knows every answer."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def cache_lookup(self, exchange: Exchange) -> Reply | None:
        return Reply(200, [(b"content-type", b"application/json")], content=COMPLETION, source="cache")


async def test_what_a_cache_answers_costs_nothing(budgeted: Any) -> None:
    async with budgeted({"cost_per_month": 5, "tokens_per_month": 500}, plugins={"cache": Cache}) as gate:
        assert (await gate.ask()).status_code == 200
        assert set((await gate.used()).values()) == {0}


async def test_a_request_without_max_tokens_for_which_too_little_is_left_is_told_when_there_is_more(
    budgeted: Any,
) -> None:
    async with budgeted({"tokens_per_day": 100}) as gate:
        while (answer := await gate.ask(max_tokens=None)).status_code == 200:
            pass
        used = await gate.used_in_all()
    assert 50 < used <= 100
    message = answer.json()["error"]["message"]
    assert "begins anew at" in message and f"{100 - used} tokens are left" in message
    assert int(answer.headers["retry-after"]) > 0
