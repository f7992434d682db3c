"""Any reply, in any pieces, ended or broken anywhere: the bytes a client gets and the report are what a model says."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from headrace_nginx.scripts import ending_events

KEPT, USAGE_BYTES = 4096, 1024
BROKEN, UNFINISHED, FAILED, MALFORMED = (event.encode() for event in ending_events())
EVENTS = [
    'data: {"choices":[{"delta":{"content":"é你🦊"}}],"usage":null}\n\n',
    'data: {"choices":[{"delta":{"content":"a \\"usage\\":{\\n\\n [DONE]"},"finish_reason":null}]}\n\n',
    'data: {"choices":[{"delta":{"content":"data: {\\"error\\": {"}}]}\n\n',
    'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"completion_tokens":1}}\n\n',
    'data: {"choices":[{"finish_reason" : "length","delta":{"index":3}, "index": 1}]}\n\n',
    'data: {"choices" : [ ] ,"usage":{"prompt_tokens":11,"completion_tokens":2},"x":"🦊"}\n\n',
    'event: end\nid: 7\ndata: {"choices":[],"usage": {"completion_tokens":3}}\n\n',
    'data: {"choices":[],"usage":null}\n\n',
    'data: {"choices":[],"prompt_filter_results":[{}]}\n\n',
    ": a comment\n\n",
    'data: {"error": {"message":"out of memory"}}\n\n',
    'data: {"choices":[{"delta":{"content":"\\\\"},"error":{}}],"a":{"error":1},"error" : null}\n\n',
    'data: {"id":"1","choices":[],"error":"out of memory","usage":{}}\n\n',
    'data: {"choices":[{"delta":{"content":"abort"}}, {"index":1,"finish_reason": "abort"}]}\n\n',
    'data: {"choices":[{"delta":{"content":"a"}]}\n\n',
    "data: }\n\n",
    'data:{"choices":[{"delta":{"content":"' + "long " * 900 + '"}}]}\n\n',
    "data: [DONE]\n\n",
]
ALIKE = [
    'data: {"id":"1","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}],"usage":null}\n\n',
    'data: {"choices":[{"text":"%s","index":0}]}\n\n',
    'data: {"choices":[{"delta":{},"finish_reason":"%s"}]}\n\n',
    'data: {"choices":[{"a":[{"b":"%s"}],"finish_reason":null}]}\n\n',
    'event: a\nid: 7\ndata: {"choices":[],"object":"%s"}\n: a comment\n\n',
    'data: {"a":{"b":{"finish_reason":"%s"}},"choices":[{}]}\n\n',
]
"""Of streams whose events differ by what is said, and by nothing else."""
SAID = [
    *("a", "b", "", "Hello", "你🦊é", "\\\\", '\\"', "\\n\\n", "abort", "stop", " and so on" * 20, "[DONE]", "data: {"),
    'a","error":{"b":"c"},"d":"',
    'a","error":null,"index":7,"d":"',
    'a","finish_reason":"abort","b":"',
    'a\\\\","finish_reason":"stop","b":"',
    'a","choices":[],"usage":{"completion_tokens":1},"b":"',
    "\\",
    "\t",
    '"',
]
"""What is between the quotes: some of it does not stay there."""
REPLIES = [
    '{"choices":[{"message":{"content":"é你🦊 \\"usage\\""}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n',
    '{"choices":[],"usage":null,"token":"usage"}',
    '["' + "a" * 5000 + '",{"usage" : {"prompt_tokens":3}}]',
    "",
]


class Reply(NamedTuple):
    """What a backend sends: `wire` are the pieces after the head, whether they are all or not. Then it closes, and has
    said so, or else nginx might use the connection of a whole reply again just then."""

    watch: str
    answers: int
    """That the stream has; 0: the core does not say so."""
    stream: bool
    framing: str
    """`closing` as in HTTP/1.0, `chunked`, or `length`."""
    length: int
    """Of the body, had all of it come."""
    wire: list[bytes]
    joined: bool
    """Whether the first piece comes with the head."""

    @property
    def head(self) -> bytes:
        kind = "Content-Type: " + ("text/event-stream" if self.stream else "application/json")
        framed = {
            "closing": "HTTP/1.0 200 X\r\n" + kind,
            "chunked": f"HTTP/1.1 200 X\r\n{kind}\r\nConnection: close\r\nTransfer-Encoding: chunked",
            "length": f"HTTP/1.1 200 X\r\n{kind}\r\nConnection: close\r\nContent-Length: {self.length}",
        }
        return (framed[self.framing] + "\r\n\r\n").lower().replace("http/", "HTTP/").encode()

    def pieces(self) -> list[bytes | str]:
        if self.joined:
            return [self.head + self.wire[0], *self.wire[1:], "close"]
        return [self.head, *self.wire, "close"]


class Expected(NamedTuple):
    body: bytes
    whole: bool
    seen: tuple[int, bool, bool, bool, str, bytes] | None
    """Size, cut, unfinished, finished, why and, unless an event ended it, usage as they are reported; None if nobody
    watches."""


class Event(NamedTuple):
    """What an event says."""

    why: str
    """What is wrong with it."""
    hidden: bool
    finished: set[int]
    """Which answers give their finish reasons."""


def read(event: bytes, watch: str, module: bool) -> Event:
    data = b"\n".join(re.findall(rb"(?m)^data:(.*)$", event)).strip()
    if data.startswith(b"["):
        return Event("", False, set())
    try:
        said = json.loads(data or b"{}")
    except ValueError:
        return Event("malformed" if module or (data.startswith(b"{") and not is_over(event)) else "", False, set())
    choices = said.get("choices", [])
    reasons = {each.get("index", 0): each.get("finish_reason") for each in choices}
    finished = {index for index, reason in reasons.items() if reason}
    failed = "failed" if said.get("error") is not None or "abort" in reasons.values() else ""
    return Event(failed, watch == "hide" and "usage" in said and not choices, finished)


def is_over(event: bytes) -> bool:
    return event.endswith((b"\n\n", b"\r\n\r\n"))


def usage_in(tail: bytes) -> bytes:
    found = list(re.finditer(rb'"usage"[: ]*\{', tail))
    return tail[found[-1].start() :][:USAGE_BYTES] if found else b""


def expected(reply: Reply, body: bytes, arrived: bool, module: bool) -> Expected:
    """What shall become of `body`, which is what came; `arrived`: whether that was all, as far as HTTP says.

    The script does not see what is no JSON, and does not count answers that finish.
    """
    if reply.watch == "end" and reply.framing == "chunked" and not (reply.answers and module):
        return Expected(body, arrived, None)
    tail = body[-KEPT:]
    if not reply.stream:
        torn = reply.framing == "closing" and not tail.rstrip().endswith((b"}", b"]"))
        return Expected(body, arrived and not torn, (len(body), torn or not arrived, False, False, "", usage_in(tail)))
    events = re.findall(rb".*?(?:\n\n|\r\n\r\n)|.+$", body, re.DOTALL)
    rest = events.pop() if events and not is_over(events[-1]) else b""
    shown, finished = b"", set[int]()
    for event in events:
        said = read(event, reply.watch, module)
        if said.why:
            return ended(shown, FAILED if said.why == "failed" else MALFORMED, False, said.why, b"")
        shown += b"" if said.hidden else event
        finished |= said.finished
    last = read(rest, reply.watch, module)
    if not arrived or last.why == "malformed":
        tail, rest, last = tail[: len(tail) - len(rest)], b"", Event("", True, set())
    reason = re.search(rb'"finish_reason"\s*:\s*"', tail)
    if not arrived:
        if 0 < reply.answers <= len(finished) if module else reply.answers == 1 and reason:
            return Expected(shown, True, (len(shown), False, False, True, "", usage_in(body[-KEPT:])))
        return ended(shown, BROKEN, True, "", usage_in(body[-KEPT:]))
    if last.why:
        return ended(shown, FAILED, False, last.why, b"")
    aborted = re.search(rb'"finish_reason"\s*:\s*"abort"', tail)  # wherever it stands: nobody reads the end again
    if aborted or (not reason and not tail.rstrip().endswith(b"[DONE]")):
        return ended(shown, UNFINISHED, False, "", usage_in(body[-KEPT:]))
    shown += b"" if last.hidden else rest
    return Expected(shown, True, (len(shown), False, False, False, "", usage_in(body[-KEPT:])))


def ended(shown: bytes, event: bytes, broken: bool, why: str, usage: bytes) -> Expected:
    """A stream that ends with an event of ours."""
    return Expected(shown + event, True, (len(shown + event), broken, True, False, why, usage))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    places = sorted({place % len(data) for place in places} - {0}) if data else []
    return [data[start:end] for start, end in zip((0, *places), (*places, len(data)), strict=True) if end > start]


def chunks(body: bytes, places: list[int]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in cut(body, places)) + b"0\r\n\r\n"


PLACES = some.lists(some.integers(0, 100_000), max_size=8)


@some.composite
def replies(draw: some.DrawFn) -> Reply:
    stream = draw(some.sampled_from([True, True, True, False]))
    if stream:
        events = draw(
            some.lists(some.tuples(some.sampled_from(EVENTS), some.sampled_from(["\n", "\n", "\r\n"])), max_size=6)
        )
        text = "".join(event.replace("\n", ends) for event, ends in events)
    else:
        text = draw(some.sampled_from(REPLIES))
    body = text.encode()
    framing = draw(some.sampled_from(["closing", "chunked", "length"]))
    wire = chunks(body, draw(PLACES)) if framing == "chunked" else body
    if draw(some.booleans()):  # broken off somewhere, often near the end
        wire = wire[: len(wire) - draw(some.integers(1, 40) | some.integers(1, 100_000)) % (len(wire) + 1)]
    watch, answers = draw(some.sampled_from(["usage", "hide", "end"])), draw(some.sampled_from([0, 1, 1, 2]))
    return Reply(watch, answers, stream, framing, len(body), cut(wire, draw(PLACES)), draw(some.booleans()))


def sent_of(reply: Reply, http: Any) -> tuple[Reply, bytes, bool]:
    """The reply, its body as far as it came, and whether HTTP takes it for whole."""
    if reply.joined and not (reply.wire and http.read_answer(reply.head + reply.wire[0]).body):
        reply = reply._replace(joined=False)  # a head with less than a byte of the body
    got = http.read_answer(reply.head + b"".join(reply.wire))
    return reply, got.body, got.whole


def check(stage: Any, http: Any, reply: Reply, module: bool) -> None:
    reply, body, arrived = sent_of(reply, http)
    wanted = expected(reply, body, arrived, module)
    result = stage.ask(reply.pieces(), f"{reply.watch} {reply.answers} 60000" if reply.answers else reply.watch)
    assert (result.got.body, result.got.whole) == (wanted.body, wanted.whole)
    found = [
        (each.size, each.cut, each.unfinished, each.finished, each.why, b"" if each.why else each.usage)
        for each in result.report.watched
    ]
    assert found == ([] if wanted.seen is None else [wanted.seen])
    assert (result.report.status, result.got.status) == (200, 200)


@some.composite
def monologues(draw: some.DrawFn) -> Reply:
    """Streams in which one event is like the other."""
    event, said = draw(some.sampled_from(ALIKE)), draw(some.lists(some.sampled_from(SAID), min_size=3, max_size=9))
    texts = [event % each for each in said]
    if draw(some.booleans()):
        texts.insert(draw(some.integers(0, len(texts))), draw(some.sampled_from(EVENTS)))
    if draw(some.booleans()):
        texts.append("data: [DONE]\n\n")
    body = "".join(texts).encode()
    pieces = [text.encode() for text in texts] if draw(some.booleans()) else cut(body, draw(PLACES))
    wire = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
    watch, answers = draw(some.sampled_from(["usage", "hide", "end"])), draw(some.sampled_from([0, 1, 1, 2]))
    return Reply(watch, answers, True, "chunked", len(body), wire, draw(some.booleans()))


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(reply=monologues())
def test_what_becomes_of_events_that_are_alike_is_what_a_simple_model_says(
    stage: Any, binary: Any, http: Any, reply: Reply
) -> None:
    """The module does not read those that are like the one before. The script reads none, so it takes what is said for
    more than that."""
    if binary.module is None:
        pytest.skip("the script knows no events")
    check(stage, http, reply, True)


@pytest.mark.parametrize("event", ALIKE)
def test_what_follows_two_events_that_are_alike_is_seen_as_what_it_is(
    stage: Any, binary: Any, http: Any, event: str
) -> None:
    if binary.module is None:
        pytest.skip("the script knows no events")
    for last in SAID:
        wire = [(event % said).encode() for said in ("a", "b", last, "c")]
        body = b"".join(wire)
        chunked = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in wire] + [b"0\r\n\r\n"]
        check(stage, http, Reply("hide", 2, True, "chunked", len(body), chunked, False), True)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(reply=replies())
def test_what_becomes_of_a_reply_is_what_a_simple_model_says(stage: Any, binary: Any, http: Any, reply: Reply) -> None:
    check(stage, http, reply, binary.module is not None)


@pytest.mark.parametrize("first", [100, 5000])
def test_a_usage_that_comes_first_in_a_long_reply_is_reported(stage: Any, http: Any, first: int) -> None:
    body = b'{"usage":{"prompt_tokens":1},"data":["' + b"a" * 9000 + b'"]}'
    result = stage.ask([http.answer(body)[: -len(body)], body[:first], body[first:]], "usage")
    assert result.got.body == body
    assert result.watched.usage.startswith(b'"usage":{"prompt_tokens":1}')


@pytest.mark.parametrize("pieces", [["\r\n\r\n\n"], ["\r\n\r\n", "\n"], ["\r", "\n\r\n\n"]])
def test_where_a_hidden_event_ends_does_not_depend_on_the_pieces(stage: Any, http: Any, pieces: list[str]) -> None:
    usage, last = b'data: {"choices":[],"usage":{"prompt_tokens":1}}', b"data: [DONE]\n\n"
    begin, *rest = [piece.encode() for piece in pieces]
    assert stage.ask(http.closing(usage + begin, *rest, last), "hide").got.body == b"\n" + last


@pytest.mark.parametrize("watch", ["usage", "hide"])
def test_a_streams_first_time_is_that_of_its_first_piece(stage: Any, http: Any, watch: str) -> None:
    piece, done, release = EVENTS[0].encode(), b"data: [DONE]\n\n", threading.Event()
    head, first, last, end = http.chunked(piece, done)
    stage.script([head, first, release, last, end], stage.told(watch=watch))
    with stage.front.connect() as client:
        client.sendall(stage.request())
        seen = b""
        while piece not in seen:
            seen += client.recv(65536)
        came = time.time()
        release.wait(0.3)  # nothing sets it: the last piece comes clearly later than the first
        release.set()
        while client.recv(65536):
            pass
    assert stage.report(stage.exchange()).watched[0].first / 1000 < came + 0.2
