"""The policies as callers meet them: a real gateway and several real backends."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from headrace.explain import explain
from headrace_routing.config import OPTIONS


async def test_backends_get_requests_in_proportion_to_their_weights(gateway: Any) -> None:
    async with gateway("weighted", weights=[3, 2, 1]) as running:
        answers = [await running.ask() for _ in range(12)]
        assert {each.status_code for each in answers} == {200}
        assert running.shares == [6, 4, 2]


async def test_in_turn_each_backend_gets_as_many(gateway: Any) -> None:
    async with gateway("round_robin") as running:
        for _ in range(9):
            await running.ask()
        assert running.shares == [3, 3, 3]


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if kind != "cost"])
async def test_when_a_backend_fails_the_next_one_answers(gateway: Any, kind: str) -> None:
    async with gateway(kind) as running:
        running.backends[0].status = 500
        answers = [await running.ask(stream=number % 2 == 0, user=f"u{number}") for number in range(8)]
        assert {each.status_code for each in answers} == {200}


async def test_backends_that_a_model_falls_back_on_are_asked_last(gateway: Any) -> None:
    async with gateway("round_robin", fallback=["gpu0"]) as running:
        for _ in range(6):
            await running.ask()
        assert running.shares == [0, 3, 3]


async def test_while_one_backend_is_busy_the_others_are_asked(gateway: Any) -> None:
    async with gateway("least_busy") as running:
        for each in running.backends:
            each.silent = True
        tasks = [asyncio.create_task(running.ask()) for _ in range(6)]
        async with asyncio.timeout(20):
            while sum(running.shares) < 6:
                await asyncio.sleep(0.002)
        assert running.shares == [2, 2, 2]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_sessions_of_a_header_stay_each_with_one_backend(gateway: Any) -> None:
    policies = {"affine": {"kind": "sticky", "by": ["header:x-conversation"]}}
    async with gateway("affine", policies=policies) as running:
        for number in range(24):
            await running.ask(headers={"X-Conversation": f"c{number % 8}"}, user=f"c{number % 8}")
        homes: dict[bytes, set[int]] = {}
        for number, backend in enumerate(running.backends):
            for _, _, body in backend.requests:
                homes.setdefault(body, set()).add(number)
        assert all(len(numbers) == 1 for numbers in homes.values()) and len(homes) == 8
        assert sum(count > 0 for count in running.shares) > 1


async def test_a_caller_who_may_not_name_a_target_is_refused(gateway: Any) -> None:
    async with gateway("pick") as running:
        refused = await running.ask("ada", {"X-Headrace-Target": "gpu1"})
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "target_not_allowed"
        assert running.shares == [0, 0, 0]


async def test_an_administrator_may_name_a_target(gateway: Any) -> None:
    async with gateway("pick") as running:
        for _ in range(4):
            assert (await running.ask("root", {"X-Headrace-Target": "gpu1"})).status_code == 200
        assert (await running.ask("root", metadata={"target": "gpu2"})).status_code == 200
        assert running.shares == [0, 4, 1]


async def test_an_unknown_target_is_a_clear_400(gateway: Any) -> None:
    async with gateway("pick") as running:
        refused = await running.ask("root", {"X-Headrace-Target": "gpu9"})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "This model has no target 'gpu9'. It has: gpu0, gpu1, gpu2."


async def test_a_team_may_be_allowed_to_name_targets_and_to_get_no_other(gateway: Any) -> None:
    policies = {"exact": {"kind": "pick", "roles": [], "teams": ["research"], "only": True}}
    async with gateway("exact", policies=policies) as running:
        running.backends[1].status = 500
        assert (await running.ask("ada/research", {"X-Headrace-Target": "gpu1"})).status_code == 502
        assert running.shares[0] == running.shares[2] == 0
        assert (await running.ask("root", {"X-Headrace-Target": "gpu1"})).status_code == 403


async def test_the_slower_of_two_backends_gets_less(gateway: Any) -> None:
    policies = {"latency": {"kind": "latency", "explore": 0.0}}
    async with gateway("latency", 2, policies=policies) as running:
        running.backends[0].pause = 0.1
        for number in range(12):
            assert (await running.ask(stream=number % 3 != 0)).status_code == 200
        assert running.shares[0] < running.shares[1]
        policy = running.running.gateway.policies["latency"]
        assert all(policy._records[name].seconds is not None for name in ("gpu0", "gpu1"))


async def test_models_with_other_policies_are_not_learnt_from(gateway: Any) -> None:
    async with gateway("round_robin") as running:
        await running.ask()
        assert running.running.gateway.policies["latency"]._records == {}


async def test_explain_says_why_for_every_policy(gateway: Any) -> None:
    costs = {"gpu0": 3, "gpu1": 1, "gpu2": 2}
    async with gateway("random", models=list(OPTIONS), costs=costs) as running:
        for kind in OPTIONS:
            report = await explain(running.running.gateway, model=kind, key=None)
            assert report["policy"] == kind
            assert all(each["why"] for each in report["targets"]), kind
            assert len({each["name"] for each in report["targets"]}) == 3


async def test_explain_says_why_of_backends_that_a_model_falls_back_on(gateway: Any) -> None:
    costs = {"gpu0": 3, "gpu1": 1, "gpu2": 2}
    async with gateway("random", models=list(OPTIONS), costs=costs, fallback=["gpu0"]) as running:
        for kind in OPTIONS:
            report = await explain(running.running.gateway, model=kind, key=None)
            assert all(each["why"] for each in report["targets"]), kind
            assert [each["name"] for each in report["targets"]][-1] == "gpu0"


async def test_explain_says_what_makes_the_cheapest_the_first(gateway: Any) -> None:
    async with gateway("cost", costs={"gpu0": 3, "gpu1": 1, "gpu2": 2}) as running:
        report = await explain(running.running.gateway, model="test", key=None)
        said = [(each["name"], each["why"]) for each in report["targets"]]
        assert said == [(f"gpu{number}", f"costs {cost}, 0 in flight") for number, cost in ((1, 1), (2, 2), (0, 3))]


async def test_many_at_a_time_are_spread_by_every_policy_that_counts_them(gateway: Any) -> None:
    for kind in ("least_busy", "latency", "queue_aware"):
        async with gateway(kind) as running:
            for each in running.backends:
                each.pause = 0.02
            answers = await asyncio.gather(*(running.ask() for _ in range(30)))
            assert Counter(each.status_code for each in answers) == {200: 30}
            assert min(running.shares) >= 4, kind
