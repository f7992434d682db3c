"""Models by wildcards, their defaults and caps, and what clients are told of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from headrace.testing import FakeBackend, serve

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def backend() -> AsyncIterator[FakeBackend]:
    async with FakeBackend() as backend:
        yield backend


async def ask(backend: FakeBackend, model: dict[str, Any], path: str = "chat/completions", **fields: Any) -> Any:
    """What the backend was asked, when a client asked the model `test` this."""
    body = {"model": "test", "messages": HELLO, **fields}
    document = {
        "server": {"anonymous": True},
        "models": {"test": {"targets": [{"provider": "openai", "base_url": backend.url}], **model}},
        "plugins": {"openai": {}},
    }
    async with serve(document) as running, httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
        answer = await client.post(f"/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
    return msgspec.json.decode(backend.requests[-1][2])


@pytest.mark.parametrize(
    ("model", "asked", "sent"),
    [
        ({"defaults": {"temperature": 0.2}}, {}, {"temperature": 0.2}),
        ({"defaults": {"temperature": 0.2}}, {"temperature": 0.9}, {"temperature": 0.9}),
        ({"defaults": {"max_tokens": 50}}, {}, {"max_tokens": 50}),
        ({"defaults": {"max_tokens": 50}}, {"max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ({"defaults": {"max_tokens": 50}, "caps": {"max_tokens": 20}}, {}, {"max_tokens": 20}),
        ({"caps": {"max_tokens": 20}}, {}, {"max_tokens": 20}),
        ({"caps": {"max_tokens": 20}}, {"max_tokens": 21}, {"max_tokens": 20}),
        ({"caps": {"max_tokens": 20}}, {"max_tokens": 20}, {"max_tokens": 20}),
        ({"caps": {"temperature": 1.0, "n": 2}}, {"temperature": 2, "n": 9}, {"temperature": 1.0, "n": 2}),
        ({"defaults": {"chat_template_kwargs": {"a": 1}}}, {}, {"chat_template_kwargs": {"a": 1}}),
    ],
)
async def test_requests_get_a_models_defaults_and_keep_to_its_caps(
    backend: FakeBackend, model: dict[str, Any], asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    assert await ask(backend, model, **asked) == {"model": "test", "messages": HELLO, **sent}


async def test_embeddings_have_no_caps(backend: FakeBackend) -> None:
    body = await ask(backend, {"caps": {"max_tokens": 5}}, "embeddings", input="x")
    assert "max_tokens" not in body


MANY = {
    "gpt-*": {"targets": [{"provider": "openai", "base_url": "URL"}]},
    "gpt-4*": {"targets": [{"provider": "openai", "base_url": "URL", "model": "four"}]},
    "gpt-4o": {"targets": [{"provider": "openai", "base_url": "URL", "model": "exact"}]},
}


@pytest.mark.parametrize(
    ("name", "sent"), [("gpt-4o", "exact"), ("gpt-4o-mini", "four"), ("gpt-3.5", "gpt-3.5"), ("gpt-", "gpt-")]
)
async def test_a_name_is_found_exactly_else_by_the_longest_pattern(backend: FakeBackend, name: str, sent: str) -> None:
    models = msgspec.json.decode(msgspec.json.encode(MANY).replace(b"URL", backend.url.encode()))
    document = {"server": {"anonymous": True}, "models": models, "plugins": {"openai": {}}}
    async with serve(document) as running, httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
        assert (await client.post("/v1/chat/completions", json={"model": name, "messages": HELLO})).status_code == 200
        missing = await client.post("/v1/chat/completions", json={"model": "claude", "messages": HELLO})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert msgspec.json.decode(backend.requests[-1][2])["model"] == sent


async def test_clients_see_what_a_model_can_do(backend: FakeBackend) -> None:
    own = {"context_window": 8192, "capabilities": {"tools": True, "vision": False}}
    document = {
        "server": {"anonymous": True},
        "models": {"test": {"targets": [{"provider": "openai", "base_url": backend.url, "prefill": True}], **own}},
        "plugins": {"openai": {}},
    }
    async with serve(document) as running, httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
        (found,) = (await client.get("/v1/models")).json()["data"]
    assert (found["id"], found["object"], found["owned_by"]) == ("test", "model", "openai")
    assert found["capabilities"] == {"tools": True, "vision": False}
    assert (found["context_window"], found["prefill"]) == (8192, True)
    assert found["endpoints"] == ["chat", "completions", "embeddings"]
