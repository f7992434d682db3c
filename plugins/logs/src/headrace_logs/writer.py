"""Lines on their way to a file or to standard error, written by a thread so that no request waits for them."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

GATHER_SECONDS = 0.02
"""How long the thread waits for more lines before it writes: one write for many lines under load."""

STOP_SECONDS = 5.0
"""How long the end of the gateway waits for lines that are still to be written."""

STDERR = 2


class Sink(Protocol):
    """Where lines end up."""

    name: str

    def write(self, data: bytes) -> None:
        """Write everything. Raises OSError."""
        ...

    def close(self) -> None: ...


class StderrSink:
    """Standard error, whoever reads it."""

    name = "standard error"

    def write(self, data: bytes) -> None:
        _write_all(STDERR, data)

    def close(self) -> None:
        """It is not ours to close."""


class FileSink:
    """A file that may be moved away or removed at any time: it is then opened anew.

    Made only for its owner to read. A write that fails half-way is ended with a line feed before the next one.
    """

    FLAGS = os.O_WRONLY

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._torn = False
        self._descriptor: int | None = self._open()

    def write(self, data: bytes) -> None:
        self._append(self._current(), data)

    def _append(self, descriptor: int, data: bytes) -> None:
        try:
            _write_all(descriptor, self._begin() + data)
        except OSError:
            self._torn = True
            raise
        self._torn = False

    def _begin(self) -> bytes:
        return b"\n" if self._torn else b""

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self._path, self.FLAGS | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _current(self) -> int:
        if self._descriptor is not None:
            if self._is_current(self._descriptor):
                return self._descriptor
            self.close()
            self._torn = False
        self._descriptor = self._open()
        return self._descriptor

    def _is_current(self, descriptor: int) -> bool:
        """Whether the name still stands for the file that is open."""
        opened = os.fstat(descriptor)
        with contextlib.suppress(FileNotFoundError):
            named = self._path.stat()
            return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
        return False


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # a pipe that somebody made non-blocking
            select.select([], [descriptor], [], 1.0)


def _to_stderr(data: bytes) -> None:
    """Which may be the very thing that fails."""
    with contextlib.suppress(OSError):
        _write_all(STDERR, data)


class Writer:
    """A bounded buffer and the thread that empties it.

    Args:
        sink: where lines go.
        limit: bytes that may wait; a line beyond it is dropped and counted.
        notice: makes a line of the writer's own from a message and its fields.
        complain: where to say that the sink fails, since that cannot be said there.
    """

    def __init__(
        self, sink: Sink, limit: int, notice: Callable[..., str], complain: Callable[[bytes], None] | None = None
    ) -> None:
        self._sink = sink
        self._limit = limit
        self._notice = notice
        self._complain = complain or _to_stderr
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._lines: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._lost = 0
        self._failing = False
        self._stopping = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="headrace-logs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def write_text(self, line: str) -> None:
        """`write`, of text that may not be valid Unicode."""
        self.write(line.encode("utf-8", "backslashreplace"))

    def write(self, line: bytes) -> None:
        """Hand over one line; never blocks on the sink, never raises for it."""
        data = line + b"\n"
        with self._lock:
            if self._stopped:  # a request that outlived the gateway's lifespan
                self._put([data])
                return
            if self._size + len(data) > self._limit:
                self._dropped += 1
                return
            if not self._lines:
                self._condition.notify()
            self._lines.append(data)
            self._size += len(data)

    def stop(self) -> None:
        """Write what is left, within STOP_SECONDS, and close the sink. Later lines are written where they are made."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():  # nobody reads the other end: what waits is lost, and so is what comes
            return
        with self._condition:
            self._stopped = True

    def _run(self) -> None:
        while not (self._stopping and not self._lines and not self._dropped):
            lines, dropped = self._take()
            if lines:
                self._put(lines)
            if dropped:
                self._put([self._own("lines were dropped: the log is not written fast enough", dropped=dropped)])
        self._sink.close()

    def _take(self) -> tuple[list[bytes], int]:
        with self._condition:
            self._condition.wait_for(lambda: self._lines or self._stopping)
            self._condition.wait_for(lambda: self._stopping, GATHER_SECONDS)
            lines, self._lines = self._lines, []
            dropped, self._dropped = self._dropped, 0
            self._size = 0
        return lines, dropped

    def _put(self, lines: list[bytes]) -> None:
        if self._lost:
            own = self._own("lines were lost: the log could not be written", lost=self._lost)
            lines = [own, *lines]
        try:
            self._sink.write(b"".join(lines))
        except OSError as error:
            self._lost += len(lines) - bool(self._lost)
            self._say_failing(error)
        else:
            self._lost, self._failing = 0, False

    def _say_failing(self, error: OSError) -> None:
        """Once per failure that lasts."""
        if self._failing:
            return
        self._failing = True
        own = self._own(
            "the log cannot be written: lines are lost until it can", file=self._sink.name, reason=str(error)
        )
        self._complain(own)

    def _own(self, message: str, **fields: object) -> bytes:
        return self._notice(message, **fields).encode("utf-8", "backslashreplace") + b"\n"
