"""What a request says beside its messages, what is not carried, what is refused; completions; embeddings."""

from __future__ import annotations

import array
import base64
from collections.abc import Callable
from typing import Any

import pytest

Site = Callable[..., Any]
TOKEN = {"token": "Hel", "logprob": -0.1, "top_logprobs": [{"token": "Hel", "logprob": -0.1}]}
MORE = {"token": "lo", "logprob": -0.2, "top_logprobs": []}

THINKING = [
    ("qwen3:8b", {}, "none", False, ""),
    ("qwen3:8b", {}, "high", True, "reasoning_effort"),
    ("qwen3:8b", {}, None, None, ""),
    ("qwen3:8b", {"think": False}, None, False, ""),
    ("qwen3:8b", {"think": False}, "low", True, "reasoning_effort"),
    ("gpt-oss:20b", {}, "medium", "medium", ""),
    ("gpt-oss:20b", {}, "minimal", "low", "reasoning_effort"),
    ("gpt-oss:20b", {}, "xhigh", "high", "reasoning_effort"),
    ("gpt-oss:20b", {"think_levels": ["max"]}, "max", "max", ""),
    ("gpt-oss:20b", {"think": "high"}, None, "high", ""),
]


@pytest.mark.parametrize(("model", "options", "effort", "think", "dropped"), THINKING)
async def test_reasoning_effort_is_how_hard_the_model_thinks(
    site: Site, model: str, options: Any, effort: Any, think: Any, dropped: str
) -> None:
    async with site(model=model, options=options) as client:
        reply = await client.chat(**({} if effort is None else {"reasoning_effort": effort}))
        assert reply.status_code == 200, reply.text
        assert client.fake.asked.get("think") == think
        assert reply.headers.get("x-headrace-dropped", "") == dropped


async def test_thoughts_are_answered_apart(site: Site) -> None:
    async with site(model="qwen3:8b") as client:
        client.fake.say = [{"thinking": "hm"}, {"content": "yes"}]
        message = (await client.answer())["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "yes")


DROPPED = [
    ({"user": "u"}, "user"),
    ({"metadata": {"a": "b"}}, "metadata"),
    ({"logit_bias": {"5": -100}}, "logit_bias"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"top_a": 0.5}, "top_a"),
    ({"keep_alive": "10m", "options": {"num_ctx": 9}}, "keep_alive, options"),
    ({"prompt_cache_key": None}, ""),
    ({"modalities": ["text"]}, ""),
    ({"messages": [{"role": "user", "content": "hi", "name": "bob"}]}, "messages.name"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}]}]},
        "messages.content.cache_control",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}], "parallel_tool_calls": False},
        "tools.function.strict, parallel_tool_calls",
    ),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options.include_obfuscation"),
]


@pytest.mark.parametrize(("fields", "named"), DROPPED, ids=lambda each: str(each)[:40])
async def test_what_is_not_carried_is_named(site: Site, fields: Any, named: str) -> None:
    async with site() as client:
        reply = await client.chat(**fields)
        assert (reply.status_code, reply.headers.get("x-headrace-dropped", "")) == (200, named)


REFUSED = [
    ({"n": 2}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"guided_json": {}}, "guided_json"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"reasoning_effort": "furious"}, "reasoning_effort"),
    ({"response_format": {"type": "grammar"}}, "response_format"),
    ({"temperature": "hot"}, "temperature"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=str)
async def test_what_would_change_the_meaning_is_refused(site: Site, fields: Any, param: str) -> None:
    async with site() as client:
        reply = await client.chat(**fields)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
        assert client.fake.requests == []


UNREADABLE = {
    "half a pair of surrogates": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "nested too deeply": b'{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function",'
    b'"function":{"name":"f","parameters":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}}]}",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
async def test_what_cannot_be_read_is_the_callers_to_put_right(site: Site, body: bytes) -> None:
    async with site() as client:
        reply = await client.http.post("/v1/chat/completions", content=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error"), reply.text


async def test_a_limit_that_a_plugin_sets_is_told(site: Site, limiting: Any) -> None:
    async with site(plugins={"limiting": limiting}) as client:
        await client.chat()
        assert client.fake.asked["options"]["num_predict"] == 5
        await client.chat(max_tokens=3)
        assert client.fake.asked["options"]["num_predict"] == 3


# --- completions ---


async def test_a_completion_is_of_the_text_as_it_is(site: Site) -> None:
    async with site() as client:
        reply = await client.post("/v1/completions", prompt="Once", max_tokens=4, stop=["."])
        assert reply.json()["choices"] == [{"text": "Hello!", "index": 0, "logprobs": None, "finish_reason": "stop"}]
        assert reply.json()["usage"]["total_tokens"] == 29
        assert client.fake.requests[0][1] == "/api/generate"
        assert client.fake.asked == {
            "model": "llama3.2",
            "prompt": "Once",
            "raw": True,
            "stream": False,
            "think": False,
            "truncate": False,
            "shift": False,
            "options": {"stop": ["."], "num_predict": 4},
        }


async def test_a_completion_between_two_texts_needs_the_models_template(site: Site) -> None:
    async with site(model="codellama:code") as client:
        await client.post("/v1/completions", prompt=["def f("], suffix="return x")
        assert (client.fake.asked["suffix"], "raw" in client.fake.asked) == ("return x", False)


async def test_a_completion_is_streamed(site: Site) -> None:
    async with site() as client:
        *events, last, done = await client.events(
            "/v1/completions", prompt="Once", stream_options={"include_usage": True}
        )
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == "Hello!"
    assert (last["usage"]["total_tokens"], done) == (29, "[DONE]")
    assert events[0]["object"] == "text_completion"


async def test_log_probabilities_of_a_completion_have_their_older_shape(site: Site) -> None:
    async with site() as client:
        client.fake.say = [{"content": "Hel", "logprobs": [TOKEN]}, {"content": "lo", "logprobs": [MORE]}]
        *events, _ = await client.events("/v1/completions", prompt="Once", logprobs=1)
    found = [event["choices"][0]["logprobs"] for event in events if event["choices"][0]["logprobs"]]
    assert found == [
        {"tokens": ["Hel"], "token_logprobs": [-0.1], "top_logprobs": [{"Hel": -0.1}], "text_offset": [0]},
        {"tokens": ["lo"], "token_logprobs": [-0.2], "top_logprobs": [{}], "text_offset": [3]},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "n": 2}, "n"),
    ],
    ids=str,
)
async def test_a_completion_that_ollama_cannot_give_is_refused(site: Site, fields: Any, param: str) -> None:
    async with site() as client:
        reply = await client.post("/v1/completions", **fields)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        assert client.fake.requests == []


# --- embeddings ---


async def test_texts_are_embedded(site: Site) -> None:
    async with site(model="nomic-embed-text", options={"keep_alive": -1, "num_ctx": 2048}) as client:
        reply = await client.post("/v1/embeddings", input=["a", "b"])
        assert reply.json() == {
            "data": [
                {"embedding": [0.1, 1.1, 2.1, 3.1], "index": 0, "object": "embedding"},
                {"embedding": [0.2, 1.2, 2.2, 3.2], "index": 1, "object": "embedding"},
            ],
            "model": "nomic-embed-text:latest",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
            "object": "list",
        }
        assert client.fake.asked == {
            "model": "nomic-embed-text",
            "input": ["a", "b"],
            "keep_alive": -1,
            "truncate": False,
            "options": {"num_ctx": 2048},
        }


async def test_embeddings_come_packed_where_that_is_asked_for(site: Site) -> None:
    async with site(model="nomic-embed-text") as client:
        reply = await client.post("/v1/embeddings", input="a", encoding_format="base64")
        packed = base64.b64decode(reply.json()["data"][0]["embedding"])
    assert list(array.array("f", packed)) == pytest.approx([0.1, 1.1, 2.1, 3.1])


async def test_shorter_embeddings_are_asked_for(site: Site) -> None:
    async with site(model="nomic-embed-text") as client:
        reply = await client.post("/v1/embeddings", input="a", dimensions=2)
        assert len(reply.json()["data"][0]["embedding"]) == 2


async def test_an_ollama_that_does_not_shorten_embeddings_is_not_taken_at_its_word(site: Site) -> None:
    async with site(model="nomic-embed-text") as client:
        client.fake.knows_dimensions = False
        reply = await client.post("/v1/embeddings", input="a", dimensions=2)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "dimensions")


@pytest.mark.parametrize("given", [[1, 2, 3], [[1], [2]], []], ids=str)
async def test_tokens_cannot_be_embedded(site: Site, given: Any) -> None:
    async with site(model="nomic-embed-text") as client:
        reply = await client.post("/v1/embeddings", input=given)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input")
