"""What replies cost nginx while they last. njs keeps every piece that a script has seen until the reply is over; our
own module keeps the end of a reply alone."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

MIB = 1024
"""In KiB, as the kernel counts."""
PIECE = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b" word" * 20)
DONE = b"data: [DONE]\n\n"


def peak(pid: int) -> int:
    """The most memory a process has had, in KiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def grown(stage: Any, http: Any, watch: str, streams: int, pieces: int) -> int:
    """By how many KiB the worker's peak grows while so many streams, of so many pieces each, are open together."""
    stage.ask(http.chunked(PIECE, DONE), watch)
    begin, *middle, last, end = http.chunked(*[PIECE] * pieces, DONE)
    together = threading.Barrier(streams)

    def script(_: Any) -> Iterator[bytes]:
        yield begin
        yield b"".join(middle)
        together.wait(60)
        yield last + end

    before, told = peak(stage.worker), stage.told(watch=watch)
    stage.backend.script, stage.core.script = script, lambda _: [told]
    with ThreadPoolExecutor(streams) as pool:
        done = list(pool.map(lambda _: stage.receive(stage.request()), range(streams)))
    assert all(got.whole and len(got.body) == pieces * len(PIECE) + len(DONE) for got in done)
    return peak(stage.worker) - before


def test_a_stream_that_nobody_watches_costs_next_to_nothing(
    binary: Any, staged: Callable[..., Any], http: Any, tmp_path: Path
) -> None:
    with staged(tmp_path, binary) as stage:
        assert grown(stage, http, "", streams=32, pieces=5000) < 8 * MIB


@pytest.mark.parametrize("watch", ["usage", "hide"])
def test_a_watched_stream_costs_less_than_a_kilobyte_per_piece_and_its_bytes(
    binary: Any, staged: Callable[..., Any], http: Any, tmp_path: Path, watch: str
) -> None:
    with staged(tmp_path, binary) as stage:
        assert grown(stage, http, watch, streams=32, pieces=1000) < 32 * 1000 * (1024 + len(PIECE)) / 1024 + 8 * MIB


@pytest.mark.parametrize("watch", ["usage", "hide"])
def test_a_watched_stream_is_let_go_before_it_costs_too_much(
    binary: Any, staged: Callable[..., Any], http: Any, tmp_path: Path, watch: str
) -> None:
    with staged(tmp_path, binary) as stage:
        assert grown(stage, http, watch, streams=4, pieces=40_000) < 4 * 20 * MIB


@pytest.mark.parametrize("watch", ["usage", "hide"])
def test_the_module_watches_streams_of_any_length_in_the_same_memory(
    staged: Callable[..., Any], binary: Any, http: Any, tmp_path: Path, watch: str
) -> None:
    if binary.module is None:
        pytest.skip("the script does not")
    with staged(tmp_path, binary) as stage:
        assert grown(stage, http, watch, streams=16, pieces=20_000) < 4 * MIB


def test_pieces_that_are_rebuilt_cost_the_module_no_more(
    staged: Callable[..., Any], binary: Any, http: Any, tmp_path: Path
) -> None:
    if binary.module is None:
        pytest.skip("the script keeps what it makes")
    event = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":null}\n\n'
    halves = [event[:20], event[20:] + event[:33], event[33:]] * 4000
    with staged(tmp_path, binary) as stage:
        before = stage.ask(http.chunked(*halves[:300], DONE), "hide")
        resident = peak(stage.worker)
        result = stage.ask(http.chunked(*halves, DONE), "hide")
        assert result.got.body == event * 8000 + DONE and before.got.whole
        assert peak(stage.worker) - resident < MIB


def test_an_event_that_does_not_end_costs_the_module_no_more_than_a_long_one(
    staged: Callable[..., Any], binary: Any, http: Any, tmp_path: Path
) -> None:
    if binary.module is None:
        pytest.skip("the script keeps what it is given")
    pieces = [b'data: {"a":"', *[b"a" * 7000] * 3000]
    with staged(tmp_path, binary) as stage:
        stage.ask(http.chunked(PIECE, DONE), "usage")
        before = peak(stage.worker)
        assert stage.ask(http.chunked(*pieces), "usage").got.body.startswith(b"".join(pieces))
        assert peak(stage.worker) - before < 2 * MIB
