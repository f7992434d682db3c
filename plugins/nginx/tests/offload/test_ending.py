"""Streams that end before they are over: the client is told in the stream, the core in the report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.delivery import UNFINISHED
from headrace.vetting import FAILED

FIRST = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
WATCHES = ["usage", "hide", "end"]


def error_of(got: Any, sent: bytes) -> str:
    """The message of the error event that follows what was sent; there is nothing else."""
    assert got.body.startswith(sent), got.body
    rest = got.body[len(sent) :].decode()
    assert rest.startswith("data: ") and rest.endswith("\n\n") and "[DONE]" not in rest
    error = json.loads(rest[len("data: ") :])["error"]
    assert (error["type"], error["code"]) == ("upstream_error", "stream_truncated")
    return str(error["message"])


@pytest.mark.parametrize("watch", WATCHES)
def test_a_stream_that_ends_too_early_ends_with_an_error(stage: Any, http: Any, watch: str) -> None:
    result = stage.ask(http.closing(FIRST), watch)
    assert UNFINISHED in error_of(result.got, FIRST)
    assert result.got.whole
    assert result.watched.unfinished and not result.watched.cut
    assert result.watched.size == len(result.got.body)


@pytest.mark.parametrize("watch", ["usage", "hide"])
def test_a_chunked_stream_that_ends_too_early_ends_with_an_error(stage: Any, http: Any, watch: str) -> None:
    result = stage.ask(http.chunked(FIRST), watch)
    assert UNFINISHED in error_of(result.got, FIRST)
    assert result.watched.unfinished


@pytest.mark.parametrize("watch", ["usage", "hide"])
@pytest.mark.parametrize("sent", [[FIRST], [FIRST, LAST], [FIRST, DONE]])
def test_a_chunked_stream_that_breaks_ends_with_an_error(stage: Any, http: Any, watch: str, sent: list[bytes]) -> None:
    result = stage.ask(http.chunked(*sent, ends=False), watch)
    assert "broke" in error_of(result.got, b"".join(sent))
    assert result.got.whole and result.watched.cut
    assert result.watched.size == len(result.got.body)


@pytest.mark.parametrize("watch", ["", "end"])
def test_without_the_script_a_broken_stream_breaks_for_the_client_too(stage: Any, http: Any, watch: str) -> None:
    before = len(stage.reports.complaints)
    result = stage.ask(http.chunked(FIRST, ends=False), watch)
    assert result.got.body == FIRST and not result.got.whole
    assert result.report.watched == ()
    stage.until(lambda: len(stage.reports.complaints) > before, "nginx's complaint")
    assert b"while reading upstream" in stage.reports.complaints[-1]


@pytest.mark.parametrize("watch", ["usage", "hide"])
def test_a_stream_that_breaks_before_its_first_event_is_told(stage: Any, http: Any, watch: str) -> None:
    head = http.head({**http.events, "Transfer-Encoding": "chunked"})
    result = stage.ask([head, "close"], watch)
    body = result.got.body.lstrip(b"\n")
    assert "broke" in error_of(result.got._replace(body=body), b"")
    assert result.watched.cut


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("part", [FIRST[:20], FIRST[:-1], FIRST[:-2], FIRST + b": b", FIRST + b"da"])
@pytest.mark.parametrize("watch", WATCHES)
def test_half_an_event_is_not_sent(stage: Any, http: Any, watch: str, part: bytes, ends: str) -> None:
    first, sent = (each.decode().replace("\n", ends).encode() for each in (FIRST, part))
    result = stage.ask(http.closing(first, sent), watch)
    assert UNFINISHED in error_of(result.got, first * (2 if part.startswith(FIRST) else 1))
    assert result.watched.size == len(result.got.body)


@pytest.mark.parametrize("watch", ["usage", "hide"])
@pytest.mark.parametrize("part", [LAST[:20], LAST[:-1], b"data: [DONE]\n"])
def test_half_an_event_of_a_stream_that_breaks_is_not_sent(stage: Any, http: Any, watch: str, part: bytes) -> None:
    result = stage.ask(http.chunked(FIRST, part, ends=False), watch)
    assert "broke" in error_of(result.got, FIRST)


@pytest.mark.parametrize("watch", WATCHES)
def test_half_an_event_after_a_whole_answer_is_dropped(stage: Any, http: Any, watch: str) -> None:
    result = stage.ask(http.closing(LAST, FIRST[:20]), watch)
    assert (result.got.body, result.watched.unfinished) == (LAST, False)


@pytest.mark.parametrize("watch", ["usage", "hide"])
def test_an_event_that_is_too_long_to_be_kept_back_does_not_swallow_the_error(
    stage: Any, http: Any, watch: str
) -> None:
    pieces = [b'data: {"a":"' + b"a" * 10_000, *[b"a" * 10_000] * 30]
    result = stage.ask(http.chunked(*pieces, ends=False), watch)
    assert result.got.body.startswith(b"".join(pieces))
    assert "broke" in error_of(result.got, b"".join(pieces) + b"\n\n")


@pytest.mark.parametrize("watch", WATCHES)
@pytest.mark.parametrize(
    "end",
    [DONE, DONE.rstrip(), LAST, LAST + b": bye\n\n", DONE + b"\n\n\n", LAST.replace(b"\n", b"\r\n"), b"data:[DONE]"],
)
def test_a_stream_that_said_all_is_not_touched(stage: Any, http: Any, watch: str, end: bytes) -> None:
    result = stage.ask(http.closing(FIRST, end), watch)
    assert result.got.body == FIRST + end
    assert not result.watched.unfinished and not result.watched.cut


@pytest.mark.parametrize("watch", WATCHES)
def test_an_error_of_the_backend_before_the_end_mark_is_no_success(stage: Any, http: Any, watch: str) -> None:
    error = b'data: {"error": {"message": "out of memory"}}\n\n'
    result = stage.ask(http.closing(FIRST, error, DONE), watch)
    assert FAILED in error_of(result.got, FIRST)
    assert result.got.whole
    assert (result.watched.unfinished, result.watched.why) == (True, "failed")


@pytest.mark.parametrize("watch", WATCHES)
def test_words_in_the_text_are_no_error(stage: Any, http: Any, watch: str) -> None:
    text = b'data: {"choices":[{"delta":{"content":"data: {\\"error\\": {\\"a\\"}"}}]}\n\n'
    assert stage.ask(http.closing(text, DONE), watch).got.body == text + DONE


@pytest.mark.parametrize("watch", ["usage", "hide"])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_a_reply_shorter_than_it_said_is_cut(stage: Any, http: Any, watch: str, kind: str) -> None:
    head = http.head({"Content-Type": kind, "Content-Length": "1000"})
    result = stage.ask([head, FIRST, "close"], watch)
    assert result.watched.cut
    assert result.got.body.startswith(FIRST)
    if kind == "application/json":
        assert result.got.body == FIRST and not result.got.whole


def test_a_json_reply_that_only_its_connection_ends_must_be_whole(stage: Any, http: Any) -> None:
    whole = stage.ask(http.closing(b'{"a":1}\n', kind="application/json"), "usage")
    assert whole.got.body == b'{"a":1}\n' and whole.got.whole and not whole.watched.cut
    cut = stage.ask(http.closing(b'{"a":', kind="application/json"), "usage")
    assert cut.watched.cut and not cut.got.whole


def test_http2_clients_are_told_too(stage: Any, http: Any) -> None:
    stage.script(http.chunked(FIRST, ends=False), stage.told(watch="usage"))
    done = stage.front.curl("--http2", "-d", "{}", stage.front.url("/v1/x"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.encode().startswith(FIRST) and '"stream_truncated"' in done.stdout
