"""Limits on what plugins take: one that blocks while the gateway starts, one that is waited for later."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from types import FrameType
from typing import Any, TypeVar

from .errors import PluginError

T = TypeVar("T")
AGAIN_SECONDS = 0.1
"""The interruption is repeated this often, for it may meet code that swallows everything."""


class _Interruption(BaseException):
    """No Exception, so that a plugin that retries whatever fails does not take it for one of its failures."""


@contextlib.contextmanager
def time_limit(plugin: str, what: str, seconds: float, hook: str | None = None) -> Iterator[None]:
    """Stop what a plugin does after `seconds`. Works in the main thread alone, which is where plugins are loaded.

    Raises:
        PluginError: naming the plugin, and the hook if it was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise _Interruption

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
    except _Interruption:
        raise PluginError(plugin, f"{what} did not finish in {seconds:g} s (server.startup_timeout)", hook) from None
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Deadline:
    """Raises what `error` makes after `seconds`, wherever the current task waits then: `asyncio.timeout` at a third of
    its cost. To be entered with `with`."""

    __slots__ = ("_cancelling", "_error", "_expired", "_task", "_timer")

    def __init__(self, seconds: float, error: Callable[[], Exception]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._error = task, error
        self._cancelling = task.cancelling()
        self._expired = False
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        self._timer.cancel()
        alone = self._expired and self._task.uncancel() <= self._cancelling  # or were we cancelled from outside too?
        if alone and kind is asyncio.CancelledError:
            raise self._error() from error


async def in_thread(work: Callable[[], T], seconds: float) -> T:
    """What `work` returns, done in a thread of its own, which nobody waits for if it takes longer.

    Raises:
        TimeoutError: it took longer.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, daemon=True, name="headrace-work").start()
    async with asyncio.timeout(seconds):
        return await done


async def within(seconds: float, rest: Rest) -> None:
    """Await for so long and no longer. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        await rest


class Rest:
    """A coroutine whose first step is done: work that waits for nothing needs no timer, and is over by then."""

    __slots__ = ("_waited_for", "_work")

    def __init__(self, work: Coroutine[Any, Any, None], waited_for: Any) -> None:
        self._work = work
        self._waited_for = waited_for

    def __await__(self) -> Generator[Any, Any, None]:
        waited_for = self._waited_for
        step: Callable[[Any], Any]
        while True:
            try:
                sent = yield waited_for
            except BaseException as error:
                step, value = self._work.throw, error
            else:
                step, value = self._work.send, sent
            try:
                waited_for = step(value)
            except StopIteration:
                return
