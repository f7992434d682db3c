"""Interrupting a plugin that blocks while the gateway starts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .errors import PluginError

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
