"""The ledger that all workers of one gateway share: a file that is mapped into the memory of each (LMDB).

Measured for one step on two windows, on one machine: 4 us of CPU time in shared memory with a lock and a format of our
own, 10 us with LMDB, 63 us with SQLite, 100 us and more asking another process. LMDB brings what our own would lack:
steps that are taken whole or not at all even if the process is killed in the middle, and room for any number of keys.

The file outlives the gateway, so that limits and budgets survive a restart, and the end by `kill -9`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lmdb

from headrace.errors import Unavailable

from . import LARGEST, Kind, Level, Limit, Refusal
from .cells import CELLS, Cell, is_over, used_of
from .file import open_file, save

logger = logging.getLogger("headrace.ledger")

FILE = "ledger.mdb"
LONGEST_KEY = 500
LONGEST_PREFIX = LONGEST_KEY - 64
LOOK_SECONDS = 10.0
"""So often what is over is forgotten, and a copy is put on the disk: a power cut loses as much."""
DUE_KEPT = 10_000
"""Settlements that are kept while they cannot be written."""
SETTLE_SECONDS = 0.005
"""For so long what was settled may wait for the next request, whose step then takes it along."""
SLICE = 200
"""Keys that are looked at in one step of a sweep."""
LETTERS: dict[Kind, bytes] = {"window": b"w", "sum": b"s", "open": b"o"}
KINDS: dict[bytes, Kind] = {letter: kind for kind, letter in LETTERS.items()}
OPEN = LETTERS["open"]


class LocalHold:
    """See `headrace.ledger.Hold`."""

    __slots__ = ("_ledger", "_limits", "_places", "_reserved", "levels")

    def __init__(
        self,
        ledger: LocalLedger,
        limits: Sequence[Limit],
        reserved: Sequence[int],
        places: Sequence[int],
        levels: Sequence[Level],
    ) -> None:
        self._ledger: LocalLedger | None = ledger
        self._limits, self._reserved, self._places, self.levels = limits, reserved, places, levels

    def settle(self, amounts: Sequence[int]) -> None:
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            took = (min(max(amount, 0), LARGEST) for amount in amounts)
            changes = [amount - reserved for amount, reserved in zip(took, self._reserved, strict=True)]
            ledger.correct(self._limits, self._places, changes)


class LocalLedger:
    """See `headrace.ledger.Ledger`. Made without I/O.

    Args:
        path: the file. It must lie on a local disk.
        worker: which of the gateway's `workers` this process is.
        clock: seconds since the epoch.
    """

    def __init__(self, path: Path, worker: int = 0, workers: int = 1, clock: Callable[[], float] = time.time) -> None:
        self._path, self._worker, self._workers, self._clock = path, worker, workers, clock
        self._env: lmdb.Environment | None = None
        self._due: list[tuple[Sequence[Limit], Sequence[int], Sequence[int]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._saved = -1
        """The last step of those that the copy on the disk has."""

    def open(self) -> None:
        """Open the file, make it if there is none. Raises HeadraceError."""
        self._env = open_file(self._path)

    def close(self) -> None:
        """What is settled is written first."""
        self.flush()
        env, self._env = self._env, None
        if env is not None:
            env.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.open()
        self.release_dead()
        stop = asyncio.Event()
        task = asyncio.create_task(self._look_after(stop), name="headrace-ledger")
        try:
            yield
        finally:
            stop.set()  # not cancelled: a thread may still be busy with the file
            await task
            self.flush()
            await self._save()
            self.close()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        self.open()
        try:
            yield
        finally:
            self.close()

    async def reserve(self, limits: Sequence[Limit], amounts: Sequence[int]) -> LocalHold | Refusal:
        return self.take(limits, amounts)

    async def levels(self, limits: Sequence[Limit]) -> list[Level]:
        self.flush()
        now = self._clock()
        with self._begin(write=False) as txn:
            return _levels(limits, [_cell(txn, limit, now, self._worker) for limit in limits], now)

    async def scan(self, kind: Kind, prefix: str) -> list[tuple[str, int]]:
        """Keys that begin with `prefix`, in order, with what is used of each. What is over is left out; keys that are
        too long to be kept as they are come shortened."""
        self.flush()
        start, now, found = LETTERS[kind] + prefix.encode(), self._clock(), []
        with self._begin(write=False) as txn, txn.cursor() as cursor:
            more = cursor.set_range(start)
            while more and (key := bytes(cursor.key())).startswith(start):
                data = array("q", cursor.value())
                if not is_over(kind, data, now):
                    found.append((key[1:].decode(errors="replace"), used_of(kind, data)))
                more = cursor.next()
        return found

    # --- one step each -------------------------------------------------------------------------------------------

    def take(self, limits: Sequence[Limit], amounts: Sequence[int]) -> LocalHold | Refusal:
        """What `reserve` does; for processes without a loop as well. Raises Unavailable."""
        now = self._clock()
        try:
            with self._begin(write=True) as txn:
                self._write_due(txn, now)
                cells = [_cell(txn, limit, now, self._worker) for limit in limits]
                fits = all(
                    cell.used + amount <= limit.most for limit, cell, amount in zip(limits, cells, amounts, strict=True)
                )
                places = _take(txn, limits, cells, amounts) if fits else []
            self._due.clear()
        except lmdb.Error as error:
            raise _unavailable(error) from error
        if not fits:
            return _refusal(limits, cells, amounts, now)
        return LocalHold(self, limits, amounts, places, _levels(limits, cells, now))

    def correct(self, limits: Sequence[Limit], places: Sequence[int], changes: Sequence[int]) -> None:
        """What `settle` does, soon: in one step with the next request, or with all others that end meanwhile."""
        self._due.append((limits, places, changes))
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self.flush)
            except RuntimeError:  # no loop: a command, or a test
                self.flush()

    def flush(self) -> None:
        """Write what is settled."""
        self._timer = None
        if not self._due or self._env is None:
            return
        try:
            with self._begin(write=True) as txn:
                self._write_due(txn, self._clock())
            self._due.clear()
        except lmdb.Error as error:
            logger.error("what requests took cannot be written: %s", error)
            del self._due[:-DUE_KEPT]  # the oldest stay as they were reserved

    def _write_due(self, txn: lmdb.Transaction, now: float) -> None:
        for limits, places, changes in self._due:
            for limit, place, change in zip(limits, places, changes, strict=True):
                if change or limit.kind == "open":
                    cell = _cell(txn, limit, now, self._worker)
                    cell.correct(place, change)
                    txn.put(_key(limit), cell.data.tobytes())

    def _begin(self, write: bool) -> lmdb.Transaction:
        if self._env is None:
            raise Unavailable("The limits cannot be checked now.", detail="the ledger is not open")
        return self._env.begin(write=write)

    # --- what goes on beside -------------------------------------------------------------------------------------

    def release_dead(self) -> None:
        """Give back what this worker held before it died, and, once, what workers held that are no more."""
        with self._begin(write=True) as txn, txn.cursor() as cursor:
            found = cursor.set_range(OPEN)
            while found and bytes(cursor.key()[:1]) == OPEN:
                data = array("q", cursor.value())
                for column in (self._worker, *(range(self._workers, len(data)) if self._worker == 0 else ())):
                    if column < len(data):
                        data[column] = 0
                cursor.put(cursor.key(), data.tobytes())
                found = cursor.next()

    async def _look_after(self, stop: asyncio.Event) -> None:
        """Forget what is over, and let the disk have what has changed."""
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
            if self._worker == 0:
                with self._noting():
                    await self.sweep()
                await self._save()

    async def _save(self) -> None:
        """Worker 0 does it for all: it does not know whether the others have changed anything."""
        if self._worker != 0 or self._env is None:
            return
        with self._noting():
            last = self._env.info()["last_txnid"]
            if last != self._saved:
                await asyncio.to_thread(save, self._env, self._path)
                self._saved = last

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """What goes wrong beside is logged, and tried again."""
        try:
            yield
        except (lmdb.Error, OSError) as error:
            logger.error("%s: %s", self._path, error)

    async def sweep(self) -> None:
        """Forget what is over; others get their turn after every SLICE keys."""
        at: bytes | None = b""
        while at is not None:
            at = self._sweep_from(at)
            await asyncio.sleep(0)

    def _sweep_from(self, start: bytes) -> bytes | None:
        """Look at SLICE keys; returns where to go on."""
        now = self._clock()
        with self._begin(write=True) as txn, txn.cursor() as cursor:
            found = cursor.set_range(start) if start else cursor.first()
            for _ in range(SLICE):
                if not found:
                    return None
                over = is_over(KINDS[bytes(cursor.key()[:1])], array("q", cursor.value()), now)
                found = (cursor.delete() and bool(cursor.key())) if over else cursor.next()
            return bytes(cursor.key()) if found else None

    def __len__(self) -> int:
        """How many keys are kept."""
        with self._begin(write=False) as txn:
            return int(txn.stat()["entries"])


def _key(limit: Limit) -> bytes:
    key = LETTERS[limit.kind] + limit.key.encode()
    return key if len(key) <= LONGEST_KEY else key[:LONGEST_PREFIX] + blake2b(key, digest_size=32).hexdigest().encode()


def _cell(txn: lmdb.Transaction, limit: Limit, now: float, column: int) -> Cell:
    stored: Any = txn.get(_key(limit))
    return CELLS[limit.kind](limit, stored, now, column)


def _take(txn: lmdb.Transaction, limits: Sequence[Limit], cells: Sequence[Cell], amounts: Sequence[int]) -> list[int]:
    places = []
    for limit, cell, amount in zip(limits, cells, amounts, strict=True):
        places.append(cell.take(amount))
        txn.put(_key(limit), cell.data.tobytes())
    return places


def _levels(limits: Sequence[Limit], cells: Sequence[Cell], now: float) -> list[Level]:
    return [Level(limit, cell.used, cell.reset(now)) for limit, cell in zip(limits, cells, strict=True)]


def _refusal(limits: Sequence[Limit], cells: Sequence[Cell], amounts: Sequence[int], now: float) -> Refusal:
    levels = _levels(limits, cells, now)
    waits = [cell.wait(amount, now) for cell, amount in zip(cells, amounts, strict=True)]
    longest = max(range(len(waits)), key=waits.__getitem__)
    return Refusal(levels[longest], amounts[longest], waits[longest], levels)


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable("The limits cannot be checked now: try again later.", detail=f"ledger: {error}")
