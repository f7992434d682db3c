"""Requests as coding agents send them: a long system prompt in cached blocks, many tools, thoughts and results."""

from __future__ import annotations

import json
import time
from typing import Any

from headrace_anthropic.asking import as_chat

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
REMINDER = "<system-reminder>\nAs you answer, you may use the following context.\n</system-reminder>\n"
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


def tool(number: int) -> dict[str, Any]:
    properties = {f"field_{each}": {"type": "string", "description": "What it is for. " * 8} for each in range(8)}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": properties,
        "required": ["field_0"],
        "additionalProperties": False,
    }
    return {"name": f"Tool{number}", "description": "Does something useful. " * 60, "input_schema": schema}


def turn(number: int) -> list[dict[str, Any]]:
    """One call and its result."""
    identifier = f"toolu_{number:024}"
    call = {
        "type": "tool_use",
        "id": identifier,
        "name": f"Tool{number % 20}",
        "input": {"field_0": f"/src/{number}.py"},
    }
    thought = {"type": "thinking", "thinking": "Let me see. " * 10, "signature": ""}
    result = {"type": "tool_result", "tool_use_id": identifier, "content": f"{number}\tdef f(): ...\n" * 40}
    said = {"type": "text", "text": "I'll read it."}
    return [{"role": "assistant", "content": [thought, said, call]}, {"role": "user", "content": [result]}]


def agent_request() -> dict[str, Any]:
    """About 200 kB."""
    first = [{"type": "text", "text": REMINDER}, {"type": "text", "text": "Please fix the bug.", **EPHEMERAL}]
    failed = {
        "type": "tool_result",
        "tool_use_id": "toolu_a",
        "is_error": True,
        "content": [{"type": "text", "text": "File does not exist."}],
    }
    shown = {
        "type": "tool_result",
        "tool_use_id": "toolu_b",
        "content": [{"type": "image", "source": PNG}],
        **EPHEMERAL,
    }
    both = [
        {"type": "tool_use", "id": "toolu_a", "name": "Tool1", "input": {"field_0": "/nowhere"}},
        {"type": "tool_use", "id": "toolu_b", "name": "Tool2", "input": {}},
    ]
    return {
        "max_tokens": 32_000,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cc_entrypoint=cli; cch=3f9a1;"},
            {"type": "text", "text": "You are a coding agent.", **EPHEMERAL},
            {"type": "text", "text": "Follow these rules. " * 1500, **EPHEMERAL},
        ],
        "messages": [
            {"role": "user", "content": first},
            *(message for number in range(60) for message in turn(number)),
            {"role": "assistant", "content": both},
            {"role": "user", "content": [failed, shown, {"type": "text", "text": REMINDER, **EPHEMERAL}]},
        ],
        "tools": [tool(number) for number in range(20)],
        "metadata": {"user_id": "user_0123456789abcdef" * 4},
        "thinking": {"type": "enabled", "budget_tokens": 31_999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "temperature": 1,
        "stream": True,
    }


STREAM = (
    b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"So."}}]}\n\n'
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"Done."},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":50000,"completion_tokens":9,"total_tokens":50009}}\n\n'
    b"data: [DONE]\n\n"
)


async def test_a_backend_with_chats_alone_answers_a_coding_agent(site: Any, kit: Any) -> None:
    site.chat.stream(STREAM)
    answer = await site.messages(**agent_request())
    message = kit.assembled(kit.read_sse(answer.content))
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["usage"]["input_tokens"] == 50_000


async def test_its_conversation_arrives_in_a_chats_order(site: Any) -> None:
    site.chat.stream(STREAM)
    await site.messages(**agent_request())
    asked = site.chat.last.body
    roles = [message["role"] for message in asked["messages"]]
    assert roles[:3] == ["system", "user", "assistant"]
    assert roles[3:5] == ["tool", "assistant"]
    assert roles[-4:] == ["assistant", "tool", "tool", "user"]
    assert asked["messages"][0]["content"].startswith("You are a coding agent.\n\nFollow")
    assert asked["messages"][2]["reasoning_content"].startswith("Let me see.")
    assert asked["messages"][-3]["content"] == "Error: File does not exist."
    assert [part["type"] for part in asked["messages"][-1]["content"]] == ["text", "image_url", "text"]
    assert (asked["reasoning_effort"], len(asked["tools"])) == ("high", 20)


async def test_it_is_told_what_was_left_out(site: Any) -> None:
    site.chat.stream(STREAM)
    answer = await site.messages(**agent_request())
    assert set(answer.headers["x-headrace-dropped"].split(", ")) == {
        *("context_management", "system.cache_control", "messages.cache_control", "metadata.user_id"),
        "system.x-anthropic-billing-header",
    }


async def test_a_backend_with_the_same_api_gets_all_of_it(site: Any, kit: Any) -> None:
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}
    begin = {"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 9, "output_tokens": 1}}}
    site.claude.stream(*kit.sse(begin, end, {"type": "message_stop"}))
    request = agent_request()
    answer = await site.messages("claude", **request)
    assert site.claude.last.body == {"model": "claude-test", **request}
    assert "x-headrace-dropped" not in answer.headers


async def test_its_prompt_is_estimated_before_it_asks(site: Any) -> None:
    site.chat.status = 404
    request = {
        name: value for name, value in agent_request().items() if name not in ("stream", "max_tokens", "temperature")
    }
    answer = await site.messages(path="/v1/messages/count_tokens", max_tokens=None, **request)
    assert answer.headers["x-headrace-estimated"] == "true"
    assert 20_000 < answer.json()["input_tokens"] < 100_000


def test_translating_it_takes_milliseconds() -> None:
    body = json.dumps({"model": "m", **agent_request()}).encode()
    started = time.perf_counter()
    for _ in range(5):
        as_chat(body)
    milliseconds = (time.perf_counter() - started) * 200
    print(f"{len(body) // 1000} kB are translated in {milliseconds:.1f} ms")
    assert milliseconds < 200
