"""Requests in a dialect that the backend does not speak: asked as chats, answered in the client's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from headrace import hookimpl
from headrace.chat import Chunk, Completion, Request, User
from headrace.dialects import Endpoint, OpenAIDialect, Peek
from headrace.errors import GatewayError, InvalidRequest
from headrace.exchange import Exchange, Reply, Usage
from headrace.openai_api import OpenAIBackend
from headrace.testing import FakeBackend, serve
from headrace.vetting import Vetting


class WordsPeek(Peek, kw_only=True):
    say: str
    max_tokens: int | None = None


class WordsDialect(OpenAIDialect):
    """`{"say": …}` is answered by `{"said": …}`; a stream's events are `word` and `end`."""

    name = "words"

    def error_body(self, error: GatewayError) -> bytes:
        return msgspec.json.encode({"wrong": error.message, "code": error.code})

    def error_event(self, error: GatewayError) -> bytes:
        return b"data: " + msgspec.json.encode({"type": "wrong", "code": error.code}) + b"\n\n"

    def is_complete(self, tail: bytes) -> bool:
        return tail.rstrip().endswith(b'{"type":"end"}')

    def vetting(self, answers: int) -> Vetting:
        return Vetting(answers, frozenset({"end"}), frozenset({"wrong"}))

    def usage(self, tail: bytes) -> Usage | None:
        return Usage(1, 2) if b'"tokens"' in tail else None


class Words:
    into = "chat"

    def request(self, exchange: Exchange) -> tuple[bytes, tuple[str, ...]]:
        peek = exchange.peek
        assert isinstance(peek, WordsPeek)
        if peek.say == "nonsense":
            raise InvalidRequest("That makes no sense.", param="say")
        dropped = tuple(name for name in exchange.fields if name not in ("model", "say", "stream", "max_tokens"))
        chat = Request(peek.model, [User(peek.say)], stream=peek.stream, max_tokens=peek.max_tokens)
        return msgspec.json.encode(chat), dropped

    def answer(self, completion: Completion, exchange: Exchange) -> bytes:
        tokens = completion.usage.completion_tokens if completion.usage else None
        return msgspec.json.encode({"said": completion.choices[0].message.content, "tokens": tokens})

    def stream(self, exchange: Exchange) -> WordStream:
        return WordStream()


class WordStream:
    def feed(self, chunk: Chunk) -> bytes:
        said = [choice.delta.content for choice in chunk.choices if choice.delta.content]
        return b"".join(b"data: " + msgspec.json.encode({"type": "word", "word": word}) + b"\n\n" for word in said)

    def end(self) -> bytes:
        return b'data: {"type":"end"}\n\n'


class Plugin:
    def __init__(self, config: Any, gateway: Any) -> None:
        self._gateway = gateway

    @hookimpl
    def register_dialects(self, register: Any) -> None:
        register(Endpoint("words", "/v1/words", WordsPeek, WordsDialect(), "Say words", Words()))


class Fluent(Plugin):
    @hookimpl
    def register_providers(self, register: Any) -> None:
        class Speaker(OpenAIBackend):
            name = "speaker"
            endpoints = native = frozenset({"words"})

            def target(self, name: str, config: Any) -> Any:
                from headrace.exchange import Target

                return Target(name=name, provider="speaker", base_url="http://nowhere")

            async def send(self, attempt: Any) -> Reply:
                return Reply(200, [(b"content-type", b"application/json")], content=attempt.exchange.body)

            def build(self, attempt: Any) -> Any:
                from headrace.exchange import UpstreamRequest

                return UpstreamRequest(url="http://nowhere", headers={}, body=attempt.asked.body)

        register(Speaker(self._gateway))


def asks(**fields: Any) -> dict[str, Any]:
    return {"model": "test", "say": "hello", **fields}


@pytest.fixture
async def backend() -> AsyncIterator[FakeBackend]:
    async with FakeBackend() as backend:
        yield backend


async def post(backend: FakeBackend, body: Any, plugin: type[Any] = Plugin, **tables: Any) -> httpx.Response:
    async with (
        serve(backend.config(**tables), plugins={"words": plugin}) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False) as client,
    ):
        return await client.post("/v1/words", json=body)


def asked(backend: FakeBackend) -> Any:
    path, _, body = backend.requests[-1]
    assert path == "/v1/chat/completions"
    return msgspec.json.decode(body)


async def test_a_request_is_asked_as_a_chat_and_answered_in_its_own_dialect(backend: FakeBackend) -> None:
    answer = await post(backend, asks(max_tokens=7))
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"said", "tokens"}
    sent = asked(backend)
    assert (sent["messages"], sent["model"], sent["max_tokens"]) == (
        [{"role": "user", "content": "hello"}],
        "fake-model",
        7,
    )


async def test_a_stream_is_translated_event_by_event_and_its_usage_is_asked_for(backend: FakeBackend) -> None:
    backend.chunks = 3
    answer = await post(backend, asks(stream=True))
    events = [msgspec.json.decode(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == ["word", "word", "word", "end"]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert asked(backend)["stream_options"] == {"include_usage": True}


async def test_what_could_not_be_carried_is_named(backend: FakeBackend) -> None:
    answer = await post(backend, asks(tone="rude", **{"a\r\nset-cookie: x": 1}))
    assert answer.headers["x-headrace-dropped"] == "tone, ?"


async def test_a_cut_stream_ends_with_an_error_in_the_clients_dialect(backend: FakeBackend) -> None:
    backend.chunks, backend.cut_after = 5, 2
    answer = await post(backend, asks(stream=True))
    assert '"type":"end"' not in answer.text
    assert answer.text.rstrip().endswith('{"type":"wrong","code":"stream_truncated"}')


async def test_errors_of_the_backend_are_worded_in_the_clients_dialect(backend: FakeBackend) -> None:
    backend.status = 400
    answer = await post(backend, asks())
    assert (answer.status_code, answer.json()) == (400, {"wrong": "told to fail", "code": None})


async def test_a_request_that_cannot_be_translated_is_the_callers_mistake(backend: FakeBackend) -> None:
    answer = await post(backend, asks(say="nonsense"))
    assert (answer.status_code, answer.json()["wrong"]) == (400, "That makes no sense.")
    assert backend.requests == []


async def test_a_target_that_speaks_the_dialect_gets_the_bytes_as_they_are(backend: FakeBackend) -> None:
    models = {"test": {"targets": [{"provider": "speaker"}, "fake"]}}
    answer = await post(backend, asks(tone="rude"), Fluent, models=models)
    assert answer.json() == asks(tone="rude")
    assert "x-headrace-dropped" not in answer.headers


async def test_a_target_that_needs_no_translation_is_asked_what_cannot_be_translated(backend: FakeBackend) -> None:
    models = {"test": {"targets": ["fake", {"provider": "speaker"}], "retry": {"rounds": 1}}}
    answer = await post(backend, asks(say="nonsense"), Fluent, models=models)
    assert (answer.status_code, answer.json()) == (200, asks(say="nonsense"))
    assert backend.requests == []


async def test_a_translated_stream_that_breaks_is_gone_on_with(backend: FakeBackend) -> None:
    async with FakeBackend() as other:
        backend.chunks, backend.cut_after, other.chunks = 5, 2, 5
        tables: dict[str, Any] = {
            "backends": {
                "one": {"provider": "openai", "base_url": backend.url},
                "two": {"provider": "openai", "base_url": other.url, "prefill": True},
            },
            "models": {"test": {"targets": ["one", "two"], "midstream": "resume", "retry": {"rounds": 1}}},
        }
        answer = await post(backend, asks(stream=True), **tables)
    assert answer.text.rstrip().endswith('{"type":"end"}')
    assert [message["role"] for message in asked(other)["messages"]] == ["user", "assistant"]


async def test_a_client_that_leaves_stops_the_translated_request(backend: FakeBackend) -> None:
    backend.chunks, backend.pause = 1000, 0.01
    async with (
        serve(backend.config(), plugins={"words": Plugin}) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False) as client,
    ):
        async with client.stream("POST", "/v1/words", json=asks(stream=True)) as answer:
            await anext(answer.aiter_bytes())
        await asyncio.wait_for(backend.closed_early.wait(), 20)
