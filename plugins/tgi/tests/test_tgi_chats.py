"""Chats of the provider `tgi`: what TGI takes and answers otherwise than OpenAI, in versions from 1.4 to 3.3."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

CHAT = "POST /v1/chat/completions"
COMPLETION = (
    b'{"object":"chat.completion","id":"","created":1,"model":"HF/x","system_fingerprint":"3.3.0-sha","choices":[{'
    b'"index":0,"message":{"role":"assistant","content":"hi"},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}'
)
CHUNK = (
    b'data: {"object":"chat.completion.chunk","id":"","created":1,"model":"HF/x","system_fingerprint":"3.3.0",'
    b'"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}],"usage":null}\n\n'
)
TEXT = b'{"role":"assistant","content":"hi"}'
DONE = b"data: [DONE]\n\n"
ARGUMENTS = {"city": "Paris"}


def old_answer(calls: Any, reason: str = "eos_token") -> dict[str, Any]:
    """As version 1.4 says it."""
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    return {
        "id": "",
        "object": "text_completion",
        "created": 1,
        "model": "HF/x",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }


def call(arguments: Any, id: Any = 0) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


async def test_a_good_answer_passes_byte_for_byte(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        assert (await asking.chat()).content == COMPLETION


async def test_a_stream_passes_byte_for_byte(kit: Any) -> None:
    said = [CHUNK % (TEXT, b"null"), CHUNK % (b'{"role":"assistant","content":""}', b'"stop"'), DONE]
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.chunked(*said)
        assert (await asking.chat(stream=True)).content == b"".join(said)


async def test_comments_that_keep_a_stream_are_said_anew(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.chunked(b":\n\n", CHUNK % (TEXT, b'"stop"'), DONE)
        answer = await asking.chat(stream=True)
    assert kit.events(answer)[-1] == "[DONE]"


async def test_a_cut_stream_ends_with_an_error(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.chunked(CHUNK % (TEXT, b"null"), cut=True)
        assert kit.events(await asking.chat(stream=True))[-1]["error"]["code"] == "stream_truncated"


async def test_an_error_event_ends_a_stream(kit: Any) -> None:
    error = b'data: {"error":"Request failed during generation: out of memory","error_type":"generation"}\n\n'
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.chunked(CHUNK % (TEXT, b"null"), error, DONE)
        found = kit.events(await asking.chat(stream=True))
    assert found[-1]["error"]["code"] == "stream_truncated"


async def test_the_one_model_is_asked_as_tgi_and_an_adapter_by_its_name(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        await asking.chat()
        assert asking.sent["model"] == "tgi"
    assert kit.assembled("tgi", model="style").model == "style"


@pytest.mark.parametrize(
    "calls", [[call(ARGUMENTS)], call(ARGUMENTS), [call('{"city":"Paris"}', "0")]], ids=["object", "no list", "new"]
)
async def test_tool_calls_of_every_version_are_openai_s(kit: Any, calls: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.whole(old_answer(calls))
        answer = (await asking.chat()).json()
    (said,) = answer["choices"][0]["message"]["tool_calls"]
    assert (said["id"], msgspec.json.decode(said["function"]["arguments"])) == ("0", ARGUMENTS)
    assert (answer["object"], answer["choices"][0]["finish_reason"]) == ("chat.completion", "tool_calls")


@pytest.mark.parametrize(
    ("said", "told"), [("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length"), ("stop", "stop")]
)
async def test_reasons_for_an_end_are_openai_s(kit: Any, said: str, told: str) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.whole(old_answer(None, said))
        assert (await asking.chat()).json()["choices"][0]["finish_reason"] == told


async def test_tool_calls_in_streams_are_openai_s(kit: Any) -> None:
    pieces = [{"index": 0, "id": "0", "type": "function", "function": {"name": "weather", "arguments": ""}}, *[
        {"index": 0, "id": "", "type": "function", "function": {"name": None, "arguments": each}} for each in ("{", "}")
    ]]  # fmt: skip
    deltas = [msgspec.json.encode({"role": "assistant", "tool_calls": piece}) for piece in pieces]
    said = [CHUNK % (delta, b"null") for delta in deltas] + [CHUNK % (TEXT, b'"eos_token"'), DONE]
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.chunked(*said)
        *found, last, done = kit.events(await asking.chat(stream=True))
    calls = [each["choices"][0]["delta"]["tool_calls"][0] for each in found]
    assert "".join(each["function"]["arguments"] for each in calls) == "{}"
    assert (last["choices"][0]["finish_reason"], done) == ("tool_calls", "[DONE]")


# --- Requests ---


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": ["x"]}, {"stop": ["x"]}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"top_p": 1}, {}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"presence_penalty": 0}, {}),
        ({"temperature": None}, {}),
        ({"stream_options": {}}, {}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json", "value": {"type": "object"}}},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}},
            {"response_format": {"type": "json", "value": {"type": "array"}}},
        ),
        (
            {"response_format": {"type": "regex", "value": "a+"}},
            {"response_format": {"type": "regex", "value": "a+"}},
        ),
    ],
)
async def test_requests_are_put_into_tgi_s_words(kit: Any, given: Any, sent: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        await asking.chat(**given)
        assert {name: asking.sent[name] for name in asking.sent if name not in ("model", "messages")} == sent


async def test_what_tgi_does_not_look_at_is_named(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.whole(COMPLETION)
        answer = await asking.chat(n=2, logit_bias={"1": 1}, user="me", seed=3)
    assert answer.headers["x-headrace-dropped"] == "n, logit_bias, user"


# --- Errors ---


async def test_an_input_error_becomes_an_envelope(kit: Any) -> None:
    error = {"error": "Input validation error: `inputs` must have less than 10 tokens", "error_type": "validation"}
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.whole(error, 422)
        answer = await asking.chat()
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, error["error"])


async def test_a_failed_generation_is_the_backend_s_failure(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        error = {"error": "Request failed during generation: x", "error_type": "generation"}
        asking.engine.says[CHAT] = kit.whole(error, 424)
        assert (await asking.chat()).status_code == 502


async def test_an_input_error_that_begins_a_stream_is_the_caller_s(kit: Any) -> None:
    error = b'data:{"error":"Input validation error: `top_p` must be > 0.0 and < 1.0","error_type":"validation"}\n\n'
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.chunked(error)
        answer = await asking.chat(stream=True)
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid_request_error")


async def test_too_much_to_do_that_begins_a_stream_is_429(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.chunked(b'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n')
        answer = await asking.chat(stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "upstream_rate_limited")


async def test_any_other_error_that_begins_a_stream_is_the_backend_s_failure(kit: Any) -> None:
    async with kit.asking("tgi") as asking:
        asking.engine.says[CHAT] = kit.chunked(b'data:{"error":"Request failed","error_type":"generation"}\n\n')
        assert (await asking.chat(stream=True)).status_code == 502


@pytest.mark.parametrize("ask", ["chat", "complete"])
async def test_who_does_not_end_after_all_was_said_is_not_waited_for(kit: Any, ask: str) -> None:
    details = {"finish_reason": "length", "generated_tokens": 1, "input_length": 1}
    said = {"token": {"text": "a"}, "details": details}
    events = {"chat": CHUNK % (TEXT, b'"stop"'), "complete": b"data:" + msgspec.json.encode(said) + b"\n\n"}
    async with kit.asking("tgi", timeouts={"idle": 60}) as asking:
        asking.engine.lingers = True
        asking.engine.says |= {CHAT: kit.chunked(events["chat"], cut=True)}
        asking.engine.says |= {"POST /generate_stream": kit.chunked(events["complete"], cut=True)}
        answer = await getattr(asking, ask)(stream=True)
    assert "error" not in answer.text
