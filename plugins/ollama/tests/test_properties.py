"""Whatever is asked: nothing is lost without a word; whatever is answered: a stream says what a whole answer says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import chat
from headrace.edits import decode_fields
from headrace.errors import InvalidRequest
from headrace_ollama.answering import ChatTranslation
from headrace_ollama.asking import Wish, ask_chat
from headrace_ollama.messages import NO_PICTURES
from headrace_ollama.options import Options
from headrace_ollama.requests import read_chat
from headrace_ollama.stream import Lines

TEXT = st.text(max_size=12)
NAME = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
NUMBER = st.floats(0, 2, allow_nan=False, width=32)
MARK = st.integers(10**9, 10**12)
"""Numbers that are found again wherever they went."""


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


PICTURE = st.builds(
    lambda mark, more: {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{mark}", **more}},
    MARK,
    optional(detail=st.sampled_from(["auto", "high"])),
)
WORDS = st.builds(lambda mark: {"type": "text", "text": str(mark)}, MARK)
CONTENT = MARK.map(str) | st.lists(WORDS | PICTURE, min_size=1, max_size=4)
CALL = st.builds(
    lambda id, name, mark: {
        "id": f"call_{id}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps({"a": mark})},
    },
    MARK,
    NAME,
    MARK,
)
MESSAGE = st.one_of(
    st.builds(lambda content, more: {"role": "user", "content": content, **more}, CONTENT, optional(name=NAME)),
    st.builds(lambda mark: {"role": "system", "content": str(mark)}, MARK),
    st.builds(
        lambda mark, calls, more: {"role": "assistant", "content": str(mark), "tool_calls": calls, **more},
        MARK,
        st.lists(CALL, min_size=1, max_size=2),
        optional(reasoning_content=MARK.map(str), refusal=MARK.map(str)),
    ),
    st.builds(lambda id, mark: {"role": "tool", "tool_call_id": f"call_{id}", "content": str(mark)}, MARK, MARK),
)
TOOL = st.builds(
    lambda name, mark, more: {"type": "function", "function": {"name": name, "description": str(mark), **more}},
    NAME,
    MARK,
    optional(strict=st.just(True), parameters=st.builds(lambda mark: {"type": "object", "x": mark}, MARK)),
)
FORMAT = st.sampled_from(
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "description": "d"}},
    ]
)
REQUEST = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(MESSAGE, min_size=1, max_size=4)},
    optional={
        "temperature": NUMBER,
        "top_p": NUMBER,
        "min_p": NUMBER,
        "presence_penalty": NUMBER,
        "frequency_penalty": NUMBER,
        "repetition_penalty": NUMBER,
        "top_k": MARK,
        "seed": MARK,
        "max_tokens": MARK,
        "stop": st.lists(MARK.map(str), min_size=1, max_size=3),
        "tools": st.lists(TOOL, min_size=1, max_size=2),
        "parallel_tool_calls": st.just(False),
        "response_format": FORMAT,
        "reasoning_effort": st.sampled_from(["none", "low", "high"]),
        "logprobs": st.just(True),
        "top_logprobs": st.integers(1, 5),
        "logit_bias": st.just({"5": 1.0}),
        "user": NAME,
        "metadata": st.just({"a": "b"}),
        "unheard_of": MARK,
        "stream_options": st.just({"include_usage": True, "other": 1}),
    },
)
SAME = {"top_logprobs", "logprobs", "tools"}
OPTION = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "top_k", "seed", "stop")),
    "max_tokens": "num_predict",
    "repetition_penalty": "repeat_penalty",
    **dict.fromkeys(("presence_penalty", "frequency_penalty")),
}


def numbers(value: Any) -> set[str]:
    """The marks in a value, wherever they stand."""
    text = json.dumps(value)
    return {word for word in "".join(c if c.isdigit() else " " for c in text).split() if len(word) >= 10}


def translated(request: dict[str, Any], **options: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    body = json.dumps(request).encode()
    asked = ask_chat(read_chat(body), decode_fields(body), Wish("m", Options(**options)), NO_PICTURES)
    return json.loads(asked.body), asked.dropped


@settings(max_examples=150, deadline=None)
@given(REQUEST)
def test_every_field_is_carried_or_named(request: dict[str, Any]) -> None:
    asked, dropped = translated(request)
    for name, value in request.items():
        if name in OPTION:
            assert asked["options"][OPTION[name] or name] == value
        elif name in SAME:
            assert name in asked or name in dropped
        elif name == "response_format":
            assert asked["format"] in ("json", {"type": "object"})
        elif name == "parallel_tool_calls":
            assert (name in dropped) is ("tools" in request)
        elif name == "reasoning_effort":
            assert asked["think"] is (value != "none")
        elif name == "stream_options":
            assert "stream_options.other" in dropped
        elif name not in ("model", "messages"):
            assert name in dropped


@settings(max_examples=150, deadline=None)
@given(REQUEST)
def test_whatever_was_said_reaches_the_model(request: dict[str, Any]) -> None:
    asked, dropped = translated(request)
    assert numbers(request["messages"]) <= numbers(asked["messages"])
    assert numbers(request.get("tools")) <= numbers(asked.get("tools"))
    assert ("messages.name" in dropped) is any("name" in message for message in request["messages"])


@settings(max_examples=100, deadline=None)
@given(REQUEST, st.sampled_from(["messages", "tools", "response_format"]), NAME)
def test_a_field_that_nobody_knows_is_named_wherever_it_stands(request: dict[str, Any], where: str, name: str) -> None:
    place = request.get(where)
    if place is None:
        return
    inner = place[0] if isinstance(place, list) else place
    known = {"role", "content", "name", "refusal", "reasoning", "type", "function", "audio", "index"}
    if name in known:
        return
    inner[name] = 5
    assert f"{where}.{name}" in translated(request)[1]


PIECE = st.one_of(
    TEXT.map(lambda text: {"content": text}),
    TEXT.map(lambda text: {"thinking": text}),
    st.builds(
        lambda name, value: {"tool_calls": [{"function": {"name": name, "arguments": {"v": value}}}]}, NAME, TEXT
    ),
)
COUNT = st.integers(0, 2**33) | st.sampled_from([-1, 2**60, 1.5, "many", None])
COUNTS = st.fixed_dictionaries(
    {"done_reason": st.sampled_from(["stop", "length"]), "prompt_eval_count": COUNT, "eval_count": COUNT}
)


def lines_of(pieces: list[dict[str, Any]], counts: dict[str, Any]) -> list[bytes]:
    said = [{"model": "m", "message": {"role": "assistant", "content": "", **each}, "done": False} for each in pieces]
    last = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, **counts}
    return [json.dumps(each).encode() + b"\n" for each in (*said, last)]


def whole_of(pieces: list[dict[str, Any]], counts: dict[str, Any]) -> bytes:
    message: dict[str, Any] = {"role": "assistant"}
    for piece in pieces:
        for name, value in piece.items():
            message[name] = message.get(name, type(value)()) + value
    return json.dumps({"model": "m", "message": message, "done": True, **counts}).encode()


def put_together(events: bytes) -> tuple[chat.Answer, str | None, chat.Usage | None]:
    answer, finish, usage = chat.Answer(content=""), None, None
    calls: dict[int, chat.ToolCall] = {}
    for block in events.split(b"\n\n")[:-2]:
        chunk = msgspec.json.decode(block.removeprefix(b"data: "), type=chat.Chunk)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            answer.content = (answer.content or "") + (choice.delta.content or "")
            answer.reasoning_content = (answer.reasoning_content or "") + choice.delta.thought
            finish = choice.finish_reason or finish
            for part in choice.delta.tool_calls or ():
                assert part.function is not None
                call = calls.setdefault(part.index, chat.ToolCall(str(part.id), chat.FunctionCall("", "")))
                call.function.name += part.function.name or ""
                call.function.arguments += part.function.arguments or ""
    answer.tool_calls = list(calls.values())
    return answer, finish, usage


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECE, max_size=6), COUNTS)
def test_a_stream_says_what_the_whole_answer_says(pieces: list[dict[str, Any]], counts: dict[str, Any]) -> None:
    stream = ChatTranslation("r")
    said, finish, usage = put_together(b"".join(map(stream.feed, lines_of(pieces, counts))))
    whole = msgspec.json.decode(ChatTranslation("r").whole(whole_of(pieces, counts)), type=chat.Completion)
    (choice,) = whole.choices
    assert stream.finished
    assert (said.content or "") == (choice.message.content or "")
    assert said.thought == choice.message.thought
    assert said.tool_calls == (choice.message.tool_calls or [])
    assert (finish, usage) == (choice.finish_reason, whole.usage)


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECE, max_size=6), COUNTS, st.randoms(use_true_random=False))
def test_however_the_bytes_are_cut_the_events_are_the_same(
    pieces: list[dict[str, Any]], counts: dict[str, Any], random: Any
) -> None:
    data = b"".join(lines_of(pieces, counts)).rstrip(b"\n" if random.random() < 0.5 else b"")
    expected = b"".join(map(ChatTranslation("r").feed, data.split(b"\n")))
    stream, lines, found = ChatTranslation("r"), Lines(), b""
    while data:
        size = random.randint(1, 40)
        found += b"".join(map(stream.feed, lines.feed(data[:size])))
        data = data[size:]
    assert found + stream.feed(lines.rest()) == expected


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | NUMBER | TEXT, lambda x: st.lists(x) | st.dictionaries(NAME, x)))
def test_nonsense_is_refused_and_never_worse(value: Any) -> None:
    for place in ("messages", "tools", "stop", "tool_choice", "response_format"):
        try:
            translated({"model": "m", "messages": [{"role": "user", "content": "hi"}], place: value})
        except InvalidRequest as error:
            assert error.status == 400
