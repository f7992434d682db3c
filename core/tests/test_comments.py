"""A stream whose request waits: comments keep its connection alive, and what comes then is told within the stream."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.errors import Unavailable
from headrace.exchange import Exchange, Outcome
from headrace.testing import FakeBackend, serve

CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}


class Waiting:
    """Says twice that the request waits, then lets it in or refuses it."""

    refuse: bool
    outcomes: list[Outcome]

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    def admit(self, exchange: Exchange) -> Any:
        return self._wait(exchange)

    @contextlib.asynccontextmanager
    async def _wait(self, exchange: Exchange) -> AsyncIterator[None]:
        await exchange.comment(b"waiting")
        await exchange.comment(b"waiting")
        if self.refuse:
            raise Unavailable("Too many wait.", code="overloaded")
        yield

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@contextlib.asynccontextmanager
async def waiting(refuse: bool = False) -> AsyncIterator[tuple[FakeBackend, type[Waiting], httpx.AsyncClient]]:
    there = type("There", (Waiting,), {"refuse": refuse, "outcomes": []})
    async with (
        FakeBackend() as backend,
        serve(backend.config(), {"waiting": there}) as gateway,
        httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client,
    ):
        yield backend, there, client


async def test_a_waiting_stream_gets_comments_and_then_all_of_its_answer() -> None:
    async with waiting() as (_, there, client):
        answer = await client.post("/v1/chat/completions", json=STREAM)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "x-request-id" in answer.headers
    assert answer.text.startswith(": waiting\n\n: waiting\n\ndata: {")
    assert answer.text.endswith("data: [DONE]\n\n")
    (outcome,) = there.outcomes
    assert outcome.completed and outcome.delivery == "inline" and "waited" in outcome.delivery_reason


async def test_a_whole_answer_cannot_be_commented_on() -> None:
    async with waiting() as (_, _, client):
        answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.json()["object"] == "chat.completion"


async def test_a_stream_that_is_refused_after_waiting_is_told_so_by_an_event() -> None:
    async with waiting(refuse=True) as (_, there, client):
        answer = await client.post("/v1/chat/completions", json=STREAM)
    *_, last, end = answer.text.split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "overloaded"
    assert end == "" and "[DONE]" not in answer.text
    assert not there.outcomes[0].completed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":400}}', "too long"),
        (b'{"detail":"no"}', "The backend did not answer with a stream."),
    ],
)
async def test_what_a_backend_refuses_is_told_by_an_event(body: bytes, message: str) -> None:
    async with waiting() as (backend, there, client):
        backend.status, backend.error_body = 400, body
        answer = await client.post("/v1/chat/completions", json=STREAM)
    assert answer.status_code == 200
    last = answer.text.rstrip().rpartition("data: ")[2]
    assert json.loads(last)["error"]["message"] == message
    assert there.outcomes[0].error is not None and there.outcomes[0].error.status == 400


async def test_a_backend_that_breaks_off_is_told_as_ever() -> None:
    async with waiting() as (backend, _, client):
        backend.cut_after = 1
        answer = await client.post("/v1/chat/completions", json=STREAM)
    assert "stream_truncated" in answer.text and "[DONE]" not in answer.text
