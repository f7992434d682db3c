"""A call that may hang, in a thread of its own. Such a thread cannot be ended: there is never more than one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Generic, TypeVar

from .reader import NoGpu

T = TypeVar("T")


class Timed(Generic[T]):
    """Makes a call wherever it may take forever; whoever asks meanwhile waits for the same one."""

    def __init__(self, call: Callable[[], T], limit: float) -> None:
        """`limit`: seconds after which nobody waits any longer."""
        self._call, self._limit = call, limit
        self._running: Future[T] | None = None
        self._lock = threading.Lock()

    def wait(self) -> T:
        """Blocks. Raises what the call raises, or NoGpu after `limit` seconds."""
        try:
            return self._started().result(self._limit)
        except TimeoutError as error:
            raise self._hangs() from error

    async def read(self) -> T:
        """The same, without blocking the loop."""
        try:
            async with asyncio.timeout(self._limit):
                # Shielded: whoever stops waiting must not take it from the others.
                return await asyncio.shield(asyncio.wrap_future(self._started()))
        except TimeoutError as error:
            raise self._hangs() from error

    def _started(self) -> Future[T]:
        with self._lock:
            if self._running is None or self._running.done():
                self._running = Future()
                # A daemon: the interpreter's end does not wait for it, as it would for one of an executor.
                threading.Thread(target=self._run, args=(self._running,), name="headrace-gpu", daemon=True).start()
            return self._running

    def _run(self, future: Future[T]) -> None:
        try:
            result = self._call()
        except BaseException as error:
            _settle(partial(future.set_exception, error))
        else:
            _settle(partial(future.set_result, result))

    def _hangs(self) -> NoGpu:
        return NoGpu(f"NVML has not answered within {self._limit:g} s: see `dmesg` for errors of the driver")


def _settle(tell: Callable[[], None]) -> None:
    """Whoever waited in an event loop may be gone, and the loop with it."""
    with contextlib.suppress(RuntimeError):
        tell()
