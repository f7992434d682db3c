"""Streams that fall silent, with the module: nginx waits no longer for them than the core would."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from headrace_nginx.scripts import ending_events

PIECE = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
OTHER = LAST.replace(b'"index":0', b'"index":1')
DONE = b"data: [DONE]\n\n"
BROKEN = ending_events()[0].encode()
IDLE = 0.4
SOON = 10
"""Seconds: nginx's own limit is that of the first byte, 600."""


@pytest.fixture(autouse=True)
def of_the_module(binary: Any) -> None:
    if binary.module is None:
        pytest.skip("the script cannot")


def left_alone(stage: Any, http: Any, watch: str, *pieces: bytes) -> tuple[Any, float]:
    """What becomes of a stream that comes to nothing more after these pieces, and after how many seconds."""
    stage.backend.left.clear()
    started = time.monotonic()
    result = stage.ask([*http.chunked(*pieces, ends=False)[:-1], "left"], watch)
    seconds = time.monotonic() - started
    assert stage.backend.left.wait(SOON)
    return result, seconds


@pytest.mark.parametrize("mode", ["usage", "hide", "end"])
@pytest.mark.parametrize("half", [b"", PIECE[:20]])
def test_a_stream_that_falls_silent_ends_with_an_error(stage: Any, http: Any, mode: str, half: bytes) -> None:
    result, seconds = left_alone(stage, http, f"{mode} 1 {IDLE * 1000:.0f}", PIECE, PIECE + half)
    assert (result.got.body, result.got.whole) == (PIECE + PIECE + BROKEN, True)
    assert (result.watched.cut, result.watched.finished) == (True, False)
    assert IDLE <= seconds < SOON


def test_the_first_piece_may_come_later(stage: Any, http: Any) -> None:
    release = threading.Event()
    begin, *rest = http.chunked(PIECE, LAST, DONE)
    late = threading.Timer(IDLE * 3, release.set)
    late.start()
    result = stage.ask([begin, release, *rest], f"usage 1 {IDLE * 1000:.0f}")
    late.join()
    assert result.got.body == PIECE + LAST + DONE and result.got.whole


def test_a_stream_may_take_its_time_if_it_is_not_silent(stage: Any, http: Any) -> None:
    pieces = [*[PIECE] * 20, LAST, DONE]

    def script(_: Any) -> Iterator[bytes]:
        for piece in http.chunked(*pieces):
            yield piece
            time.sleep(IDLE / 5)  # what a backend takes for a token

    stage.script([], stage.told(watch=f"usage 1 {IDLE * 1000:.0f}"))
    stage.backend.script = script
    result = stage.send(stage.request())
    assert result.got.body == b"".join(pieces) and not result.watched.cut


def test_a_stream_that_has_said_all_is_not_waited_for(stage: Any, http: Any) -> None:
    result, seconds = left_alone(stage, http, "usage 1 60000", PIECE, LAST)
    assert (result.got.body, result.got.whole) == (PIECE + LAST, True)
    assert (result.watched.cut, result.watched.unfinished, result.watched.finished) == (False, False, True)
    assert 2 <= seconds < SOON


def test_half_a_farewell_is_not_sent(stage: Any, http: Any) -> None:
    result, _ = left_alone(stage, http, f"usage 1 {IDLE * 1000:.0f}", PIECE, LAST, b"data: [DO")
    assert (result.got.body, result.got.whole, result.watched.finished) == (PIECE + LAST, True, True)


@pytest.mark.parametrize(
    ("watch", "pieces", "whole"),
    [
        ("usage 2", [LAST], False),
        ("usage 2", [LAST, LAST], False),
        ("usage 2", [LAST, OTHER], True),
        ("usage 2", [OTHER + LAST], True),
        ("usage 0", [LAST, OTHER], False),
    ],
)
def test_all_is_said_when_every_answer_has_given_its_reason(
    stage: Any, http: Any, watch: str, pieces: list[bytes], whole: bool
) -> None:
    result, _ = left_alone(stage, http, f"{watch} {IDLE * 1000:.0f}", *pieces)
    assert result.got.body == b"".join(pieces) + (b"" if whole else BROKEN)
    assert (result.watched.cut, result.watched.finished) == (not whole, whole)


def test_the_next_request_is_not_hurried(stage: Any, http: Any) -> None:
    left_alone(stage, http, "usage 1 100", PIECE)
    release = threading.Event()
    begin, first, *rest = http.chunked(PIECE, LAST, DONE)
    late = threading.Timer(1.0, release.set)
    late.start()
    assert stage.ask([begin, first, release, *rest], "usage").got.body == PIECE + LAST + DONE
    late.join()
