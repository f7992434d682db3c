"""The breaker as callers meet it: a real gateway, backends that fail."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from headrace import hookimpl
from headrace.errors import GatewayError, UpstreamError
from headrace.exchange import Attempt, Exchange
from headrace.explain import explain
from headrace_openai.provider import OpenAIProvider


async def test_a_backend_that_fails_is_left_out_and_the_other_answers_everything(staged: Any) -> None:
    async with staged(failures=3) as stage:
        stage.a.status = 500
        assert await stage.ask_often(20) == [200] * 20
        assert stage.asked() == {"a": 3, "b": 20} and stage.state("a") == "open"


async def test_one_that_refuses_connections_is_left_out(staged: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = {"provider": "openai", "base_url": f"http://127.0.0.1:{free.getsockname()[1]}/v1"}
        async with staged("a", model={"targets": [gone, "a"]}, failures=3) as stage:
            assert await stage.ask_often(5) == [200] * 5
            assert stage.state("test-0") == "open"
            assert "cannot be reached" in stage.status.targets["test-0"].reason


async def test_one_that_keeps_silent_is_left_out(staged: Any) -> None:
    async with staged(backend={"timeouts": {"first_byte": 0.5}}, failures=2) as stage:
        stage.a.silent = True
        assert await stage.ask_often(4) == [200] * 4
        assert stage.asked() == {"a": 2, "b": 4}


async def test_streams_that_are_cut_count(staged: Any) -> None:
    async with staged(failures=2) as stage:
        stage.a.cut_after = 1
        for _ in range(3):
            await stage.ask(stream=True)
        assert stage.asked() == {"a": 2, "b": 1}


async def test_streams_that_stall_count(staged: Any) -> None:
    async with staged(backend={"timeouts": {"idle": 0.1}}, failures=2) as stage:
        stage.a.stall_after = 1
        await asyncio.gather(*(stage.ask(stream=True) for _ in range(2)))
        assert stage.state("a") == "open" and "incomplete" in stage.status.targets["a"].reason


async def test_callers_errors_do_not_count(staged: Any) -> None:
    async with staged(failures=2) as stage:
        stage.a.status = 400
        assert await stage.ask_often(10) == [400] * 10
        assert stage.state("a") == "closed" and stage.status.targets["a"].requests == 0


async def test_clients_that_leave_do_not_count(staged: Any) -> None:
    async with staged(failures=1) as stage:
        stage.a.silent = True
        tasks = [stage.asks() for _ in range(3)]
        await stage.until(lambda: len(stage.a.requests) == 3)
        for task in tasks:
            task.cancel()
        await stage.until(lambda: stage.running.gateway.models.targets[0].state.in_flight == 0)
        assert stage.state("a") == "closed" and stage.status.targets["a"].requests == 0


async def test_a_request_counts_once_however_often_it_is_tried(staged: Any) -> None:
    retry = {"rounds": 3, "backoff": 0.01, "max_backoff": 0.01}
    async with staged(failures=2, model={"retry": retry}) as stage:
        stage.a.status = stage.b.status = 500
        assert (await stage.ask()).status_code == 502
        assert stage.asked() == {"a": 3, "b": 3}
        assert (stage.state("a"), stage.status.targets["a"].failures) == ("closed", 1)


async def test_faults_of_a_plugin_do_not_count(staged: Any) -> None:
    class Broken:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        async def prepare_attempt(self, attempt: Attempt) -> None:
            if attempt.target.name == "a":
                raise ValueError("mine")

    async with staged(failures=1, plugins={"broken": Broken}) as stage:
        assert await stage.ask_often(5) == [200] * 5
        assert stage.state("a") == "closed"


async def test_a_cut_counts_although_a_plugin_words_errors_anew(staged: Any) -> None:
    class Polite:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        async def handle_error(self, exchange: Exchange, error: GatewayError) -> GatewayError | None:
            return GatewayError("Something went wrong.", status=502, code="sorry")

    async with staged(failures=2, plugins={"polite": Polite}) as stage:
        stage.a.cut_after = 1
        for _ in range(2):
            await stage.ask(stream=True)
        assert stage.state("a") == "open"


async def test_a_refused_key_opens_it_with_the_first_request(staged: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with staged() as stage:
        stage.a.status = 401
        assert await stage.ask_often(5) == [200] * 5
        assert stage.asked()["a"] == 1
        assert [each.levelname for each in caplog.records if "api_key" in each.message] == ["WARNING"]


async def test_if_nobody_is_left_callers_are_told_at_once_when_to_come_again(staged: Any) -> None:
    async with staged(failures=1, open_for=10) as stage:
        stage.a.status = stage.b.status = 500
        await stage.ask_often(1)
        stage.asked()
        refused = await stage.ask()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "circuit_open"
        soonest = min(each.retry_in for each in stage.status.targets.values())
        assert soonest <= int(refused.headers["retry-after"]) < soonest + 1
        assert f"Try again in {refused.headers['retry-after']} s" in refused.json()["error"]["message"]
        assert stage.asked() == {"a": 0, "b": 0}


async def test_the_only_backend_of_a_model_is_always_asked(staged: Any) -> None:
    async with staged("a", failures=1) as stage:
        stage.a.status = 500
        assert await stage.ask_often(5) == [502] * 5
        assert stage.asked() == {"a": 5} and stage.status.targets == {}


async def test_the_only_backend_of_a_model_may_be_left_out_if_configured(staged: Any) -> None:
    async with staged("a", failures=2, single_target=True) as stage:
        stage.a.status = 500
        assert await stage.ask_often(4) == [502, 502, 503, 503]


async def test_a_model_with_one_backend_asks_it_though_another_model_leaves_it_out(staged: Any) -> None:
    async with staged(failures=1, models={"alone": {"targets": ["a"], "retry": {"rounds": 1}}}) as stage:
        stage.a.status = 500
        await stage.ask()
        stage.asked()
        answers = [(await stage.ask(model=name)).status_code for name in ("alone", "test")]
        assert answers == [502, 200] and stage.asked() == {"a": 1, "b": 1}


async def test_a_model_that_falls_back_on_another_leaves_out_its_only_backend(staged: Any) -> None:
    other = {"other": {"targets": ["b"]}}
    model = {"targets": ["a"], "fallback_models": ["other"]}
    async with staged(failures=2, model=model, models=other) as stage:
        stage.a.status = 500
        assert await stage.ask_often(5) == [200] * 5
        assert stage.asked() == {"a": 2, "b": 5}


class ChatOnly:
    """Brings the provider `chat_only`: as `openai`, without embeddings."""

    def __init__(self, config: Any, gateway: Any) -> None:
        self._gateway = gateway

    @hookimpl
    def register_providers(self, register: Any) -> None:
        provider: Any = type("ChatOnly", (OpenAIProvider,), {"name": "chat_only", "endpoints": frozenset({"chat"})})
        register(provider(self._gateway))


async def test_a_backend_without_the_endpoint_is_nobody_to_ask(staged: Any) -> None:
    async with staged(failures=1, plugins={"chat_only": ChatOnly}, providers={"b": "chat_only"}) as stage:
        stage.a.status = 500
        assert await stage.ask_often(2) == [200, 200]
        refused = await stage.client.post("/v1/embeddings", json={"model": "test", "input": "hi"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "circuit_open")


async def test_what_no_backend_of_a_model_answers_is_not_blamed_on_circuits(staged: Any) -> None:
    providers = {"a": "chat_only", "b": "chat_only"}
    async with staged(failures=1, plugins={"chat_only": ChatOnly}, providers=providers) as stage:
        stage.a.status = stage.b.status = 500
        await stage.ask()
        refused = await stage.client.post("/v1/embeddings", json={"model": "test", "input": "hi"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_endpoint")


async def test_explaining_a_request_uses_up_no_probe(staged: Any) -> None:
    async with staged(failures=1) as stage:
        stage.a.status = 500
        await stage.ask()
        stage.turn_to("a", "half_open")
        for _ in range(3):
            told = await explain(stage.running.gateway, model="test", key=None)
            assert [each["name"] for each in told["targets"]] == ["a", "b"]
        assert stage.status.targets["a"].probes == 0


async def test_administrators_can_see_the_circuits(staged: Any) -> None:
    async with staged(failures=1, admin_api=True) as stage:
        stage.a.status = 500
        await stage.ask()
        as_root = {"x-api-key": "root"}
        shown = (await stage.client.get("/admin/breaker", headers=as_root)).json()
        assert shown["worker"] == 0 and shown["targets"]["a"]["state"] == "open"
        assert shown["targets"]["a"]["rate"] == 1.0 and shown["targets"]["b"]["reason"] == ""
        refused = await stage.client.get("/admin/breaker", headers={"x-api-key": "ada"})
        assert refused.status_code == 403


async def test_nobody_can_see_the_circuits_unless_configured(staged: Any) -> None:
    async with staged() as stage:
        assert (await stage.client.get("/admin/breaker", headers={"x-api-key": "root"})).status_code == 404


async def test_requests_that_were_sent_before_it_came_back_do_not_open_it_again(staged: Any) -> None:
    async with staged(failures=1, slow_start=0) as stage:
        stage.a.hold = old = asyncio.Event()
        hung = [stage.asks() for _ in range(3)]
        await stage.until(lambda: stage.a.held == 3)
        stage.a.hold, stage.a.status = None, 500
        await stage.ask()
        assert stage.state("a") == "open"
        stage.a.status = 200
        stage.turn_to("a", "half_open")
        await stage.ask()
        assert stage.state("a") == "closed"
        stage.a.status = 500
        old.set()
        assert [(await each).status_code for each in hung] == [200] * 3
        assert stage.state("a") == "closed" and stage.status.targets["a"].failures == 0


async def test_a_refusal_of_another_plugin_is_not_taken_for_the_backends(staged: Any) -> None:
    class Picky:
        def __init__(self, config: Any, gateway: Any) -> None: ...

        @hookimpl
        async def prepare_attempt(self, attempt: Attempt) -> None:
            if attempt.target.name == "a":
                raise UpstreamError("Not this one.", code="picky")

    async with staged(failures=1, plugins={"picky": Picky}) as stage:
        assert await stage.ask_often(3) == [200] * 3
        assert stage.state("a") == "closed"
