"""What the engine answers: OpenAI's format, real usage, clear errors."""

from __future__ import annotations

import json
from typing import Any

import httpx2  # the client that `openai` is built on
import openai
import pytest

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO: list[Any] = [{"role": "user", "content": "Name three colours."}]
SAME: dict[str, Any] = {"temperature": 0, "cache_prompt": False}
"""Greedy, and computed in the same steps: a prompt from the cache changes the last digits of what follows."""


def test_a_chat_answer_has_a_message_a_finish_reason_and_usage(engine: Any) -> None:
    answer = engine.chat("Name three colours.", max_tokens=8, temperature=0)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "smollm2"
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 8


def test_a_stream_says_the_same_as_a_whole_answer_and_ends_with_usage_and_done(engine: Any) -> None:
    fields = {"messages": HELLO, "max_tokens": 12, **SAME}
    whole = engine.post(CHAT, **fields).json()
    *events, usage, done = engine.events(CHAT, **fields, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert usage["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage["usage"][name] == whole["usage"][name] > 0
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text == whole["choices"][0]["message"]["content"]
    assert {event["id"] for event in events} == {usage["id"]}
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert not any("timings" in event or "prompt_progress" in event for event in events)


def test_a_stream_carries_no_usage_unless_it_was_asked_for(engine: Any) -> None:
    for path, fields in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "One two three"})):
        *events, done = engine.events(path, **fields, max_tokens=3)
        assert done == "[DONE]"
        assert not any("usage" in event for event in events)


def test_a_completion_streams_and_answers_alike(engine: Any) -> None:
    fields = {"prompt": "The capital of France is", "max_tokens": 4, **SAME}
    whole = engine.post(TEXT, **fields).json()
    assert whole["object"] == "text_completion"
    assert "Paris" in whole["choices"][0]["text"]
    *events, usage, done = engine.events(TEXT, **fields, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 4


def test_a_completion_is_sixteen_tokens_long_unless_it_says_otherwise(engine: Any) -> None:
    answer = engine.post(TEXT, prompt="Once upon a time", temperature=0, ignore_eos=True).json()
    assert answer["usage"]["completion_tokens"] == 16


def test_several_choices_of_several_prompts_are_all_counted_and_each_prompt_once(engine: Any) -> None:
    answer = engine.post(TEXT, prompt=["The capital of France is", "Dogs are"], n=2, max_tokens=3).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["prompt_tokens"] == 7
    assert "usage" in engine.events(CHAT, messages=HELLO, n=2, max_tokens=2, stream_options={"include_usage": True})[-2]


def test_a_json_schema_is_obeyed(engine: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    answer = engine.chat(
        "Tell me about Paris.",
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema}},
    )
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert json.loads(answer["choices"][0]["message"]["content"]).keys() == {"city", "large"}


@pytest.mark.parametrize("alternatives", [0, 2])
def test_log_probabilities_come_with_as_many_alternatives_as_were_asked_for(engine: Any, alternatives: int) -> None:
    chat = engine.chat("Hi", max_tokens=3, temperature=0, logprobs=True, top_logprobs=alternatives)
    tokens = chat["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 3
    assert all(len(token["top_logprobs"]) == alternatives and token["logprob"] <= 0 for token in tokens)
    text = engine.post(TEXT, prompt="The capital", max_tokens=3, temperature=0, logprobs=alternatives).json()
    found = text["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == text["choices"][0]["text"]
    assert [len(each) for each in found["top_logprobs"]] == [alternatives] * 3
    assert found["text_offset"][:2] == [0, len(found["tokens"][0])]


def test_openais_own_client_understands_everything(engine: Any) -> None:
    transport = httpx2.HTTPTransport(uds=str(engine.path))
    with openai.OpenAI(
        base_url="http://engine/v1", api_key="none", http_client=httpx2.Client(transport=transport), max_retries=0
    ) as client:
        assert [model.id for model in client.models.list()] == ["smollm2"]
        whole = client.chat.completions.create(model="smollm2", messages=HELLO, max_tokens=5, extra_body=SAME)
        assert whole.usage is not None and whole.usage.completion_tokens == 5
        stream = client.chat.completions.create(
            model="smollm2", messages=HELLO, max_tokens=5, extra_body=SAME, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == whole.choices[0].message.content
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="smollm2", prompt="x", echo=True)
        assert refused.value.param == "echo"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_a_400_that_says_so(engine: Any, stream: bool) -> None:
    response = engine.post(CHAT, messages=[{"role": "user", "content": "hello " * 9000}], stream=stream)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "8192" in error["message"]


def test_a_text_that_can_never_fit_is_refused_unread(engine: Any) -> None:
    response = engine.post(CHAT, messages=[{"role": "user", "content": "hello " * 1_000_000}])
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


WRONG = [
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [5]}, "messages"),
    (CHAT, {}, "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, None),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, None),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
    (CHAT, {"messages": HELLO, "max_tokens": "many"}, "max_tokens"),
    (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    (CHAT, {"messages": HELLO, "temperature": 3}, "temperature"),
    (CHAT, {"messages": HELLO, "stream": "yes"}, "stream"),
    (CHAT, {"messages": HELLO, "stop": 5}, "stop"),
    (CHAT, {"messages": HELLO, "n": 3}, "n"),
    (CHAT, {"messages": HELLO, "logit_bias": {"5": "x"}}, "logit_bias"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "weird"}}, None),
    (CHAT, {"messages": HELLO, "tools": [{}]}, None),
    (CHAT, {"messages": HELLO, "grammar": "root ::= ("}, None),
    (CHAT, {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
     "tool_choice"),
    (TEXT, {}, "prompt"),
    (TEXT, {"prompt": ["a", 5]}, "prompt"),
    (TEXT, {"prompt": [99_999_999]}, None),
    (TEXT, {"prompt": "a", "best_of": 2}, "best_of"),
    ("/v1/embeddings", {"input": "a"}, None),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields", "param"), WRONG)
def test_a_wrong_field_is_a_400_that_names_it(
    engine: Any, path: str, fields: dict[str, Any], param: str | None, stream: bool
) -> None:
    response = engine.post(path, **{"stream": stream, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["param"] == param


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"", b"[" * 100_000, b'"text"'])
def test_a_body_that_is_no_json_object_is_a_400(engine: Any, body: bytes) -> None:
    assert engine.client.post(CHAT, content=body).status_code == 400


def test_unknown_fields_are_ignored(engine: Any) -> None:
    answer = engine.chat("Hi", max_tokens=2, store=True, unheard_of={"a": [1]}, id_slot=77)
    assert answer["usage"]["completion_tokens"] == 2


def test_other_paths_and_methods_get_an_openai_error(engine: Any) -> None:
    assert engine.client.get("/nothing").json()["error"]["code"] == "not_found"
    response = engine.client.get(CHAT)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_embeddings_are_given_when_they_are_switched_on(start_engine: Any) -> None:
    engine = start_engine(embeddings=True, pooling="mean", context=1024)
    answer = engine.post("/v1/embeddings", input=["a cat", "a kitten"], model="smollm2").json()
    assert [len(each["embedding"]) for each in answer["data"]] == [576, 576]
    assert answer["usage"]["prompt_tokens"] > 0
    long = engine.post("/v1/embeddings", input="word " * 800)
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert engine.post("/v1/embeddings", input="").status_code == 400
    assert engine.post("/v1/embeddings", input="a", dimensions=5).json()["error"]["param"] == "dimensions"
    assert engine.chat("Hi", max_tokens=2)["usage"]["completion_tokens"] == 2
    engine.stop()
