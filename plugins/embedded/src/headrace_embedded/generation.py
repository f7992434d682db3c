"""One generation: a call of llama.cpp on a thread, whose pieces arrive in the event loop, and which can be stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from headrace.errors import GatewayError

from .failures import as_gateway_error
from .llama import Handler

PROGRESS = b'"prompt_progress":'
"""Marks the pieces that only tell how far the prompt has been read. Inside a text the quotes would be escaped."""
ERROR = b'{"error":'


class Workers:
    """As many threads as the model has slots: a request that waits for one has not reached llama.cpp yet."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.pool = ThreadPoolExecutor(slots, thread_name_prefix="generation")
        self.open: set[Generation] = set()
        self._lock = threading.Lock()
        self.busy = 0

    def stop_all(self) -> None:
        """Cut every generation short; each then raises Interrupted in whoever reads it."""
        for generation in tuple(self.open):
            generation.stop(Interrupted())

    def count(self, change: int) -> None:
        with self._lock:
            self.busy += change


class Interrupted(GatewayError):
    """The engine is going down."""

    status, code = 503, "engine_stopping"

    def __init__(self) -> None:
        super().__init__("The engine is stopping.")


class Generation:
    """Reads what a handler produces. `pieces` may be read once; `stop` may be called at any time, repeatedly."""

    def __init__(self, handler: Handler, payload: dict[str, object], workers: Workers) -> None:
        self._handler = handler
        self._body = msgspec.json.encode(payload)
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes | GatewayError | None] = asyncio.Queue()
        self._stopped = False
        self._future: Future[None] | None = None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Each piece of the answer as JSON, until the end or until it is stopped.

        Raises:
            GatewayError: llama.cpp refused the request or failed.
        """
        workers = self._workers
        workers.open.add(self)
        self._future = workers.pool.submit(self._run)
        try:
            while (piece := await self._pieces.get()) is not None:
                if isinstance(piece, GatewayError):
                    raise piece
                yield piece
        finally:
            workers.open.discard(self)
            self.stop()

    def stop(self, error: GatewayError | None = None) -> None:
        """Make llama.cpp stop after its current step, and the reader stop now, raising `error` if given."""
        self._stopped = True  # seen by the thread at its next step
        if self._future is not None:
            self._future.cancel()  # has an effect only while it waits for a thread
        self._pieces.put_nowait(error)

    def _run(self) -> None:
        self._workers.count(+1)
        error: GatewayError | None = None
        try:
            self._handler(self._body, self._take)
        except (ValueError, RuntimeError) as raised:
            error = as_gateway_error({"code": 400, "message": str(raised)})
        finally:
            self._workers.count(-1)
            self._put(error)

    def _take(self, piece: bytes) -> bool:
        """llama.cpp's callback: once for each step of reading the prompt, then for each token."""
        if self._stopped:
            return True
        if piece.startswith(ERROR):
            self._put(as_gateway_error(msgspec.json.decode(piece)["error"]))
        elif PROGRESS not in piece:
            self._put(piece)
        return False

    def _put(self, item: bytes | GatewayError | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, item)
