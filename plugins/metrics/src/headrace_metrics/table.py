"""Numbers in a file that is mapped into memory: one process writes, others read, and `kill -9` loses nothing.

A file is a sequence of chunks. Each begins with a head; its rows follow:

    u32 length of the key, u32 numbers, the key, padding to 8 bytes, the numbers (f64)

A row is there once the head says that so many bytes are used, which is written last. Rows stay where they are: whoever
counts holds a piece of the memory, and adds to it without looking anything up.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

logger = logging.getLogger("headrace.metrics")

CHUNK = 1 << 16
HEAD = struct.Struct("=8sQQdQ")
"""What it is, bytes used, and in the first chunk: which worker, since when (seconds since the epoch), whether another
gateway has taken over."""
MARK = b"HRROWS1\n"
ROW = struct.Struct("=II")
USED, SUPERSEDED = 8, 32
MOST_ROWS = 20_000
"""Of one process: labels are bounded by what is configured, and a mistake must not fill the disk."""

if TYPE_CHECKING:
    Cells = memoryview[float]
    """Numbers: `cells[0] += 1.0`."""


class Page(msgspec.Struct):
    """What a file says at one moment."""

    name: str
    worker: int
    since: float
    superseded: bool
    alive: bool
    """Whether its process still writes it."""
    rows: dict[bytes, array[float]]


class Table:
    """Made without I/O; until it is open, and where there is no room on the disk, rows are in memory alone."""

    def __init__(self) -> None:
        self._rows: dict[bytes, Cells] = {}
        self._descriptor = -1
        self._first: mmap.mmap | None = None
        self._chunk: mmap.mmap | None = None
        self._used = self._size = 0
        self._complained = False

    def open(self, path: Path, worker: int) -> None:
        """Begin the file and lock it: by the lock others know that we live. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            self._add_chunk(worker)
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Nobody writes any more: whoever looks next takes over what was counted. Rows can still be written to, in
        vain."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # the mapped memory holds the file open
            os.close(self._descriptor)
        self._descriptor = -1
        self._chunk = None

    def supersede(self) -> None:
        """Another gateway of this process answers now."""
        if self._first is not None:
            struct.pack_into("=Q", self._first, SUPERSEDED, 1)

    def row(self, key: bytes, count: int) -> Cells:
        """The numbers of a row, all 0 if it is new."""
        cells = self._rows.get(key)
        if cells is None and len(self._rows) >= MOST_ROWS:
            self._complain(f"{MOST_ROWS} series are enough")
            return _nowhere(count)
        if cells is None:
            cells = self._rows[key] = self._new(key, count)
        return cells

    def _new(self, key: bytes, count: int) -> Cells:
        start = ROW.size + _padded(len(key))
        size = start + 8 * count
        if self._chunk is not None and self._used + size > CHUNK:
            try:
                self._add_chunk(0)
            except OSError as error:
                self._complain(error)
        chunk, at = self._chunk, self._used
        if chunk is None or at + size > CHUNK:
            return _nowhere(count)
        ROW.pack_into(chunk, at, len(key), count)
        chunk[at + ROW.size : at + ROW.size + len(key)] = key
        self._used += size
        struct.pack_into("=Q", chunk, USED, self._used)
        return memoryview(chunk)[at + start : at + size].cast("d")

    def _add_chunk(self, worker: int) -> None:
        """Raises OSError: there is no room."""
        end = self._size + CHUNK
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._descriptor, self._size, CHUNK)  # what is written later must have its place
        else:
            os.ftruncate(self._descriptor, end)
        chunk = mmap.mmap(self._descriptor, CHUNK, offset=self._size)
        if not self._size:
            self._first = chunk
        HEAD.pack_into(chunk, 0, MARK, HEAD.size, worker, time.time(), 0)
        self._chunk, self._used, self._size = chunk, HEAD.size, end

    def _complain(self, why: object) -> None:
        if not self._complained:
            self._complained = True
            logger.error("what is new is not counted: there is no room for it: %s", why)


def _nowhere(count: int) -> Cells:
    """Numbers that nobody will read."""
    return memoryview(array("d", bytes(8 * count)))


def _padded(length: int) -> int:
    return (length + 7) // 8 * 8


def read(path: Path, *, alive: bool) -> Page | None:
    """What a file says now; None if it says nothing that can be read. Raises OSError."""
    data = path.read_bytes()
    if len(data) < CHUNK or not data.startswith(MARK):
        return None
    _, _, worker, since, superseded = HEAD.unpack_from(data)
    rows: dict[bytes, array[float]] = {}
    for start in range(0, len(data) - CHUNK + 1, CHUNK):
        rows.update(_rows(memoryview(data)[start : start + CHUNK]))
    return Page(path.name, worker, since, bool(superseded), alive, rows)


def _rows(chunk: memoryview) -> Iterator[tuple[bytes, array[float]]]:
    mark, used, *_ = HEAD.unpack_from(chunk)
    at = HEAD.size
    while mark == MARK and at + ROW.size <= min(used, CHUNK):
        length, count = ROW.unpack_from(chunk, at)
        start = at + ROW.size + _padded(length)
        end = start + 8 * count
        if end > min(used, CHUNK):
            return
        key = bytes(chunk[at + ROW.size : at + ROW.size + length])
        yield key, array("d", chunk[start:end].tobytes())
        at = end
