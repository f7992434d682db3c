"""The files of all workers in one folder, and the one file that keeps what ended processes have counted.

A worker that has died has let go of the lock of its file: whoever looks next adds what it counted to the kept counts
and removes the file. The kept file names those it has taken over, so that dying in between counts nothing twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import secrets
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from . import keys
from .table import Page, Table, read

logger = logging.getLogger("headrace.metrics")

ENDING = ".rows"
KEPT = "kept"
LOCK_SECONDS = 5.0
"""For so long another process may look at the files: it takes milliseconds, unless somebody has stopped it."""


class Kept(msgspec.Struct):
    """What ended processes have counted."""

    taken: list[str] = []
    """Files whose numbers are in here and that may not have been removed yet."""
    rows: list[tuple[bytes, list[float]]] = []


class Shelf:
    """Made without I/O."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, table: Table, worker: int, still_used: Callable[[keys.Key], bool]) -> None:
        """Open a table here. Where nobody else is at work, what is not `still_used` is forgotten first.

        Raises:
            OSError: there is no room, or it may not be written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            self._take_over(still_used)
            table.open(self._folder / f"{worker}-{secrets.token_hex(6)}{ENDING}", worker)

    def pages(self) -> list[Page]:
        """What all have counted: first that of ended processes, as one, then those at work, the oldest first.

        Raises:
            OSError
        """
        with self._locked():
            kept, alive = self._take_over(None)
        rows = {key: array("d", numbers) for key, numbers in kept.rows}
        return [
            Page(KEPT, -1, 0.0, superseded=False, alive=False, rows=rows),
            *sorted(alive, key=lambda page: page.since),
        ]

    def _take_over(self, still_used: Callable[[keys.Key], bool] | None) -> tuple[Kept, list[Page]]:
        """Add the counts of the dead to those that are kept; returns these, and those of the living."""
        kept = self._kept()
        alive: list[Page] = []
        dead: list[Page] = []
        for path in sorted(self._folder.glob(f"*{ENDING}")):
            page = _page(path)
            if path.name in kept.taken or page is None:
                path.unlink(missing_ok=True)
            else:
                (alive if page.alive else dead).append(page)
        forget = still_used if not alive else None
        if dead or (forget is not None and kept.rows):
            kept = _sum(kept, dead, forget)
            self._write(kept)
            for page in dead:
                (self._folder / page.name).unlink(missing_ok=True)
        return kept, alive

    def _kept(self) -> Kept:
        path = self._folder / KEPT
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return Kept()
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            logger.error("%s cannot be read (%s): counts begin anew; it is kept as %s.bad", path, error, path.name)
            path.replace(path.with_name(f"{KEPT}.bad"))
            return Kept()

    def _write(self, kept: Kept) -> None:
        new = self._folder / f"{KEPT}.new"
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_bytes(msgspec.msgpack.encode(kept))
        new.replace(self._folder / KEPT)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time looks at the files as a whole: none is counted twice, or not at all."""
        end = time.monotonic() + LOCK_SECONDS
        with (self._folder / "lock").open("w") as lock:
            while not _taken(lock):
                if time.monotonic() > end:
                    raise TimeoutError(f"another process has kept {lock.name} for {LOCK_SECONDS:g} s")
                time.sleep(0.001)
            yield


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _page(path: Path) -> Page | None:
    """What a file says, and whether somebody holds its lock."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return read(path, alive=True) or Page(path.name, -1, 0.0, superseded=True, alive=True, rows={})
        return read(path, alive=False)


def _sum(kept: Kept, dead: list[Page], still_used: Callable[[keys.Key], bool] | None) -> Kept:
    """All counts together; what was true of a process while it lived is not."""
    total = {key: array("d", numbers) for key, numbers in kept.rows}
    for page in dead:
        for name, numbers in page.rows.items():
            add(total, name, numbers)
    rows: list[tuple[bytes, list[float]]] = []
    for name, numbers in total.items():
        key = keys.decode(name)
        if key is not None and key.what != "live" and (still_used is None or still_used(key)):
            rows.append((name, numbers.tolist()))
    return Kept([page.name for page in dead], rows)


def add(total: dict[bytes, array[float]], key: bytes, numbers: array[float]) -> None:
    """Add a row to the one of the same key."""
    there = total.get(key)
    if there is None or len(there) != len(numbers):
        total[key] = array("d", numbers)
        return
    for at, number in enumerate(numbers):
        there[at] += number
