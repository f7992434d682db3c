"""Events that are no part of an answer: nothing of them or of what follows reaches the client, who is told instead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from headrace_nginx.scripts import ending_events

FIRST = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
ERROR = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
ABORT = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}\n\n'
DONE = b"data: [DONE]\n\n"
_, _, FAILED, MALFORMED = (event.encode() for event in ending_events())
MODES = ["usage", "hide"]


@pytest.fixture
def of_the_module(binary: Any) -> None:
    """Skips what only the module does."""
    if binary.module is None:
        pytest.skip("the script does not")


def failed_after(result: Any, before: bytes) -> None:
    """The client got what came before and our words, no more; so says the report."""
    assert (result.got.body, result.got.whole) == (before + FAILED, True)
    seen = result.watched
    assert (seen.size, seen.cut, seen.unfinished, seen.finished) == (len(before + FAILED), False, True, False)
    assert seen.why == "failed"


@pytest.mark.parametrize("watch", MODES)
@pytest.mark.parametrize("bad", [ERROR, ABORT])
@pytest.mark.parametrize("way", range(5))
def test_an_error_of_the_backend_is_told_in_our_words(stage: Any, http: Any, bad: bytes, way: int, watch: str) -> None:
    ways = [
        [FIRST, bad, DONE],
        [FIRST, bad, FIRST, FIRST, DONE],
        [FIRST + bad + DONE],
        [FIRST, bad[:9], bad[9:], DONE],
        [FIRST + bad[:30], bad[30:]],
    ]
    failed_after(stage.ask(http.chunked(*ways[way]), watch), FIRST)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_an_aborted_answer_is_seen_however_it_is_cut(stage: Any, http: Any, ends: str) -> None:
    sent = (ABORT + DONE).decode().replace("\n", ends).encode()
    for at in range(1, len(sent)):
        failed_after(stage.ask(http.chunked(FIRST + sent[:at], sent[at:]), MODES[at % 2]), FIRST)
    for size in (1, 2, 3, 7, 16):
        pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
        failed_after(stage.ask(http.closing(FIRST, *pieces), "end"), FIRST)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"text":"","index":0,"finish_reason" : "abort","stop_reason":null}],"usage":null}\n\n',
        b'data: {"choices":[{"finish_reason":"stop","index":0},{"index":1,"finish_reason":"abort"}],"error":null}\n\n',
        b'data: {"choices":[{"index":99,"finish_reason":"abort"}],"usage":{"completion_tokens":1}}\n\n',
    ],
)
@pytest.mark.parametrize("told", ["usage", "hide 1 60000", "end 2 60000"])
def test_an_answer_may_be_aborted_in_many_words(stage: Any, http: Any, event: bytes, told: str) -> None:
    pieces = (
        http.closing if told.startswith("end") else http.chunked
    )  # the script does not look at all that are in chunks
    failed_after(stage.ask(pieces(FIRST, event, DONE), told), FIRST)


def test_an_aborted_answer_may_be_the_last_that_came(stage: Any, http: Any) -> None:
    failed_after(stage.ask(http.closing(FIRST, ABORT), "usage"), FIRST)
    failed_after(stage.ask(http.closing(FIRST, ABORT.rstrip()), "usage"), FIRST)
    for framed in (http.chunked(FIRST, ABORT, ends=False), http.chunked(FIRST + ABORT, ends=False)):
        failed_after(stage.ask(framed, "usage 1 60000"), FIRST)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\":\\"abort\\""},"finish_reason":null}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"abort"},"finish_reason":null}],"a":"abort"}\n\n',
        b'data: {"choices":[{"delta":{},"finish_reason":"aborted"}]}\n\n',
        b'data: {"choices":["finish_reason",null,{"a":["abort"]}],"finish_reason":"abort "}\n\n',
        b': "finish_reason":"stop", "abort"\n\n',
    ],
)
def test_other_aborts_pass(stage: Any, http: Any, event: bytes) -> None:
    assert stage.ask(http.chunked(FIRST, event, DONE), "usage").got.body == FIRST + event + DONE


@pytest.mark.parametrize("error", [b'"no"', b"{}", b"0", b'"null"'])
@pytest.mark.parametrize("before", [b"", b'"id":"\\"1",', b'"choices":[{"error":null}], '])
def test_an_error_may_stand_anywhere_in_an_event(stage: Any, http: Any, before: bytes, error: bytes) -> None:
    event = b'event: error\ndata: {%s"error" : %s,"a":[]}\r\n\r\n' % (before, error)
    assert stage.ask(http.chunked(FIRST, event, DONE), "usage").got.body == FIRST + FAILED


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":null}\n\n',
        b'data: {"choices":[{"delta":{"content":"x"},"error":{"a":1}}]}\n\n',
        b'data: {"a":{"error":"x"},"b":"\\"error\\":1"}\n\n',
        b': "error": {}\n\n',
    ],
)
def test_other_errors_pass(stage: Any, http: Any, event: bytes) -> None:
    assert stage.ask(http.chunked(FIRST, event, DONE), "usage").got.body == FIRST + event + DONE


def test_a_client_may_ask_again_on_the_connection_of_a_failed_stream(stage: Any, http: Any) -> None:
    with stage.front.connect() as client:
        for _ in range(3):
            stage.script(http.chunked(FIRST, ERROR, DONE), stage.told(watch="usage"))
            client.sendall(stage.request(headers={"Connection": "keep-alive"}))
            raw = b""
            while not raw.endswith(b"0\r\n\r\n"):
                raw += client.recv(65536)
            assert http.read_answer(raw).body == FIRST + FAILED


@pytest.mark.parametrize("watch", MODES)
@pytest.mark.parametrize("bad", [ERROR, b"data: }\n\n"])
def test_the_backend_of_a_failed_stream_is_left_at_once(
    stage: Any, http: Any, of_the_module: None, watch: str, bad: bytes
) -> None:
    stage.backend.left.clear()
    result = stage.ask([*http.chunked(FIRST, bad, ends=False)[:-1], "left"], watch)
    assert result.got.body == FIRST + (FAILED if bad is ERROR else MALFORMED)
    assert result.got.whole and result.report.completed
    assert stage.backend.left.wait(20)


def test_a_client_that_reads_slowly_gets_all_that_came_before_the_error(stage: Any, http: Any) -> None:
    pieces, far = [FIRST * 200] * 350, threading.Event()

    def script(_: Any) -> Iterator[bytes]:
        for number, piece in enumerate(http.chunked(*pieces, ERROR, DONE)):
            yield piece
            if number == 5:
                far.set()

    stage.script([], stage.told(watch="hide"))
    stage.backend.script = script
    with stage.front.connect() as client:
        client.sendall(stage.request())
        assert far.wait(20)
        got = http.read_answer(b"".join(iter(lambda: client.recv(65536), b"")))
    assert got.whole and got.body == b"".join(pieces) + FAILED
    assert stage.report(stage.exchange()).watched[0].size == len(got.body)


NO_JSON = [
    b"}",
    b"<html>",
    b"{",
    b'{"a":1',
    b'{"a":1}}',
    b'{"a":1} x',
    b'{"a":[1}',
    b'{"a":[1}]',
    b'{"a":"b}',
    b'{"a":"b\\"}',
    b'{"a":"b\tc"}',
    b'{"a":1}\ndata: {"b":1}',
    b'{"a":"b\ndata: c"}',
    b'{"a":"b\\\ndata: c"}',
]


@pytest.mark.parametrize("data", NO_JSON)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_what_is_no_json_ends_a_stream(stage: Any, http: Any, of_the_module: None, data: bytes, ends: str) -> None:
    event = (b"data: " + data + b"\n\n").decode().replace("\n", ends).encode()
    result = stage.ask(http.chunked(FIRST, event, DONE), "usage")
    assert result.got.body == FIRST + MALFORMED
    assert (result.watched.unfinished, result.watched.why) == (True, "malformed")
    halves = stage.ask(http.chunked(FIRST + event[:8], event[8:] + DONE), "hide")
    assert halves.got.body == FIRST + MALFORMED


DEEP = b'{"a":' + b"[" * 100 + b'"]"' + b"]" * 100 + b"}"
JSON = [
    b' {"a" : [ { "b" : "\\\\" } , "}" , "\\"]" ] } ',
    b'{"a":"\xc3\xa9\\u00e9 \xf0\x9f\xa6\x8a"}',
    b'{"a":\ndata: [1,\ndata: 2]}',
    b"{}",
    b"[]",
    b"null",
    b"-1.5e3",
    b'"text"',
    b"",
    b" [DONE] ",
    DEEP,
]


@pytest.mark.parametrize("data", JSON)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_any_json_passes(stage: Any, http: Any, data: bytes, ends: str) -> None:
    event = (b"id: 1\ndata:" + data + b"\n: x\n\n").decode().replace("\n", ends).encode()
    for pieces in ([FIRST, event, DONE], [FIRST + event[:20], event[20:] + DONE]):
        assert stage.ask(http.chunked(*pieces), "usage").got.body == FIRST + event + DONE
