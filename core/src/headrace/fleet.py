"""What is known of each backend now: how busy it is, and whether it answers. All workers of a gateway count together.

Policies and plugins read it while they decide, and write what they find out; nothing here waits for anything.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from .exchange import Target

Condition = Literal["unknown", "up", "starting", "down"]
"""`unknown` until somebody has looked; `starting`: it is there and cannot answer yet, a model is being loaded."""
CELL = 8
"""Bytes of a number."""


class EngineLoad(msgspec.Struct, frozen=True):
    """How busy an engine says it is (vLLM's `/metrics`, for instance)."""

    running: int
    waiting: int
    cache_usage: float = 0.0
    """Of the KV cache, the part that is taken: 0 to 1."""
    at: float = msgspec.field(default_factory=time.monotonic)
    """When it said so, by `time.monotonic()`."""


class TargetState:
    """What is known of one backend. Plugins may set everything but `in_flight`."""

    __slots__ = ("_cells", "_own", "condition", "engine", "failed_at", "failure", "reason", "serves", "since")

    def __init__(self) -> None:
        self.condition: Condition = "unknown"
        self.reason = ""
        """Why it is in that condition, in words an operator can act on."""
        self.since = time.monotonic()
        """Since when."""
        self.failure = ""
        """What went wrong last, and `failed_at` when (`time.time()`); empty if nothing has."""
        self.failed_at = 0.0
        self.engine: EngineLoad | None = None
        """What the engine has said last about its load."""
        self.serves: frozenset[str] | None = None
        """The models that it lists; None if nobody has asked."""
        self._own: memoryview = memoryview(array("q", (0,)))
        self._cells = self._own

    @property
    def in_flight(self) -> int:
        """Requests that it is answering now, to all workers of this gateway."""
        cells = self._cells
        return cells[0] if len(cells) == 1 else sum(cells)

    def begin(self) -> None:
        """One more."""
        self._own[0] += 1

    def end(self) -> None:
        """One less."""
        self._own[0] -= 1

    def become(self, condition: Condition, reason: str = "") -> bool:
        """Note its condition. Returns whether that is another than before."""
        self.reason = reason
        if condition == self.condition:
            return False
        self.condition, self.since = condition, time.monotonic()
        return True

    def count_in(self, cells: memoryview, own: memoryview) -> None:
        """From now on count in memory that others read: `own` is one of the `cells`."""
        own[0] = self._own[0]
        self._own, self._cells = own, cells


class Fleet:
    """The memory in which the workers count, one number for each backend and worker.

    Args:
        folder: where its file lies. Its name tells which backends are counted in it.
    """

    def __init__(self, folder: Path, worker: int, workers: int) -> None:
        self._folder, self._worker, self._workers = folder, worker, workers
        self._names: list[str] = []
        self._cells = memoryview(array("q"))

    def open(self, targets: Sequence[Target]) -> None:
        """Let these count together with those of the other workers. What this worker had counted before it died is
        forgotten. Called again when there are other targets."""
        if self._workers == 1 or not targets:
            return
        by_name = {f"{target.name} {target.socket or target.base_url}": target for target in targets}
        if sorted(by_name) != self._names:
            self._names = sorted(by_name)
            self._cells = self._mapped()
        for number, name in enumerate(self._names):
            row = number * self._workers
            own = row + self._worker
            by_name[name].state.count_in(self._cells[row : row + self._workers], self._cells[own : own + 1])

    def _mapped(self) -> memoryview:
        """The memory for these backends; that for any others is not needed any more."""
        digest = hashlib.sha256("\n".join((str(self._workers), *self._names)).encode()).hexdigest()[:12]
        path, size = self._folder / f"fleet-{digest}", len(self._names) * self._workers * CELL
        for other in self._folder.glob("fleet-*"):
            if other != path:
                other.unlink(missing_ok=True)  # who counts there goes on to do so
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            return memoryview(mmap.mmap(descriptor, size)).cast("q")
        finally:
            os.close(descriptor)
