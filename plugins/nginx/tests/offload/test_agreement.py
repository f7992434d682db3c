"""Any reply, in any pieces, ended or broken anywhere: the bytes a client gets and the report are what a model says."""

from __future__ import annotations

import re
import threading
import time
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from headrace_nginx.scripts import ending_events

KEPT, USAGE_BYTES = 4096, 1024
BROKEN, UNFINISHED = (event.encode() for event in ending_events())
EVENTS = [
    'data: {"choices":[{"delta":{"content":"é你🦊"}}],"usage":null}\n\n',
    'data: {"choices":[{"delta":{"content":"a \\"usage\\":{\\n\\n [DONE]"},"finish_reason":null}]}\n\n',
    'data: {"choices":[{"delta":{"content":"data: {\\"error\\": {"}}]}\n\n',
    'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"completion_tokens":1}}\n\n',
    'data: {"choices" : [ ] ,"usage":{"prompt_tokens":11,"completion_tokens":2},"x":"🦊"}\n\n',
    'event: end\nid: 7\ndata: {"choices":[],"usage": {"completion_tokens":3}}\n\n',
    'data: {"choices":[],"usage":null}\n\n',
    'data: {"choices":[],"prompt_filter_results":[{}]}\n\n',
    ": a comment\n\n",
    'data: {"error": {"message":"out of memory"}}\n\n',
    'data:{"choices":[{"delta":{"content":"' + "long " * 900 + '"}}]}\n\n',
    "data: [DONE]\n\n",
]
REPLIES = [
    '{"choices":[{"message":{"content":"é你🦊 \\"usage\\""}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n',
    '{"choices":[],"usage":null,"token":"usage"}',
    '["' + "a" * 5000 + '",{"usage" : {"prompt_tokens":3}}]',
    "",
]


class Reply(NamedTuple):
    """What a backend sends: `wire` are the pieces after the head, whether they are all or not."""

    watch: str
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
            "chunked": f"HTTP/1.1 200 X\r\n{kind}\r\nTransfer-Encoding: chunked",
            "length": f"HTTP/1.1 200 X\r\n{kind}\r\nContent-Length: {self.length}",
        }
        return (framed[self.framing] + "\r\n\r\n").lower().replace("http/", "HTTP/").encode()

    def pieces(self) -> list[bytes | str]:
        if self.joined:
            return [self.head + self.wire[0], *self.wire[1:], "close"]
        return [self.head, *self.wire, "close"]


class Expected(NamedTuple):
    body: bytes
    whole: bool
    seen: tuple[int, bool, bool, bytes] | None
    """Size, cut, unfinished and usage as they are reported; None if nobody watches."""


def without_usage_events(body: bytes) -> bytes:
    events = re.findall(rb".*?(?:\n\n|\r\n\r\n)|.+$", body, re.DOTALL)
    alone = re.compile(rb'"choices"\s*:\s*\[\s*\]')
    hidden = [
        b'"usage"' in event and alone.search(event) and event.endswith((b"\n\n", b"\r\n\r\n")) for event in events
    ]
    return b"".join(event for event, is_hidden in zip(events, hidden, strict=True) if not is_hidden)


def usage_in(tail: bytes) -> bytes:
    found = list(re.finditer(rb'"usage"[: ]*\{', tail))
    return tail[found[-1].start() :][:USAGE_BYTES] if found else b""


def expected(reply: Reply, body: bytes, arrived: bool) -> Expected:
    """What shall become of `body`, which is what came; `arrived`: whether that was all, as far as HTTP says."""
    if reply.watch == "end" and reply.framing == "chunked":
        return Expected(body, arrived, None)
    tail = body[-KEPT:]
    if not reply.stream:
        torn = reply.framing == "closing" and not tail.rstrip().endswith((b"}", b"]"))
        return Expected(body, arrived and not torn, (len(body), torn or not arrived, False, usage_in(tail)))
    shown = without_usage_events(body) if reply.watch == "hide" else body
    failed = re.search(rb'(^|[\r\n])data:\s*\{\s*"error"\s*:\s*["{]', tail)
    said_all = tail.rstrip().endswith(b"[DONE]") or re.search(rb'"finish_reason"\s*:\s*"', tail)
    unfinished = not arrived or bool(failed) or not said_all
    if unfinished:
        shown += b"" if tail.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
        shown += UNFINISHED if arrived else BROKEN
    return Expected(shown, True, (len(shown), not arrived, unfinished, usage_in(tail)))


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
    reply = Reply(
        draw(some.sampled_from(["usage", "hide", "end"])), stream, framing, len(body), cut(wire, draw(PLACES)), False
    )
    return reply._replace(joined=draw(some.booleans()))


def sent_of(reply: Reply, http: Any) -> tuple[Reply, bytes, bool]:
    """The reply, its body as far as it came, and whether HTTP takes it for whole."""
    if reply.joined and not (reply.wire and http.read_answer(reply.head + reply.wire[0]).body):
        reply = reply._replace(joined=False)  # a head with less than a byte of the body
    got = http.read_answer(reply.head + b"".join(reply.wire))
    return reply, got.body, got.whole


def check(stage: Any, http: Any, reply: Reply) -> None:
    reply, body, arrived = sent_of(reply, http)
    wanted = expected(reply, body, arrived)
    result = stage.ask(reply.pieces(), reply.watch)
    found = [(each.size, each.cut, each.unfinished, each.usage) for each in result.report.watched]
    assert (result.got.body, result.got.whole) == (wanted.body, wanted.whole)
    assert found == ([] if wanted.seen is None else [wanted.seen])
    assert (result.report.status, result.got.status) == (200, 200)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(reply=replies())
def test_what_becomes_of_a_reply_is_what_a_simple_model_says(stage: Any, http: Any, reply: Reply) -> None:
    check(stage, http, reply)


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
