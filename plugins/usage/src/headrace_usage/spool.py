"""Files that take up rows while the database cannot, until it can again, be it after a restart.

A directory of segments: one row a line, as JSON. Who writes or reads a segment holds a lock on it, which the system
takes away when the process dies: so anybody can tell a segment that somebody still writes from one that is left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from .entry import Entry

logger = logging.getLogger("headrace.usage")

FORMAT = b'["headrace-usage",1]\n'
"""The first line of a segment."""
SEGMENT_BYTES = 16_777_216
"""When a new segment is begun: a whole one is taken up anew if a process dies meanwhile."""
LINE = msgspec.json.Decoder(Entry)
SUFFIX = ".rows"


class Spool:
    """What one writer puts aside, and what any of them takes up.

    Args:
        folder: made when the first row is put aside.
        limit: bytes of all segments together.
        writer: the writer's number.
    """

    def __init__(self, folder: Path, limit: int, writer: int) -> None:
        self._folder, self._limit, self._writer = folder, limit, writer
        self._segment: int | None = None
        self._size = 0
        self._counter = itertools.count()
        self._lock = threading.Lock()
        self._strange: set[str] = set()

    def put(self, entries: Sequence[Entry]) -> int:
        """Put rows aside; how many there was room for. Never raises for the disk."""
        with self._lock:
            return self._put(entries)

    def _put(self, entries: Sequence[Entry]) -> int:
        lines = [msgspec.json.encode(entry) + b"\n" for entry in entries]
        sizes = list(itertools.accumulate(map(len, lines)))
        left = self._limit - self.size()
        fitting = sum(1 for size in sizes if size <= left)
        if not fitting:
            return 0
        try:
            self._append(b"".join(lines[:fitting]))
        except OSError as error:
            logger.debug("the spool cannot be written: %s", error)
            return 0
        return fitting

    def _append(self, data: bytes) -> None:
        """All of it or nothing: half a line would spoil the one after it."""
        if self._segment is None:
            self._begin()
        assert self._segment is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._segment, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._segment, self._size)
            raise
        self._size += len(data)
        if self._size > SEGMENT_BYTES:
            self._end()

    def _begin(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = f"{time.time_ns():020d}-{self._writer:016x}-{next(self._counter)}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._segment = os.open(self._folder / name, flags, 0o600)
        try:
            fcntl.flock(self._segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._segment).st_nlink == 0:
                raise BlockingIOError("somebody took it for one that was left behind")
            os.write(self._segment, FORMAT)
        except OSError:
            self._end()
            raise
        self._size = len(FORMAT)

    def end_segment(self) -> None:
        """What was put aside may be taken up, by anybody."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            os.close(segment)

    def size(self) -> int:
        """Bytes of all segments, whoever wrote them."""
        size = 0
        for path in self._paths():
            with contextlib.suppress(OSError):
                size += path.stat().st_size
        return size

    def taken_up(self, count: int) -> Iterator[list[Entry]]:
        """The rows of segments that nobody writes any more, so many at a time: ask for the next when they are in the
        database. A segment is deleted when all of it was asked for; a row may come twice if one never gets so far."""
        for path in self._paths():
            if path.name not in self._strange:
                with contextlib.suppress(OSError), path.open("r+b") as file:
                    if _is_ours(file):
                        yield from self._of(file, path, count)

    def _of(self, file: BinaryIO, path: Path, count: int) -> Iterator[list[Entry]]:
        first = file.readline()
        if first != FORMAT and first.endswith(b"\n"):
            logger.error("%s was written by another version of headrace-usage: it is left as it is", path)
            self._strange.add(path.name)
            return
        damaged = 0
        while lines := list(itertools.islice(file, count)):
            rows = list(_rows(lines))
            damaged += len(lines) - len(rows)
            if rows:
                yield rows
        if damaged:
            logger.error("%d lines of %s cannot be read: these rows of the usage ledger are lost", damaged, path)
        path.unlink()

    def _paths(self) -> list[Path]:
        """The segments, oldest first."""
        with contextlib.suppress(OSError):
            return sorted(path for path in self._folder.iterdir() if path.suffix == SUFFIX)
        return []


def _is_ours(file: BinaryIO) -> bool:
    """Whether nobody else writes or reads it, and it is still there."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(file.fileno()).st_nlink > 0


def _rows(lines: Sequence[bytes]) -> Iterator[Entry]:
    """Those that can be read: of the last one a process that was killed may have written half."""
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            yield LINE.decode(line)
