"""Noticing that a database, or the disk below it, holds up whoever writes to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

PATIENCE_SECONDS = 0.4
"""How long one batch may take before rows are put aside."""


class Watch:
    """A thread that looks after another one.

    Args:
        held_up: called when what is watched takes too long, and again as long as it lasts.
    """

    def __init__(self, held_up: Callable[[], None]) -> None:
        self._held_up = held_up
        self._begun, self._done, self._over = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="headrace-usage-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is watched any more."""
        self._over = True
        self._begun.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """What is done within should not take long."""
        self._done.clear()
        self._begun.set()
        try:
            yield
        finally:
            self._done.set()

    def _run(self) -> None:
        while not self._over:
            self._begun.wait()
            self._begun.clear()
            while not self._over and not self._done.wait(PATIENCE_SECONDS):
                self._held_up()
