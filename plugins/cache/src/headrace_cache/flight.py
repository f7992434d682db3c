"""One answer on its way, and everybody who waits for it: the request that is answered, and the same ones that joined.

The first request leads: a backend is asked for it, and its tap feeds the flight. The others follow: they are given what
has come so far, and then what comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Literal

from headrace.delivery import BROKEN
from headrace.errors import GatewayError, Unavailable, UpstreamError

from .entry import PIECE, Entry

Key = tuple[str, tuple[str, str]]
State = Literal["waiting", "streaming", "landed", "failed"]
TOO_SLOW = "This client reads too slowly: others that asked for the same answer are far ahead."


class Follower:
    """One request that waits for another's answer."""

    __slots__ = ("at", "cut", "news")

    def __init__(self) -> None:
        self.at = 0
        """Chunks it has been given."""
        self.cut = False
        """Whether what it would be given next is not kept any more."""
        self.news = asyncio.Event()


class Room:
    """What all flights of a process may keep together, in bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0


class Flight:
    """What is known of an answer until it is complete.

    Args:
        key: of the requests, and their epoch: who comes after a clearing does not join.
        most: bytes that are kept: of a stream that grows beyond, only what somebody who follows has not yet got, and
            no more than this.
        room: what all flights may keep. If there is no more, this one keeps as little as if it had grown too large.
        over: called once, when nobody can join any more.

    Attributes:
        stop: set by the leader: called when the last follower has gone.
        entry: what was found elsewhere, or has become of the answer: given to those who wait.
        error: what went wrong; None if nobody knows.
        refusal: status and body of an answer that is none.
        alone: whether those who waited had better ask by themselves, each and at once.
    """

    def __init__(self, key: Key, most: int, room: Room, over: Callable[[Flight], None]) -> None:
        self.key, self._most, self._room, self._over = key, most, room, over
        self.state: State = "waiting"
        self.entry: Entry | None = None
        self.error: GatewayError | None = None
        self.refusal: tuple[int, bytes] | None = None
        self.alone = False
        self.stop: Callable[[], None] = _nothing
        self.dropped: tuple[str, ...] = ()
        self.followers: set[Follower] = set()
        self.whole = True
        """Whether all of it is kept, from its beginning."""
        self.size = 0
        """Bytes that have come."""
        self._chunks: list[bytes] = []
        self._first = 0
        """Chunks that are not kept any more: the number of the first one that is."""
        self._kept = 0
        """Bytes that are."""
        self._ended = False
        self._joinable = True

    # --- those who follow ------------------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """Whether anybody but the leader waits for it. Asked when the leader's client has left: if nobody does, the
        answer is given up at once, and nobody can join it any more."""
        if not self.followers:
            self._close()
        return bool(self.followers)

    def join(self) -> Follower:
        """Leave again in any case."""
        follower = Follower()
        if self.state != "waiting":
            follower.news.set()
        self.followers.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """May be called twice."""
        if follower not in self.followers:
            return
        self.followers.discard(follower)
        if not self.followers:
            self.stop()
        if not self.whole or self._ended:
            self._forget()

    async def follow(self, follower: Follower) -> AsyncIterator[bytes]:
        """A stream from its beginning.

        Raises:
            GatewayError: it broke, or this follower was too slow.
        """
        while True:
            follower.news.clear()
            while piece := self._next(follower):
                yield piece
            if self._ended:
                if self.state == "failed":
                    raise self.failure()
                return
            await follower.news.wait()

    def failure(self) -> GatewayError:
        """What a follower is told of it."""
        if self.error is None:
            return UpstreamError(BROKEN)
        error = self.error  # each is told its own: the request's id is written on it
        return GatewayError(
            error.message,
            status=error.status,
            type=error.type,
            code=error.code,
            param=error.param,
            detail=error.detail,
            headers=error.headers,
        )

    def _next(self, follower: Follower) -> bytes:
        """The next piece for this one; empty if it has everything. Raises Unavailable."""
        if follower.cut:
            raise Unavailable(TOO_SLOW, code="slow_reader", retryable=False)
        at = start = follower.at - self._first
        taken = 0
        while at < len(self._chunks) and taken < PIECE:
            taken += len(self._chunks[at])
            at += 1
        follower.at = self._first + at
        return b"".join(self._chunks[start:at])

    # --- the leader's tap ------------------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> None:
        """More of a stream has come."""
        self._chunks.append(chunk)
        self.size += len(chunk)
        self._kept += len(chunk)
        self._room.used += len(chunk)
        self.state = "streaming"
        if self.whole and (self.size > self._most or self._room.used > self._room.most):
            self.whole = False
            self._close()
        if not self.whole:
            self._forget()
        self._tell()

    def _forget(self) -> None:
        """Let go of what everybody has, and of those who are too far behind."""
        gone = 0
        following = [each for each in self.followers if not each.cut]
        while gone < len(self._chunks):
            number = self._first + gone
            behind = [each for each in following if each.at <= number]
            if behind and self._kept <= self._most:
                break
            for each in behind:
                each.cut = True
                each.news.set()
                following.remove(each)
            self._kept -= len(self._chunks[gone])
            self._room.used -= len(self._chunks[gone])
            gone += 1
        self._first += gone
        del self._chunks[:gone]

    def body(self) -> bytes:
        """All of it, while it is `whole`."""
        return b"".join(self._chunks)

    def land(self, entry: Entry | None = None) -> None:
        """It is complete: what was streamed, or this entry."""
        self._end("landed", entry=entry)

    def fail(self, error: GatewayError | None = None, refusal: tuple[int, bytes] | None = None) -> None:
        """There is no answer, or no more of it. Nothing happens if it is over already."""
        if not self._ended:
            self.error, self.refusal = error, refusal
            self._end("failed")

    def _end(self, state: State, entry: Entry | None = None) -> None:
        self.state, self.entry, self._ended, self.stop = state, entry, True, _nothing
        self._close()
        self._tell()
        if not self.followers:
            self._forget()

    def _close(self) -> None:
        """Nobody can join any more."""
        if self._joinable:
            self._joinable = False
            self._over(self)

    def _tell(self) -> None:
        for follower in self.followers:
            follower.news.set()


def _nothing() -> None:
    pass
