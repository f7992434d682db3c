"""What Ollama refuses, and what of that is the caller's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Site = Callable[..., Any]
LONG = [{"role": "user", "content": "word " * 50}]


async def test_a_model_that_was_not_pulled_is_not_found(site: Site) -> None:
    async with site(model="nonesuch") as client:
        reply = await client.chat()
        assert reply.status_code == 404
        assert reply.json()["error"] == {
            "message": "model 'nonesuch' not found",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_what_is_wrong_with_a_request_is_told_in_ollamas_words(site: Site, stream: bool) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    async with site(model="llava") as client:
        reply = await client.chat(tools=tools, stream=stream)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"] == "registry.ollama.ai/library/llava:latest does not support tools"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_prompt_that_is_too_long_is_refused_as_such(site: Site, stream: bool) -> None:
    async with site() as client:
        client.fake.context = 20
        reply = await client.chat(messages=LONG, stream=stream)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("status", [400, 413, 500])
async def test_a_text_that_is_too_long_to_embed_is_refused_as_such(site: Site, status: int) -> None:
    async with site(model="nomic-embed-text") as client:
        client.fake.fails = (status, "the input length exceeds the context length")
        reply = await client.post("/v1/embeddings", input="word")
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_prompt_that_is_too_long_is_answered_by_a_model_that_has_room(site: Site, kit: Any) -> None:
    async with kit.FakeOllama() as roomy:
        longer = {"provider": "ollama", "base_url": roomy.url, "model": "qwen3:8b"}
        models = {
            "m": {"targets": ["gpu"], "context_window_fallbacks": ["long"]},
            "long": {"targets": [longer]},
        }
        async with site(tables={"models": models}) as client:
            client.fake.context = 20
            assert (await client.answer(messages=LONG))["message"]["content"] == "Hello!"
            assert roomy.asked["model"] == "qwen3:8b"


FAILURES = [
    (500, 502, "upstream_error"),
    (503, 503, "unavailable"),
    (429, 429, "upstream_rate_limited"),
    (401, 502, "upstream_auth"),
]


@pytest.mark.parametrize(("status", "told", "code"), FAILURES)
async def test_a_failure_of_ollamas_own_is_told_without_its_words(
    site: Site, status: int, told: int, code: str
) -> None:
    async with site() as client:
        client.fake.fails = (status, "server busy at 10.0.0.7")
        reply = await client.chat()
        assert (reply.status_code, reply.json()["error"]["code"]) == (told, code)
        assert "10.0.0.7" not in reply.text


async def test_another_backend_answers_when_one_is_busy(site: Site, kit: Any) -> None:
    async with kit.FakeOllama() as spare:
        targets = ["gpu", {"provider": "ollama", "base_url": spare.url, "model": "llama3.2"}]
        async with site(tables={"models": {"m": {"targets": targets}}}) as client:
            client.fake.fails = (503, "server busy, please try again.  maximum pending requests exceeded")
            assert (await client.answer())["message"]["content"] == "Hello!"


async def test_a_model_that_was_only_loaded_has_not_answered(site: Site) -> None:
    async with site() as client:
        client.fake.say, client.fake.reason = [], "load"
        reply = await client.chat()
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_error")


@pytest.mark.parametrize("counts", [{"done": False}, {"error": "the runner has died"}], ids=["not done", "error"])
async def test_a_whole_answer_that_is_none_is_a_failure(site: Site, counts: Any) -> None:
    async with site() as client:
        client.fake.counts = counts
        assert (await client.chat()).status_code == 502


async def test_an_answer_that_is_too_long_to_be_translated_is_not_kept_open(site: Site) -> None:
    async with site(model="nomic-embed-text") as client:
        client.fake._POST_api_embed = lambda fields: {"embeddings": [[0.5] * 4_000_000], "model": "m"}
        reply = await client.post("/v1/embeddings", input="a")
        assert (reply.status_code, "ask for less at once" in reply.text) == (502, True)
        assert client.gateway.upstream.in_use == 0


async def test_what_does_not_speak_ollamas_language_is_no_ollama(site: Site) -> None:
    async with site() as client:
        client.fake._POST_api_chat = lambda fields: {"choices": [{"message": {"content": "hi"}}]}
        assert (await client.chat()).status_code == 502


async def test_an_answer_of_another_type_is_a_failure(site: Site) -> None:
    async with site() as client:
        client.fake._POST_api_chat = lambda fields: {"message": 5, "done": True}
        reply = await client.chat()
        assert (reply.status_code, reply.json()["error"]["message"]) == (
            502,
            "The backend sent an event that cannot be read.",
        )
