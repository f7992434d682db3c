"""A chat's stream as a Messages stream, piece by piece."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import chat
from headrace.vetting import BadEvent
from headrace_anthropic.streaming import MessageStream


def chunk(finish: str | None = None, **delta: Any) -> chat.Chunk:
    return chat.Chunk([chat.ChunkChoice(chat.Delta(**delta), finish_reason=finish)], model="local")


def call(index: int, arguments: str | None = None, *, id: Any = None, name: str | None = None) -> chat.Chunk:
    function = chat.FunctionDelta(name, arguments)
    return chunk(tool_calls=[chat.ToolCallDelta(index, id, "function", function)])


@pytest.fixture
def told(kit: Any) -> Any:
    """What a stream of these chunks tells: the message."""

    def tell(*chunks: chat.Chunk) -> dict[str, Any]:
        stream = MessageStream(kit.an_exchange())
        message: dict[str, Any] = kit.assembled(kit.read_sse(b"".join([*map(stream.feed, chunks), stream.end()])))
        return message

    return tell


def use(identifier: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": identifier, "name": name, "input": arguments}


def test_a_stream_has_the_events_that_anthropic_documents(kit: Any) -> None:
    stream = MessageStream(kit.an_exchange())
    out = (
        stream.feed(chunk(role="assistant", content="")) + stream.feed(chunk(content="Hi")) + stream.feed(chunk("stop"))
    )
    events = kit.read_sse(out + stream.end())
    assert [event["type"] for event in events] == [
        *("message_start", "ping", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert events[0]["message"]["usage"] == {
        "input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_each_piece_is_told_when_it_comes(kit: Any) -> None:
    stream = MessageStream(kit.an_exchange())
    stream.feed(chunk(content="a"))
    (event,) = kit.read_sse(stream.feed(chunk(content="b")))
    assert (event["index"], event["delta"]) == (0, {"type": "text_delta", "text": "b"})
    kit.read_sse(stream.feed(call(0, '{"a', id="t", name="f")))
    (event,) = kit.read_sse(stream.feed(call(0, '": 1}')))
    assert (event["index"], event["delta"]) == (1, {"type": "input_json_delta", "partial_json": '": 1}'})


def test_a_thought_is_signed_before_it_ends(kit: Any) -> None:
    stream = MessageStream(kit.an_exchange())
    stream.feed(chunk(reasoning="Hm."))
    events = kit.read_sse(stream.feed(chunk(content="Yes")))
    assert events[0]["delta"] == {"type": "signature_delta", "signature": ""}
    assert [event["type"] for event in events[1:]] == [
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
    ]


def test_calls_among_each_other_come_one_after_the_other(told: Any) -> None:
    message = told(
        call(0, id="t0", name="f"),
        call(1, id="t1", name="g"),
        call(0, '{"a":'),
        call(1, '{"b":'),
        call(0, "1}"),
        call(1, "2}"),
        chunk("tool_calls"),
    )
    assert message["content"] == [use("t0", "f", a=1), use("t1", "g", b=2)]
    assert message["stop_reason"] == "tool_use"


def test_a_call_that_is_whole_makes_way_for_the_next(kit: Any) -> None:
    stream = MessageStream(kit.an_exchange())
    stream.feed(call(0, '{"a": {}}', id="t0", name="f"))
    events = kit.read_sse(stream.feed(call(1, '{"b":', id="t1", name="g")))
    assert [event["type"] for event in events] == ["content_block_stop", "content_block_start", "content_block_delta"]


def test_a_call_may_name_itself_late(told: Any) -> None:
    message = told(call(0, '{"a":'), call(0, "1}", id="t0"), call(0, name="f"), chunk("tool_calls"))
    assert message["content"] == [use("t0", "f", a=1)]


def test_calls_without_an_id_get_one_each(told: Any) -> None:
    message = told(call(0, "{}", name="f"), call(1, "{}", id="", name="f"), chunk("tool_calls"))
    identifiers = [block["id"] for block in message["content"]]
    assert len(set(identifiers)) == 2 and all(identifiers)


def test_calls_that_share_an_index_are_told_apart_by_their_ids(told: Any) -> None:
    message = told(call(0, '{"a":1}', id="t0", name="f"), call(0, '{"b":2}', id="t1", name="g"), chunk("tool_calls"))
    assert message["content"] == [use("t0", "f", a=1), use("t1", "g", b=2)]


def test_an_id_that_is_repeated_is_one_call(told: Any) -> None:
    message = told(call(0, '{"a":', id="t0", name="f"), call(0, "1}", id="t0", name="f"), chunk("tool_calls"))
    assert message["content"] == [use("t0", "f", a=1)]


def test_calls_without_arguments_have_none(told: Any) -> None:
    message = told(call(0, id="t0", name="f"), call(1, "", id="t1", name="g"), chunk("tool_calls"))
    assert message["content"] == [use("t0", "f"), use("t1", "g")]


def test_text_behind_a_call_is_a_block_of_its_own(told: Any) -> None:
    message = told(
        chunk(content="a"), call(0, '{"a":', id="t", name="f"), chunk(content="b"), call(0, "1}"), chunk("stop")
    )
    assert message["content"] == [{"type": "text", "text": "a"}, use("t", "f", a=1), {"type": "text", "text": "b"}]
    assert message["stop_reason"] == "tool_use"


@pytest.mark.parametrize("arguments", ["at sea", '{"a": 1', "[1]", "1", '{"a": 1}}'])
def test_arguments_that_are_no_json_object_end_the_stream(told: Any, arguments: str) -> None:
    with pytest.raises(BadEvent, match="'f'"):
        told(call(0, arguments, id="t", name="f"), chunk("tool_calls"))


def test_arguments_that_the_limit_has_cut_stay_cut(kit: Any) -> None:
    stream = MessageStream(kit.an_exchange())
    out = stream.feed(call(0, '{"a": "b', id="t", name="f")) + stream.feed(chunk("length")) + stream.end()
    assert kit.read_sse(out)[-2]["delta"]["stop_reason"] == "max_tokens"


def test_more_of_a_call_that_was_over_ends_the_stream(told: Any) -> None:
    with pytest.raises(BadEvent, match="complete"):
        told(
            call(0, "{}", id="t0", name="f"), call(1, "{}", id="t1", name="g"), call(0, '{"a":1}'), chunk("tool_calls")
        )


def test_a_blank_behind_a_call_that_was_over_is_nothing(told: Any) -> None:
    message = told(
        call(0, "{}", id="t0", name="f"), call(1, "{}", id="t1", name="g"), call(0, " \n"), chunk("tool_calls")
    )
    assert len(message["content"]) == 2


def test_a_call_without_a_name_ends_the_stream(told: Any) -> None:
    with pytest.raises(BadEvent, match="name"):
        told(call(0, "{}", id="t0"), chunk("tool_calls"))


@pytest.mark.parametrize(
    "finish, reason",
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("function_call", "tool_use"),
        ("content_filter", "refusal"),
        ("eos", "end_turn"),
    ],
)
def test_the_reason_of_the_end_is_told(told: Any, finish: str, reason: str) -> None:
    assert told(chunk(content="a"), chunk(finish))["stop_reason"] == reason


def test_a_refusal_is_said_as_text(told: Any) -> None:
    message = told(chunk(refusal="I will not."), chunk("stop"))
    assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": "I will not."}], "refusal")


def test_the_text_that_stopped_the_answer_is_told_where_the_engine_tells_it(told: Any) -> None:
    last = chat.Chunk([chat.ChunkChoice(chat.Delta(), finish_reason="stop", stop_reason="END")])
    message = told(chunk(content="a"), last)
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")


def test_the_tokens_are_told_at_the_end(told: Any) -> None:
    details = chat.PromptDetails(cached_tokens=8), chat.CompletionDetails(reasoning_tokens=3)
    message = told(chunk(content="a"), chunk("stop"), chat.Chunk([], usage=chat.Usage(10, 5, 15, *details)))
    assert message["usage"] == {
        "input_tokens": 2,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 8,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 3},
    }


def test_tokens_that_nobody_counted_are_estimated_and_marked(told: Any) -> None:
    usage = told(*[chunk(content="a")] * 7, chunk("stop"))["usage"]
    assert (usage["output_tokens"], usage["estimated"]) == (7, True)
    assert usage["input_tokens"] > 0


def test_a_stream_that_says_nothing_is_an_empty_message(told: Any) -> None:
    message = told()
    assert (message["content"], message["stop_reason"], message["model"]) == ([], "end_turn", "claude")
