"""What `bodies = true` finds in requests and answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.streaming import EventSplitter
from headrace_logs.bodies import PARSE_LIMIT, AnswerTap, request_text
from headrace_logs.redaction import REDACTED, Redactor

SECRET = "sk-aaaaAAAA1111bbbbBBBB"


def sse(*events: object) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def answer(data: bytes, limit: int = 1000, step: int = 7) -> str:
    tap, splitter = AnswerTap(limit), EventSplitter()
    for at in range(0, len(data), step):
        for event in splitter.feed(data[at : at + step]):
            tap.feed(event)
    tap.close(True)
    return tap.text()


def delta(text: str, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": text}}]}


def test_a_streamed_answer_is_put_together() -> None:
    assert answer(sse(delta("Hel"), delta("lo "), delta("wörld"))) == "Hello wörld"


def test_choices_do_not_mix() -> None:
    assert answer(sse(delta("a", 0), delta("x", 1), delta("b", 0), delta("y", 1))) == "ab\nxy"


def test_a_secret_across_chunks_is_found() -> None:
    pieces = [delta(SECRET[at : at + 3]) for at in range(0, len(SECRET), 3)]
    assert Redactor().prefix(answer(sse(*pieces)), 1000) == REDACTED


def test_reasoning_and_tool_arguments_belong_to_the_answer() -> None:
    events = [
        {"choices": [{"delta": {"reasoning_content": "hm "}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": '{"a":'}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "1}"}}]}}]},
    ]
    assert answer(sse(*events)) == 'hm {"a":1}'


@pytest.mark.parametrize(
    "event",
    [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "response.output_text.delta", "delta": "hi"},
        {"choices": [{"text": "hi"}]},
    ],
)
def test_other_dialects_are_understood(event: object) -> None:
    assert answer(sse(event)) == "hi"


@pytest.mark.parametrize(
    "event", [[], 1, None, {"choices": [1, None]}, {"choices": None}, {"choices": [{"delta": None}]}]
)
def test_unexpected_events_are_no_trouble(event: object) -> None:
    assert answer(sse(event)) == ""


def test_an_endless_answer_is_not_kept() -> None:
    tap = AnswerTap(100)
    for event in EventSplitter().feed(sse(*[delta("x" * 1000)] * 50)):
        tap.feed(event)
    assert 100 < len(tap.text()) < 10_000


def test_a_request_is_redacted_where_json_hides_the_secret() -> None:
    body = b'{"messages":[{"role":"user","content":"line\\nsk-aaaaAAAA1111bbbbBBBB ada\\u0040example.org"}]}'
    text = request_text(body, Redactor(), 1000)
    assert json.loads(text)["messages"][0]["content"] == f"line\n{REDACTED} {REDACTED}"


def test_a_long_request_is_cut() -> None:
    text = request_text(json.dumps({"content": "x" * 5000}).encode(), Redactor(), 100)
    assert len(text) == 101
    assert text.endswith("…")


def test_a_very_long_request_is_redacted_without_being_parsed() -> None:
    body = json.dumps({"content": f"line\n{SECRET} " + "x" * PARSE_LIMIT}).encode()
    text = request_text(body, Redactor(), 100)
    assert "aaaa" not in text
    assert text.startswith('{"content": "line\n' + REDACTED)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"not JSON " + SECRET.encode(), b"[" * 100_000])
def test_a_body_that_is_not_json_is_text(body: bytes) -> None:
    text = request_text(body, Redactor(), 100)
    assert "aaaa" not in text
