"""Server-sent events however they were cut, and the taps that watch a reply."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.exchange import Usage
from headrace.streaming import Event, EventSplitter, EventTooLarge, Taps, parse_event


def split(*chunks: bytes) -> list[Event]:
    splitter = EventSplitter()
    return [event for chunk in chunks for event in splitter.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [Event(b"a"), Event(b"b")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [Event(b"a"), Event(b"b")]),
        (b"data: a\r\rdata: b\r\r:", [Event(b"a"), Event(b"b")]),
        (b"data: a\r\n\ndata: b\n\r\n", [Event(b"a"), Event(b"b")]),
        (b"data: a\ndata: b\n\n", [Event(b"a\nb")]),
        (b": keepalive 1/1\n\n:\n\ndata: a\n\n", [Event(b"a")]),
        (b"event: ping\n\n", []),
        (b"event: delta\ndata: a\n\n", [Event(b"a", "delta")]),
        (b"data:a\n\ndata:  b\n\n", [Event(b"a"), Event(b" b")]),
        (b"data\n\n", [Event(b"")]),
        (b"id: 7\nretry: 1\nunknown: x\ndata: a\n\n", [Event(b"a")]),
        (b"\n\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [Event(b"a"), Event(b"b")]),
        ("event: é\ndata: ü\n\n".encode(), [Event("ü".encode(), "é")]),
        (b"data: unfinished\n", []),
    ],
)
def test_events_are_read_as_the_standard_says(stream: bytes, events: list[Event]) -> None:
    assert split(stream) == events
    assert split(*(stream[at : at + 1] for at in range(len(stream)))) == events


LINES = st.sampled_from(
    [b"data: a", b"data:", b"data: {}", b": c", b"event: x", b"", b"", b"\xc3\xa9", b"data: [DONE]"]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=20), st.lists(st.integers(0, 200), max_size=8))
def test_any_cutting_of_the_bytes_gives_the_same_events(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    stream = b"".join(line + end for line, end in lines)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert split(*(stream[a:b] for a, b in pairwise(edges))) == split(stream)


@given(st.lists(st.tuples(LINES, ENDS), max_size=20))
def test_the_line_ending_makes_no_difference(lines: list[tuple[bytes, bytes]]) -> None:
    # A lone CR is told from a CR LF only by what follows it: a comment closes the stream.
    mixed = b"".join(line + end for line, end in lines) + b":"
    plain = b"".join(line + b"\n" for line, _ in lines) + b":"
    joined = any(a[1] == b"\r" and b == (b"", b"\n") for a, b in pairwise(lines))
    assert joined or split(mixed) == split(plain)


def test_an_event_knows_the_end_marker_and_its_json() -> None:
    assert Event(b"[DONE]").is_done
    assert not Event(b"{}").is_done
    assert Event(b'{"a":1}').json() == {"a": 1}
    assert parse_event(b": nothing") is None


# --- Taps ---


class Tap:
    def __init__(self, wants: Any, fails: bool = False, fails_to_close: bool = False) -> None:
        self.wants, self._fails, self._fails_to_close = wants, fails, fails_to_close
        self.items: list[Any] = []
        self.closed: list[bool] = []

    def feed(self, item: Any) -> None:
        self.items.append(item)
        if self._fails:
            raise ValueError("no")

    def close(self, completed: bool) -> None:
        self.closed.append(completed)
        if self._fails_to_close:
            raise ValueError("no")


def test_events_are_split_once_for_all_taps() -> None:
    first, second = Tap("events"), Tap("events")
    taps = Taps([("a", first), ("b", second)], lambda *_: None)
    taps.event_stream = True
    taps.feed(b"data: a\n\nda")
    taps.feed(b"ta: b\n\n")
    assert first.items == [Event(b"a"), Event(b"b")]
    assert [id(item) for item in first.items] == [id(item) for item in second.items]


def test_a_tap_that_raises_is_detached_at_once_and_the_others_go_on() -> None:
    failed: list[str] = []
    broken, well = Tap("events", fails=True), Tap("bytes")
    taps = Taps([("broken", broken), ("well", well)], lambda name, error: failed.append(name))
    taps.event_stream = True
    taps.feed(b"data: a\n\ndata: b\n\n")
    taps.close(Usage(1, 1), True)
    assert (len(broken.items), broken.closed) == (1, [])
    assert (well.items, well.closed) == ([b"data: a\n\ndata: b\n\n"], [True])
    assert failed == ["broken"]


def test_a_tap_that_fails_to_close_does_not_keep_the_others_from_closing() -> None:
    failed: list[str] = []
    broken, well = Tap("usage", fails_to_close=True), Tap("usage")
    taps = Taps([("broken", broken), ("well", well)], lambda name, error: failed.append(name))
    taps.close(Usage(1, 2), False)
    taps.close(Usage(1, 2), False)
    assert (well.items, well.closed, failed) == ([Usage(1, 2)], [False], ["broken"])


@pytest.mark.parametrize(("wants", "watches"), [("usage", False), ("bytes", True), ("events", True)])
def test_only_taps_that_want_more_than_usage_are_shown_chunks(wants: str, watches: bool) -> None:
    assert Taps([("a", Tap(wants))], lambda *_: None).watcher == ("a" if watches else None)


def test_an_event_in_many_pieces_takes_time_linear_in_its_size() -> None:
    splitter = EventSplitter()
    begun = time.process_time()
    for _ in range(4000):
        assert splitter.feed(b"data: " + b"x" * 1000) == []
    assert time.process_time() - begun < 1.0  # a splitter that starts over with each piece takes half a minute


def test_an_event_without_an_end_is_given_up() -> None:
    splitter = EventSplitter()
    with pytest.raises(EventTooLarge):
        for _ in range(18):
            splitter.feed(b"x" * (1 << 20))
