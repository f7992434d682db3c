"""The provider `localai`: LocalAI says what OpenAI would, and is passed on untouched."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError

COMPLETION = (
    b'{"created":1,"object":"chat.completion","id":"a1","model":"phi","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}'
)
CHUNK = b'data: {"created":1,"object":"chat.completion.chunk","id":"a1","model":"phi","choices":[{"index":0,'
BEGUN = CHUNK + b'"delta":{"role":"assistant","content":"hi"},"finish_reason":null}]}\n\n'
ENDED = CHUNK + b'"finish_reason":"stop","delta":{"content":""}}]}\n\ndata: [DONE]\n\n'
CHAT = "POST /v1/chat/completions"
READY, ALIVE, LIST = "GET /readyz", "GET /healthz", "GET /v1/models"


async def test_requests_and_answers_pass_byte_for_byte(kit: Any) -> None:
    async with kit.asking("localai") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        assert (await asking.chat(grammar="root ::= x", ignore_eos=True)).content == COMPLETION
        assert (asking.sent["grammar"], asking.sent["ignore_eos"]) == ("root ::= x", True)


async def test_a_stream_passes_byte_for_byte(kit: Any) -> None:
    async with kit.asking("localai") as asking:
        asking.engine.says[CHAT] = kit.chunked(BEGUN, ENDED)
        assert (await asking.chat(stream=True)).content == BEGUN + ENDED


async def test_a_cut_stream_ends_with_an_error(kit: Any) -> None:
    async with kit.asking("localai") as asking:
        asking.engine.says[CHAT] = kit.chunked(BEGUN, cut=True)
        assert kit.events(await asking.chat(stream=True))[-1]["error"]["code"] == "stream_truncated"


async def test_errors_pass_byte_for_byte(kit: Any) -> None:
    error = b'{"error":{"code":400,"message":"failed parsing request body","type":""}}'
    async with kit.asking("localai") as asking:
        asking.engine.says[CHAT] = kit.whole(error, 400)
        answer = await asking.chat()
    assert (answer.status_code, answer.content) == (400, error)


async def test_an_error_without_words_is_told_as_none_of_an_api(kit: Any) -> None:
    async with kit.asking("localai") as asking:
        asking.engine.says[CHAT] = kit.whole(b"", 400)  # LOCALAI_OPAQUE_ERRORS=true
        assert (await asking.chat()).status_code == 502


def test_nginx_may_deliver_all_that_it_has(kit: Any) -> None:
    from headrace_localai.provider import LocalAIProvider

    assert LocalAIProvider.native == kit.assembled("localai").endpoints


def test_without_an_address_it_is_localai_s_own(kit: Any) -> None:
    assert kit.assembled("localai").base_url == "http://127.0.0.1:8080/v1"


def test_unknown_options_are_refused(kit: Any) -> None:
    with pytest.raises(ConfigError, match="the provider 'localai' has none"):
        kit.assembled("localai", options={"x": 1})


async def test_a_server_that_is_ready_and_lists_the_model_is_well(kit: Any) -> None:
    async with kit.asking("localai", model="phi") as asking:
        asking.engine.says |= {READY: kit.whole(b"OK", kind="text/plain"), LIST: kit.whole({"data": [{"id": "phi"}]})}
        assert await asking.health() == kit.Health(ok=True)


async def test_a_server_that_is_there_and_not_ready_starts(kit: Any) -> None:
    async with kit.asking("localai") as asking:
        asking.engine.says |= {READY: kit.whole(b"", 503), ALIVE: kit.whole(b"OK", kind="text/plain")}
        health = await asking.health()
    assert (health.ok, health.starting, health.reason) == (False, True, "it starts or stops: 503 at /readyz")


async def test_something_else_at_its_address_is_not_well(kit: Any) -> None:
    async with kit.asking("localai") as asking:
        assert (await asking.health()).reason == "it answers 404 at /readyz: is its base_url right?"


async def test_a_refused_key_is_found_by_the_list(kit: Any) -> None:
    async with kit.asking("localai") as asking:
        asking.engine.says |= {
            READY: kit.whole(b"OK", kind="text/plain"),
            LIST: kit.whole({"error": {"code": 401}}, 401),
        }
        with pytest.raises(Exception, match="refused the gateway's own credentials"):
            await asking.health()


async def test_models_are_those_that_it_lists(kit: Any) -> None:
    async with kit.asking("localai") as asking:
        asking.engine.says[LIST] = kit.whole({"object": "list", "data": [{"id": "phi", "object": "model"}]})
        assert await asking.models() == ["phi"]
