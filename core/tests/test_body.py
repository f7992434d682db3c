"""A body that is given away as it comes: all of it, once, in order, whatever comes when, and never more."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.body import Body
from headrace.pool import Handler

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


class Transport:
    """What is done to a connection."""

    def __init__(self) -> None:
        self.reading, self.closed = True, False

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        """There is no socket."""


def connected() -> tuple[Handler, Transport]:
    """A connection on which a request has been sent."""
    handler, transport = Handler(loop=asyncio.get_running_loop()), Transport()
    handler.connection_made(transport)  # type: ignore[arg-type]
    handler.set_response_params(read_until_eof=True, auto_decompress=False)
    return handler, transport


async def answered(*received: bytes) -> tuple[Handler, Transport, aiohttp.StreamReader]:
    """A connection that has received so much of an answer, at least its head; and aiohttp's idea of its body."""
    handler, transport = connected()
    for data in received:
        handler.data_received(data)
    while True:
        message, content = await handler.read()
        if message.code >= 200:
            return handler, transport, content


async def taken_over(*received: bytes) -> tuple[Handler, Transport, Body]:
    handler, transport, content = await answered(*received)
    body = handler.take_over(content)
    assert body is not None
    return handler, transport, body


def chunked(pieces: Sequence[bytes], *, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return body + b"0\r\n" + trailer + b"\r\n"


def nothing(piece: bytes) -> bytes:
    """Takes all of it."""
    return b""


class Taker:
    """Takes pieces, but for those whose turn it is not."""

    def __init__(self, left: Sequence[bool] = ()) -> None:
        self.taken: list[bytes] = []
        self._left = list(left)

    def __call__(self, piece: bytes) -> bytes:
        if self._left and self._left.pop():
            return piece
        self.taken.append(piece)
        return b""


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    before=st.integers(0, 8),
    left=st.lists(st.booleans(), max_size=10),
    early=st.booleans(),
    extension=st.sampled_from((b"", b";a=b")),
    trailer=st.sampled_from((b"", b"x-a: b\r\n")),
)
@example(pieces=[b"\r\n0\r\n\r\n"], cuts=[1, 2, 3, 4, 5], before=2, left=[True], early=True, extension=b"", trailer=b"")
def test_wherever_it_is_cut_and_taken_over_all_of_it_is_given_once_and_in_order(
    pieces: list[bytes], cuts: list[int], before: int, left: list[bool], early: bool, extension: bytes, trailer: bytes
) -> None:
    data = chunked(pieces, extension=extension, trailer=trailer)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in pairwise(places)]
    head = (EARLY if early else b"") + HEAD

    async def run() -> bytes:
        handler, transport, content = await answered(head, *parts[:before])
        body, taker = handler.take_over(content), Taker(left)
        if body is None:
            assert content.is_eof(), "it was all here"
            return await content.read()
        seen = 0  # of what was taken
        got = b""
        coming = iter(parts[before:])
        while True:
            asking = asyncio.ensure_future(body.rest(taker))
            await asyncio.sleep(0)
            while not asking.done():
                handler.data_received(next(coming))
                await asyncio.sleep(0)
            rest = await asking
            got += b"".join(taker.taken[seen:]) + rest
            seen = len(taker.taken)
            if not rest:
                assert body.ended and content.is_eof() and handler.body is None
                assert transport.reading, "the connection is for others now"
                return got

    assert asyncio.run(run()) == b"".join(pieces)


async def test_no_task_is_woken_for_a_piece_that_is_taken() -> None:
    handler, _, body = await taken_over(HEAD)
    taker = Taker()
    asking = asyncio.ensure_future(body.rest(taker))
    await asyncio.sleep(0)
    handler.data_received(b"1\r\na\r\n")
    assert taker.taken == [b"a"]
    handler.data_received(b"1\r\nb\r\n2\r\ncd\r\n")
    assert taker.taken == [b"a", b"b", b"cd"]
    await asyncio.sleep(0)
    assert not asking.done()
    handler.data_received(b"0\r\n\r\n")
    assert await asking == b""


async def test_while_nobody_takes_it_the_backend_waits_and_nothing_is_lost() -> None:
    handler, transport, body = await taken_over(HEAD)
    taker = Taker([False, True])
    asking = asyncio.ensure_future(body.rest(taker))
    await asyncio.sleep(0)
    handler.data_received(b"1\r\na\r\n1\r\nb\r\n")
    assert await asking == b"a"
    assert (taker.taken, transport.reading, body.waiting_since) == ([], False, None)
    asking = asyncio.ensure_future(body.rest(taker))
    await asyncio.sleep(0)
    assert (taker.taken, transport.reading, body.waiting_since is None) == ([b"b"], True, False)
    handler.data_received(b"0\r\n\r\n")
    assert await asking == b""


@pytest.mark.parametrize("said", [b"1\r\na\r\n", b"5\r\na", b"zz\r\n", b"1\r\nab\r\n"])
async def test_a_body_that_breaks_off_or_cannot_be_read_is_never_taken_for_whole(said: bytes) -> None:
    handler, _, body = await taken_over(HEAD)
    asking = asyncio.ensure_future(body.rest(nothing))
    await asyncio.sleep(0)
    handler.data_received(said)
    handler.connection_lost(None)
    with pytest.raises(aiohttp.ClientError):
        await asking
    assert not body.ended
    assert handler.body is None


async def test_what_came_before_the_connection_broke_is_still_given() -> None:
    handler, _, body = await taken_over(HEAD)
    taker = Taker([True])
    asking = asyncio.ensure_future(body.rest(taker))
    await asyncio.sleep(0)
    handler.data_received(b"1\r\na\r\n1\r\nb\r\n")
    handler.connection_lost(ConnectionResetError())
    assert await asking == b"a"
    with pytest.raises(aiohttp.ClientError):
        await body.rest(taker)
    assert taker.taken == [b"b"]


async def test_what_the_taker_raises_reaches_whoever_waits() -> None:
    def refuse(piece: bytes) -> bytes:
        raise OSError(piece)

    handler, _, body = await taken_over(HEAD)
    asking = asyncio.ensure_future(body.rest(refuse))
    await asyncio.sleep(0)
    handler.data_received(b"1\r\na\r\n")
    with pytest.raises(OSError, match="a"):
        await asking


async def test_whoever_says_more_than_was_asked_for_is_hung_up_on() -> None:
    handler, transport, body = await taken_over(HEAD)
    asking = asyncio.ensure_future(body.rest(nothing))
    await asyncio.sleep(0)
    handler.data_received(b"0\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert await asking == b""
    assert transport.closed


async def test_an_answer_of_which_much_has_come_stays_with_aiohttp() -> None:
    piece = b"a" * Handler.MOST_RECEIVED
    handler, _, content = await answered(HEAD, b"%x\r\n%b\r\n" % (len(piece), piece))
    assert handler.take_over(content) is None
    handler.data_received(b"1\r\nb\r\n0\r\n\r\n")
    assert await content.read() == piece + b"b"


async def test_what_comes_for_a_body_that_was_left_is_ignored() -> None:
    handler, _, content = await answered(HEAD)
    body = handler.take_over(content)
    assert body is not None
    body.leave()
    handler.data_received(b"1\r\na\r\n0\r\n\r\n")
    assert (content.total_bytes, content.is_eof(), body.ended) == (0, False, False)
    handler.connection_lost(None)
    assert handler.body is None


def bodies() -> int:
    """How many there are in memory."""
    return sum(isinstance(each, Body) for each in gc.get_objects())


async def test_a_body_that_was_read_or_left_is_no_garbage() -> None:
    gc.collect()
    gc.disable()
    before = bodies()  # other tests may have left some
    try:
        for end in (b"0\r\n\r\n", b""):
            handler, _, body = await taken_over(HEAD)
            asking = asyncio.ensure_future(body.rest(nothing))
            await asyncio.sleep(0)
            handler.data_received(end or b"1\r\na\r\n")
            asking.cancel()
            await asyncio.wait([asking])
            body.leave()
            handler.connection_lost(None)
            del handler, body, asking
            assert bodies() == before
    finally:
        gc.enable()


async def test_what_is_kept_of_an_answer_that_nobody_takes_over_is_bounded() -> None:
    handler, _, content = await answered(HEAD)
    for _ in range(Handler.MOST_RECEIVED // 6):
        handler.data_received(b"1\r\na\r\n")
    assert handler.take_over(content) is None
    handler.data_received(b"0\r\n\r\n")
    assert await content.read() == b"a" * (Handler.MOST_RECEIVED // 6)
