"""What sums have used, in memory that outlives the process: a file that is mapped, and written by a worker alone.

A sum must be known after the end by `kill -9`, and a transaction of the database for each request costs a sixth of all
that deciding does. Here it costs nothing: a sum's numbers are counted where they lie. The database gets them a little
later, with all other changes; what it has not got when the process dies is taken over by whoever opens it next.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterable, Iterator
from typing import cast

from .cells import Cell

RECORD = 1024
"""Bytes of a sum: its two numbers, the length of its name, and the name; the database takes no longer ones."""
NUMBERS = 2
NAME_AT = 8 * (NUMBERS + 1)
SEGMENT_BYTES = 1 << 20
"""By so much the file grows."""


class Sums:
    """The file, for the one process that writes it. It is empty, and locked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._size = descriptor, 0
        self._free: list[memoryview] = []
        self._records: dict[bytes, memoryview] = {}

    def cell(self, name: bytes, cell: Cell) -> Cell:
        """The same numbers, to be counted with in the file from now on. Raises OSError: the disk is full."""
        if not self._free:
            self._grow()
        record = self._records[name] = self._free.pop()
        numbers = record[:NAME_AT].cast("q")
        numbers[0], numbers[1] = cell
        record[NAME_AT : NAME_AT + len(name)] = name
        numbers[NUMBERS] = len(name)  # from here on it counts
        return cast(Cell, numbers[:NUMBERS])  # it has all that is asked of a sum's cell

    def let_go(self, names: Iterable[bytes]) -> None:
        """The database has these."""
        for name in names:
            record = self._records.pop(name, None)
            if record is not None:
                record[:NAME_AT].cast("q")[NUMBERS] = 0
                self._free.append(record)

    def close(self, *, done: bool) -> None:
        """`done`: the database has them all."""
        if done:
            self.let_go(list(self._records))
        self._records.clear()
        self._free.clear()
        os.close(self._descriptor)  # what is mapped goes with the last cell

    def _grow(self) -> None:
        start, self._size = self._size, self._size + SEGMENT_BYTES
        os.ftruncate(self._descriptor, self._size)
        if hasattr(os, "posix_fallocate"):  # else writing ends the process where the disk is full
            os.posix_fallocate(self._descriptor, start, SEGMENT_BYTES)
        segment = memoryview(mmap.mmap(self._descriptor, SEGMENT_BYTES, offset=start))
        self._free += [segment[at : at + RECORD] for at in range(SEGMENT_BYTES - RECORD, -1, -RECORD)]


def records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Of what such a file has: each sum's name, and its numbers as the database keeps them."""
    for at in range(0, len(data) - RECORD + 1, RECORD):
        length = array("q", data[at : at + NAME_AT])[NUMBERS]
        if 0 < length <= RECORD - NAME_AT:
            name = at + NAME_AT
            yield data[name : name + length], data[at : at + 8 * NUMBERS]


__all__ = ["Sums", "records"]
