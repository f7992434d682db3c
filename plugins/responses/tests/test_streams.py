"""Streams of backends that have chats, as the events of this API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DONE = b"data: [DONE]\n\n"


def chunk(finish: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def piece(index: int, arguments: str, name: str | None = None, id: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return chunk(tool_calls=[{"index": index, "function": function, **({"id": id, "type": "function"} if id else {})}])


USAGE = {"id": "c", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}


async def events(gateway: Callable[..., Any], backend: Any, kit: Any, *chunks: Any, **fields: Any) -> Any:
    backend.reply = [*kit.sse(*chunks), DONE]
    async with gateway() as asker:
        return await asker.events(**fields)


async def test_a_text_is_told_piece_by_piece_between_its_beginning_and_its_end(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    found = await events(gateway, backend, kit, chunk(role="assistant"), chunk(content="a"), chunk("stop", content="b"))
    assert [each["type"].removeprefix("response.") for each in found] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [each["sequence_number"] for each in found] == list(range(10))
    assert [each["delta"] for each in found if "delta" in each] == ["a", "b"]
    item = found[-1]["response"]["output"][0]
    assert {each["item_id"] for each in found if "item_id" in each} == {item["id"]}
    assert (item["content"][0]["text"], item["status"]) == ("ab", "completed")


async def test_the_last_event_has_the_usage_which_the_backend_was_asked_for(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    found = await events(gateway, backend, kit, chunk("stop", content="a"), USAGE)
    assert found[-1]["response"]["usage"]["total_tokens"] == 7
    assert backend.requests[0][1]["stream_options"] == {"include_usage": True}


async def test_thoughts_end_before_the_words_begin(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    found = await events(
        gateway, backend, kit, chunk(reasoning_content="h"), chunk(reasoning="m"), chunk("stop", content="a")
    )
    types = [each["type"].removeprefix("response.") for each in found]
    assert types[2:9] == [
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
    ]
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["reasoning", "message"]
    assert found[-1]["response"]["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]


async def test_calls_whose_pieces_take_turns_are_told_apart(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    found = await events(
        gateway,
        backend,
        kit,
        piece(0, "", "f", "call_a"),
        piece(1, '{"b"', "g", "call_b"),
        piece(0, '{"a":1}'),
        piece(1, ":2}"),
        chunk("tool_calls"),
    )
    calls = found[-1]["response"]["output"]
    assert [(call["call_id"], call["name"], call["arguments"]) for call in calls] == [
        ("call_a", "f", '{"a":1}'),
        ("call_b", "g", '{"b":2}'),
    ]
    deltas = [each for each in found if each["type"] == "response.function_call_arguments.delta"]
    assert [(each["output_index"], each["delta"]) for each in deltas] == [(1, '{"b"'), (0, '{"a":1}'), (1, ":2}")]
    done = [each["arguments"] for each in found if each["type"] == "response.function_call_arguments.done"]
    assert done == ['{"a":1}', '{"b":2}']


async def test_calls_that_a_server_counts_all_as_the_first_are_told_apart_by_their_ids(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    found = await events(gateway, backend, kit, piece(0, "{}", "f", "a"), piece(0, "{}", "g", "b"), chunk("tool_calls"))
    assert [call["call_id"] for call in found[-1]["response"]["output"]] == ["a", "b"]


async def test_a_call_without_an_id_gets_one(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    found = await events(gateway, backend, kit, piece(0, "{}", "f"), chunk("tool_calls"))
    assert found[-1]["response"]["output"][0]["call_id"].startswith("call_")


async def test_a_refusal_is_told_piece_by_piece(gateway: Callable[..., Any], backend: Any, kit: Any) -> None:
    found = await events(gateway, backend, kit, chunk(refusal="N"), chunk("stop", refusal="o"))
    assert [each["delta"] for each in found if each["type"] == "response.refusal.delta"] == ["N", "o"]
    assert found[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "No"}]


async def test_log_probabilities_come_with_the_pieces_and_with_the_whole(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    token = {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": []}
    found = await events(
        gateway,
        backend,
        kit,
        chunk("stop", logprobs={"content": [token]}, content="a"),
        include=["message.output_text.logprobs"],
    )
    assert next(each for each in found if "delta" in each)["logprobs"] == [token]
    assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == [token]


async def test_a_stream_that_was_cut_short_by_its_limit_ends_incomplete(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    found = await events(gateway, backend, kit, chunk("length", content="a"))
    assert found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found[-1]["response"]["output"][-1]["status"] == "incomplete"


async def test_a_stream_that_breaks_ends_with_an_error_and_is_never_complete(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.reply, backend.cut = kit.sse(chunk(content="a")), True
    async with gateway() as asker:
        text = (await asker.ask(stream=True)).text
    assert "response.completed" not in text
    assert "\nevent: error\ndata: " in text
    error = kit.events_of(text)[-1]
    assert (error["type"], error["code"], error["param"], error["sequence_number"]) == (
        "error",
        "stream_truncated",
        None,
        0,
    )


async def test_an_error_of_the_backend_in_the_stream_is_told_as_one(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    found = await events(
        gateway, backend, kit, chunk(content="a"), {"error": {"message": "out of memory", "code": 500}}
    )
    assert (found[-1]["type"], found[-2]["type"]) == ("error", "response.output_text.delta")


async def test_a_refused_stream_is_answered_with_an_error_and_no_stream(
    gateway: Callable[..., Any], backend: Any, kit: Any
) -> None:
    backend.status, backend.reply = 400, {"error": {"message": "no", "type": "invalid_request_error"}}
    async with gateway() as asker:
        answer = await asker.ask(stream=True)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "no")
