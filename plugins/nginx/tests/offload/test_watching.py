"""What nginx's script sees of a reply, and what it reports to the core."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from headrace.dialects import OpenAIDialect
from headrace.exchange import Usage

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
EVENTS = [
    *(f'data: {{"choices":[{{"delta":{{"content":"é你🦊 {number}"}}}}]}}\n\n'.encode() for number in range(3)),
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    USAGE,
    b"data: [DONE]\n\n",
]
STREAM = b"".join(EVENTS)
COUNTED = Usage(prompt_tokens=1, completion_tokens=2)
REPLY = (
    b'{"choices":[{"message":{"content":"%s"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    % ("é你🦊" * 700).encode()
)


def passed(result: Any, body: bytes, usage: Usage | None = COUNTED) -> Any:
    """A reply reached the client as it was, and the report says so; what was seen of it."""
    assert result.got.body == body and result.got.whole
    assert result.report.completed and result.report.status == 200
    seen = result.watched
    assert (seen.size, seen.cut, seen.unfinished, seen.whole) == (len(body), False, False, True)
    assert OpenAIDialect().usage(seen.usage) == usage
    return seen


def cut_at(data: bytes, *places: int) -> list[bytes]:
    return [data[start:end] for start, end in zip((0, *places), (*places, len(data)), strict=True)]


@pytest.mark.parametrize("watch", ["usage", "hide"])
def test_a_whole_replys_usage_is_reported(stage: Any, http: Any, watch: str) -> None:
    passed(stage.ask([http.answer(REPLY)], watch), REPLY)


@pytest.mark.parametrize("places", [(40, 500), (200, 300), (1, 2, 3)])
def test_a_whole_reply_may_come_in_pieces(stage: Any, http: Any, places: tuple[int, ...]) -> None:
    whole = http.answer(REPLY)
    passed(stage.ask(cut_at(whole, *places, len(whole) - 17), "usage"), REPLY)


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_whole_reply_may_come_without_its_length(stage: Any, http: Any, kind: str) -> None:
    passed(stage.ask(http.closing(REPLY, kind=kind), "usage"), REPLY)
    head = http.head({"Content-Type": kind, "Transfer-Encoding": "chunked"})
    parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in cut_at(REPLY, 1000, 4000)]
    passed(stage.ask([head, *parts, b"0\r\n\r\n"], "usage"), REPLY)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("watch", ["usage", "end"])
def test_a_stream_passes_whatever_ends_its_lines(stage: Any, http: Any, ends: str, watch: str) -> None:
    events = [event.decode().replace("\n", ends).encode() for event in EVENTS]
    seen = passed(stage.ask(http.closing(*events), watch), b"".join(events))
    assert seen.events == len(events)


def test_pieces_are_counted_as_they_come(stage: Any, http: Any) -> None:
    assert stage.ask(http.closing(STREAM), "usage").watched.events == 1
    assert stage.ask(http.closing(*EVENTS), "usage").watched.events == len(EVENTS)
    assert stage.ask(http.chunked(*EVENTS), "usage").watched.events == len(EVENTS)


def test_a_stream_may_come_byte_by_byte(stage: Any, http: Any) -> None:
    seen = passed(stage.ask(http.closing(*(STREAM[at : at + 1] for at in range(len(STREAM)))), "usage"), STREAM)
    assert seen.events == len(STREAM)


@pytest.mark.parametrize("watch", ["usage", "hide", "end"])
def test_a_head_may_come_with_some_of_the_body(stage: Any, http: Any, watch: str) -> None:
    head, *rest = http.closing(*EVENTS)
    shown = STREAM.replace(USAGE, b"") if watch == "hide" else STREAM
    assert stage.ask([head + EVENTS[0], *rest[1:]], watch).got.body == shown


SIZES = [4095, 4096, 4097, 8191, 8192, 8193, 16_384, 16_385, 40_000]


@pytest.mark.parametrize("size", SIZES)
def test_usage_is_found_however_large_the_pieces_are(stage: Any, http: Any, size: int) -> None:
    text = (": 0123456789abcd\n\n" * (size // 18 + 1))[:size].encode()
    pieces = (text, text[:100], text, USAGE, b"data: [DONE]\n\n")
    passed(stage.ask(http.chunked(*pieces), "usage"), b"".join(pieces))
    together = text + USAGE + b"data: [DONE]\n\n"
    passed(stage.ask(http.closing(together), "usage"), together)


def test_the_last_usage_counts(stage: Any, http: Any) -> None:
    one = b'data: {"choices":[{}],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\n'
    pieces = (*(one % number for number in (1, 2, 3)), b"data: [DONE]\n\n")
    passed(stage.ask(http.chunked(*pieces), "usage"), b"".join(pieces), Usage(prompt_tokens=1, completion_tokens=3))


@pytest.mark.parametrize("later", ['"usage":null', '"token":"usage"', '"usage" : 1'])
def test_the_word_usage_alone_does_not_count(stage: Any, http: Any, later: str) -> None:
    pieces = (USAGE, f'data: {{"choices":[{{}}],{later}}}\n\n'.encode(), b"data: [DONE]\n\n")
    passed(stage.ask(http.chunked(*pieces), "usage"), b"".join(pieces))
    whole = b'{"usage":{"prompt_tokens":1,"completion_tokens":2},%s}' % later.encode()
    passed(stage.ask([http.answer(whole)], "usage"), whole)


def test_characters_cut_in_the_middle_do_no_harm(stage: Any, http: Any) -> None:
    for extra in range(4):
        body = b'{"a":"' + b"a" * extra + "🦊".encode() * 2000 + b'","usage":{"prompt_tokens":1,"completion_tokens":2}}'
        passed(stage.ask(cut_at(http.answer(body), 4000, 7001), "usage"), body)


def test_bytes_that_are_no_text_pass(stage: Any, http: Any) -> None:
    body = bytes(range(256)) * 20
    passed(stage.ask([http.answer(body, kind="application/octet-stream")], "usage"), body, None)
    passed(stage.ask(cut_at(http.answer(body, kind="audio/mpeg"), 300, 2000), "usage"), body, None)


def test_an_empty_reply_is_reported(stage: Any, http: Any) -> None:
    passed(stage.ask([http.answer(b"")], "usage"), b"", None)


def test_a_reply_that_nobody_watches_is_reported_too(stage: Any, http: Any) -> None:
    result = stage.ask(http.chunked(*EVENTS))
    assert result.got.body == STREAM and result.got.whole
    assert result.report.watched == () and result.report.completed
    assert result.report.mark == stage.core.arrived[-1].headers["x-headrace-mark"]


def test_a_chunked_stream_need_not_be_watched_for_its_end(stage: Any, http: Any) -> None:
    result = stage.ask(http.chunked(*EVENTS), "end")
    assert (result.got.body, result.got.whole, result.report.watched) == (STREAM, True, ())


def test_replies_of_one_worker_do_not_mix(stage: Any, http: Any) -> None:
    for _ in range(3):
        assert passed(stage.ask(http.chunked(*EVENTS), "usage"), STREAM).events == len(EVENTS)
        passed(stage.ask([http.answer(b"{}")], "usage"), b"{}", None)


def test_an_error_of_the_backend_is_watched_like_any_reply(stage: Any, http: Any) -> None:
    body = b'{"error":{"message":"no"}}'
    result = stage.ask([http.answer(body, 400)], "usage")
    assert (result.got.status, result.got.body, result.watched.size) == (400, body, len(body))


def test_times_are_those_of_the_backend(stage: Any, http: Any) -> None:
    before = time.time() - 1
    result = stage.ask(http.chunked(*EVENTS), "usage")
    assert float(result.report.header_time.rpartition(" ")[2]) >= 0
    assert before < result.watched.first / 1000 < time.time() + 1
    assert before < stage.ask([http.answer(REPLY)], "usage").watched.first / 1000 < time.time() + 1


def test_a_reply_too_large_for_the_script_to_watch_passes_all_the_same(stage: Any, http: Any, binary: Any) -> None:
    piece = b": " + b"x" * 16_000 + b"\n\n"
    for watch in ("usage", "hide"):
        result = stage.ask(http.chunked(*[piece] * 600, *EVENTS), watch)
        hidden = binary.module is not None and watch == "hide"
        shown = b"".join(event for event in EVENTS if not (hidden and b'"usage":{' in event))
        assert result.got.whole and result.got.body == piece * 600 + shown
        if binary.module is None:
            assert not result.watched.whole and result.watched.size < result.report.bytes
        else:
            assert result.watched.whole and result.watched.size == len(result.got.body)
            assert b'"usage":{"prompt_tokens":1' in result.watched.usage


@pytest.mark.parametrize("watch", ["", "usage", "hide", "end"])
def test_a_client_that_leaves_closes_the_backends_connection_and_is_reported(stage: Any, http: Any, watch: str) -> None:
    stage.backend.left.clear()
    begin = http.chunked(EVENTS[0], ends=False)[:-1]
    stage.script([*begin, "left"], stage.told(watch=watch))
    with stage.front.connect() as client:
        client.sendall(stage.request())
        seen = b""
        while b"choices" not in seen:
            seen += client.recv(65536)
    assert stage.backend.left.wait(20)
    report = stage.report(stage.exchange())
    assert not report.completed
    assert [each.events for each in report.watched] == ([1] if watch in ("usage", "hide") else [])
    assert not any(each.cut for each in report.watched)


def test_a_client_that_leaves_before_the_first_byte_is_reported(stage: Any, http: Any) -> None:
    stage.backend.left.clear()
    stage.script(["left"], stage.told(watch="usage"))
    before = len(stage.backend.arrived)
    with stage.front.connect() as client:
        client.sendall(stage.request())
        stage.until(lambda: len(stage.backend.arrived) > before, "the request's arrival")
    assert stage.backend.left.wait(20)
    report = stage.report(stage.exchange())
    assert (report.status, report.completed) == (499, False)


def test_the_first_event_arrives_while_the_backend_holds_the_second(stage: Any, http: Any) -> None:
    release = threading.Event()
    begin, first, *rest = http.chunked(*EVENTS)
    stage.script([begin, first, release, *rest], stage.told(watch="hide"))
    with stage.front.connect() as client:
        client.sendall(stage.request())
        seen = b""
        while b"choices" not in seen:
            seen += client.recv(65536)
        release.set()
        assert b"[DONE]" in b"".join(iter(lambda: client.recv(65536), b""))
    assert stage.report(stage.exchange()).completed


@pytest.mark.parametrize("watch", ["usage", "hide", "end"])
def test_a_client_of_http2_gets_the_same(stage: Any, http: Any, watch: str) -> None:
    stage.script(http.chunked(*EVENTS), stage.told(watch=watch))
    arguments = ["--http2", "--write-out", "\n%{http_version} %{http_code}", "-d", "{}", stage.front.url("/v1/x")]
    done = stage.front.curl(*arguments)
    assert done.stdout.splitlines()[-1] == "2 200", done.stderr
    shown = STREAM.replace(USAGE, b"") if watch == "hide" else STREAM
    assert done.stdout.encode() == shown + b"\n2 200"
    assert stage.report(stage.exchange()).completed
