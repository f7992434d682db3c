"""What is known of each backend now: how busy it is, and whether it answers. All workers of a gateway count together.

Policies and plugins read it while they decide, and write what they find out; nothing here waits for anything.
"""

from __future__ import annotations

import hashlib
import logging
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

logger = logging.getLogger("headrace.fleet")

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


class InFlight:
    """How many requests a backend is answering: in this worker, and in all of them."""

    __slots__ = ("cells", "own")

    def __init__(self) -> None:
        self.own: memoryview = memoryview(array("q", (0,)))
        """One of the `cells`."""
        self.cells = self.own

    def count_in(self, cells: memoryview, own: memoryview) -> None:
        """From now on count in memory that others read."""
        own[0] = self.own[0]
        self.own, self.cells = own, cells


class TargetState:
    """What is known of one backend. Plugins may set everything but what is counted."""

    __slots__ = ("condition", "counted", "engine", "failed_at", "failure", "reason", "serves", "since")

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
        self.counted = InFlight()

    @property
    def in_flight(self) -> int:
        """Requests that it is answering now, to all workers of this gateway."""
        cells = self.counted.cells
        return cells[0] if len(cells) == 1 else sum(cells)

    def begin(self) -> None:
        """One more."""
        self.counted.own[0] += 1

    def end(self) -> None:
        """One less."""
        self.counted.own[0] -= 1

    def become(self, condition: Condition, reason: str = "") -> bool:
        """Note its condition. Returns whether that is another than before."""
        self.reason = reason
        if condition == self.condition:
            return False
        self.condition, self.since = condition, time.monotonic()
        return True

    def heir(self, *, watched: bool) -> TargetState:
        """The state of the same backend in a gateway that takes over: counted together, and else its own, for the
        plugins of the old one go on for a while. What nobody watches there is not known there."""
        heir = TargetState()
        heir.counted, heir.engine = self.counted, self.engine
        heir.failure, heir.failed_at = self.failure, self.failed_at
        if watched:
            heir.condition, heir.reason, heir.since, heir.serves = self.condition, self.reason, self.since, self.serves
        return heir


class Fleet:
    """The memory in which the workers count, one number for each backend and worker.

    Args:
        folder: where its file lies. Its name tells which backends are counted in it.
    """

    def __init__(self, folder: Path, worker: int, workers: int) -> None:
        self._folder, self._worker, self._workers = folder, worker, workers
        self._names: list[str] = []
        self._file: tuple[Path, int] | None = None
        """The file that is mapped, and its number on the disk."""
        self._cells = memoryview(array("q"))

    def open(self, targets: Sequence[Target]) -> None:
        """Let these count together with those of the other workers. What this worker had counted before it died is
        forgotten. Called again when there are other targets."""
        if self._workers == 1 or not targets:
            return
        by_name = {f"{target.name} {target.socket or target.base_url}": target for target in targets}
        try:
            if sorted(by_name) != self._names or not self._is_there():
                self._names = sorted(by_name)
                self._cells = self._mapped()
        except OSError as error:
            self._names = []
            logger.error("each worker counts requests in flight by itself: %s: %s", self._folder, error)
            return
        for number, name in enumerate(self._names):
            row = number * self._workers
            own = row + self._worker
            cells = self._cells
            by_name[name].state.counted.count_in(cells[row : row + self._workers], cells[own : own + 1])

    def tidy(self) -> None:
        """Remove what earlier gateways have left. For the first worker, before any other has begun."""
        for file in self._folder.glob("fleet-*"):
            file.unlink(missing_ok=True)

    def _is_there(self) -> bool:
        """Whether the others would map the same file."""
        if self._file is None:
            return False
        path, number = self._file
        try:
            return path.stat().st_ino == number
        except FileNotFoundError:
            return False

    def _mapped(self) -> memoryview:
        """The memory for these backends. Raises OSError: there is no room for it."""
        digest = hashlib.sha256("\n".join((str(self._workers), *self._names)).encode()).hexdigest()[:12]
        path, size = self._folder / f"fleet-{digest}", len(self._names) * self._workers * CELL
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)  # what is written later must have its place on the disk
            else:
                os.ftruncate(descriptor, size)
            self._file = path, os.fstat(descriptor).st_ino
            return memoryview(mmap.mmap(descriptor, size)).cast("q")
        finally:
            os.close(descriptor)
