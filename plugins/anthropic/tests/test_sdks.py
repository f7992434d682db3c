"""The real clients: Anthropic's with a backend that has chats alone, OpenAI's with one that speaks Anthropic's API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

HELLO: Any = [{"role": "user", "content": "What is the weather in Oslo and in Rome?"}]
TOOL: Any = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
FUNCTION: Any = {"type": "function", "function": {"name": "weather", "parameters": TOOL["input_schema"]}}


def call(index: int, identifier: str | None, arguments: str) -> dict[str, Any]:
    head = {"id": identifier, "type": "function"} if identifier else {}
    function = {"name": "weather", "arguments": arguments} if identifier else {"arguments": arguments}
    return {"delta": {"tool_calls": [{"index": index, **head, "function": function}]}}


def streamed(*choices: dict[str, Any]) -> list[bytes]:
    told: list[Any] = [{"id": "c", "model": "local", "choices": [{"index": 0, **choice}]} for choice in choices]
    told.append({"id": "c", "choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49}})
    return [f"data: {json.dumps(each)}\n\n".encode() for each in told] + [b"data: [DONE]\n\n"]


CALLS = streamed(
    {"delta": {"role": "assistant", "reasoning_content": "Two "}},
    {"delta": {"reasoning_content": "cities."}},
    {"delta": {"content": "Let me "}},
    {"delta": {"content": "see."}},
    call(0, "call_a", ""),
    call(1, "call_b", ""),
    call(0, None, '{"city":'),
    call(1, None, '{"city": "R'),
    call(0, None, ' "Oslo"}'),
    call(1, None, 'ome"}'),
    {"delta": {}, "finish_reason": "tool_calls"},
)


@pytest.fixture
async def claude(site: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=site.running.url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def gpt(site: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=site.running.url + "/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_anthropics_client_gets_a_whole_answer(site: Any, claude: Any) -> None:
    message = {"role": "assistant", "content": "Cold.", "reasoning_content": "Hm."}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    usage = {"prompt_tokens": 40, "completion_tokens": 9, "total_tokens": 49}
    site.chat.body = {"id": "c", "object": "chat.completion", "model": "local", "choices": [choice], "usage": usage}
    answer = await claude.messages.create(model="chat", max_tokens=64, messages=HELLO)
    assert [(block.type, getattr(block, block.type)) for block in answer.content] == [
        ("thinking", "Hm."),
        ("text", "Cold."),
    ]
    assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == ("max_tokens", 40, 9)
    assert answer._request_id


async def test_anthropics_stream_helper_builds_the_message(site: Any, claude: Any) -> None:
    site.chat.stream(*CALLS)
    async with claude.messages.stream(model="chat", max_tokens=64, messages=HELLO, tools=[TOOL]) as stream:
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert texts == ["Let me ", "see."]
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.input for block in message.content[2:]] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("tool_use", 40, 9)


async def test_a_message_can_be_sent_back_with_the_tools_results(site: Any, claude: Any) -> None:
    site.chat.stream(*CALLS)
    async with claude.messages.stream(model="chat", max_tokens=64, messages=HELLO, tools=[TOOL]) as stream:
        said = await stream.get_final_message()
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": f"{block.input['city']}: fine"}
        for block in said.content
        if block.type == "tool_use"
    ]
    site.chat.stream(*streamed({"delta": {"content": "Fine."}}, {"delta": {}, "finish_reason": "stop"}))
    conversation = [*HELLO, {"role": "assistant", "content": said.content}, {"role": "user", "content": results}]
    async with claude.messages.stream(model="chat", max_tokens=64, messages=conversation, tools=[TOOL]) as stream:
        assert await stream.get_final_text() == "Fine."
    asked = site.chat.last.body["messages"]
    assert asked[1]["reasoning_content"] == "Two cities."
    assert [each["id"] for each in asked[1]["tool_calls"]] == ["call_a", "call_b"]
    assert asked[2:] == [
        {"role": "tool", "tool_call_id": "call_a", "content": "Oslo: fine"},
        {"role": "tool", "tool_call_id": "call_b", "content": "Rome: fine"},
    ]


@pytest.mark.parametrize(
    "status, raised",
    [
        (400, anthropic.BadRequestError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (503, anthropic.InternalServerError),
    ],
)
async def test_anthropics_client_raises_its_own_errors(site: Any, claude: Any, status: int, raised: Any) -> None:
    site.chat.status = status
    site.chat.body = {"error": {"message": "no", "type": "x", "param": None, "code": None}}
    with pytest.raises(raised) as caught:
        await claude.messages.create(model="chat", max_tokens=64, messages=HELLO)
    assert caught.value.body["type"] == "error"


async def test_anthropics_client_raises_where_a_stream_breaks(site: Any, claude: Any) -> None:
    site.chat.cut = True
    site.chat.stream(*CALLS[:4])
    texts = []
    with pytest.raises(anthropic.APIStatusError) as caught:
        async with claude.messages.stream(model="chat", max_tokens=64, messages=HELLO) as stream:
            async for text in stream.text_stream:
                texts.append(text)
    assert texts == ["Let me ", "see."]
    assert "incomplete" in str(caught.value)


async def test_anthropics_client_counts_tokens(site: Any, claude: Any) -> None:
    site.chat.body = {"count": 17}
    assert (await claude.messages.count_tokens(model="chat", messages=HELLO, tools=[TOOL])).input_tokens == 17
    assert (await claude.messages.count_tokens(model="claude", messages=HELLO)).input_tokens == 2095


async def test_openais_client_calls_tools_of_an_anthropic_backend(site: Any, gpt: Any) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
    usage = {"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 3}
    site.claude.body = {
        "id": "msg_1",
        "model": "claude-test",
        "content": [use],
        "stop_reason": "tool_use",
        "usage": usage,
    }
    answer = await gpt.chat.completions.create(model="claude", messages=HELLO, tools=[FUNCTION])
    message = answer.choices[0].message
    assert (message.role, message.content, answer.choices[0].finish_reason) == ("assistant", None, "tool_calls")
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    assert (answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (25, 20)
    site.claude.body = {"id": "msg_2", "model": "claude-test", "content": [{"type": "text", "text": "Cold."}]}
    result = {"role": "tool", "tool_call_id": "toolu_1", "content": "-5"}
    answer = await gpt.chat.completions.create(model="claude", messages=[*HELLO, message, result], tools=[FUNCTION])
    assert answer.choices[0].message.content == "Cold."
    assert site.claude.last.body["messages"][1:] == [
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "-5"}]},
    ]


async def test_openais_stream_helper_builds_the_message_of_an_anthropic_backend(site: Any, gpt: Any, kit: Any) -> None:
    start = {"id": "msg_1", "model": "claude-test", "content": [], "usage": {"input_tokens": 5, "output_tokens": 1}}
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
    pieces = ['{"city"', ': "Oslo"}']
    deltas = [
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": piece}}
        for piece in pieces
    ]
    site.claude.stream(
        *kit.sse(
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "See."}},
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": use},
            *deltas,
            {"type": "content_block_stop", "index": 1},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
            {"type": "message_stop"},
        )
    )
    asked = {"model": "claude", "messages": HELLO, "tools": [FUNCTION], "stream_options": {"include_usage": True}}
    async with gpt.chat.completions.stream(**asked) as stream:
        answer = await stream.get_final_completion()
    message = answer.choices[0].message
    assert (message.content, message.tool_calls[0].id) == ("See.", "toolu_1")
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 9)


async def test_openais_client_raises_its_own_errors_of_an_anthropic_backend(site: Any, gpt: Any, kit: Any) -> None:
    site.claude.status, site.claude.body = kit.refusal(400, "invalid_request_error", "top_p: too large")
    with pytest.raises(openai.BadRequestError, match="top_p: too large"):
        await gpt.chat.completions.create(model="claude", messages=HELLO, top_p=9)
