"""Streams of other dialects, whose events have types: what reaches the client is what the core itself would send."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from headrace.dialects import Dialect
from headrace.exchange import Usage
from headrace.vetting import BadEvent
from headrace_anthropic.dialect import AnthropicDialect
from headrace_nginx.scripts import ending_events
from headrace_responses.dialect import ResponsesDialect

DONE = "data: [DONE]\n\n"
COMMENT = ": still there\n\n"
MALFORMED = "event: x\ndata: {]\n\n"


def event(kind: str, **said: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **said})}\n\n"


class Spoken(NamedTuple):
    """A dialect, and events of it."""

    dialect: Dialect
    begin: list[str]
    end: list[str]
    failed: list[str]
    other: list[str]
    usage: Usage

    @property
    def whole(self) -> bytes:
        return "".join((*self.begin, *self.end)).encode()

    @property
    def cut(self) -> bytes:
        """All but the last event."""
        return "".join((*self.begin, *self.end[:-1])).encode()


START = {"id": "m", "content": [], "usage": {"input_tokens": 21, "cache_read_input_tokens": 4, "output_tokens": 1}}
TEXT = 'é🦊 "type":"message_stop" {"error":1}\n\n"usage":{'
DELTA = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 300})
COMPLETED = {"id": "r", "error": None, "usage": {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}, "x": "é"}
SPOKEN = {
    "anthropic": Spoken(
        AnthropicDialect(),
        [
            event("message_start", message=START),
            event("ping"),
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": TEXT}),
        ],
        [DELTA, event("message_stop")],
        [event("error", error={"type": "overloaded_error", "message": "no"}), 'data: {"a":1, "type" : "error"}\n\n'],
        [COMMENT, 'data: {"type":"message_stop2"}\n\n', 'data: {"a":{"type":"message_stop"},"type":"x"}\n\n', DELTA],
        Usage(25, 300, 4, tells_cached=True),
    ),
    "responses": Spoken(
        ResponsesDialect(),
        [
            event("response.created", response={"status": "in_progress", "error": None, "usage": None}),
            event("response.output_text.delta", delta=TEXT, logprobs=[{"finish_reason": "stop", "usage": {}}]),
        ],
        [event("response.output_text.done", text=TEXT), event("response.completed", response=COMPLETED)],
        [event("error", code="x", message="no", param=None), event("response.failed", response={"error": {}})],
        [COMMENT, 'data: {"type":"response.completed.x"}\n\n', event("response.incomplet", type2="response.completed")],
        Usage(7, 5),
    ),
}
REQUEST_ID = "request-7"


@pytest.fixture(params=SPOKEN)
def spoken(request: pytest.FixtureRequest, binary: Any) -> Any:
    if binary.module is None:
        pytest.skip("the script does not know them")
    return SPOKEN[request.param]


@pytest.fixture
def ask(stage: Any, spoken: Spoken) -> Any:
    """Ask for a stream of this dialect."""

    def ask(pieces: Any, watch: str = "usage") -> Any:
        stage.script(pieces, stage.told(watch=f"{watch} 1 60000 {spoken.dialect.name}"))
        return stage.send(stage.request(headers={"X-Request-ID": REQUEST_ID}))

    return ask


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def endings(spoken: Spoken) -> list[bytes]:
    """Broken, unfinished, failed, malformed."""
    return [each.encode() for each in ending_events(spoken.dialect, REQUEST_ID)]


def passed(result: Any, body: bytes, spoken: Spoken) -> None:
    assert (result.got.body, result.got.whole) == (body, True)
    seen = result.watched
    assert (seen.size, seen.cut, seen.unfinished, seen.why) == (len(body), False, False, "")
    assert spoken.dialect.usage(seen.usage) == spoken.usage


def ended(result: Any, before: bytes, event: bytes, *, why: str = "", cut: bool = False) -> None:
    assert (result.got.body, result.got.whole) == (before + event, True)
    seen = result.watched
    assert (seen.size, seen.cut, seen.unfinished, seen.finished) == (len(before + event), cut, True, False)
    assert seen.why == why


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_whole_stream_passes_and_is_counted_however_it_is_cut(ask: Any, http: Any, spoken: Spoken, ends: str) -> None:
    sent = spoken.whole.decode().replace("\n", ends).encode()
    for at in range(1, len(sent), 11):
        passed(ask(http.chunked(sent[:at], sent[at:])), sent, spoken)
    for size in (1, 2, 3, 50, 1000):
        passed(ask(http.closing(*pieces_of(sent, size)), "end"), sent, spoken)


def test_a_stream_without_its_last_event_is_not_whole(ask: Any, http: Any, spoken: Spoken) -> None:
    _, unfinished, _, _ = endings(spoken)
    for framed in (http.chunked(spoken.cut), http.closing(spoken.cut)):
        ended(ask(framed), spoken.cut, unfinished)
    last = spoken.end[-1].encode()
    for at in range(1, len(last) - 2, 9):
        ended(ask(http.closing(spoken.cut, last[:at])), spoken.cut, unfinished)
    ended(ask(http.closing(spoken.cut, DONE.encode())), spoken.cut + DONE.encode(), unfinished)


def test_a_stream_that_breaks_is_ended_in_its_dialect(ask: Any, http: Any, spoken: Spoken) -> None:
    broken, *_ = endings(spoken)
    ended(ask(http.chunked(spoken.cut, spoken.end[-1].encode()[:30], ends=False)), spoken.cut, broken, cut=True)


def test_the_last_event_may_lack_its_blank_line(ask: Any, http: Any, spoken: Spoken) -> None:
    for sent in (spoken.whole[:-1], spoken.whole[:-2], spoken.whole + DONE.encode()):
        passed(ask(http.closing(sent)), sent, spoken)


def test_a_stream_that_breaks_after_its_last_event_is_whole(ask: Any, http: Any, spoken: Spoken) -> None:
    result = ask(http.chunked(spoken.whole, b"data: {", ends=False))
    passed(result, spoken.whole, spoken)
    assert result.watched.finished


def test_however_long_a_backend_may_be_silent_its_dialect_is_known(stage: Any, http: Any, spoken: Spoken) -> None:
    told = f"usage 1 {10**15} {spoken.dialect.name}"
    passed(stage.ask(http.closing(spoken.whole), told), spoken.whole, spoken)


def test_a_dialect_that_nginx_does_not_know_is_left_alone(stage: Any, http: Any, spoken: Spoken) -> None:
    result = stage.ask(http.closing(spoken.cut), f"usage 1 60000 {spoken.dialect.name}s")
    assert (result.got.body, result.report.watched) == (spoken.cut, ())


@pytest.mark.parametrize("spoken", ["anthropic"], indirect=True)
def test_a_backend_that_says_nothing_after_the_last_event_is_left(
    stage: Any, ask: Any, http: Any, spoken: Spoken
) -> None:
    stage.backend.left.clear()
    passed(ask([*http.chunked(spoken.whole, ends=False)[:-1], "left"]), spoken.whole, spoken)
    assert stage.backend.left.wait(20)


def test_an_error_event_ends_a_stream(ask: Any, http: Any, spoken: Spoken) -> None:
    *_, failed, malformed = endings(spoken)
    for bad in spoken.failed:
        ended(ask(http.chunked(spoken.cut, bad.encode(), spoken.whole)), spoken.cut, failed, why="failed")
        ended(ask(http.closing(spoken.cut + bad.encode())), spoken.cut, failed, why="failed")
    ended(ask(http.chunked(spoken.cut + MALFORMED.encode())), spoken.cut, malformed, why="malformed")


@pytest.mark.parametrize("type_first", [True, False])
def test_a_last_event_of_any_size_is_the_last(ask: Any, http: Any, spoken: Spoken, type_first: bool) -> None:
    said = json.loads(spoken.end[-1].partition("data: ")[2])
    kind, text = said.pop("type"), "a" * 300_000
    if type_first:
        long = f"data: {json.dumps({'type': kind, 'text': text, **said})}\n\n".encode()
    else:
        long = f"event: {kind}\ndata: {json.dumps({'text': text, **said, 'type': kind})}\n\n".encode()
    for sent in (long, long[:-1], long[:-2], long + DONE.encode()):
        passed(ask(http.chunked(spoken.cut, *pieces_of(sent, 16_000))), spoken.cut + sent, spoken)
    part = long[:290_000]
    result = ask(http.chunked(spoken.cut, *pieces_of(part, 16_000)))
    ended(result, spoken.cut + part + b"\n\n", endings(spoken)[1])


class Case(NamedTuple):
    """Events, where they are cut, and whether all of it comes."""

    spoken: Spoken
    body: bytes
    places: list[int]
    arrived: bool


@some.composite
def cases(draw: some.DrawFn) -> Case:
    spoken = draw(some.sampled_from(sorted(SPOKEN)).map(SPOKEN.__getitem__))
    odd = [*spoken.other, *spoken.failed[:1], MALFORMED, *spoken.end]
    events = [*spoken.begin, *draw(some.lists(some.sampled_from(odd), max_size=2)), *spoken.end]
    body = "".join(events).replace("\n", draw(some.sampled_from(["\n", "\n", "\r\n"]))).encode()
    body = body[: len(body) - draw(some.sampled_from([0, 0, 1, 2, 5, 40, 150, 400]))]
    return Case(spoken, body, draw(some.lists(some.integers(1, 2000), max_size=6)), draw(some.booleans()))


def inline(case: Case) -> tuple[bytes, bool, str]:
    """What the core sends of it before its own event, whether the stream is whole, and why not."""
    vetting, dialect = case.spoken.dialect.vetting(1), case.spoken.dialect
    assert vetting is not None
    try:
        shown = vetting.look(case.body)
        if not case.arrived:
            return shown, vetting.finished, ""
        rest = vetting.rest()
    except BadEvent as error:
        return error.before, False, "malformed" if "read" in error.message else "failed"
    return (shown + rest, True, "") if vetting.said_last or dialect.is_complete(shown + rest) else (shown, False, "")


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=cases())
def test_what_becomes_of_a_stream_is_what_the_core_makes_of_it(stage: Any, binary: Any, http: Any, case: Case) -> None:
    if binary.module is None:
        pytest.skip("the script does not know them")
    places = sorted({place for place in case.places if place < len(case.body)})
    pieces = [case.body[start:end] for start, end in zip((0, *places), (*places, len(case.body)), strict=True)]
    stage.script(
        http.chunked(*pieces, ends=case.arrived), stage.told(watch=f"usage 1 60000 {case.spoken.dialect.name}")
    )
    result = stage.send(stage.request(headers={"X-Request-ID": REQUEST_ID}))
    shown, whole, why = inline(case)
    broken, unfinished, failed, malformed = endings(case.spoken)
    ending = {"failed": failed, "malformed": malformed}.get(why, unfinished if case.arrived else broken)
    assert result.got.body == shown + (b"" if whole else ending)
    assert (result.watched.unfinished, result.watched.why) == (not whole, why)
    if not why:  # nginx reads it in half an event, too, which is shown to nobody
        usage = case.spoken.dialect.usage
        assert usage(result.watched.usage) in (usage(shown), usage(case.body))
