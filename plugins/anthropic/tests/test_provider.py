"""The provider `anthropic`, from the client's socket to the backend's and back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.errors import ConfigError

USAGE = {"input_tokens": 5, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 20, "output_tokens": 12}
COUNTED = {
    "prompt_tokens": 28,
    "completion_tokens": 12,
    "total_tokens": 40,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens_details": None,
}
ANSWER: dict[str, Any] = {
    "id": "msg_01Aq9w938a90dw8q",
    "type": "message",
    "role": "assistant",
    "model": "claude-test",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "EqQBCgIYAhIM"},
        {"type": "redacted_thinking", "data": "EmwKAhgBEgy3"},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "toolu_01T1x1fJ34", "name": "look", "input": {"at": "sea", "far": True}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": USAGE,
}
EVENTS: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {**ANSWER, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "EqQBCgIYAhIM"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Let me "}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "look."}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "toolu_01T1x1fJ34", "name": "look", "input": {}},
    },
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ""}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"at": "s'}},
    {"type": "ping"},
    {
        "type": "content_block_delta",
        "index": 2,
        "delta": {"type": "input_json_delta", "partial_json": 'ea", "far": true}'},
    },
    {"type": "content_block_stop", "index": 2},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 12},
    },
    {"type": "message_stop"},
]


async def test_a_messages_request_passes_byte_for_byte_but_for_the_models_name(site: Any) -> None:
    site.claude.body = ANSWER
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "context-1m-2025-08-07",
        "content-type": "application/json",
    }
    body = b'{ "max_tokens" : 9,"model":"claude", "messages": [ {"role":"user","content":"Hi"} ], "top_k": 5 }'
    answer = await site.client.post("/v1/messages", content=body, headers=headers)
    asked = site.claude.last
    assert answer.json() == ANSWER
    assert asked.body == {
        "max_tokens": 9,
        "model": "claude-test",
        "messages": [{"role": "user", "content": "Hi"}],
        "top_k": 5,
    }
    assert (asked.headers["anthropic-version"], asked.headers["anthropic-beta"]) == (
        "2023-06-01",
        "context-1m-2025-08-07",
    )
    assert int(asked.headers["content-length"]) == len(body) + len("-test")


async def test_the_backend_gets_its_own_key_and_no_other(site: Any) -> None:
    site.claude.body = ANSWER
    await site.client.post(
        "/v1/messages",
        json={"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]},
        headers={"x-api-key": "sk-of-the-caller", "cookie": "a=b"},
    )
    headers = site.claude.last.headers
    assert headers["x-api-key"] == "sk-ant-upstream"
    assert "sk-of-the-caller" not in repr(headers)
    assert not {"authorization", "cookie"} & headers.keys()


async def test_a_native_stream_passes_byte_for_byte(site: Any, kit: Any) -> None:
    site.claude.stream(*kit.sse(*EVENTS))
    answer = await site.messages("claude", stream=True)
    assert answer.content == b"".join(kit.sse(*EVENTS))


async def test_headers_about_the_gateways_account_are_kept(site: Any) -> None:
    site.claude.body = ANSWER
    site.claude.headers = {
        "request-id": "req_1",
        "anthropic-ratelimit-requests-limit": "9",
        "anthropic-organization-id": "o",
    }
    answer = await site.messages("claude")
    assert answer.headers["request-id"] == "req_1"
    assert not [name for name in answer.headers if name.startswith("anthropic-")]


async def test_a_native_error_passes_as_it_is(site: Any, kit: Any) -> None:
    status, site.claude.body = kit.refusal(400, "invalid_request_error", "too hot")
    site.claude.status = status
    answer = await site.messages("claude", temperature=3)
    assert (answer.status_code, answer.json()) == (400, site.claude.body)


async def test_a_native_stream_that_breaks_ends_with_an_error_event(site: Any, kit: Any) -> None:
    site.claude.cut = True
    site.claude.stream(*kit.sse(*EVENTS[:8]))
    events = kit.read_sse((await site.messages("claude", stream=True)).content)
    assert (events[-1]["type"], events[-1]["error"]["type"]) == ("error", "api_error")


async def test_tokens_are_counted_by_the_backend(site: Any) -> None:
    answer = await site.messages("claude", path="/v1/messages/count_tokens", max_tokens=None)
    assert answer.json() == {"input_tokens": 2095}
    assert site.claude.last.path == "/v1/messages/count_tokens"


async def test_a_chat_is_asked_as_messages(site: Any) -> None:
    site.claude.body = ANSWER
    await site.chats(
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        stop="END",
        user="ada",
    )
    asked = site.claude.last
    assert (asked.path, asked.headers["anthropic-version"]) == ("/v1/messages", "2023-06-01")
    assert asked.body == {
        "model": "claude-test",
        "max_tokens": 8192,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Hello"}],
        "stop_sequences": ["END"],
        "metadata": {"user_id": "ada"},
    }


async def test_a_whole_answer_is_a_completion(site: Any) -> None:
    site.claude.body = ANSWER
    answer = await site.chats()
    told = answer.json()
    choice = told["choices"][0]
    assert (told["object"], told["id"], told["model"]) == ("chat.completion", ANSWER["id"], "claude-test")
    assert choice["message"] == {
        "content": "Let me look.",
        "reasoning_content": "Hm.",
        "tool_calls": [
            {
                "id": "toolu_01T1x1fJ34",
                "type": "function",
                "function": {"name": "look", "arguments": '{"at": "sea", "far": true}'},
            }
        ],
        "role": "assistant",
    }
    assert (choice["finish_reason"], told["usage"]) == ("tool_calls", COUNTED)
    assert "anthropic" not in repr(answer.headers)


def said_in(chunks: list[Any]) -> dict[str, Any]:
    """The message that a chat's stream tells."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": {}, "finish": None}
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            message["finish"] = choice["finish_reason"] or message["finish"]
            for call in delta.get("tool_calls", ()):
                known = message["tool_calls"].setdefault(
                    call["index"], {"id": call.get("id"), "name": "", "arguments": ""}
                )
                known["name"] += call["function"].get("name", "")
                known["arguments"] += call["function"].get("arguments", "")
    return message


STREAMED = {
    "content": "Let me look.",
    "reasoning_content": "Hm.",
    "tool_calls": {0: {"id": "toolu_01T1x1fJ34", "name": "look", "arguments": '{"at": "sea", "far": true}'}},
    "finish": "tool_calls",
}


async def test_a_stream_is_a_chats_stream_with_its_usage(site: Any, kit: Any) -> None:
    site.claude.stream(*kit.sse(*EVENTS))
    answer = await site.chats(stream=True, stream_options={"include_usage": True})
    chunks = kit.read_chat(answer.content)
    assert chunks[-1] == "[DONE]"
    assert said_in(chunks) == STREAMED
    assert (chunks[-2]["choices"], chunks[-2]["usage"]) == ([], COUNTED)


async def test_usage_is_not_shown_to_who_did_not_ask_for_it(site: Any, kit: Any) -> None:
    site.claude.stream(*kit.sse(*EVENTS))
    chunks = kit.read_chat((await site.chats(stream=True)).content)
    assert said_in(chunks) == STREAMED
    assert all(chunk["choices"] for chunk in chunks[:-1])


@pytest.mark.parametrize("size", [1, 5, 64, 4096])
async def test_the_parts_of_a_stream_may_be_cut_anywhere(site: Any, kit: Any, size: int) -> None:
    data = b"".join(kit.sse(*EVENTS))
    site.claude.stream(*(data[at : at + size] for at in range(0, len(data), size)))
    assert said_in(kit.read_chat((await site.chats(stream=True)).content)) == STREAMED


async def test_done_is_sent_although_the_connection_stays_open(site: Any, kit: Any) -> None:
    site.claude.hold = asyncio.Event()
    site.claude.stream(*kit.sse(*EVENTS), b": farewell\n\n")
    answer = await asyncio.wait_for(site.chats(stream=True), 20)
    assert kit.read_chat(answer.content)[-1] == "[DONE]"


async def test_a_stream_that_breaks_ends_without_done(site: Any, kit: Any) -> None:
    site.claude.cut = True
    site.claude.stream(*kit.sse(*EVENTS[:8]))
    chunks = kit.read_chat((await site.chats(stream=True)).content)
    assert chunks[-1]["error"]["code"] == "stream_truncated"


async def test_an_error_event_breaks_the_stream(site: Any, kit: Any) -> None:
    failed = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    site.claude.stream(*kit.sse(*EVENTS[:8], failed))
    chunks = kit.read_chat((await site.chats(stream=True)).content)
    assert chunks[-1]["error"]["code"] == "stream_truncated"


async def test_a_stream_that_begins_with_an_error_is_asked_elsewhere(site: Any, kit: Any) -> None:
    failed = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    site.claude.stream(*kit.sse(failed))
    done = (
        b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )
    site.chat.stream(done)
    chunks = kit.read_chat((await site.chats("both", stream=True)).content)
    assert chunks[0]["choices"][0]["delta"]["content"] == "hi"


@pytest.mark.parametrize("path", ["messages", "chats"])
async def test_an_overloaded_backend_is_not_available(site: Any, kit: Any, path: str) -> None:
    site.claude.status, site.claude.body = kit.refusal(529, "overloaded_error", "Overloaded")
    site.claude.headers = {"retry-after": "17"}
    answer = await getattr(site, path)("claude")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "17")


async def test_an_account_that_is_not_paid_is_the_operators_business(site: Any, kit: Any) -> None:
    site.claude.status, site.claude.body = kit.refusal(402, "billing_error", "Your card was declined")
    answer = await site.chats()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_auth")
    assert "card" not in answer.text


async def test_a_refusal_is_told_in_openais_envelope(site: Any, kit: Any) -> None:
    site.claude.status, site.claude.body = kit.refusal(
        400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"
    )
    answer = await site.chats()
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "prompt is too long: 9 tokens > 8 maximum",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }


async def test_an_answer_that_cannot_be_read_is_an_error(site: Any) -> None:
    site.claude.body = {"type": "message", "content": "not a list"}
    assert (await site.chats()).status_code == 502


async def test_what_cannot_be_carried_is_named(site: Any) -> None:
    site.claude.body = ANSWER
    answer = await site.chats(seed=7, logprobs=False, frequency_penalty=0.5, store=True, metadata={"a": "b"})
    assert answer.headers["x-headrace-dropped"] == "store, seed, frequency_penalty, metadata"


async def test_several_answers_are_refused(site: Any) -> None:
    answer = await site.chats(n=2)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert site.claude.asked == []


async def test_its_models_are_listed_and_it_is_healthy(site: Any) -> None:
    ready = (await site.client.get("/health/ready")).json()
    assert ready["backends"]["claude"]["status"] == "ok"
    assert site.claude.asked[-1].path == "/v1/models?limit=1000"


async def test_a_messages_request_goes_on_to_a_backend_with_chats_alone(site: Any, kit: Any) -> None:
    site.claude.status, site.claude.body = kit.refusal(529, "overloaded_error", "Overloaded")
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    site.chat.body = {"id": "c", "choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    answer = await site.messages("both", top_k=3, service_tier="auto")
    assert (answer.json()["content"], answer.headers["x-headrace-dropped"]) == (
        [{"type": "text", "text": "Hi"}],
        "service_tier",
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"prefill": True}, "prefill"),
        ({"options": {"max_token": 5}}, "max_token"),
        ({"options": {"max_tokens": 0}}, "max_tokens"),
        ({"endpoints": ["embeddings"]}, "embeddings"),
        ({"base_url": "ftp://host"}, "base_url"),
        ({"base_url": "https://api.anthropic.com/v1/messages"}, "/messages"),
    ],
)
async def test_a_backend_that_cannot_be_used_is_told_of_at_the_start(site_with: Any, changes: Any, words: str) -> None:
    backend = {"provider": "anthropic", **changes}
    with pytest.raises(ConfigError, match=words):
        async with site_with({}, backends={"one": backend}, models={"one": {"targets": ["one"]}}):
            pass


async def test_who_leaves_a_stream_ends_it_at_the_backend(site: Any, kit: Any) -> None:
    site.claude.hold = asyncio.Event()
    site.claude.stream(*kit.sse(*EVENTS[:8]))
    body = {"model": "claude", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    async with site.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if "Hm." in line:
                break
    await asyncio.wait_for(site.claude.left.wait(), 20)


async def test_the_endpoints_are_described(site: Any) -> None:
    paths = (await site.client.get("/openapi.json")).json()["paths"]
    assert {"/v1/messages", "/v1/messages/count_tokens"} <= paths.keys()


async def test_prompts_of_chats_are_counted_by_the_backend(site_with: Any, kit: Any) -> None:
    async with kit.AnthropicBackend() as backend:
        only = {"provider": "anthropic", "base_url": backend.root, "api_key": kit.KEY, "endpoints": ["chat"]}
        async with site_with({}, backends={"only": only}, models={"only": {"targets": ["only"]}}) as site:
            answer = await site.messages("only", path="/v1/messages/count_tokens", max_tokens=None, system="Be brief.")
    assert answer.json() == {"input_tokens": 2095}
    assert (backend.last.path, backend.last.body) == (
        "/v1/messages/count_tokens",
        {"model": "only", "system": "Be brief.", "messages": [{"role": "user", "content": "Hello"}]},
    )
