"""Whatever is asked and answered: nothing is lost silently, and a stream says what the whole answer says."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from headrace import chat
from headrace.exchange import Exchange, Reply
from headrace.translation import translated
from headrace_responses.dialect import endpoint
from headrace_responses.translation import Translation

ENDPOINT = endpoint(Translation(lambda exchange: True))
MOST_MICROSECONDS = 400.0
"""For one chunk, on a machine that others keep busy; a quiet one takes about a tenth."""
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def exchange_of(body: dict[str, Any]) -> Exchange:
    scope = {"headers": [], "method": "POST", "path": "/v1/responses", "client": ("127.0.0.1", 1)}
    exchange = Exchange(id="x", endpoint=ENDPOINT, scope=scope, body=msgspec.json.encode(body))
    exchange.peek = ENDPOINT.read(exchange.body)
    return exchange


# --- requests ---

PART = some.sampled_from(
    [
        {"type": "input_text", "text": "?", "prompt_cache_breakpoint": "?"},
        {"type": "input_image", "image_url": "?", "detail": "?"},
        {"type": "input_file", "file_data": "?", "filename": "?", "detail": "?"},
        {"type": "input_file", "file_id": "?"},
        {"type": "input_audio", "input_audio": {"data": "?", "format": "?"}},
    ]
)
SAID = some.sampled_from(
    [
        {"type": "output_text", "text": "?", "annotations": ["?"], "logprobs": ["?"]},
        {"type": "refusal", "refusal": "?"},
    ]
)
TEXT = some.just("?")
ITEM = some.one_of(
    some.fixed_dictionaries(
        {
            "role": some.sampled_from(["user", "system", "developer"]),
            "content": TEXT | some.lists(PART, min_size=1, max_size=3),
        },
        optional={"type": some.just("message"), "novel": TEXT},
    ),
    some.fixed_dictionaries(
        {"role": some.just("assistant"), "content": TEXT | some.lists(SAID, min_size=1, max_size=3)},
        optional={"phase": TEXT},
    ),
    some.fixed_dictionaries(
        {"type": some.just("function_call"), "call_id": TEXT, "name": TEXT, "arguments": TEXT},
        optional={"namespace": TEXT},
    ),
    some.fixed_dictionaries(
        {
            "type": some.just("function_call_output"),
            "call_id": TEXT,
            "output": TEXT | some.lists(PART, min_size=1, max_size=2),
        }
    ),
    some.fixed_dictionaries(
        {"type": some.just("reasoning"), "summary": some.just([{"type": "summary_text", "text": "?"}])},
        optional={"content": some.just([{"type": "reasoning_text", "text": "?"}]), "encrypted_content": TEXT},
    ),
)
TOOL = some.fixed_dictionaries(
    {"type": some.just("function"), "name": TEXT},
    optional={"description": TEXT, "parameters": some.just({"title": "?"}), "defer_loading": TEXT},
)
REQUEST = some.fixed_dictionaries(
    {"model": TEXT, "input": TEXT | some.lists(ITEM, min_size=1, max_size=8)},
    optional={
        "instructions": TEXT,
        "tools": some.lists(TOOL, min_size=1, max_size=3),
        "text": some.sampled_from(
            [
                {"verbosity": "?"},
                {
                    "format": {
                        "type": "json_schema",
                        "name": "?",
                        "schema": {"title": "?"},
                        "description": "?",
                        "new": "?",
                    }
                },
            ]
        ),
        "reasoning": some.just({"effort": "?", "summary": "?", "mode": "?"}),
        "include": some.lists(TEXT, max_size=2),
        "user": TEXT,
        "safety_identifier": TEXT,
        "prompt_cache_key": TEXT,
        "service_tier": TEXT,
        "stop": TEXT,
        "novel": TEXT,
    },
)


def marked(value: Any, path: str, numbers: Iterator[int], found: dict[str, str]) -> Any:
    """The same with a mark of its own in place of every `?`; `found` gets the path of each."""
    if value == "?":
        mark = f"mark{next(numbers)}."
        found[mark] = path
        return mark
    if isinstance(value, dict):
        return {name: marked(each, f"{path}.{name}".removeprefix("."), numbers, found) for name, each in value.items()}
    if isinstance(value, list):
        return [marked(each, path, numbers, found) for each in value]
    return value


@quick
@given(REQUEST)
def test_every_field_of_a_request_is_in_the_chat_or_named(request: dict[str, Any]) -> None:
    marks: dict[str, str] = {}
    exchange = exchange_of(marked(request, "", itertools.count(), marks))
    body, dropped = Translation(lambda exchange: True).request(exchange)
    chat_of = msgspec.json.decode(body, type=chat.Request)
    said = msgspec.json.encode(chat_of).decode()
    for mark, path in marks.items():
        named = path in dropped or any(path.startswith(f"{name}.") for name in dropped)
        assert mark in said or named or f"{path}.{mark}" in dropped, (path, dropped, said)


# --- answers ---

WORDS = some.text(min_size=1, max_size=12)
CALLS = some.lists(some.tuples(WORDS, some.lists(WORDS, max_size=4)), max_size=3)
ANSWER = some.fixed_dictionaries(
    {
        "thoughts": some.lists(WORDS, max_size=3),
        "words": some.lists(WORDS, max_size=4),
        "refusals": some.lists(WORDS, max_size=2),
        "calls": CALLS,
        "finish": some.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
        "shuffled": some.randoms(use_true_random=False),
    }
)


def chunks_of(answer: dict[str, Any]) -> list[chat.Chunk]:
    """Thoughts, words and refusals in turn; then the pieces of all calls, mixed as they like but each in its order."""
    deltas = [chat.Delta(reasoning_content=text) for text in answer["thoughts"]]
    deltas += [chat.Delta(content=text) for text in answer["words"]]
    deltas += [chat.Delta(refusal=text) for text in answer["refusals"]]
    pieces = []
    for index, (name, arguments) in enumerate(answer["calls"]):
        first = chat.ToolCallDelta(index, f"call_{index}", "function", chat.FunctionDelta(name, ""))
        pieces.append(
            [first, *(chat.ToolCallDelta(index, function=chat.FunctionDelta(None, text)) for text in arguments)]
        )
        deltas.append(chat.Delta(tool_calls=[pieces[-1].pop(0)]))
    while any(pieces):
        deltas.append(chat.Delta(tool_calls=[answer["shuffled"].choice([each for each in pieces if each]).pop(0)]))
    chunks = [chat.Chunk([chat.ChunkChoice(delta)], model="m") for delta in deltas]
    usage = chat.Usage(3, 4, 7, chat.PromptDetails(2), chat.CompletionDetails(1))
    return [
        *chunks,
        chat.Chunk([chat.ChunkChoice(chat.Delta(), finish_reason=answer["finish"])]),
        chat.Chunk([], usage=usage),
    ]


def whole_of(answer: dict[str, Any]) -> chat.Completion:
    calls = [
        chat.ToolCall(f"call_{index}", chat.FunctionCall(name, "".join(arguments)))
        for index, (name, arguments) in enumerate(answer["calls"])
    ]
    message = chat.Answer(
        content="".join(answer["words"]) or None,
        refusal="".join(answer["refusals"]) or None,
        reasoning_content="".join(answer["thoughts"]) or None,
        tool_calls=calls or None,
    )
    usage = chat.Usage(3, 4, 7, chat.PromptDetails(2), chat.CompletionDetails(1))
    return chat.Completion("c", [chat.Choice(message, finish_reason=answer["finish"])], "m", usage=usage)


def events_of(data: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: ")]


def without_what_is_its_own(response: dict[str, Any]) -> Any:
    """Ids and times differ from one answer to the next."""
    items = [{name: value for name, value in item.items() if name != "id"} for item in response["output"]]
    return {**response, "id": "", "created_at": 0, "completed_at": 0, "output": items}


def asked() -> Exchange:
    exchange = exchange_of({"model": "m", "input": "hi"})
    ENDPOINT.translation.request(exchange)  # type: ignore[union-attr]
    return exchange


@quick
@given(ANSWER)
def test_a_stream_says_what_the_whole_answer_says(answer: dict[str, Any]) -> None:
    translation, exchange = Translation(lambda exchange: True), asked()
    stream = translation.stream(exchange)
    events = events_of(b"".join(stream.feed(chunk) for chunk in chunks_of(answer)) + stream.end())
    whole = msgspec.json.decode(translation.answer(whole_of(answer), exchange))
    assert without_what_is_its_own(events[-1]["response"]) == without_what_is_its_own(whole)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@quick
@given(ANSWER)
def test_the_pieces_of_a_stream_make_its_items(answer: dict[str, Any]) -> None:
    stream = Translation(lambda exchange: True).stream(asked())
    events = events_of(b"".join(stream.feed(chunk) for chunk in chunks_of(answer)) + stream.end())
    made: dict[tuple[int, int], str] = {}
    for event in events:
        if "delta" in event:
            key = (event["output_index"], event.get("content_index", 0))
            made[key] = made.get(key, "") + event["delta"]
    output = events[-1]["response"]["output"]
    for index, item in enumerate(output):
        texts = (
            [item["arguments"]]
            if "arguments" in item
            else [part.get("text", part.get("refusal")) for part in item["content"]]
        )
        assert texts == [made.get((index, at), "") for at in range(len(texts))]
    done = {event["output_index"]: event["item"] for event in events if event["type"] == "response.output_item.done"}
    assert [done[index] for index in range(len(output))] == output


async def through_the_core(exchange: Exchange, pieces: list[bytes]) -> bytes:
    """What a client gets of a backend's stream that comes in these pieces."""

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    reply = Reply(200, [(b"content-type", b"text/event-stream")], stream=stream())
    attempt: Any = SimpleNamespace(exchange=exchange, asked=exchange_of({"model": "m", "input": "hi"}))
    given = translated(reply, attempt).stream
    assert given is not None
    return b"".join([piece async for piece in given])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANSWER, some.lists(some.integers(1, 40), min_size=1, max_size=30))
def test_however_the_bytes_of_a_stream_are_cut_its_events_are_the_same(
    answer: dict[str, Any], sizes: list[int]
) -> None:
    data = b"".join(map(chat.event, chunks_of(answer))) + chat.DONE
    pieces, at = [], 0
    for size in itertools.cycle(sizes):
        if at >= len(data):
            break
        pieces.append(data[at : at + size])
        at += size
    one, many = (events_of(asyncio.run(through_the_core(asked(), cut))) for cut in ([data], pieces))
    assert [event["type"] for event in one] == [event["type"] for event in many]
    assert without_what_is_its_own(one[-1]["response"]) == without_what_is_its_own(many[-1]["response"])


def test_a_chunk_costs_little() -> None:
    stream = Translation(lambda exchange: True).stream(asked())
    chunk = chat.Chunk([chat.ChunkChoice(chat.Delta(content="word "))], model="m")
    stream.feed(chunk)
    rounds = 5000
    began = time.perf_counter()
    for _ in range(rounds):
        stream.feed(chunk)
    alone = (time.perf_counter() - began) / rounds * 1e6
    data = [chat.event(chunk)] * rounds + [
        chat.event(chat.Chunk([chat.ChunkChoice(chat.Delta(), finish_reason="stop")]))
    ]
    began = time.perf_counter()
    asyncio.run(through_the_core(asked(), [*data, chat.DONE]))
    with_core = (time.perf_counter() - began) / rounds * 1e6
    print(f"\na chunk takes {alone:.1f} us to translate, {with_core:.1f} us with reading it")
    assert with_core < MOST_MICROSECONDS
