"""Usage that the gateway alone asked for is taken out of a stream, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.streaming import UsageHider
from headrace.testing import CHUNK, DONE, FINISH, USAGE

KEPT = [
    CHUNK % 1,
    FINISH,
    DONE,
    b": keepalive\n\n",
    b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n',
    b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n',
    b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
    rb'data: {"choices":[{"delta":{"content":"\"usage\" \"choices\":[]"}}]}' + b"\n\n",
    'data: {"choices":[{"delta":{"content":"ä\U0001f989"}}]}\n\n'.encode(),
    b"event: ping\ndata: {}\n\n",
]
HIDDEN = [
    USAGE,
    b'data: {"usage": {"prompt_tokens":5,"completion_tokens":3}, "choices": [ ]}\n\n',
    b'data:{"choices" :\t[],"usage":{"prompt_tokens":5,"completion_tokens":3,"prompt_tokens_details":{}}}\n\n',
]


def as_windows(event: bytes, wide: bool) -> bytes:
    return event.replace(b"\n", b"\r\n") if wide else event


EVENTS = st.builds(as_windows, st.sampled_from(KEPT), st.booleans())
USAGES = st.builds(as_windows, st.sampled_from(HIDDEN), st.booleans())


def hide(chunks: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """What is shown of the chunks, and what is hidden."""

    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def run() -> tuple[list[bytes], bytes]:
        hider = UsageHider()
        return [chunk async for chunk in hider.shown(stream())], hider.hidden

    return asyncio.run(run())


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(bounds) if a < b]


CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=6), USAGES, st.lists(EVENTS, max_size=3), CUTS)
def test_the_usage_event_alone_is_hidden_wherever_the_stream_was_cut(
    before: list[bytes], usage: bytes, after: list[bytes], places: list[int]
) -> None:
    shown, hidden = hide(cut(b"".join((*before, usage, *after)), places))
    assert b"".join(shown) == b"".join((*before, *after))
    assert hidden == usage


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=6), st.binary(max_size=20), CUTS)
def test_a_stream_without_such_an_event_passes_whole(events: list[bytes], rest: bytes, places: list[int]) -> None:
    data = b"".join(events) + rest
    shown, hidden = hide(cut(data, places))
    assert (b"".join(shown), hidden) == (data, b"")


@pytest.mark.parametrize("event", KEPT)
def test_a_whole_event_is_passed_on_at_once(event: bytes) -> None:
    assert hide([event, event])[0] == [event, event]


def test_an_event_is_held_back_until_it_is_whole() -> None:
    assert hide([CHUNK % 1 + USAGE[:20], USAGE[20:] + DONE])[0] == [CHUNK % 1, DONE]


def test_nothing_is_sent_for_a_chunk_that_is_hidden_whole() -> None:
    assert hide([USAGE, DONE])[0] == [DONE]


def test_an_event_that_is_very_large_passes_in_pieces() -> None:
    large = b'data: {"choices":[{"delta":{"content":"' + b"x" * 300_000 + b'"}}]}\n\n'
    chunks = cut(CHUNK % 1 + large + USAGE + DONE, range(1, 300_000, 20_000))
    shown, hidden = hide(chunks)
    assert b"".join(shown) == CHUNK % 1 + large + DONE
    assert hidden == USAGE
    assert max(map(len, shown)) < 150_000


async def test_the_stream_is_closed_with_the_one_that_shows_it() -> None:
    closed = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        try:
            yield CHUNK % 1
            yield CHUNK % 2
        finally:
            closed.set()

    shown = UsageHider().shown(stream())
    assert await anext(shown) == CHUNK % 1
    await shown.aclose()  # type: ignore[attr-defined]
    assert closed.is_set()
