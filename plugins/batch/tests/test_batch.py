"""Batches: what they may look like, and what comes of each of their chats."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from headrace.testing import FakeBackend


def said(backend: FakeBackend) -> list[str]:
    """What the backend was asked, in the order of the asking."""
    return [json.loads(body)["messages"][0]["content"] for _, _, body in backend.requests]


async def test_every_chat_is_answered_in_its_order(gateway: Callable[..., Any], backend: FakeBackend, kit: Any) -> None:
    async with gateway() as asker:
        answer = await asker.ask(kit.chats(5), x_request_id="abc")
    body = answer.json()
    assert (answer.status_code, body["object"], body["id"]) == (200, "list", "abc")
    assert body["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert [line["custom_id"] for line in body["data"]] == ["0", "1", "2", "3", "4"]
    assert [line["response"]["request_id"] for line in body["data"]] == [f"abc-{number}" for number in range(5)]
    assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in body["data"])
    assert body["data"][0]["response"]["body"]["choices"][0]["message"]["content"] == "hi"
    assert sorted(said(backend)) == ["0", "1", "2", "3", "4"]


async def test_a_plain_list_is_a_batch(gateway: Callable[..., Any], backend: FakeBackend, kit: Any) -> None:
    async with gateway() as asker:
        answer = await asker.ask([kit.chat("a"), kit.chat("b")])
    assert answer.json()["request_counts"]["completed"] == 2
    assert sorted(said(backend)) == ["a", "b"]


async def test_lines_of_openais_batches_are_understood(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    lines = [
        {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": kit.chat("a")},
        {"custom_id": "two", "method": "POST", "url": "/v1/embeddings", "body": {}},
        {"custom_id": "three", **kit.chat("b")},
    ]
    async with gateway() as asker:
        data = (await asker.ask({"requests": lines})).json()["data"]
    assert [(line["custom_id"], line["response"]["status_code"]) for line in data] == [
        ("one", 200),
        ("two", 400),
        ("three", 200),
    ]
    assert data[1]["response"]["body"]["error"]["param"] == "url"
    assert all("custom_id" not in json.loads(body) for _, _, body in backend.requests)


async def test_vllms_shape_is_understood(gateway: Callable[..., Any], backend: FakeBackend) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("a", "b")]
    async with gateway() as asker:
        answer = await asker.ask({"model": "test", "messages": conversations, "max_tokens": 3})
    assert answer.json()["request_counts"]["completed"] == 2
    assert sorted(said(backend)) == ["a", "b"]
    assert all(json.loads(body)["max_tokens"] == 3 for _, _, body in backend.requests)


async def test_what_is_wrong_with_one_is_no_matter_of_the_others(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    requests = [kit.chat("a"), 7, {"model": "test"}, kit.chat("b", stream=True), kit.chat(model="no"), kit.chat("c")]
    async with gateway() as asker:
        body = (await asker.ask(requests)).json()
    assert [line["response"]["status_code"] for line in body["data"]] == [200, 400, 400, 400, 404, 200]
    assert body["data"][3]["response"]["body"]["error"]["param"] == "stream"
    assert body["data"][4]["response"]["body"]["error"]["code"] == "model_not_found"
    assert body["request_counts"] == {"total": 6, "completed": 2, "failed": 4}


async def test_limits_are_those_of_each_chat(gateway: Callable[..., Any], kit: Any) -> None:
    async with gateway(concurrency=1) as asker:
        asker.bouncer.most = 2
        body = (await asker.ask(kit.chats(4))).json()
    assert [line["response"]["status_code"] for line in body["data"]] == [200, 200, 429, 429]


async def test_the_callers_key_is_that_of_each_chat(gateway: Callable[..., Any], kit: Any) -> None:
    async with gateway() as asker:
        await asker.ask(kit.chats(3))
        seen = asker.bouncer.seen
    assert [exchange.principal.id for exchange in seen] == ["ada"] * 3
    assert {exchange.client for exchange in seen} == {"127.0.0.1"}


async def test_a_wrong_key_is_refused_before_anything_is_asked(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    async with gateway() as asker:
        answer = await asker.ask(kit.chats(3), key="wrong")
    assert (answer.status_code, backend.requests) == (401, [])


async def test_what_is_between_nginx_and_the_core_is_not_said_of_the_chats(
    gateway: Callable[..., Any], kit: Any
) -> None:
    names = ("mark", "exchange", "spooled", "failed", "retry-after", "send-x-injected")
    async with gateway() as asker:
        headers = {f"x_headrace_{name}".replace("-", "_"): "7" for name in names}
        await asker.ask(kit.chats(1), **headers, x_headrace_queue_timeout="3", idempotency_key="k")
        (exchange,) = asker.bouncer.seen
    assert [name for name, _ in exchange.headers if name.startswith(b"x-headrace")] == [b"x-headrace-queue-timeout"]
    assert exchange.header(b"idempotency-key") is None
    assert exchange.header(b"content-type") == "application/json"
    assert [value for name, value in exchange.headers if name == b"x-request-id"] == [exchange.id.encode()]


async def test_an_error_of_the_backend_is_the_answer_to_its_chat(
    gateway: Callable[..., Any], backend: FakeBackend, kit: Any
) -> None:
    backend.status = 500
    async with gateway() as asker:
        body = (await asker.ask(kit.chats(2))).json()
    assert [line["response"]["status_code"] for line in body["data"]] == [502, 502]
    assert body["data"][0]["response"]["body"]["error"]["code"] == "upstream_error"


async def test_an_answer_that_is_too_large_is_an_error_of_its_chat(gateway: Callable[..., Any], kit: Any) -> None:
    async with gateway(max_reply_bytes=100) as asker:
        body = (await asker.ask(kit.chats(1))).json()
    (line,) = body["data"]
    assert (line["response"], line["error"]["code"]) == (None, "answer_too_large")
    assert body["request_counts"]["failed"] == 1


@pytest.mark.parametrize(
    "body, param, code",
    [
        (b"{", None, "invalid_json"),
        (b'{"requests": [{"a": \xff}]}', None, "invalid_json"),
        (b"7", None, "invalid_json"),
        (b"{}", "requests", "missing_field"),
        (b"[]", "requests", "invalid_value"),
        (b'{"requests": {}}', None, "invalid_json"),
        (b'{"model": "test", "messages": [{"role": "user", "content": "hi"}]}', "messages", "invalid_field"),
        (b'{"model": "test", "messages": [[]], "stream": true}', "stream", "invalid_request"),
        (b"[1, 2, 3, 4]", "requests", "batch_too_large"),
    ],
)
async def test_what_is_no_batch_is_refused(
    gateway: Callable[..., Any], backend: FakeBackend, body: bytes, param: str | None, code: str
) -> None:
    async with gateway(max_items=3) as asker:
        answer = await asker.ask(body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"], backend.requests) == (param, code, [])


async def test_a_body_that_is_too_large_is_refused(gateway: Callable[..., Any], kit: Any) -> None:
    async with gateway(max_body_bytes=500) as asker:
        answer = await asker.ask(kit.chats(1, user="x" * 1000))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_a_long_request_id_stays_one(gateway: Callable[..., Any], kit: Any) -> None:
    async with gateway() as asker:
        body = (await asker.ask(kit.chats(1), x_request_id="a" * 128)).json()
        (exchange,) = asker.bouncer.seen
    assert body["data"][0]["id"] == exchange.id == f"{'a' * 120}-0"
