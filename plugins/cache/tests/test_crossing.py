"""Kept answers in the other form: a whole one as a stream, a stream as a whole one, and what stays what it is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from headrace_cache.crossing import as_stream, as_whole

USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
TOLD: dict[str, Any] = {"stream_options": {"include_usage": True}}

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
calls = st.fixed_dictionaries(
    {"type": st.just("function"), "id": words, "function": st.fixed_dictionaries({"name": words, "arguments": words})}
)
spoken = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": words},
    optional={"reasoning_content": words, "reasoning": words, "refusal": words},
)
calling = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | words, "tool_calls": st.lists(calls, min_size=1, max_size=3)}
)
tokens = st.lists(
    st.fixed_dictionaries(
        {"token": words, "logprob": st.floats(-9, 0), "bytes": st.none(), "top_logprobs": st.just([])}
    )
)
ends = st.fixed_dictionaries(
    {"finish_reason": st.sampled_from(["stop", "length", "tool_calls"])}, optional={"stop_reason": words}
)


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """A chat's or a completion's whole answer, with one choice or several."""
    chat = draw(st.booleans())
    said: Any = st.fixed_dictionaries({"message": spoken | calling}) if chat else st.fixed_dictionaries({"text": words})
    logprobs = st.none() | st.fixed_dictionaries({"content" if chat else "tokens": tokens.filter(bool)})
    choices = [
        {"index": index, **draw(said), "logprobs": draw(logprobs), **draw(ends)}
        for index in range(draw(st.integers(1, 3)))
    ]
    notes = draw(st.fixed_dictionaries({}, optional={"system_fingerprint": words, "service_tier": st.just("default")}))
    head = {"id": draw(words), "created": draw(st.integers(0, 2**31)), "model": draw(words), **notes}
    return {**head, "object": "chat.completion" if chat else "text_completion", "choices": choices, "usage": USAGE}


@given(answers())
@settings(deadline=None, max_examples=50)
def test_a_whole_answer_comes_out_of_its_stream_as_it_was(answer: dict[str, Any]) -> None:
    stream = as_stream(json.dumps(answer).encode(), usage=True)
    assert stream is not None and stream.endswith(b"data: [DONE]\n\n")
    whole = as_whole(stream)
    assert whole is not None and json.loads(whole) == answer


@given(answers().filter(lambda answer: answer["object"] == "chat.completion"))
@settings(deadline=None, max_examples=30)
def test_the_sdk_puts_the_stream_together_to_the_same_answer(answer: dict[str, Any]) -> None:
    stream = as_stream(json.dumps(answer).encode(), usage=True)
    assert stream is not None
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for line in stream.split(b"\n\n")[:-2]:
        state.handle_chunk(ChatCompletionChunk.model_validate_json(line.removeprefix(b"data: ")))
    snapshot = state.current_completion_snapshot.model_dump()
    for wanted, found in zip(answer["choices"], snapshot["choices"], strict=True):
        assert found["finish_reason"] == wanted["finish_reason"]
        assert found["message"]["content"] == wanted["message"]["content"]
        functions = [each["function"] for each in found["message"]["tool_calls"] or ()]
        assert [(each["name"], each["arguments"]) for each in functions] == [
            (each["function"]["name"], each["function"]["arguments"])
            for each in wanted["message"].get("tool_calls", ())
        ]
    assert snapshot["usage"]["total_tokens"] == USAGE["total_tokens"]


def events(*pieces: dict[str, Any]) -> bytes:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"".join(b"data: %b\n\n" % json.dumps({**head, **piece}).encode() for piece in pieces) + b"data: [DONE]\n\n"


def delta(said: Any, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": said, "finish_reason": None, **more}]}


END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
COUNTS = {"choices": [], "usage": USAGE}


def test_pieces_of_tool_calls_are_put_together_by_their_index() -> None:
    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        return delta({"tool_calls": [{"index": index, "function": {"arguments": arguments}, **more}]})

    begun = {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    other = {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}}
    whole = as_whole(
        events(
            delta({"role": "assistant", "content": None}),
            delta({"tool_calls": [{"index": 0, **begun}]}),
            call(0, '{"x":'),
            delta({"tool_calls": [{"index": 1, **other}]}),
            call(0, "1}"),
            call(1, "}"),
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls", "stop_reason": 7}]},
            COUNTS,
        )
    )
    assert whole is not None
    assert json.loads(whole) == {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "usage": USAGE,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
                        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
                "stop_reason": 7,
            }
        ],
    }


def test_what_is_said_in_turns_by_several_choices_is_sorted_out() -> None:
    pieces = [delta({"content": text}, index, obfuscation="x") for text, index in (("a", 1), ("b", 0), ("c", 1))]
    for piece in pieces:
        del piece["choices"][0]["obfuscation"]
    stop = {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}], "obfuscation": "zzz"}
    whole = as_whole(events(*pieces, END, stop, COUNTS))
    assert whole is not None
    found = [(each["message"]["content"], each["finish_reason"]) for each in json.loads(whole)["choices"]]
    assert found == [("b", "stop"), ("ac", "length")]


@pytest.mark.parametrize(
    "pieces",
    [
        (delta({"content": "a"}), END),  # no token counts
        (delta({"content": "a"}), COUNTS),  # no end
        (COUNTS,),
        (delta({"audio": {"data": "x"}}), END, COUNTS),
        (delta({"content": "a"}, token_ids=[1, 2]), END, COUNTS),
        (delta({"tool_calls": [{"index": 0, "custom": {"input": "x"}}]}), END, COUNTS),
        ({"prompt_filter_results": [{"index": 0}], "choices": []}, delta({"content": "a"}), END, COUNTS),
        ({"object": "something.else", "choices": []}, END, COUNTS),
    ],
)
def test_a_stream_with_more_in_it_stays_a_stream(pieces: tuple[dict[str, Any], ...]) -> None:
    assert as_whole(events(*pieces)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"usage": None},
        {"object": "chat"},
        {"choices": []},
        {"prompt_logprobs": [{"1": 0.5}]},
        {"choices": [{"index": 0, "message": None, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "message": {"content": "a", "function_call": {"name": "f"}}, "finish_reason": "x"}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": "stop", "content_filter_results": {"hate": 1}}]},
        {"choices": [{"message": {"content": "a", "annotations": [{"type": "url"}]}, "finish_reason": "stop"}]},
    ],
)
def test_a_whole_answer_with_more_in_it_stays_whole(change: dict[str, Any]) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "a", "annotations": []}, "finish_reason": "stop"}
    answer = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE, "prompt_logprobs": None}
    assert as_stream(json.dumps(answer).encode(), usage=True) is not None
    assert as_stream(json.dumps({**answer, **change}).encode(), usage=True) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "message", "index", "tool_calls", "function", "logprobs", "usage"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["choices", "object", "usage", "id"]), anything), anything)
@settings(deadline=None, max_examples=100)
def test_whatever_a_backend_writes_nothing_breaks(answer: dict[str, Any], choice: Any) -> None:
    for said in (answer, {**answer, "object": "chat.completion", "choices": [choice]}):
        as_stream(json.dumps(said).encode(), usage=True)
        as_whole(events(said, END, COUNTS))
    assert as_whole(b'data: {"choices"\n\n') is None and as_stream(b"{", usage=False) is None


# --- as callers get them ---


@pytest.fixture
def client(cached: Any) -> Any:
    """A gateway, and OpenAI's own client of it."""

    @contextlib.asynccontextmanager
    async def make() -> AsyncIterator[Any]:
        async with cached() as gateway:
            client = openai.AsyncOpenAI(base_url=f"{gateway.running.url}/v1", api_key="x", max_retries=0)
            async with client:
                yield gateway, client.chat.completions

    return make


async def test_a_stream_is_answered_with_a_whole_answer_that_is_kept(client: Any, chat: Any, stream: Any) -> None:
    async with client() as (gateway, completions):
        whole = await completions.create(**chat)
        pieces = [piece async for piece in await completions.create(**stream, **TOLD)]
        said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert said == whole.choices[0].message.content
        assert pieces[-1].usage.total_tokens == whole.usage.total_tokens
        assert [piece.choices[0].finish_reason for piece in pieces if piece.choices] == [None, "stop"]
        untold = [piece async for piece in await completions.create(**stream)]
        assert [piece.usage for piece in untold] == [None, None]
        assert gateway.asked == 1


async def test_it_is_a_hit_as_any_other(cached: Any, chat: Any, stream: Any) -> None:
    async with cached() as gateway:
        await gateway.ask(chat)
        answer = await gateway.ask(stream)
        assert (answer.status_code, answer.headers["x-cache"]) == (200, "hit") and "age" in answer.headers
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.content.endswith(b"data: [DONE]\n\n")
        assert (await gateway.ask(stream)).content == answer.content
        assert (gateway.outcomes[-1].source, gateway.counts().hits) == ("cache", 2)


async def test_a_whole_answer_is_made_of_a_stream_that_told_its_tokens(client: Any, chat: Any, stream: Any) -> None:
    async with client() as (gateway, completions):
        pieces = [piece async for piece in await completions.create(**stream, **TOLD)]
        raw = await completions.with_raw_response.create(**chat)
        assert (raw.headers["x-cache"], raw.headers["content-type"]) == ("hit", "application/json")
        answer = raw.parse()
        said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (said, "stop")
        assert answer.usage.total_tokens == USAGE["total_tokens"]
        assert gateway.asked == 1


async def test_a_stream_without_token_counts_makes_no_whole_answer(cached: Any, chat: Any, stream: Any) -> None:
    async with cached() as gateway:
        await gateway.ask(stream)
        assert (await gateway.ask(chat)).headers["x-cache"] == "miss"


async def test_each_form_is_answered_with_its_own_where_both_are_kept(cached: Any, chat: Any, stream: Any) -> None:
    async with cached() as gateway:
        streamed = await gateway.ask(stream)
        whole = await gateway.ask(chat)
        assert gateway.asked == 2
        assert (await gateway.ask(stream)).content == streamed.content
        assert (await gateway.ask(chat)).content == whole.content


@pytest.mark.parametrize("options", [{"include_usage": True, "continuous_usage_stats": True}, {"x": 1}])
async def test_streams_that_tell_more_are_asked_of_a_backend(
    cached: Any, chat: Any, stream: Any, options: dict[str, Any]
) -> None:
    async with cached() as gateway:
        await gateway.ask(chat)
        assert (await gateway.ask({**stream, "stream_options": options})).headers["x-cache"] == "miss"


async def test_completions_cross_too(cached: Any, backend: Any) -> None:
    pieces = [{"text": "a", "index": 0}, {"text": "b", "index": 0, "finish_reason": "length"}]
    backend.pieces = [events(*({"object": "text_completion", "choices": [piece]} for piece in pieces), COUNTS)]
    body = {"model": "test", "prompt": "x", "temperature": 0}
    async with cached() as gateway:
        await gateway.ask({**body, "stream": True, **TOLD}, "completions")
        answer = await gateway.ask(body, "completions")
        assert answer.headers["x-cache"] == "hit" and gateway.asked == 1
        assert answer.json()["object"] == "text_completion"
        assert answer.json()["choices"] == [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": "length"}]


async def test_age_ttl_and_clearing_hold_in_the_other_form(cached: Any, chat: Any, stream: Any) -> None:
    async with cached() as gateway:
        await gateway.ask(chat, x_headrace_cache="on; ttl=60")
        crossed = await gateway.ask(stream)
        assert crossed.headers["x-cache"] == "hit"
        memory = gateway.desk.memory
        ends = {memory.find(key).ends for key in list(memory._shelf)}
        assert len(ends) == 1 and memory.held["test"].entries == 2
        assert await gateway.desk.clear("test")
        assert (await gateway.ask(stream)).headers["x-cache"] == "miss"


async def test_who_asks_anew_is_not_given_the_other_form(cached: Any, chat: Any, stream: Any) -> None:
    async with cached() as gateway:
        await gateway.ask(chat)
        assert (await gateway.ask(stream, cache_control="no-cache")).headers["x-cache"] == "miss"
        assert (await gateway.ask({**stream, "seed": 1}, cache_control="no-store")).headers["x-cache"] == "bypass"


async def test_nobody_gets_anothers_answer_in_the_other_form(cached: Any, chat: Any, stream: Any) -> None:
    async with cached() as gateway:
        await gateway.ask(chat, x_who="a/red")
        assert (await gateway.ask(stream, x_who="b/blue")).headers["x-cache"] == "miss"
        assert (await gateway.ask(stream, x_who="c/red")).headers["x-cache"] == "hit"


async def test_the_other_form_lies_at_the_server_too(
    cached: Any, server: Any, chat: Any, stream: Any, until: Any
) -> None:
    options: dict[str, Any] = {"url": server.url, "deadline": 1.0, "probe_seconds": 0.05}
    async with cached(**options) as one, cached(**options, memory=False) as other:
        await one.ask(chat)
        await until(lambda: not one.desk.shared._calls)
        answer = await other.ask(stream)
        assert answer.headers["x-cache"] == "hit" and answer.content.endswith(b"data: [DONE]\n\n")
        assert one.asked == 1
