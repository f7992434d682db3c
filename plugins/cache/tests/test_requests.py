"""What callers see: hits and misses, whole and streamed, and what is never cached."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace import hookimpl
from headrace.exchange import Attempt
from headrace.testing import FakeBackend


async def test_the_second_request_is_answered_without_the_backend(cached: Any, chat: Any) -> None:
    async with cached() as gateway:
        first, second = await gateway.ask(chat), await gateway.ask(chat)
        assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
        assert "age" not in first.headers and int(second.headers["age"]) < 20
        assert first.content == second.content and second.headers["content-type"] == "application/json"
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert gateway.asked == 1


async def test_a_stream_is_replayed_byte_for_byte(cached: Any, stream: Any, backend: FakeBackend) -> None:
    backend.chunks = 50
    async with cached() as gateway:
        first, second = await gateway.ask(stream), await gateway.ask(stream)
        assert first.content == second.content and second.content.endswith(b"data: [DONE]\n\n")
        assert second.headers["content-type"].startswith("text/event-stream")
        assert (second.headers["x-cache"], gateway.asked) == ("hit", 1)


async def test_a_hit_takes_no_tokens(cached: Any, stream: Any) -> None:
    body = {**stream, "stream_options": {"include_usage": True}}
    async with cached() as gateway:
        await gateway.ask(body)
        await gateway.ask(body)
        first, second = gateway.outcomes
        assert (first.source, first.usage.prompt_tokens) == ("upstream", 5)
        assert (second.source, second.usage.prompt_tokens, second.attempts) == ("cache", 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.7},
        {"temperature": None},
        {"temperature": 1, "seed": None},
        {"store": True},
        {"tools": [{"type": "web_search"}]},
        {"web_search_options": {"user_location": "x"}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]}]},
    ],
)
async def test_what_may_be_answered_otherwise_is_not_cached(cached: Any, chat: Any, change: dict[str, Any]) -> None:
    body = {name: value for name, value in {**chat, **change}.items() if value is not None}
    async with cached() as gateway:
        answers = [await gateway.ask(body), await gateway.ask(body)]
        assert [each.headers["x-cache"] for each in answers] == ["bypass", "bypass"]
        assert (gateway.asked, gateway.counts().bypasses) == (2, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.7, "seed": 42},
        {"temperature": 0.0},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"url": {}}}}}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,a"}}]}]},
    ],
)
async def test_what_is_meant_to_be_the_same_is_cached(cached: Any, chat: Any, change: dict[str, Any]) -> None:
    async with cached() as gateway:
        await gateway.ask({**chat, **change})
        assert (await gateway.ask({**chat, **change})).headers["x-cache"] == "hit"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"test","temperature":1,"temperature":0,"messages":[{"role":"user","content":"a"}]}',
        b'{"model":"test","temperature":0,"messages":[{"role":"user","content":"a","content":"b"}]}',
        b'{"model":"test","temperature":0,"messages":[{"role":"user","content":"a"}],"x":1e999}',
        b'{"model":"test","temperature":0,"messages":[{"role":"user","content":"a"}],"x":-0}',
    ],
)
async def test_a_body_that_can_be_read_in_two_ways_is_not_cached(cached: Any, body: bytes) -> None:
    async with cached() as gateway:
        assert (await gateway.ask(body)).headers["x-cache"] == "bypass"


async def test_no_store_neither_looks_nor_keeps(cached: Any, chat: Any) -> None:
    async with cached() as gateway:
        assert (await gateway.ask(chat, cache_control="no-store")).headers["x-cache"] == "bypass"
        assert (await gateway.ask(chat)).headers["x-cache"] == "miss"
        assert (await gateway.ask(chat, cache_control="no-store")).headers["x-cache"] == "bypass"
        assert gateway.asked == 3


@pytest.mark.parametrize(
    "headers", [{"cache_control": "no-cache"}, {"cache_control": "max-age=0"}, {"x_headrace_cache": "refresh"}]
)
async def test_no_cache_asks_anew_and_keeps_the_new_answer(
    cached: Any, stream: Any, backend: FakeBackend, headers: dict[str, str]
) -> None:
    async with cached() as gateway:
        await gateway.ask(stream)
        backend.chunks = 7
        new = await gateway.ask(stream, **headers)
        assert (new.headers["x-cache"], gateway.asked) == ("miss", 2)
        again = await gateway.ask(stream)
        assert (again.headers["x-cache"], again.content) == ("hit", new.content)


async def test_max_age_refuses_an_answer_that_is_older(cached: Any, chat: Any) -> None:
    async with cached() as gateway:
        await gateway.ask(chat)
        assert (await gateway.ask(chat, cache_control="max-age=60")).headers["x-cache"] == "hit"
        await asyncio.sleep(1.1)  # an age is told in whole seconds
        assert (await gateway.ask(chat, cache_control="max-age=0")).headers["x-cache"] == "miss"


async def test_a_client_may_ask_for_what_is_not_deterministic(cached: Any, chat: Any) -> None:
    body = {**chat, "temperature": 1}
    async with cached() as gateway:
        await gateway.ask(body, x_headrace_cache="on; ttl=60")
        assert (await gateway.ask(body, x_headrace_cache="on")).headers["x-cache"] == "hit"
        assert (await gateway.ask(body)).headers["x-cache"] == "bypass"


async def test_clients_ask_in_vain_where_it_is_not_allowed(cached: Any, chat: Any) -> None:
    async with cached(on_request=False) as gateway:
        answer = await gateway.ask({**chat, "temperature": 1}, x_headrace_cache="on")
        assert answer.headers["x-cache"] == "bypass"


async def test_a_wish_that_cannot_be_read_is_an_error(cached: Any, chat: Any) -> None:
    async with cached() as gateway:
        answer = await gateway.ask(chat, x_headrace_cache="maybe")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_header")
        assert "X-Headrace-Cache" in answer.json()["error"]["message"] and gateway.asked == 0


async def test_errors_are_not_kept(cached: Any, chat: Any, backend: FakeBackend) -> None:
    backend.status = 400
    async with cached() as gateway:
        assert (await gateway.ask(chat)).status_code == 400
        backend.status = 200
        assert (await gateway.ask(chat)).status_code == 200
        assert (await gateway.ask(chat)).headers["x-cache"] == "hit"


async def test_a_cut_stream_is_not_kept(cached: Any, stream: Any, backend: FakeBackend) -> None:
    backend.cut_after = 1
    async with cached() as gateway:
        assert b"stream_truncated" in (await gateway.ask(stream)).content
        backend.cut_after = None
        answer = await gateway.ask(stream)
        assert (answer.headers["x-cache"], gateway.counts().stored) == ("miss", 1)
        assert answer.content.endswith(b"[DONE]\n\n")


async def test_an_answer_that_is_too_large_is_not_kept(cached: Any, stream: Any, backend: FakeBackend) -> None:
    backend.chunks = 50
    async with cached(max_entry_bytes=2048, memory_bytes=4096) as gateway:
        await gateway.ask(stream)
        assert (await gateway.ask(stream)).headers["x-cache"] == "miss"
        assert gateway.counts().entries == 0


async def test_the_least_recently_used_answers_make_room(cached: Any, chat: Any) -> None:
    async with cached(memory_bytes=4096, max_entry_bytes=2048) as gateway:  # some three of them
        for number in range(10):
            await gateway.ask({**chat, "seed": number})
        counts = gateway.counts()
        assert 1 <= counts.entries <= 4 and counts.bytes <= 4096 and counts.evictions == 10 - counts.entries
        assert (await gateway.ask({**chat, "seed": 9})).headers["x-cache"] == "hit"
        assert (await gateway.ask({**chat, "seed": 0})).headers["x-cache"] == "miss"


async def test_models_have_their_own_rules(cached: Any, chat: Any) -> None:
    async with cached(models={"test": {"enabled": False}}) as gateway:
        assert (await gateway.ask(chat)).headers["x-cache"] == "bypass"
    async with cached(models={"test": {"always": True, "ttl": 1}}) as gateway:
        body = {**chat, "temperature": 1}
        await gateway.ask(body)
        assert (await gateway.ask(body)).headers["x-cache"] == "hit"
        await asyncio.sleep(1.1)
        assert (await gateway.ask(body)).headers["x-cache"] == "miss"


async def test_answers_say_what_the_backend_was_not_asked_each_time(cached: Any) -> None:
    class Dropping:
        def __init__(self, config: Any, gateway: Any) -> None:
            pass

        @hookimpl
        async def prepare_attempt(self, attempt: Attempt) -> None:
            attempt.drop("logit_bias")

    async with cached(more={"dropping": Dropping}) as gateway:
        answers = [await gateway.ask(), await gateway.ask()]
        assert [each.headers["x-headrace-dropped"] for each in answers] == ["logit_bias", "logit_bias"]
        assert answers[1].headers["x-cache"] == "hit"


async def test_embeddings_are_cached_always(cached: Any, backend: Any) -> None:
    backend.embeds = True
    body = {"model": "test", "input": ["a", "b"]}
    async with cached() as gateway:
        first = await gateway.ask(body, "embeddings")
        again = await gateway.ask(body, "embeddings")
        assert (again.headers["x-cache"], again.content) == ("hit", first.content)


async def test_an_answer_that_tells_of_an_error_is_not_kept(cached: Any, backend: FakeBackend) -> None:
    async with cached() as gateway:
        await gateway.ask({"model": "test", "input": "a"}, "embeddings")  # answered with a chat
        assert gateway.counts().stored == 0
