"""A file that starts anew before it is too large, with some of those before it kept: shared by all workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from .writer import FileSink


class RotatingSink(FileSink):
    """`PATH` is written; `PATH.1` was before it, and so on. Whole lines only.

    Several processes may write to it: each write holds a lock on the file that it finds under the name.

    Args:
        path: where.
        limit: bytes of one file.
        files: how many there are at most.
    """

    FLAGS = os.O_RDWR

    def __init__(self, path: Path, limit: int, files: int) -> None:
        self._limit = limit
        self._files = files
        super().__init__(path)
        self._forget_others()

    def write(self, data: bytes) -> None:
        rest = data
        while rest:
            with self._locked() as descriptor:
                size = os.fstat(descriptor).st_size
                self._torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # whoever wrote that
                piece = _lines(rest, self._limit - size - self._torn)
                if not piece and size:
                    self._rotate()
                    continue
                piece = piece or rest[: rest.find(b"\n") + 1]
                self._append(descriptor, piece)
                rest = rest[len(piece) :]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The descriptor of the file that the name stands for, and nobody else writes to it."""
        while True:
            descriptor = self._current()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if self._is_current(descriptor):
                break
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # another process has rotated it meanwhile
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _rotate(self) -> None:
        """Number the files anew; the oldest is overwritten, or removed where none but the first is kept."""
        for number in range(self._files - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._numbered(number - 1).replace(self._numbered(number))
        if self._files == 1:
            self._path.unlink(missing_ok=True)
        self._forget_others()

    def _forget_others(self) -> None:
        """Of a time when more were kept."""
        number = max(self._files, 1)
        with contextlib.suppress(FileNotFoundError):
            while True:
                self._numbered(number).unlink()
                number += 1

    def _open(self) -> int:
        descriptor = super()._open()
        with contextlib.suppress(PermissionError):  # it is another user's
            os.fchmod(descriptor, 0o600)
        return descriptor

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def _lines(data: bytes, room: int) -> bytes:
    """As many whole lines of the data as there is room for."""
    return data if len(data) <= room else data[: data.rfind(b"\n", 0, max(room, 0)) + 1]
