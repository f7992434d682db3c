"""Interrupting a plugin that blocks while the gateway starts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .errors import PluginError


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
        raise PluginError(plugin, f"{what} did not finish in {seconds:g} s (server.startup_timeout)", hook)

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
