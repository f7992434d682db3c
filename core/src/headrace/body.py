"""The rest of a chunked body, given away the moment it comes: no task is woken for a piece, as long as it is taken.

aiohttp has read the head of the answer and the beginning of the body. Its own way for a piece, through a buffer, a
future and a task, costs several times what the piece itself does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import httptools

if TYPE_CHECKING:
    from .pool import Handler

Take = Callable[[bytes], bytes]
"""Is given a piece, and returns what it leaves of it."""
BROKEN_OFF = "Response payload is not completed"


class Body:
    """One body.

    Args:
        handler: the connection. Once it has this body, it gives to `feed` what it receives, and tells when it is lost.
        content: the body as aiohttp has it: what is in store there is given away first.
        received: all that came of the answer until now, with its head.

    Attributes:
        ended: whether all of it has been read.

    Raises:
        httptools.HttpParserError: it is not what is read here.
    """

    __slots__ = (
        *("_content", "_error", "_handler", "_heard", "_known", "_loop", "_parser", "_paused", "_rest", "_store"),
        *("_take", "_wake", "ended"),
    )

    def __init__(self, handler: Handler, content: aiohttp.StreamReader, received: Sequence[bytes]) -> None:
        self._handler, self._content = handler, content
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._store: deque[bytes] = deque()
        """Pieces that nobody has taken yet."""
        self._take: Take | None = None
        """Set while somebody waits."""
        self._wake: asyncio.Future[None] | None = None
        self._rest = b""
        self._error: Exception | None = None
        self._paused = False
        self.ended = False
        self._known = content.total_bytes
        """Bytes to come that aiohttp has read, too."""
        self._parser: Any = httptools.HttpResponseParser(self)
        for data in received:
            self._parser.feed_data(data)

    def begin(self) -> None:
        """From now on aiohttp reads nothing more of it."""
        if stored := self._content.read_nowait():
            self._store.appendleft(stored)
        self._handler.body = self

    @property
    def waiting_since(self) -> float | None:
        """When the last piece came, in the loop's time; None while nobody waits for one."""
        return self._heard if self._take is not None else None

    async def rest(self, take: Take) -> bytes:
        """Give what comes to `take` until it leaves something of a piece, which is returned; nothing at the end.

        Raises:
            aiohttp.ClientError: the body is not complete; besides, what `take` raises.
        """
        while self._store:
            if rest := take(self._store.popleft()):
                return rest
        if self._error is None and not self.ended:
            await self._wait(take)
        rest, self._rest = self._rest, b""
        if self._error is not None and not rest:
            error, self._error = self._error, None
            raise error
        return rest

    async def _wait(self, take: Take) -> None:
        self._resume()
        self._heard = self._loop.time()
        self._wake = self._loop.create_future()
        self._take = take
        try:
            await self._wake
        finally:
            self._take = self._wake = None

    def leave(self) -> None:
        """Nobody wants the rest. The connection, unless the body has ended, must be closed."""
        self._parser = None  # it knows us: the garbage collector has nothing to find

    # --- what comes -------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """The connection has received this."""
        if self._parser is None:
            return
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(aiohttp.ClientPayloadError(f"{BROKEN_OFF}: {type(error).__name__}"))
        if self.ended:
            self._end()

    def lost(self) -> None:
        """The connection is gone."""
        said = self._content.exception()
        self._break(said if isinstance(said, aiohttp.ClientError) else aiohttp.ClientPayloadError(BROKEN_OFF))

    def on_body(self, piece: bytes) -> None:
        """httptools has read a piece."""
        if self._known:
            known, self._known = self._known, max(0, self._known - len(piece))
            piece = piece[known:]
        if self._take is None:
            self._keep(piece)
            return
        try:
            self._rest = self._take(piece)
        except Exception as error:
            self._error = error
        if self._rest or self._error is not None:
            self._stop()

    def on_message_begin(self) -> None:
        """httptools has read the first byte of an answer."""
        if self.ended:
            raise ValueError("nobody has asked for another answer")

    def on_message_complete(self) -> None:
        """httptools has read the end of an answer, or of a head that comes before it."""
        self.ended = self._parser.get_status_code() >= 200

    def _keep(self, piece: bytes) -> None:
        """Nobody takes it now: the backend has to wait."""
        if not piece:
            return
        self._store.append(piece)
        if not self._paused and self._handler.transport is not None:
            self._paused = True
            with suppress(RuntimeError):  # it is closing
                self._handler.transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._handler.transport is not None:
            with suppress(RuntimeError):
                self._handler.transport.resume_reading()
        self._paused = False

    def _break(self, error: Exception) -> None:
        """What comes is no part of the body."""
        if self.ended:
            self._handler.close()  # what follows the end has not been asked for
        elif self._error is None:
            self._error = error
            self._stop()

    def _end(self) -> None:
        """aiohttp learns that it is complete, and has the connection back."""
        self._handler.body = self._parser = None
        self._resume()
        self._content.feed_eof()
        self._stop()

    def _stop(self) -> None:
        """Nothing more is given until somebody waits again."""
        self._take = None
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
