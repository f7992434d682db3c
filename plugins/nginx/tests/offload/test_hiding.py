"""Usage that the core asked for and the client did not: seen by the core alone, however the bytes come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from headrace.dialects import OpenAIDialect

USAGE = 'data: {"id":"1","choices" : [ ],"usage":{"prompt_tokens":11,"completion_tokens":2},"x":"é🦊"}\n\n'
BEFORE = [
    ": a comment\n\n",
    'data: {"choices":[{"delta":{"role":"assistant"}}],"usage":null}\n\n',
    'event: message\ndata: {"choices":[{"delta":{"content":"é你🦊 \\"usage\\" \\n\\n"}}]}\n\n',
    'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
]
AFTER = ["data: [DONE]\n\n"]


def stream(ends: str = "\n") -> tuple[bytes, bytes]:
    """What the backend sends, and what the client shall see of it."""
    events = [event.replace("\n", ends).encode() for event in (*BEFORE, USAGE, *AFTER)]
    return b"".join(events), b"".join(events[: len(BEFORE)] + events[len(BEFORE) + 1 :])


def hidden(result: Any, shown: bytes) -> None:
    """The client got what it shall see, and the core was told of the usage."""
    assert result.got.body == shown and result.got.whole
    seen = result.watched
    assert (seen.size, seen.cut, seen.unfinished) == (len(shown), False, False)
    usage = OpenAIDialect().usage(seen.usage)
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens) == (11, 2)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_the_usage_is_hidden_in_pieces_of_any_size(stage: Any, http: Any, size: int, ends: str) -> None:
    sent, shown = stream(ends)
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    hidden(stage.ask(http.closing(*pieces), "hide"), shown)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_the_usage_is_hidden_wherever_one_cut_is(stage: Any, http: Any, ends: str) -> None:
    sent, shown = stream(ends)
    begin = sent.index(USAGE.encode()[:20])
    for at in (*range(begin - 5, begin + 6), *range(begin + 20, len(sent), 5), *range(len(sent) - 20, len(sent))):
        hidden(stage.ask(http.chunked(sent[:at], sent[at:]), "hide"), shown)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.data())
def test_the_usage_is_hidden_wherever_the_cuts_are(stage: Any, http: Any, data: some.DataObject) -> None:
    sent, shown = stream(data.draw(some.sampled_from(["\n", "\r\n"])))
    places = sorted(data.draw(some.sets(some.integers(1, len(sent) - 1), max_size=12)))
    pieces = [sent[start:end] for start, end in zip((0, *places), (*places, len(sent)), strict=True)]
    framed = data.draw(some.sampled_from([http.closing, http.chunked]))
    hidden(stage.ask(framed(*pieces), "hide"), shown)


def test_everything_else_passes_as_it_is(stage: Any, http: Any) -> None:
    sent = "".join((*BEFORE, 'data: {"choices":[{"delta":{}}],"usage":{"completion_tokens":1}}\n\n', *AFTER)).encode()
    for pieces in ([sent], [sent[at : at + 5] for at in range(0, len(sent), 5)]):
        assert stage.ask(http.closing(*pieces), "hide").got.body == sent


def test_an_event_may_end_with_carriage_returns_alone(stage: Any, http: Any) -> None:
    sent = "".join((*BEFORE, *AFTER)).replace("\n", "\r").encode()
    result = stage.ask(http.chunked(sent[:100], sent[100:]), "hide")
    assert result.got.body == sent and not result.watched.unfinished


def test_a_usage_after_the_end_mark_is_hidden_too(stage: Any, http: Any) -> None:
    sent = "".join((*BEFORE, *AFTER, USAGE)).encode()
    result = stage.ask(http.chunked(sent[:-30], sent[-30:]), "hide")
    assert result.got.body == "".join((*BEFORE, *AFTER)).encode() and result.got.whole


@pytest.mark.parametrize("tail", ["data: [DONE]", "data: [DONE]\n", ""])
def test_a_last_event_without_its_end_is_not_lost(stage: Any, http: Any, tail: str) -> None:
    sent = "".join((*BEFORE, USAGE, tail)).encode()
    result = stage.ask(http.closing(sent[:-50], sent[-50:]), "hide")
    assert result.got.body == "".join((*BEFORE, tail)).encode()


@pytest.mark.parametrize("size", [1000, 16_000, 100_000])
def test_a_large_event_passes_before_its_end_and_unharmed(stage: Any, http: Any, size: int) -> None:
    large = b'data: {"choices":[{"delta":{"content":"' + b"a" * 300_000 + b'"}}]}\n\n'
    sent, shown = stream()
    pieces = [large[at : at + size] for at in range(0, len(large), size)]
    hidden(stage.ask(http.chunked(*pieces, sent), "hide"), large + shown)


def test_a_reply_that_is_no_stream_keeps_its_usage(stage: Any, http: Any) -> None:
    body = b'{"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":2}}'
    hidden(stage.ask([http.answer(body)], "hide"), body)


def test_an_error_keeps_everything(stage: Any, http: Any) -> None:
    body = b'data: {"choices":[],"usage":{}}\n\n'
    result = stage.ask([http.answer(body, 400, kind="text/event-stream")], "hide")
    assert result.got.body == body
