"""The provider `lmstudio`: what it makes of what LM Studio says."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError

COMPLETION = (
    b'{"id":"chatcmpl-t8","object":"chat.completion","created":1,"model":"gemma","choices":[{"index":0,"logprobs":null,'
    b'"finish_reason":"stop","message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":5,'
    b'"completion_tokens":1,"total_tokens":6},"stats":{},"system_fingerprint":"gemma"}'
)
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"gemma","choices":[{"index":0,"delta":'
BEGUN = CHUNK + b'{"role":"assistant","content":"a"},"finish_reason":null}]}\n\n'
ENDED = CHUNK + b'{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
CHAT = "POST /v1/chat/completions"
LIST = "GET /api/v0/models"
EVERY = ("chat", "completions", "embeddings", "responses", "messages")


def listed(state: str, **more: Any) -> dict[str, Any]:
    model = {"id": "gemma", "object": "model", "type": "llm", "state": state, "max_context_length": 32768, **more}
    return {"object": "list", "data": [model, {"id": "other", "state": "not-loaded", "max_context_length": 4096}]}


async def test_a_good_answer_passes_byte_for_byte(kit: Any) -> None:
    async with kit.asking("lmstudio") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        assert (await asking.chat(ttl=300)).content == COMPLETION
        assert asking.sent["ttl"] == 300


async def test_a_stream_passes_byte_for_byte(kit: Any) -> None:
    async with kit.asking("lmstudio") as asking:
        asking.engine.says[CHAT] = kit.chunked(BEGUN, ENDED)
        assert (await asking.chat(stream=True)).content == BEGUN + ENDED


async def test_a_cut_stream_ends_with_an_error(kit: Any) -> None:
    async with kit.asking("lmstudio") as asking:
        asking.engine.says[CHAT] = kit.chunked(BEGUN, cut=True)
        assert kit.events(await asking.chat(stream=True))[-1]["error"]["code"] == "stream_truncated"


async def test_an_error_in_a_stream_ends_it(kit: Any) -> None:
    async with kit.asking("lmstudio") as asking:
        error = (
            b'event: error\ndata: {"error":{"message":"The model has crashed"},"message":"The model has crashed"}\n\n'
        )
        asking.engine.says[CHAT] = kit.chunked(BEGUN, error)
        found = kit.events(await asking.chat(stream=True))
    assert [each.get("error", {}).get("code") for each in found] == [None, "stream_truncated"]


async def test_an_error_in_openai_s_form_passes_as_it_is(kit: Any) -> None:
    error = b'{"error":{"message":"No models loaded.","type":"invalid_request_error","param":"model","code":null}}'
    async with kit.asking("lmstudio") as asking:
        asking.engine.says[CHAT] = kit.whole(error, 404)
        answer = await asking.chat()
    assert (answer.status_code, answer.content) == (404, error)


async def test_an_error_that_is_a_text_becomes_an_envelope(kit: Any) -> None:
    async with kit.asking("lmstudio") as asking:
        asking.engine.says[CHAT] = kit.whole({"error": "Trying to keep the first 5000 tokens"}, 400)
        answer = await asking.chat()
    assert answer.json()["error"] == {
        "message": "Trying to keep the first 5000 tokens",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize("body", [b'{"error":"Unexpected endpoint or method. (POST /x)"}', b'{ "error": "Unexpected"}'])
async def test_an_error_of_status_200_is_no_answer(kit: Any, body: bytes) -> None:
    async with kit.asking("lmstudio") as asking:
        asking.engine.says[CHAT] = kit.whole(body)
        answer = await asking.chat()
    assert answer.status_code == 502
    assert "does not know this endpoint" in answer.json()["error"]["message"]


def test_it_has_every_endpoint_unless_the_configuration_names_some(kit: Any) -> None:
    assert kit.assembled("lmstudio").endpoints == frozenset(EVERY)
    assert kit.assembled("lmstudio", endpoints=["chat"]).endpoints == {"chat"}


def test_without_an_address_it_is_lm_studio_s_own(kit: Any) -> None:
    assert kit.assembled("lmstudio").base_url == "http://127.0.0.1:1234/v1"


def test_an_address_with_an_endpoint_is_refused(kit: Any) -> None:
    with pytest.raises(ConfigError, match="must not name an endpoint"):
        kit.assembled("lmstudio", base_url="http://here:1234/v1/chat/completions")


# --- Health ---


async def test_a_loaded_model_is_well(kit: Any) -> None:
    async with kit.asking("lmstudio", model="gemma") as asking:
        asking.engine.says[LIST] = kit.whole(listed("loaded"))
        assert await asking.health() == kit.Health(ok=True)


async def test_a_model_that_is_not_loaded_is_well_and_told(kit: Any) -> None:
    async with kit.asking("lmstudio", model="gemma") as asking:
        asking.engine.says[LIST] = kit.whole(listed("not-loaded"))
        health = await asking.health()
    assert (health.ok, health.reason) == (True, "the model 'gemma' is not-loaded: the first request waits until it is")


async def test_a_model_loaded_for_less_than_its_context_window_is_told(kit: Any) -> None:
    async with kit.asking("lmstudio", model="gemma", model_table={"context_window": 16384}) as asking:
        asking.engine.says[LIST] = kit.whole(listed("loaded", loaded_context_length=4096))
        told = (await asking.health()).reason
    assert told == "it takes 4096 tokens, but context_window of the model 'm' is 16384"


async def test_a_model_that_it_has_not_is_told(kit: Any) -> None:
    async with kit.asking("lmstudio", model="nowhere") as asking:
        asking.engine.says[LIST] = kit.whole(listed("loaded"))
        assert "does not list the model 'nowhere'" in (await asking.health()).reason


async def test_a_version_without_a_list_of_its_own_is_asked_for_openai_s(kit: Any) -> None:
    async with kit.asking("lmstudio", model="gemma") as asking:
        asking.engine.says[LIST] = kit.whole({"error": "Unexpected endpoint or method. (GET /api/v0/models)"})
        asking.engine.says["GET /v1/models"] = kit.whole({"object": "list", "data": [{"id": "gemma"}]})
        assert await asking.health() == kit.Health(ok=True)


async def test_a_refused_key_is_told(kit: Any) -> None:
    async with kit.asking("lmstudio") as asking:
        asking.engine.says[LIST] = kit.whole({"error": "Unauthorized"}, 401)
        assert (await asking.health()).reason == "it refuses our key: 401 at /api/v0/models"


async def test_models_are_those_that_it_lists(kit: Any) -> None:
    async with kit.asking("lmstudio") as asking:
        asking.engine.says["GET /v1/models"] = kit.whole({"object": "list", "data": [{"id": "gemma"}]})
        assert await asking.models() == ["gemma"]
