"""Streams of any shape tell what the whole answer tells, in whatever pieces they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import chat
from headrace.streaming import EventSplitter
from headrace_anthropic import reply, telling
from headrace_anthropic.events import chat_events
from headrace_anthropic.streaming import MessageStream

STREAMS = settings(max_examples=150, deadline=None)
texts = st.text(max_size=20)
names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
arguments = st.dictionaries(
    st.text(max_size=4),
    st.recursive(st.integers() | texts, lambda s: st.lists(s) | st.dictionaries(texts, s), max_leaves=4),
    max_size=3,
)
finishes = st.sampled_from(["stop", "length", "content_filter", "tool_calls"])


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """A message of a chat: what was thought, said and called."""
    calls = [
        {"id": f"t{number}", "name": draw(names), "arguments": draw(arguments.map(json.dumps) | st.just(""))}
        for number in range(draw(st.integers(0, 3)))
    ]
    return {"thought": draw(texts), "content": draw(texts), "calls": calls, "finish": draw(finishes)}


def cut(draw: st.DrawFn, text: str) -> list[str]:
    """The text in pieces, empty ones among them."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def streamed(draw: st.DrawFn) -> tuple[dict[str, Any], list[chat.Chunk]]:
    """A message, and a stream of it whose tool calls come among each other."""
    message = draw(messages())
    deltas = [chat.Delta(reasoning_content=piece) for piece in cut(draw, message["thought"])]
    deltas += [chat.Delta(content=piece) for piece in cut(draw, message["content"])]
    waiting = []
    for index, call in enumerate(message["calls"]):
        head = chat.ToolCallDelta(index, call["id"], "function", chat.FunctionDelta(call["name"], ""))
        pieces = [chat.FunctionDelta(arguments=piece) for piece in cut(draw, call["arguments"])]
        deltas.append(chat.Delta(tool_calls=[head]))
        waiting.append([chat.ToolCallDelta(index, function=piece) for piece in pieces])
    while any(waiting):
        chosen = draw(st.sampled_from([each for each in waiting if each]))
        deltas.append(chat.Delta(tool_calls=[chosen.pop(0)]))
    chunks = [chat.Chunk([chat.ChunkChoice(delta)], model="local") for delta in deltas]
    last = chat.Chunk([chat.ChunkChoice(chat.Delta(), finish_reason=message["finish"])])
    return message, [*chunks, last, chat.Chunk([], usage=chat.Usage(5, 7, 12))]


def completion_of(message: dict[str, Any]) -> chat.Completion:
    calls = [chat.ToolCall(each["id"], chat.FunctionCall(each["name"], each["arguments"])) for each in message["calls"]]
    answer = chat.Answer(content=message["content"], tool_calls=calls, reasoning_content=message["thought"])
    choice = chat.Choice(answer, finish_reason=message["finish"])
    return chat.Completion("c", [choice], model="local", usage=chat.Usage(5, 7, 12))


@STREAMS
@given(case=streamed())
def test_a_stream_tells_the_message_that_a_whole_answer_tells(kit: Any, case: Any) -> None:
    message, chunks = case
    stream = MessageStream(kit.an_exchange())
    events = kit.read_sse(b"".join([*map(stream.feed, chunks), stream.end()]))
    assert kit.assembled(events) == json.loads(telling.whole(completion_of(message), kit.an_exchange()))


# --- from Anthropic's side ---


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """A whole answer as Anthropic gives it."""
    blocks: list[dict[str, Any]] = []
    for number in range(draw(st.integers(0, 4))):
        kinds: dict[str, dict[str, Any]] = {
            "text": {"type": "text", "text": draw(texts)},
            "thinking": {"type": "thinking", "thinking": draw(texts), "signature": "EqQB"},
            "redacted_thinking": {"type": "redacted_thinking", "data": "Emw"},
            "tool_use": {"type": "tool_use", "id": f"toolu_{number}", "name": draw(names), "input": draw(arguments)},
        }
        blocks.append(kinds[draw(st.sampled_from(sorted(kinds)))])
    reason = draw(st.sampled_from(["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "pause_turn"]))
    usage = {"input_tokens": 5, "cache_read_input_tokens": 9, "cache_creation_input_tokens": None, "output_tokens": 7}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_sequence": None}
    return {**message, "content": blocks, "stop_reason": reason, "usage": usage}


@st.composite
def wired(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An answer and the events of it, with pings between them."""
    answer = draw(answers())
    start = {**answer, "content": [], "stop_reason": None, "usage": {**answer["usage"], "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    fields = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}
    for index, block in enumerate(answer["content"]):
        kind = block["type"]
        empty: dict[str, dict[str, Any]] = {
            "text": {"text": ""},
            "thinking": {"thinking": "", "signature": ""},
            "tool_use": {"input": {}},
        }
        events.append(
            {"type": "content_block_start", "index": index, "content_block": {**block, **empty.get(kind, {})}}
        )
        if kind in fields:
            name, field = fields[kind]
            deltas = [{"type": name, field: piece} for piece in cut(draw, block[field])]
        else:
            text = json.dumps(block["input"]) if block.get("input") else ""
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in cut(draw, text)]
        if kind == "thinking":
            deltas.append({"type": "signature_delta", "signature": "EqQB"})
        if kind != "redacted_thinking":
            events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    for place in draw(st.lists(st.integers(1, len(events)), max_size=3)):
        events.insert(place, {"type": "ping"})
    end = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    return answer, [
        *events,
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]


def cut_bytes(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def said_in(pieces: Iterable[bytes]) -> bytes:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return b"".join([out async for out in chat_events(stream())])


def completed(data: bytes) -> dict[str, Any]:
    """What a chat's stream says, as one message."""
    said: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": {}, "finish": None, "usage": None}
    for event in EventSplitter().feed(data):
        if event.is_done:
            continue
        chunk = msgspec.json.decode(event.data, type=chat.Chunk)
        said["usage"] = chunk.usage or said["usage"]
        for choice in chunk.choices:
            said["content"] += choice.delta.content or ""
            said["reasoning_content"] += choice.delta.thought
            said["finish"] = choice.finish_reason or said["finish"]
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                known = said["calls"].setdefault(call.index, [call.id, call.function.name, ""])
                known[2] += call.function.arguments or ""
    said["calls"] = [(call[0], call[1], json.loads(call[2])) for call in said["calls"].values()]
    return said


@STREAMS
@given(case=wired(), size=st.integers(1, 200))
async def test_a_chats_stream_says_what_the_whole_answer_says(kit: Any, case: Any, size: int) -> None:
    answer, events = case
    said = completed(await said_in(cut_bytes(b"".join(kit.sse(*events)), size)))
    whole = msgspec.json.decode(reply.whole(json.dumps(answer).encode()), type=chat.Completion)
    choice = whole.choices[0]
    calls = choice.message.tool_calls or []
    assert said == {
        "content": choice.message.content or "",
        "reasoning_content": choice.message.thought,
        "calls": [(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls],
        "finish": choice.finish_reason,
        "usage": whole.usage,
    }


@STREAMS
@given(case=wired(), size=st.integers(1, 50))
async def test_any_cut_of_the_bytes_gives_the_same_events(kit: Any, case: Any, size: int) -> None:
    data = b"".join(kit.sse(*case[1]))
    once, again = completed(await said_in([data])), completed(await said_in(cut_bytes(data, size)))
    assert once == again
