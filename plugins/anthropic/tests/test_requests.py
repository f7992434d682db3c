"""Messages requests, from the client's socket to the backend's and back: the backend has chats alone."""

from __future__ import annotations

import json
from typing import Any

CHUNKS: list[dict[str, Any]] = [
    {"delta": {"role": "assistant", "content": ""}},
    {"delta": {"reasoning_content": "Hm."}},
    {"delta": {"content": "Let me "}},
    {"delta": {"content": "look."}},
    {"delta": {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "look"}}]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":'}}]}},
    {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": ' "sea"}'}}]}},
    {"delta": {}, "finish_reason": "tool_calls"},
]
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 7,
    "total_tokens": 37,
    "prompt_tokens_details": {"cached_tokens": 20},
}
COUNTED = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 20,
    "output_tokens": 7,
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
CONTENT = [
    {"type": "thinking", "thinking": "Hm.", "signature": ""},
    {"type": "text", "text": "Let me look."},
    {"type": "tool_use", "id": "call_1", "name": "look", "input": {"at": "sea"}},
]
TOOLS = [{"name": "look", "description": "Look there", "input_schema": {"type": "object", "properties": {}}}]


def completion(message: dict[str, Any], finish: str = "stop", usage: Any = USAGE) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "local",
        "choices": [choice],
        "usage": usage,
    }


def chunks(*choices: dict[str, Any], usage: Any = USAGE, done: bool = True) -> list[bytes]:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "local"}
    told = [{**head, "choices": [{"index": 0, "finish_reason": None, **each}]} for each in choices]
    if usage:
        told.append({**head, "choices": [], "usage": usage})
    return [f"data: {json.dumps(each)}\n\n".encode() for each in told] + [b"data: [DONE]\n\n"] * done


async def test_a_whole_answer_is_a_message(site: Any) -> None:
    site.chat.body = completion(
        {"reasoning_content": "Hm.", "content": "Let me look.", "tool_calls": [CALL]}, "tool_calls"
    )
    answer = await site.messages(system="Be brief.", tools=TOOLS)
    told = answer.json()
    assert (answer.status_code, told["type"], told["role"], told["stop_reason"]) == (
        200,
        "message",
        "assistant",
        "tool_use",
    )
    assert told["content"] == CONTENT
    assert told["usage"] == COUNTED
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


async def test_the_backend_is_asked_a_chat(site: Any) -> None:
    site.chat.body = completion({"content": "Hi"})
    await site.messages(system="Be brief.", tools=TOOLS, tool_choice={"type": "any"}, stop_sequences=["END"])
    asked = site.chat.last
    assert asked.path == "/v1/chat/completions"
    assert asked.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    assert (asked.body["model"], asked.body["max_tokens"], asked.body["stop"]) == ("local-model", 64, ["END"])
    assert asked.body["tool_choice"] == "required"
    assert asked.body["tools"][0]["function"]["parameters"] == TOOLS[0]["input_schema"]


async def test_a_stream_tells_what_the_whole_answer_tells(site: Any, kit: Any) -> None:
    site.chat.stream(*chunks(*CHUNKS))
    answer = await site.messages(stream=True, tools=TOOLS)
    told = kit.assembled(kit.read_sse(answer.content))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert told["content"] == CONTENT
    assert (told["stop_reason"], told["usage"]) == ("tool_use", COUNTED)
    assert site.chat.last.body["stream_options"] == {"include_usage": True}


async def test_what_cannot_be_carried_is_named(site: Any) -> None:
    site.chat.body = completion({"content": "Hi"})
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    answer = await site.messages(system=system, service_tier="auto", metadata={"user_id": "u" * 65})
    assert answer.headers["x-headrace-dropped"] == "service_tier, system.cache_control, metadata.user_id"


async def test_a_tool_of_anthropics_own_is_refused_in_anthropics_words(site: Any) -> None:
    answer = await site.messages(tools=[{"type": "web_search_20250305", "name": "web_search"}])
    told = answer.json()
    assert answer.status_code == 400
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert "web_search" in told["error"]["message"]
    assert site.chat.asked == []


async def test_a_request_without_max_tokens_is_refused(site: Any) -> None:
    answer = await site.messages(max_tokens=None)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "max_tokens" in answer.json()["error"]["message"]


async def test_an_unknown_model_is_a_not_found_error(site: Any) -> None:
    answer = await site.messages("gpt-99")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


async def test_a_method_that_is_not_post_is_told_in_the_dialect(site: Any) -> None:
    answer = await site.client.get("/v1/messages")
    assert (answer.status_code, answer.json()["type"]) == (405, "error")


async def test_an_error_of_the_backend_is_told_in_the_dialect(site: Any) -> None:
    site.chat.status = 400
    site.chat.body = {"error": {"message": "too hot", "type": "invalid_request_error", "param": None, "code": None}}
    answer = await site.messages(temperature=3)
    assert answer.status_code == 400
    assert answer.json()["error"] == {"type": "invalid_request_error", "message": "too hot"}


async def test_a_backend_that_is_not_available_is_an_overloaded_error(site: Any) -> None:
    site.chat.status = 503
    answer = await site.messages()
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded_error")


async def test_errors_name_the_request(site: Any) -> None:
    answer = await site.messages("gpt-99")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_a_cut_stream_ends_with_an_error_event_and_no_message_stop(site: Any, kit: Any) -> None:
    site.chat.cut = True
    site.chat.stream(*chunks({"delta": {"content": "Let me "}}, usage=None, done=False))
    answer = await site.messages(stream=True)
    events = kit.read_sse(answer.content.lstrip())
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"
    assert [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"] == ["Let me "]
    assert "message_stop" not in {event["type"] for event in events}


async def test_a_tool_call_that_is_no_json_fails_the_whole_answer(site: Any) -> None:
    site.chat.body = completion({"tool_calls": [{**CALL, "function": {"name": "look", "arguments": "at sea"}}]})
    answer = await site.messages(tools=TOOLS)
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "api_error")
    assert "'look'" in answer.json()["error"]["message"]


async def test_a_tool_call_that_is_no_json_ends_the_stream_with_an_error(site: Any, kit: Any) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "at sea"}}
    site.chat.stream(*chunks({"delta": {"tool_calls": [call]}}, {"delta": {}, "finish_reason": "tool_calls"}))
    events = kit.read_sse((await site.messages(stream=True, tools=TOOLS)).content)
    assert events[-1]["type"] == "error"
    assert "'look'" in events[-1]["error"]["message"]


async def test_the_parts_of_a_stream_may_be_cut_anywhere(site: Any, kit: Any) -> None:
    data = b"".join(chunks(*CHUNKS))
    site.chat.stream(*(data[at : at + 7] for at in range(0, len(data), 7)))
    told = kit.assembled(kit.read_sse((await site.messages(stream=True, tools=TOOLS)).content))
    assert told["content"] == CONTENT


async def test_prompts_are_counted_by_the_backend_where_it_can(site: Any) -> None:
    site.chat.body = {"count": 321, "max_model_len": 4096, "tokens": []}
    answer = await site.messages(path="/v1/messages/count_tokens", max_tokens=None, system="Be brief.")
    assert answer.json() == {"input_tokens": 321}
    assert "x-headrace-estimated" not in answer.headers
    assert site.chat.last.path == "/tokenize"
    assert [message["role"] for message in site.chat.last.body["messages"]] == ["system", "user"]


async def test_prompts_are_estimated_where_the_backend_cannot_count(site: Any) -> None:
    site.chat.status, site.chat.body = 404, {"detail": "Not Found"}
    content = [{"role": "user", "content": "word " * 400}]
    answer = await site.messages(path="/v1/messages/count_tokens", max_tokens=None, messages=content)
    assert answer.headers["x-headrace-estimated"] == "true"
    assert 400 <= answer.json()["input_tokens"] <= 800


async def test_what_could_not_be_asked_is_not_counted(site: Any) -> None:
    tools = [{"type": "bash_20250124", "name": "bash"}]
    answer = await site.messages(path="/v1/messages/count_tokens", max_tokens=None, tools=tools)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_effort_is_not_asked_for_where_backends_refuse_it(site_with: Any) -> None:
    async with site_with({}, plugins={"anthropic": {"reasoning_effort": False}}) as site:
        site.chat.body = completion({"content": "Hi"})
        answer = await site.messages(max_tokens=4096, thinking={"type": "enabled", "budget_tokens": 2048})
        assert answer.headers["x-headrace-dropped"] == "thinking"
        assert "reasoning_effort" not in site.chat.last.body
