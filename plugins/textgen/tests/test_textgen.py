"""The provider `textgen`: what it makes of what text-generation-webui says."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError

COMPLETION = (
    b'{"id":"chatcmpl-17","object":"chat.completion","created":1,"model":"a.gguf","choices":[{"index":0,'
    b'"finish_reason":"stop","message":{"role":"assistant","content":"hi"},"tool_calls":[]}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}'
)
CHUNK = b'data: {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "a", "choices": [{"index": 0, '
BEGUN = CHUNK + b'"finish_reason": null, "delta": {"role": "assistant", "content": "hi"}}]}\n\n'
ENDED = CHUNK + b'"finish_reason": "stop", "delta": {}}]}\n\ndata: [DONE]\n\n'
CHAT = "POST /v1/chat/completions"
INFO, LIST = "GET /v1/internal/model/info", "GET /v1/models"


async def test_fields_of_its_own_and_good_answers_pass_untouched(kit: Any) -> None:
    async with kit.asking("textgen") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        answer = await asking.chat(mode="instruct", preset="min_p", dry_multiplier=0.8)
        assert answer.content == COMPLETION
        assert (asking.sent["mode"], asking.sent["preset"], asking.sent["dry_multiplier"]) == ("instruct", "min_p", 0.8)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_a_stream_passes_byte_for_byte_with_its_pings(kit: Any, end: bytes) -> None:
    said = [each.replace(b"\n", end) for each in (b": ping - 2026-01-01 00:00:00\n\n", BEGUN, ENDED)]
    async with kit.asking("textgen") as asking:
        asking.engine.says[CHAT] = kit.chunked(*said)
        assert (await asking.chat(stream=True)).content == b"".join(said)


async def test_a_cut_stream_ends_with_an_error(kit: Any) -> None:
    async with kit.asking("textgen") as asking:
        asking.engine.says[CHAT] = kit.chunked(BEGUN, cut=True)
        assert kit.events(await asking.chat(stream=True))[-1]["error"]["code"] == "stream_truncated"


async def test_an_error_in_openai_s_form_passes_as_it_is(kit: Any) -> None:
    error = b'{"error":{"message":"n > 1 is not supported with streaming.","type":"invalid_request_error","param":"n"}}'
    async with kit.asking("textgen") as asking:
        asking.engine.says[CHAT] = kit.whole(error, 400)
        assert (await asking.chat()).content == error


async def test_a_detail_becomes_an_envelope(kit: Any) -> None:
    async with kit.asking("textgen") as asking:
        asking.engine.says["POST /v1/embeddings"] = kit.whole({"detail": "Missing required argument input"}, 400)
        answer = await asking.client.post("/v1/embeddings", json={"model": "m", "input": ""})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "Missing required argument input")


async def test_a_list_of_details_names_its_field(kit: Any) -> None:
    detail = [{"type": "float_parsing", "loc": ["body", "temperature"], "msg": "Input should be a valid number"}]
    async with kit.asking("textgen") as asking:
        asking.engine.says[CHAT] = kit.whole({"detail": detail}, 422)
        answer = await asking.chat()
    assert (answer.status_code, answer.json()["error"]) == (
        422,
        {
            "message": "temperature: Input should be a valid number",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": None,
        },
    )


async def test_an_error_of_no_known_form_is_told_by_its_status(kit: Any) -> None:
    async with kit.asking("textgen") as asking:
        asking.engine.says[CHAT] = kit.whole({"what": "ever"}, 400)
        answer = await asking.chat()
    assert answer.json()["error"]["message"] == "The backend refused the request with status 400."


def test_without_an_address_it_is_its_own(kit: Any) -> None:
    assert kit.assembled("textgen").base_url == "http://127.0.0.1:5000/v1"


def test_messages_are_asked_of_it_only_if_the_configuration_says_so(kit: Any) -> None:
    assert "messages" not in kit.assembled("textgen").endpoints
    assert kit.assembled("textgen", endpoints=["chat", "messages"]).endpoints == {"chat", "messages"}


def test_an_address_that_is_none_is_refused(kit: Any) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        kit.assembled("textgen", base_url="localhost:5000")


# --- Health and models ---


async def test_it_is_well_if_a_model_is_loaded(kit: Any) -> None:
    async with kit.asking("textgen", model="what clients say") as asking:
        asking.engine.says[INFO] = kit.whole({"model_name": "a.gguf", "lora_names": []})
        assert await asking.health() == kit.Health(ok=True)


async def test_it_is_not_well_without_a_model(kit: Any) -> None:
    async with kit.asking("textgen") as asking:
        asking.engine.says[INFO] = kit.whole({"model_name": "None", "lora_names": []})
        assert await asking.health() == kit.Health(ok=False, reason="no model is loaded")


async def test_a_version_without_its_own_endpoints_is_asked_for_its_list(kit: Any) -> None:
    async with kit.asking("textgen") as asking:
        asking.engine.says[LIST] = kit.whole({"object": "list", "data": [{"id": "a.gguf"}]})
        assert (await asking.health()).ok


async def test_a_refused_key_is_told(kit: Any) -> None:
    async with kit.asking("textgen") as asking:
        asking.engine.says[INFO] = kit.whole({"detail": "Unauthorized"}, 401)
        assert (await asking.health()).reason == "it refuses our key: 401 at /v1/internal/model/info"


async def test_its_models_are_the_one_that_is_loaded(kit: Any) -> None:
    async with kit.asking("textgen") as asking:
        asking.engine.says |= {
            INFO: kit.whole({"model_name": "a.gguf"}),
            LIST: kit.whole({"data": [{"id": "gpt-3.5"}]}),
        }
        assert await asking.models() == ["a.gguf"]
