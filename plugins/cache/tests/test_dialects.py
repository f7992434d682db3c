"""Other endpoints than chats: Anthropic's messages, OpenAI's responses, completions; each way of answering."""

from __future__ import annotations

from typing import Any

import pytest

PLUGINS: dict[str, Any] = {"plugins": {"anthropic": {}, "responses": {}}}
USER = [{"role": "user", "content": "hi"}]
MESSAGES = {"model": "test", "messages": USER, "max_tokens": 5, "temperature": 0}
RESPONSES = {"model": "test", "input": "hi", "temperature": 0, "store": False}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("messages", MESSAGES), ("responses", RESPONSES)])
async def test_translated_answers_are_given_again_as_they_were(
    cached: Any, path: str, body: dict[str, Any], stream: bool
) -> None:
    async with cached(PLUGINS) as gateway:
        first = await gateway.ask({**body, "stream": stream}, path)
        again = await gateway.ask({**body, "stream": stream}, path)
        assert first.status_code == 200, first.text
        assert (again.headers["x-cache"], again.content, gateway.asked) == ("hit", first.content, 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("responses", {**RESPONSES, "store": True}),
        ("responses", {name: value for name, value in RESPONSES.items() if name != "store"}),
        ("responses", {**RESPONSES, "temperature": 1}),
        ("messages", {**MESSAGES, "temperature": 0.5}),
    ],
)
async def test_what_is_kept_elsewhere_or_may_differ_is_not_cached(cached: Any, path: str, body: dict[str, Any]) -> None:
    async with cached(PLUGINS) as gateway:
        answers = [await gateway.ask(body, path) for _ in range(2)]
        assert [each.headers["x-cache"] for each in answers] == ["bypass", "bypass"]
        assert (gateway.asked, {each.status_code for each in answers}) == (2, {200})


async def test_clients_cannot_have_cached_what_a_store_keeps(cached: Any) -> None:
    async with cached(PLUGINS, always=True) as gateway:
        answer = await gateway.ask({**RESPONSES, "store": True}, "responses", x_headrace_cache="on")
        assert answer.headers["x-cache"] == "bypass"


async def test_endpoints_do_not_answer_for_one_another(cached: Any) -> None:
    async with cached(PLUGINS) as gateway:
        await gateway.ask(MESSAGES, "messages")
        assert (await gateway.ask(MESSAGES)).headers["x-cache"] == "miss"


async def test_other_versions_of_a_dialect_are_other_requests(cached: Any) -> None:
    async with cached(PLUGINS) as gateway:
        await gateway.ask(MESSAGES, "messages", anthropic_version="2023-06-01")
        answer = await gateway.ask(MESSAGES, "messages", anthropic_version="2023-06-01", anthropic_beta="x")
        assert answer.headers["x-cache"] == "miss"


async def test_an_answer_of_a_model_that_was_fallen_back_on_is_not_kept(cached: Any, chat: Any, backend: Any) -> None:
    gone = {"provider": "openai", "base_url": "http://127.0.0.1:9/v1"}
    tables = {
        "backends": {"fake": {"provider": "openai", "base_url": backend.url, "model": "fake-model"}, "gone": gone},
        "models": {
            "first": {"targets": ["gone"], "fallback_models": ["test"], "retry": {"rounds": 1}},
            "second": {"targets": ["gone"], "fallback": ["fake"], "retry": {"rounds": 1}},
            "test": {"targets": ["fake"]},
        },
    }
    async with cached(tables) as gateway:
        for model in ("first", "second"):
            for _ in range(2):
                answer = await gateway.ask({**chat, "model": model})
                assert (answer.status_code, answer.headers["x-cache"]) == (200, "miss")
            assert gateway.counts(model).stored == 0
