"""A backend that failed before its first byte: nginx asks what to do next, and the waiting request goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from headrace.front import lanes_of
from headrace.testing import COMPLETION, DONE, FakeBackend

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
NOWHERE = {"provider": "openai", "base_url": "http://127.0.0.1:9"}
A = "a" * 32
ID = {"x-request-id": "one-request"}

ARRIVAL = ["authenticate", "authorize", "transform_request", "admit in", "open_tap", "cache_lookup"]
TRIED = ["prepare_attempt", "on_attempt"]

Fronted = Callable[..., Any]


def two_targets(backend: FakeBackend) -> dict[str, Any]:
    """A backend that is `first` and `second`, under another name each."""
    table = {"provider": "openai", "base_url": backend.url}
    return backend.config(
        backends={"first": {**table, "model": "m1"}, "second": {**table, "model": "m2", "max_connections": 7}},
        models={"test": {"targets": ["first", "second"]}},
    )


@pytest.fixture
async def first_alone(fronted: Fronted, backend: FakeBackend) -> frozenset[str]:
    """The lanes of a front that knows `first` and not `second`."""
    async with fronted(two_targets(backend), proven=False) as nginx:
        return frozenset({lanes_of(nginx.gateway.models.find("test").targets)["first"].key})


async def test_the_next_target_is_handed_to_nginx(fronted: Fronted, recorder: Any, backend: FakeBackend) -> None:
    async with fronted(two_targets(backend), {"r": recorder}) as nginx:
        first = await nginx.ask(CHAT)
        second = await nginx.again(failed="502|0.001|-")
        groups = [lane.group for lane in lanes_of(nginx.gateway.models.find("test").targets).values()]
        assert [each.headers["x-headrace-group"] for each in (first, second)] == groups
        assert "m1" in first.headers["x-headrace-edits"] and "m2" in second.headers["x-headrace-edits"]
        more = [each.headers.get("x-headrace-more") for each in (first, second)]
        assert more == [None, "1"]  # nginx forgets what it was told of headers at the first try
        assert recorder.calls == [*ARRIVAL, *TRIED, "prepare_attempt"]
        await nginx.report()
        outcome = await recorder.outcome()
    assert recorder.calls[len(ARRIVAL) :] == [
        *[*TRIED, "prepare_attempt", "tap closed True", "admit out", "on_attempt", "on_complete"]
    ]
    assert (outcome.target, outcome.attempts, outcome.completed, outcome.error) == ("second", 2, True, None)
    failed, answered = recorder.attempts
    assert (failed.target, failed.status, failed.error.message) == (
        "first",
        502,
        "The connection to the backend broke.",
    )
    assert (answered.target, answered.status, answered.completed) == ("second", 200, True)


@pytest.mark.parametrize(("body", "end"), [(CHAT, COMPLETION), (STREAM, DONE)])
async def test_the_next_target_is_asked_by_the_core_and_nginx_gets_its_answer(
    fronted: Fronted, recorder: Any, backend: FakeBackend, first_alone: frozenset[str], body: Any, end: bytes
) -> None:
    async with fronted(two_targets(backend), {"r": recorder}, lanes=first_alone) as nginx:
        await nginx.ask(body)
        response = await nginx.again()
        outcome = await recorder.outcome()
    assert (response.status_code, response.content.endswith(end)) == (200, True)
    assert (outcome.delivery, outcome.delivery_reason) == ("inline", "nginx does not know this backend")
    assert (outcome.target, outcome.attempts, outcome.completed) == ("second", 2, True)
    assert outcome.bytes_sent == len(response.content)
    assert msgspec.json.decode(backend.requests[0][2])["model"] == "m2"


async def test_a_client_that_leaves_while_the_core_asks_the_next_target_is_noticed(
    fronted: Fronted, recorder: Any, backend: FakeBackend, first_alone: frozenset[str]
) -> None:
    backend.silent = True
    async with fronted(two_targets(backend), {"r": recorder}, lanes=first_alone) as nginx:
        await nginx.ask(CHAT)
        asking = asyncio.create_task(nginx.again())
        async with asyncio.timeout(10):
            while not backend.requests:
                await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.wait_for(backend.closed_early.wait(), 10)
        outcome = await recorder.outcome()
    assert (outcome.status, outcome.aborted, outcome.attempts) == (499, True, 2)
    assert recorder.calls.count("on_attempt") == 2


FAILURES: dict[str, tuple[dict[str, Any], Any, str]] = {
    "refused": ({"base_url": "http://127.0.0.1:9"}, None, "502|-|-"),
    "500": ({}, (500, {}), "500|0.001|0.002"),
    "503 and when to come back": ({}, (503, {"Retry-After": "7"}), "503|0.001|0.002"),
    "429 and when to come back": ({}, (429, {"Retry-After": "7"}), "429|0.001|0.002"),
    "429": ({}, (429, {}), "429|0.001|0.002"),
    "401": ({}, (401, {}), "401|0.001|0.002"),
    "302": ({}, (302, {}), "302|0.001|0.002"),
    "silent": ({"timeouts": {"first_byte": 0.1}}, "silent", "504|0.001|-"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_when_all_fail_the_client_is_told_the_same_in_both_deliveries(
    fronted: Fronted, recorder: Any, backend: FakeBackend, name: str
) -> None:
    table, answer, failed = FAILURES[name]
    own = backend.config(backends={"fake": {"provider": "openai", "base_url": backend.url, **table}})
    backend.silent = answer == "silent"
    if isinstance(answer, tuple):
        backend.status, backend.response_headers = answer
    async with fronted({**own, "server": {"anonymous": True, "delivery": "inline"}}, {"r": recorder}) as nginx:
        inline = await nginx.ask(CHAT, headers=ID)
        outcomes = [await recorder.outcome()]
        calls = recorder.calls[:]
        recorder.calls.clear()
    async with fronted(own, {"r": recorder}) as nginx:
        await nginx.ask(CHAT, headers=ID)
        offloaded = await nginx.again(failed=failed, retry_after=backend.response_headers.get("Retry-After", ""))
        outcomes.append(await recorder.outcome())
    assert offloaded.status_code == inline.status_code
    assert without_words(offloaded) == without_words(inline)
    assert {**offloaded.headers, "date": "", "content-length": ""} == {
        **inline.headers,
        "date": "",
        "content-length": "",
    }
    assert recorder.calls == calls
    assert len({(each.status, each.error.code, each.target, each.attempts, each.completed) for each in outcomes}) == 1


def without_words(response: httpx.Response) -> Any:
    """The error; of a timeout the core alone knows for how long it has waited."""
    error = response.json()["error"]
    return {**error, "message": ""} if error["code"] == "upstream_timeout" else error


SAID = [
    ("500, 503|0.1, 0.2|0.1, 0.2", 503, "The backend is not available."),
    ("503 : 500|0.1 : 0.2|0.1 : 0.2", 502, "The backend failed with status 500."),
    ("502|0.001|-", 502, "The connection to the backend broke."),
    ("504|-|-", 504, "The backend did not answer in time."),
    ("", 503, "The backend cannot be reached."),
    ("-|-|-", 503, "The backend cannot be reached."),
    ("x", 503, "The backend cannot be reached."),
    ("1|2|3|4", 502, "The backend answered with status 1, no answer: is its base_url right?"),
]
"""What nginx says, the status the client gets if that was the only backend, and the message."""


async def test_what_nginx_says_of_a_failure_is_understood(fronted: Fronted, backend: FakeBackend) -> None:
    async with fronted(backend.config()) as nginx:
        for failed, status, message in SAID:
            await nginx.ask(CHAT)
            response = await nginx.again(failed=failed)
            assert (response.status_code, response.json()["error"]["message"]) == (status, message), failed


# --- Who may ask ---


async def test_a_request_that_nobody_here_knows_is_answered_503(fronted: Fronted, backend: FakeBackend) -> None:
    async with fronted(backend.config()) as nginx:
        response = await nginx.again("c" * 32)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    error = response.json()["error"]
    assert (error["code"], error["message"]) == (
        "unavailable",
        "The gateway was restarted while it waited for a backend.",
    )


async def test_a_request_is_given_back_once(fronted: Fronted, recorder: Any, backend: FakeBackend) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        assert (await nginx.again()).json()["error"]["code"] == "unavailable"
        assert (await nginx.again()).headers["retry-after"] == "1"
        await recorder.outcome()
        assert recorder.is_told_no_more()


async def test_a_request_that_has_ended_is_not_given_back(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        await nginx.report()
        await recorder.outcome()
        assert (await nginx.again()).status_code == 503


async def test_whoever_does_not_show_the_mark_finds_nothing_there(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with fronted(backend.config(), {"r": recorder}) as nginx:
        await nginx.ask(CHAT)
        key, mark = {"x-headrace-exchange": A}, "x-headrace-mark"
        for headers in ({}, {mark: nginx.mark}, key, {**key, mark: "wrong 1"}, {**key, mark: nginx.front.mark}):
            response = await nginx.client.post("/.headrace/again", headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
        assert len(nginx.gateway.reporting) == 1


async def test_over_tcp_there_is_nothing_even_with_the_mark(
    fronted: Fronted, recorder: Any, backend: FakeBackend
) -> None:
    async with (
        fronted(backend.config(), {"r": recorder}) as nginx,
        httpx.AsyncClient(base_url=nginx.url, trust_env=False, timeout=30) as client,
    ):
        await nginx.ask(CHAT)
        marks = {"x-headrace-mark": nginx.mark, "x-headrace-exchange": A}
        assert (await client.post("/.headrace/again", headers=marks)).status_code == 404
        assert len(nginx.gateway.reporting) == 1


async def test_the_end_of_the_gateway_answers_what_nginx_has_given_back(
    fronted: Fronted, recorder: Any, backend: FakeBackend, first_alone: frozenset[str]
) -> None:
    backend.silent = True
    own = {**two_targets(backend), "server": {"anonymous": True, "shutdown_timeout": 0.5}}
    async with fronted(own, {"r": recorder}, lanes=first_alone) as nginx:
        await nginx.ask(CHAT)
        nginx.has.clear()
        asking = asyncio.create_task(nginx.again(client=(client := nginx.connect())))
        async with asyncio.timeout(10):
            while not backend.requests:
                await asyncio.sleep(0.005)
    response = await asking
    await client.aclose()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    outcome = await recorder.outcome()
    assert (outcome.error.code, outcome.attempts) == ("shutting_down", 2)
