"""Redis's protocol, in whatever pieces it arrives, and what is none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_redis.resp import LONGEST_LINE, ErrorReply, Garbage, Replies, Reply, command


def encoded(reply: bytes | None) -> bytes:
    return b"$-1\r\n" if reply is None else b"$%d\r\n%b\r\n" % (len(reply), reply)


@given(st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=6), st.lists(st.integers(1, 9), min_size=1))
def test_answers_are_the_same_in_whatever_pieces_they_arrive(
    answers: Sequence[bytes | None], pieces: Sequence[int]
) -> None:
    wire, replies, found = b"".join(encoded(each) for each in answers), Replies(), list[Reply]()
    at = turn = 0
    while at < len(wire):
        size = pieces[turn % len(pieces)]
        found += replies.feed(wire[at : at + size])
        at, turn = at + size, turn + 1
    assert found == list(answers)


def test_errors_and_lines_are_told_apart() -> None:
    ok, number, error = Replies().feed(b"+OK\r\n:5\r\n-OOM no memory\r\n")
    assert (ok, number) == (b"OK", b"5")
    assert isinstance(error, ErrorReply)
    assert (error.code, str(error)) == ("OOM", "OOM no memory")


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"*1\r\n",
        b"\x00\x01",
        b"\x16\x03\x01",
        b"$x\r\n",
        b"$-2\r\n",
        b"$99999999999999\r\n",
        b"\r\n",
        b"+" + b"x" * LONGEST_LINE,
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(Garbage):
        list(Replies().feed(data))


@given(st.binary(max_size=60))
def test_no_bytes_do_worse_than_that(data: bytes) -> None:
    try:
        for reply in Replies().feed(data):
            assert reply is None or isinstance(reply, bytes | ErrorReply)
    except Garbage:
        pass


def test_a_command_is_sent_as_strings_with_their_lengths() -> None:
    assert command(b"SELECT", b"12") == b"*2\r\n$6\r\nSELECT\r\n$2\r\n12\r\n"
