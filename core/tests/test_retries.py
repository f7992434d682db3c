"""Who is asked next when a backend has failed, when, and how often."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import socket
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.errors import Unavailable
from headrace.exchange import Exchange, Principal
from headrace.retries import SAVED, RetryBudget, retry_after
from headrace.testing import FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
TOO_LONG = b'{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}'
QUICK = {"backoff": 0.01}


class Backend(FakeBackend):
    """Fails as often as it is told to, and then answers."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[int] = []

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        self.status = self.failures.pop(0) if self.failures else 200
        return await super()._answer(path, body, writer)

    @property
    def asked(self) -> int:
        return len(self.requests)

    @property
    def sent(self) -> list[Any]:
        """The models that were asked for."""
        return [httpx.Response(200, content=body).json()["model"] for _, _, body in self.requests]


@contextlib.asynccontextmanager
async def gateway(count: int = 2, /, **model: Any) -> AsyncIterator[SimpleNamespace]:
    """A model `test` with so many backends in a row, and a model `other` with one more."""
    async with contextlib.AsyncExitStack() as stack:
        backends = [await stack.enter_async_context(Backend()) for _ in range(count + 1)]
        config = backends[0].config()
        config["backends"] = {
            f"b{number}": {"provider": "openai", "base_url": each.url, "timeouts": model.pop("timeouts", {})}
            for number, each in enumerate(backends)
        }
        retry = {**QUICK, **model.pop("retry", {})}
        names = [f"b{number}" for number in range(count)]
        config["models"] = {"test": {"targets": names, "retry": retry, **model}, "other": {"targets": [f"b{count}"]}}
        running = await stack.enter_async_context(serve(config))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=30))

        async def chat(**fields: Any) -> httpx.Response:
            return await client.post("/v1/chat/completions", json={**CHAT, **fields})

        yield SimpleNamespace(backends=backends[:count], other=backends[count], chat=chat, running=running)


async def test_a_backend_that_failed_once_is_asked_again_when_nobody_else_is_left() -> None:
    async with gateway(1) as it:
        it.backends[0].failures = [500]
        assert (await it.chat()).status_code == 200
        assert it.backends[0].asked == 2


async def test_others_are_asked_before_the_same_one_again() -> None:
    async with gateway(2) as it:
        it.backends[0].failures = [500]
        assert (await it.chat()).status_code == 200
        assert [each.asked for each in it.backends] == [1, 1]


async def test_each_target_is_asked_once_a_round() -> None:
    async with gateway(2, retry={"rounds": 3}) as it:
        for each in it.backends:
            each.failures = [500] * 9
        assert (await it.chat()).status_code == 502
        assert [each.asked for each in it.backends] == [3, 3]


async def test_no_request_is_tried_more_often_than_allowed() -> None:
    async with gateway(3, retry={"rounds": 9, "attempts": 4}) as it:
        for each in it.backends:
            each.failures = [500] * 9
        assert (await it.chat()).status_code == 502
        assert sum(each.asked for each in it.backends) == 4


async def test_a_backend_is_given_the_time_it_asks_for() -> None:
    async with gateway(1) as it:
        it.backends[0].failures, it.backends[0].response_headers = [429], {"Retry-After": "0.3"}
        started = time.monotonic()
        assert (await it.chat()).status_code == 200
        assert time.monotonic() - started >= 0.3


async def test_a_backend_that_asks_for_too_much_time_is_not_asked_again() -> None:
    async with gateway(1, retry={"max_retry_after": 1}) as it:
        it.backends[0].failures, it.backends[0].response_headers = [429], {"Retry-After": "2"}
        answer = await it.chat()
        assert (answer.status_code, answer.headers["retry-after"], it.backends[0].asked) == (429, "2", 1)


async def test_of_two_that_want_to_be_left_alone_the_one_that_is_free_first_is_asked() -> None:
    async with gateway(2) as it:
        for each, seconds in zip(it.backends, ("5", "0.2"), strict=True):
            each.failures, each.response_headers = [429], {"Retry-After": seconds}
        assert (await it.chat()).status_code == 200
        assert [each.asked for each in it.backends] == [1, 2]


async def test_a_backend_that_kept_silent_is_not_asked_again() -> None:
    async with gateway(1, deadlines={"first_byte": 0.2}) as it:
        it.backends[0].silent = True
        assert (await it.chat()).status_code == 504
        assert it.backends[0].asked == 1


async def test_a_backend_that_refuses_our_key_is_not_asked_again_and_the_caller_is_not_blamed() -> None:
    async with gateway(1) as it:
        it.backends[0].failures = [401] * 9
        answer = await it.chat()
        assert (answer.status_code, answer.json()["error"]["code"], it.backends[0].asked) == (502, "upstream_auth", 1)


async def test_only_the_errors_that_are_named_are_tried_again() -> None:
    async with gateway(2, retry={"on": ["upstream_rate_limited"]}) as it:
        it.backends[0].failures = [500]
        assert (await it.chat()).status_code == 502
        assert it.backends[1].asked == 0


async def test_the_models_to_fall_back_on_are_asked_before_the_second_round() -> None:
    async with gateway(2, fallback_models=["other"]) as it:
        for each in it.backends:
            each.failures = [500]
        assert (await it.chat()).status_code == 200
        assert [each.asked for each in it.backends] == [1, 1]
        assert it.other.sent == ["other"]  # by its own name, for its backend knows no other


async def test_the_first_model_is_asked_again_when_those_to_fall_back_on_have_failed_too() -> None:
    async with gateway(1, fallback_models=["other"]) as it:
        it.backends[0].failures, it.other.failures = [500], [500]
        assert (await it.chat()).status_code == 200
        assert (it.backends[0].asked, it.other.asked) == (2, 1)


async def test_a_prompt_that_is_too_long_goes_to_the_larger_model_alone() -> None:
    async with gateway(2, context_window_fallbacks=["other"]) as it:
        it.backends[0].failures, it.backends[0].error_body = [400], TOO_LONG
        assert (await it.chat()).status_code == 200
        assert (it.backends[1].asked, it.other.asked) == (0, 1)


async def test_a_prompt_that_is_too_long_for_all_is_answered_as_the_backend_says_it() -> None:
    async with gateway(1, context_window_fallbacks=["other"]) as it:
        for each in (*it.backends, it.other):
            each.failures, each.error_body = [400] * 9, TOO_LONG
        answer = await it.chat()
        assert (answer.status_code, answer.content) == (400, TOO_LONG)
        assert (it.backends[0].asked, it.other.asked) == (1, 1)


async def test_a_larger_model_that_fails_is_asked_as_often_as_any_other() -> None:
    async with gateway(1, context_window_fallbacks=["other"]) as it:
        it.backends[0].failures, it.backends[0].error_body = [400], TOO_LONG
        it.other.failures = [500] * 9
        assert (await it.chat()).status_code == 502
        assert (it.backends[0].asked, it.other.asked) == (1, 2)


async def test_all_larger_models_are_asked_and_none_to_which_the_prompt_is_too_long() -> None:
    async with Backend() as small, Backend() as broken, Backend() as long, Backend() as other:
        config = small.config()
        made = {"small": small, "broken": broken, "long": long, "other": other}
        config["models"] = {
            name: {"targets": [{"provider": "openai", "base_url": each.url}]} for name, each in made.items()
        }
        config["models"]["small"] |= {"context_window_fallbacks": ["broken", "long"], "fallback_models": ["other"]}
        for each in made.values():
            assert isinstance(each, Backend)
        small.failures, small.error_body, broken.failures = [400], TOO_LONG, [503]
        async with serve(config) as running, httpx.AsyncClient() as client:
            answer = await client.post(f"{running.url}/v1/chat/completions", json={**CHAT, "model": "small"})
        assert answer.status_code == 200
        assert [len(each.requests) for each in made.values()] == [1, 1, 1, 0]


async def test_a_target_that_is_left_out_after_it_has_failed_is_not_waited_for() -> None:
    class LeavesOut:
        def __init__(self, config: Any, gateway: Any) -> None:
            pass

        @hookimpl
        def arrange(self, exchange: Exchange) -> None:
            if exchange.attempts:
                raise Unavailable("Nobody is left.", headers={"Retry-After": "60"})

    async with Backend() as backend:
        config = backend.config()
        config["models"]["test"]["retry"] = {"rounds": 9, "backoff": 0.001, "max_backoff": 0.001}
        backend.failures = [500] * 99
        async with serve(config, {"out": LeavesOut}) as running, httpx.AsyncClient() as client:
            answer = await client.post(f"{running.url}/v1/chat/completions", json=CHAT)
        assert (answer.status_code, len(backend.requests)) == (502, 1)


async def test_no_pause_is_longer_than_the_deadline_leaves() -> None:
    async with gateway(1, deadlines={"total": 6.0}) as it:
        it.backends[0].failures, it.backends[0].response_headers = [429] * 9, {"Retry-After": "9"}
        started = time.monotonic()
        assert (await it.chat()).status_code == 429
        assert time.monotonic() - started < 6.0


async def test_a_whole_answer_that_takes_longer_than_its_deadline_is_an_error() -> None:
    async with gateway(1, deadlines={"total": 0.3}) as it:
        it.backends[0].silent = True
        answer = await it.chat()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        await asyncio.wait_for(it.backends[0].closed_early.wait(), 5)


async def test_a_stream_that_takes_longer_than_its_deadline_ends_with_an_error_event() -> None:
    async with gateway(1, deadlines={"total": 3.0}) as it:
        it.backends[0].chunks, it.backends[0].pause = 1000, 0.05
        answer = await it.chat(stream=True)
        last = answer.text.rstrip().rpartition("\n\n")[2]
        assert '"deadline_exceeded"' in last
        assert "[DONE]" not in answer.text
        await asyncio.wait_for(it.backends[0].closed_early.wait(), 5)


async def test_a_client_that_reads_nothing_holds_its_request_no_longer_than_the_deadline() -> None:
    async with gateway(1, deadlines={"total": 4.0}) as it:
        it.backends[0].chunks = 1_000_000
        address = urlsplit(it.running.url)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((address.hostname, address.port))
            body = msgspec.json.encode({**CHAT, "stream": True})
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            await asyncio.wait_for(it.backends[0].streaming.wait(), 20)
            async with asyncio.timeout(20):
                while it.running.gateway.open_requests:
                    await asyncio.sleep(0.01)


async def test_a_stream_whose_first_token_is_late_is_asked_for_elsewhere() -> None:
    async with gateway(2, deadlines={"first_token": 0.3}) as it:
        it.backends[0].pause = 60
        answer = await it.chat(stream=True)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert [each.asked for each in it.backends] == [1, 1]
        await asyncio.wait_for(it.backends[0].closed_early.wait(), 5)


async def test_models_a_caller_may_not_use_give_no_answers_in_place_of_others() -> None:
    class Restricted:
        def __init__(self, config: Any, gateway: Any) -> None:
            pass

        @hookimpl
        async def authenticate(self) -> Principal:
            return Principal(id="someone", models=frozenset({"test"}))

    async with Backend() as backend, Backend() as other:
        assert isinstance(backend, Backend)
        assert isinstance(other, Backend)
        backend.failures = [500] * 9
        config = backend.config()
        config["models"]["test"]["fallback_models"] = ["other"]
        config["models"]["other"] = {"targets": [{"provider": "openai", "base_url": other.url}]}
        async with serve(config, {"restricted": Restricted}) as running, httpx.AsyncClient() as client:
            answer = await client.post(f"{running.url}/v1/chat/completions", json=CHAT)
        assert (answer.status_code, other.asked) == (502, 0)


class TestBudget:
    def test_each_request_earns_its_share_of_a_retry(self) -> None:
        budget = RetryBudget(0.25, 0.0)
        for _ in range(8):
            budget.earn()
        assert [budget.spend() for _ in range(3)] == [True, True, False]

    def test_some_are_free_every_second(self) -> None:
        now = [0.0]
        budget = RetryBudget(0.0, 2.0, lambda: now[0])
        assert [budget.spend() for _ in range(3)] == [True, True, False]
        now[0] = 1.0
        assert [budget.spend() for _ in range(3)] == [True, True, False]

    def test_quiet_times_do_not_save_up_for_ever(self) -> None:
        budget = RetryBudget(1.0, 0.0)
        for _ in range(10_000):
            budget.earn()
        assert sum(budget.spend() for _ in range(10_000)) == SAVED

    def test_a_floor_below_one_a_second_still_comes_to_one_in_time(self) -> None:
        now = [0.0]
        budget = RetryBudget(0.0, 0.5, lambda: now[0])
        assert not budget.spend()
        now[0] = 2.0
        assert budget.spend()


async def test_a_fleet_that_always_fails_is_not_asked_ever_more() -> None:
    async with gateway(2, retry={"budget": 0.2, "budget_floor": 0.0, "rounds": 5, "attempts": 100}) as it:
        for each in it.backends:
            each.failures = [500] * 1000
        for _ in range(50):
            assert (await it.chat()).status_code == 502
        assert 100 < sum(each.asked for each in it.backends) <= 100 + 50 * 0.2


async def test_the_budget_is_of_no_matter_to_targets_that_have_not_failed_yet() -> None:
    async with gateway(3, retry={"budget": 0.0, "budget_floor": 0.0}) as it:
        for each in it.backends[:2]:
            each.failures = [500] * 10
        for _ in range(5):
            assert (await it.chat()).status_code == 200


async def test_tries_after_a_refused_connection_cost_nothing() -> None:
    async with gateway(1, retry={"budget": 0.0, "budget_floor": 0.0}) as it:
        config = it.backends[0].config()
        closed = {"provider": "openai", "base_url": "http://127.0.0.1:9"}
        config["models"]["test"] = {"targets": [closed, "fake"], "retry": {"budget": 0, "budget_floor": 0}}
        async with serve(config) as running, httpx.AsyncClient() as client:
            for _ in range(5):
                assert (await client.post(f"{running.url}/v1/chat/completions", json=CHAT)).status_code == 200


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("soon", 0.0), ("", 0.0), ("1 Jan 99999999999 00:00:00 GMT", 0.0)],
)
def test_retry_after_is_a_number_of_seconds(value: str, seconds: float) -> None:
    assert retry_after(value) == seconds


def test_retry_after_may_be_a_date() -> None:
    assert 50 < retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
