"""The queue as callers meet it: a real gateway, a backend that is slow or does not answer at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.dialects import OPENAI_ENDPOINTS
from headrace.errors import ConfigError
from headrace.exchange import Attempt, Exchange, Usage
from headrace_queue.admission import cost


async def test_no_more_requests_run_than_there_are_slots_and_all_are_answered(queued: Any) -> None:
    async with queued(max_concurrency=3) as gate:
        gate.backend.pause, most = 0.01, 0
        tasks = [gate.asks(f"key-{number % 4}") for number in range(30)]
        while not all(each.done() for each in tasks):
            most = max(most, gate.status.running)
            await asyncio.sleep(0.001)
        assert most == 3 and {(await each).status_code for each in tasks} == {200}
        assert (gate.status.waiting, gate.status.running) == (0, 0)
        assert gate.status.classes["default"].served == 30


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
async def test_a_slot_is_held_until_the_last_byte(queued: Any, fields: dict[str, Any]) -> None:
    async with queued(max_concurrency=1) as gate:
        gate.backend.pause = 0.05
        answers = await asyncio.gather(*(gate.ask(**fields) for _ in range(3)))
        assert [each.status_code for each in answers] == [200] * 3
        assert gate.status.running == 0 and gate.status.classes["default"].waited == 2


async def test_a_model_without_a_limit_is_not_held_up(queued: Any) -> None:
    async with queued() as gate:
        answers = await asyncio.gather(*(gate.ask() for _ in range(10)))
        assert {each.status_code for each in answers} == {200}
        assert gate.status.classes["default"].served == 0 and gate.status.models["test"].capacity is None


async def test_a_limit_may_be_given_for_a_model_and_for_a_backend(queued: Any) -> None:
    async with queued(capacity={"test": 2}, backends={"fake": 5}, max_concurrency=9) as gate:
        assert gate.status.models["test"].capacity == 2 and gate.status.backends["fake"].capacity == 5


async def test_who_waits_too_long_is_told_when_to_come_again(queued: Any) -> None:
    async with queued(max_concurrency=1, timeout=0.05) as gate:
        gate.backend.silent = True
        first = gate.asks()
        await gate.until(lambda now: now.running == 1)
        late = await gate.ask()
        assert late.status_code == 503 and late.json()["error"]["code"] == "queue_timeout"
        assert 1 <= int(late.headers["retry-after"]) <= 300
        assert gate.status.classes["default"].timed_out == 1
        first.cancel()


@pytest.mark.parametrize("timeout", ["0", "0.01"])
async def test_a_client_may_ask_to_wait_less(queued: Any, timeout: str) -> None:
    async with queued(max_concurrency=1, timeout=3600) as gate:
        gate.backend.silent = True
        first = gate.asks()
        await gate.until(lambda now: now.running == 1)
        late = await gate.ask(headers={"X-Headrace-Queue-Timeout": timeout})
        assert late.status_code == 503 and f"within {float(timeout):g} s" in late.json()["error"]["message"]
        first.cancel()


async def test_a_client_cannot_ask_to_wait_longer(queued: Any) -> None:
    async with queued(max_concurrency=1, timeout=0.01) as gate:
        gate.backend.silent = True
        first = gate.asks()
        await gate.until(lambda now: now.running == 1)
        assert (await gate.ask(headers={"X-Headrace-Queue-Timeout": "1e300"})).status_code == 503
        first.cancel()


@pytest.mark.parametrize("timeout", ["soon", "-1", "nan", "", "1,5"])
async def test_a_time_to_wait_that_is_none_is_refused(queued: Any, timeout: str) -> None:
    async with queued(max_concurrency=1) as gate:
        refused = await gate.ask(headers={"X-Headrace-Queue-Timeout": timeout})
        assert refused.status_code == 400 and "X-Headrace-Queue-Timeout" in refused.json()["error"]["message"]


async def test_a_full_queue_answers_503_at_once(queued: Any) -> None:
    async with queued(max_concurrency=1, max_waiting=2) as gate:
        gate.backend.silent = True
        tasks = [gate.asks() for _ in range(3)]
        await gate.until(lambda now: now.waiting == 2)
        refused = await gate.ask()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) == 60  # nothing has finished yet: as long as one may wait
        for each in tasks:
            each.cancel()


async def test_a_client_that_leaves_while_it_waits_makes_room_at_once(queued: Any) -> None:
    async with queued(max_concurrency=1) as gate:
        gate.backend.silent = True
        running = gate.asks("first")
        await gate.until(lambda now: now.running == 1)
        leaving, staying = gate.asks("leaving"), gate.asks("staying")
        await gate.until(lambda now: now.waiting == 2)
        leaving.cancel()
        await gate.until(lambda now: now.waiting == 1)
        assert gate.status.classes["default"].left == 1
        gate.backend.silent = False
        running.cancel()
        assert (await staying).status_code == 200


async def test_a_client_that_leaves_while_it_is_answered_gives_its_slot_to_the_next(queued: Any) -> None:
    async with queued(max_concurrency=1) as gate:
        gate.backend.silent = True
        running = gate.asks()
        await gate.until(lambda now: now.running == 1)
        waiting = gate.asks()
        await gate.until(lambda now: now.waiting == 1)
        gate.backend.silent = False
        running.cancel()
        assert (await waiting).status_code == 200


async def test_a_backend_that_fails_gives_its_slot_back(queued: Any) -> None:
    async with queued(max_concurrency=1) as gate:
        gate.backend.status = 500
        answers = await asyncio.gather(*(gate.ask() for _ in range(5)))
        assert 200 not in {each.status_code for each in answers} and gate.status.running == 0


async def test_another_plugin_may_change_the_capacity(queued: Any) -> None:
    async with queued(max_concurrency=1) as gate:
        gate.plugin.set_capacity("fake", 0)
        tasks = [gate.asks() for _ in range(4)]
        await gate.until(lambda now: now.waiting == 4)
        gate.plugin.set_capacity("fake", 3)
        assert {(await each).status_code for each in tasks} == {200}
        gate.plugin.set_capacity("fake", None)
        assert (await gate.ask()).status_code == 200 and gate.status.models["test"].capacity is None
        with pytest.raises(ValueError, match="no model uses a backend 'other'"):
            gate.plugin.set_capacity("other", 1)


async def test_a_worker_has_its_part_of_a_changed_capacity_and_never_nothing_of_something(queued: Any) -> None:
    more = {"server": {"anonymous": True, "workers": 4}}
    async with queued(more, max_concurrency=8) as gate:
        gate.running.gateway.worker, found = 3, []
        for slots in (7, 2, 0, None):
            gate.plugin.set_capacity("fake", slots)
            found.append(gate.status.backends["fake"].capacity)
        assert found == [1, 1, 0, None]


async def test_backends_are_asked_for_token_counts_of_what_is_queued(queued: Any) -> None:
    async with queued(max_concurrency=8) as gate:
        answer = await gate.ask(stream=True)
        assert b"include_usage" in gate.backend.requests[0][2] and "usage" not in answer.text


async def test_a_request_costs_what_was_counted_or_else_what_was_thought(queued: Any) -> None:
    path = "/v1/chat/completions"
    scope = {"headers": [], "method": "POST", "path": path}
    exchange = Exchange(id="1", endpoint=OPENAI_ENDPOINTS[path], scope=scope)
    assert cost(exchange) == 0  # no backend was asked
    async with queued() as gate:
        provider = gate.running.gateway.providers["openai"]
        target = gate.running.gateway.models.find("test").targets[0]
    exchange.attempts.append(Attempt(exchange, 1, target, provider))
    assert cost(exchange) is None
    exchange.usage = Usage(3, 4)
    assert cost(exchange) == 7


async def test_callers_of_a_class_with_a_higher_priority_go_first(queued: Any) -> None:
    classes = {"urgent": {"priority": 1, "teams": ["ops"]}}
    async with queued(max_concurrency=1, classes=classes, min_share=0) as gate:
        gate.backend.silent = True
        running, order = gate.asks("first"), list[str]()
        await gate.until(lambda now: now.running == 1)

        async def ask(who: str) -> None:
            await gate.ask(who)
            order.append(who)

        tasks = []
        for number, who in enumerate(["ada", "bob", "eve/ops", "mia/ops"], 1):
            tasks.append(asyncio.create_task(ask(who)))
            await gate.until(lambda now, number=number: now.waiting == number)
        assert gate.status.classes["urgent"].waiting == 2
        gate.backend.silent = False
        running.cancel()
        await asyncio.gather(*tasks)
        assert order == ["eve/ops", "mia/ops", "ada", "bob"]


async def test_administrators_see_who_waits(queued: Any) -> None:
    async with queued(max_concurrency=2, admin_api=True) as gate:
        gate.backend.silent = True
        tasks = [gate.asks() for _ in range(3)]
        await gate.until(lambda now: now.waiting == 1)
        shown = await gate.client.get("/admin/queue", headers={"x-api-key": "root"})
        refused = await gate.client.get("/admin/queue", headers={"x-api-key": "ada"})
        for each in tasks:
            each.cancel()
    found = shown.json()
    assert (found["worker"], found["waiting"], found["running"]) == (0, 1, 2) and refused.status_code == 403
    assert found["models"]["test"] == {"waiting": 1, "running": 2, "capacity": 2, "drain_rate": None}
    assert found["classes"]["default"]["waiting"] == 1 and found["backends"]["fake"] == {"running": 2, "capacity": 2}


async def test_nobody_sees_who_waits_unless_the_configuration_says_so(queued: Any) -> None:
    async with queued(max_concurrency=2) as gate:
        assert (await gate.client.get("/admin/queue", headers={"x-api-key": "root"})).status_code == 404


async def test_who_waits_for_a_stream_is_told_to_be_patient(queued: Any) -> None:
    async with queued(max_concurrency=1, keep_alive=0.01) as gate:
        gate.backend.silent = True
        running = gate.asks()
        await gate.until(lambda now: now.running == 1)
        body = b""
        async with gate.client.stream("POST", "/v1/chat/completions", json={**gate.chat, "stream": True}) as answer:
            async for chunk in answer.aiter_bytes():
                body += chunk
                if body.count(b": waiting") == 3:
                    gate.backend.silent = False
                    running.cancel()
        assert answer.status_code == 200 and body.startswith(b": waiting") and body.endswith(b"data: [DONE]\n\n")


async def test_who_waits_for_a_stream_too_long_hears_it_as_an_event(queued: Any) -> None:
    async with queued(max_concurrency=1, keep_alive=0.01, timeout=0.1) as gate:
        gate.backend.silent = True
        running = gate.asks()
        await gate.until(lambda now: now.running == 1)
        late = await gate.ask(stream=True)
        running.cancel()
    assert late.status_code == 200 and late.text.startswith(": waiting")
    assert '"code":"queue_timeout"' in late.text and "[DONE]" not in late.text


@pytest.mark.parametrize(
    ("queue", "problem"),
    [
        ({"max_concurrency": 3}, "max_concurrency = 3 is too little for server.workers = 4"),
        ({"backends": {"fake": 3}}, "backends.fake = 3 is too little"),
        ({"capacity": {"test": 3}}, "capacity.test = 3 is too little"),
        ({"capacity": {"tset": 9}}, "there is no model 'tset' (there are: test)"),
        ({"backends": {"fkae": 9}}, "no model uses a backend 'fkae' (there are: fake)"),
    ],
)
async def test_a_number_that_cannot_be_kept_stops_the_start(queued: Any, queue: dict[str, Any], problem: str) -> None:
    with pytest.raises(Exception, match="queue") as caught:
        async with queued({"server": {"workers": 4}}, **queue):
            pass
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("queue", "problem"),
    [
        ({"classes": {"all": {}, "ops": {"teams": ["ops"]}}}, "takes everybody, so 'ops' takes nobody"),
        ({"classes": {"default": {"teams": ["ops"]}}}, "call this one otherwise"),
        ({"classes": {str(n): {"priority": n, "keys": [str(n)]} for n in range(1, 4)}, "min_share": 0.4}, "min_share"),
        ({"timeout": -1}, "timeout"),
        ({"key_weights": {"ada": 0}}, "key_weights"),
    ],
)
async def test_what_makes_no_sense_is_said_at_the_start(queued: Any, queue: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with queued(**queue):
            pass
    assert problem in str(caught.value)
