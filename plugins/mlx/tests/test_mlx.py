"""The provider `mlx`: what it sends to MLX LM's server, and what it makes of its answers.

The replies are those of version 0.32.2.
"""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ConfigError

COMPLETION = (
    b'{"id": "chatcmpl-c7", "system_fingerprint": "0.32.2", "object": "chat.completion", "model": "default_model", '
    b'"created": 1, "choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": '
    b'"\\u001f\\ufffd importice"}}], "usage": {"prompt_tokens": 15, "completion_tokens": 4, "total_tokens": 19, '
    b'"prompt_tokens_details": {"cached_tokens": 0}}}'
)
HEAD = b'data: {"id": "c", "object": "chat.completion.chunk", "model": "default_model", "created": 1, "choices": '
STREAM = (
    b": keepalive 0/1\n\n: keepalive 1/1\n\n"
    + HEAD
    + b'[{"index": 0, "finish_reason": null, "delta": {"role": "assistant", "content": "a"}}]}\n\n'
    + HEAD
    + b'[{"index": 0, "finish_reason": "length", "delta": {"role": "assistant"}}]}\n\n'
)
USAGE = (
    b'data: {"id": "c", "object": "chat.completion", "model": "default_model", "created": 1, "choices": [], '
    b'"usage": {"prompt_tokens": 15, "completion_tokens": 4, "total_tokens": 19}}\n\n'
)
DONE = b"data: [DONE]\n\n"
CHAT = "POST /v1/chat/completions"
TEXT = "POST /v1/completions"


async def test_a_good_answer_passes_byte_for_byte(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        assert (await asking.chat()).content == COMPLETION


async def test_an_answer_that_ends_with_its_connection_passes(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.until_closed(COMPLETION)
        assert (await asking.chat()).content == COMPLETION


async def test_a_cut_answer_is_no_answer(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.until_closed(COMPLETION[:-20])
        assert (await asking.chat()).status_code == 502


async def test_a_stream_of_http_1_0_passes_with_its_keepalives(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.until_closed(STREAM + USAGE + DONE, kit.EVENTS)
        answer = await asking.chat(stream=True, stream_options={"include_usage": True})
    assert answer.content == STREAM + USAGE + DONE


async def test_a_cut_stream_ends_with_an_error_and_without_done(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.until_closed(STREAM.partition(b'"content": "a"}}]}\n\n')[0], kit.EVENTS)
        found = kit.events(await asking.chat(stream=True))
    assert found[-1]["error"]["code"] == "stream_truncated"


async def test_the_configured_model_is_asked_for_whatever_clients_call_it(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        await asking.chat()
        assert asking.sent["model"] == "default_model"


def test_a_backend_without_a_model_is_refused(kit: Any) -> None:
    with pytest.raises(ConfigError, match='"default_model" is the one the server was started with'):
        kit.assembled("mlx")


def test_without_an_address_it_is_the_servers_own(kit: Any) -> None:
    assert kit.assembled("mlx", model="x").base_url == "http://127.0.0.1:8080/v1"


def test_options_are_refused(kit: Any) -> None:
    with pytest.raises(ConfigError, match="the provider 'mlx' has none, but speed was given"):
        kit.assembled("mlx", model="x", options={"speed": 1})


def test_endpoints_that_it_has_not_are_refused(kit: Any) -> None:
    with pytest.raises(ConfigError, match="there is no 'embeddings'"):
        kit.assembled("mlx", model="x", endpoints=["embeddings"])


# --- Errors ---


async def test_an_error_that_is_a_text_becomes_an_envelope(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.until_closed(b'{"error": "max_tokens must be at least 1"}', status=400)
        answer = await asking.chat(max_tokens=-4)
    assert (answer.status_code, answer.json()) == (
        400,
        {
            "error": {
                "message": "max_tokens must be at least 1",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        },
    )


async def test_a_server_that_generates_no_more_has_failed(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.until_closed(b'{"error": "generation thread died"}', status=404)
        answer = await asking.chat()
    assert answer.status_code == 502
    assert "started again" in answer.json()["error"]["message"]


# --- What the server stumbles over ---


async def test_fields_that_are_null_are_left_out(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        await asking.chat(max_tokens=None, temperature=None, stop=None, top_k=3)
        assert asking.sent.keys() == {"model", "messages", "top_k"}


async def test_stream_options_without_include_usage_are_left_out(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.until_closed(STREAM + DONE, kit.EVENTS)
        await asking.chat(stream=True, stream_options={})
        assert "stream_options" not in asking.sent


async def test_a_list_of_one_text_is_sent_as_that_text(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[TEXT] = kit.whole(COMPLETION)
        await asking.complete(prompt=["Once"])
        assert asking.sent["prompt"] == "Once"


ENDING = [
    *(("stop", 5), ("stop", [5]), ("seed", -1), ("seed", 2**70), ("temperature", 2**70), ("frequency_penalty", 2**70)),
    *(("repetition_context_size", 2**70), ("chat_template_kwargs", {"chat_template": ""})),
]


PLACES = {"[5]": "stop[0]", "{'chat_template': ''}": "chat_template_kwargs.chat_template"}
"""Where in its field a value is wrong."""


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], [[1]], "", [""]])
async def test_prompts_that_would_end_the_server_are_refused(kit: Any, prompt: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        answer = await asking.complete(prompt=prompt)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
        assert asking.engine.asked == []


@pytest.mark.parametrize(("field", "value"), ENDING)
async def test_fields_that_would_end_the_server_are_refused(kit: Any, field: str, value: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        answer = await asking.chat(**{field: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, PLACES.get(str(value), field))
        assert asking.engine.asked == []


async def test_half_a_pair_of_surrogates_is_refused(kit: Any) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stop":"\\ud800"}'
    async with kit.asking("mlx", model="default_model") as asking:
        answer = await asking.client.post("/v1/chat/completions", content=body)
        assert (answer.status_code, asking.engine.asked) == (400, [])


@pytest.mark.parametrize("field", ["draft_model", "adapters", "logit_bias"])
async def test_fields_that_are_dangerous_to_the_server_are_not_sent_and_named(kit: Any, field: str) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        answer = await asking.chat(**{field: {"1": 1}})
        assert answer.headers["x-headrace-dropped"] == field
        assert field not in asking.sent


async def test_fields_that_the_server_does_not_look_at_are_named(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        answer = await asking.chat(n=2, response_format={"type": "json_object"}, temperature=0.5, user=None)
    assert answer.headers["x-headrace-dropped"] == "n, response_format"


# --- Health and models ---


async def test_a_server_is_well_by_its_health_though_it_cannot_list_models(kit: Any) -> None:
    async with kit.asking("mlx", model="some/model") as asking:
        asking.engine.says["GET /health"] = kit.until_closed(b'{"status": "ok"}')
        asking.engine.says["GET /v1/models"] = kit.until_closed(b"")  # what 0.32.2 says where the hub has no cache
        assert await asking.health() == kit.Health(ok=True)


async def test_a_server_whose_generating_thread_has_ended_is_not_well(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says["GET /health"] = kit.until_closed(b'{"status": "unavailable"}', status=503)
        health = await asking.health()
    assert (health.ok, health.reason) == (False, "it does not generate any more: 503 at /health; start it again")


async def test_a_model_that_is_not_in_the_list_is_told(kit: Any) -> None:
    async with kit.asking("mlx", model="some/model") as asking:
        asking.engine.says["GET /health"] = kit.whole({"status": "ok"})
        asking.engine.says["GET /v1/models"] = kit.whole({"object": "list", "data": [{"id": "other/model"}]})
        assert "does not list the model 'some/model'" in (await asking.health()).reason


async def test_something_else_at_its_address_is_not_well(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        assert (await asking.health()).reason == "it answers 404 at /health: is its base_url right?"


async def test_models_are_those_that_it_lists(kit: Any) -> None:
    async with kit.asking("mlx", model="default_model") as asking:
        asking.engine.says["GET /v1/models"] = kit.whole({"object": "list", "data": [{"id": "a/b"}, {"id": "/m"}]})
        assert await asking.models() == ["a/b", "/m"]
