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
import os
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb

from headrace.errors import HeadraceError, Unavailable

from . import LARGEST, Kind, Level, Limit, Refusal, cells
from .alone import Alone
from .file import maintain, open_file, save, take_over
from .sums import Sums

logger = logging.getLogger("headrace.ledger")

FILE = "ledger.mdb"
LOOK_SECONDS = 10.0
"""So often what is over is forgotten, and a copy is put on the disk: a power cut loses as much."""
DUE_KEPT = 10_000
"""Settlements that are kept while they cannot be written."""
SETTLE_SECONDS = 0.005
"""For so long what was settled may wait for the next request, whose step then takes it along."""
SLICE = 200
"""Keys that are looked at in one step of a sweep."""
LETTERS: dict[Kind, bytes] = {"window": b"w", "sum": b"s", "open": b"o"}
SHORTEST_WAIT = 0.001
KINDS: dict[bytes, Kind] = {letter: kind for kind, letter in LETTERS.items()}
OPEN = LETTERS["open"]


Cells = dict[bytes, cells.Cell]
"""What one step looks at is read once, and written once: by name."""
Due = tuple[Limit, int, int]
"""What a request has settled: a limit, where it was written, and what changes there."""


class LocalHold:
    """See `headrace.ledger.Hold`."""

    __slots__ = ("_ledger", "_limits", "_places", "_reserved", "used")

    def __init__(
        self,
        ledger: LocalLedger,
        limits: Sequence[Limit],
        reserved: Sequence[int],
        places: Sequence[int],
        used: Sequence[int],
    ) -> None:
        self._ledger: LocalLedger | None = ledger
        self._limits, self._reserved, self._places, self.used = limits, reserved, places, used

    def settle(self, amounts: Sequence[int]) -> None:
        ledger, self._ledger = self._ledger, None
        if ledger is None:
            return
        for amount in amounts:
            if not 0 <= amount <= LARGEST:
                amounts = [min(max(0, amount), LARGEST) for amount in amounts]
                break
        ledger.settle(self._limits, self._places, self._reserved, amounts)


class DoesNotFit(Exception):
    """A request does not fit: its step is not taken."""


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
        self._due: list[Due] = []
        self._timer: asyncio.TimerHandle | None = None
        self._alone: Alone | None = None
        """Where it is counted while no other process writes."""
        self._saved = -1
        """The last step of those that the copy on the disk has."""

    def open(self, *, alone: bool = False) -> None:
        """Open the file, make it if there is none. `alone`: no other process writes. Raises HeadraceError."""
        env = self._env = open_file(self._path)
        left = take_over(self._path, env)
        if alone and left is not None:
            self._alone = Alone(env, Sums(left), self._note)
        elif left is not None:
            os.close(left)
        elif alone:
            self.close()
            raise HeadraceError(f"{self._path}: another gateway counts there: give each its own server.state_dir.")

    def close(self) -> None:
        """What is settled is written first."""
        self.flush()
        if self._alone is not None:
            self._alone.close()
        self._alone = None
        env, self._env = self._env, None
        if env is not None:
            env.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.open(alone=self._workers == 1)
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
        return self._look(limits)[0]

    def _look(self, limits: Sequence[Limit]) -> tuple[list[Level], list[cells.Cell], float]:
        """How limits stand, what is kept of them, and when."""
        now = self._clock()
        try:
            found = self._found(limits, now)
        except lmdb.Error as error:
            raise _unavailable(error) from error
        return _levels(limits, found, now), found, now

    def _found(self, limits: Sequence[Limit], now: float) -> list[cells.Cell]:
        if self._alone is not None:
            return [self._alone.cell(limit, now) for limit in limits]
        with self._begin(write=False) as txn:
            return [_loaded(txn, limit, now, self._worker) for limit in limits]

    async def scan(self, kind: Kind, prefix: str) -> list[tuple[str, int]]:
        """Keys that begin with `prefix`, in order, with what is used of each. What is over is left out; keys that are
        too long to be kept as they are come shortened."""
        self.flush()
        start, now, found = LETTERS[kind] + prefix.encode(), self._clock(), []
        with self._begin(write=False) as txn, txn.cursor() as cursor:
            more = cursor.set_range(start)
            while more and (key := bytes(cursor.key())).startswith(start):
                data = array("q", cursor.value())
                if not cells.is_over(kind, data, now):
                    found.append((key[1:].decode(errors="replace"), data[0]))
                more = cursor.next()
        return found

    # --- one step each -------------------------------------------------------------------------------------------

    def take(self, limits: Sequence[Limit], amounts: Sequence[int]) -> LocalHold | Refusal:
        """What `reserve` does; for processes without a loop as well. Raises Unavailable."""
        if self._alone is not None:
            try:
                taken = self._alone.take(limits, amounts, self._clock())
            except lmdb.Error as error:
                raise _unavailable(error) from error
            return LocalHold(self, limits, amounts, *taken) if taken is not None else self._refusal(limits, amounts)
        return self._take_shared(limits, amounts)

    def _take_shared(self, limits: Sequence[Limit], amounts: Sequence[int]) -> LocalHold | Refusal:
        try:
            with self._begin(write=True) as txn:
                now = self._clock()
                found = self._settled(txn, now)
                places, used = self._taken(txn, found, limits, amounts, now)
                for name, cell in found.items():
                    txn.put(name, cell.tobytes())
            self._due.clear()
        except DoesNotFit:
            return self._refusal(limits, amounts)
        except lmdb.Error as error:
            raise _unavailable(error) from error
        return LocalHold(self, limits, amounts, places, used)

    def _taken(
        self, txn: lmdb.Transaction, found: Cells, limits: Sequence[Limit], amounts: Sequence[int], now: float
    ) -> tuple[list[int], list[int]]:
        """Take all of it: where it was written, and what is used then. Paid for each limit of each request.

        Raises:
            DoesNotFit: what is in `found` is not as it was.
        """
        places, used, column = [], [], self._worker
        for limit, amount in zip(limits, amounts, strict=True):
            cell = found.get(limit.name)
            if cell is None:
                cell = found[limit.name] = _loaded(txn, limit, now, column)
            if cell[0] + amount > limit.most:
                raise DoesNotFit
            places.append(cells.take(limit, cell, amount, column))
            used.append(cell[0])
        return places, used

    def _refusal(self, limits: Sequence[Limit], amounts: Sequence[int]) -> Refusal:
        self.flush()
        levels, found, now = self._look(limits)
        waits = [
            cells.wait(limit, cell, amount, now) for limit, cell, amount in zip(limits, found, amounts, strict=True)
        ]
        longest = max(range(len(waits)), key=waits.__getitem__)
        wait = max(waits[longest], SHORTEST_WAIT)  # it may fit by now, but it did not
        return Refusal(levels[longest], amounts[longest], wait, levels)

    def settle(
        self, limits: Sequence[Limit], places: Sequence[int], reserved: Sequence[int], amounts: Sequence[int]
    ) -> None:
        """What a hold does, soon: in one step with the next request, or with all others that end meanwhile."""
        if self._alone is not None:
            try:
                self._alone.settle(limits, places, reserved, amounts, self._clock)
            except lmdb.Error as error:  # it stays as it was reserved
                self._note(error)
            return
        for limit, place, was, amount in zip(limits, places, reserved, amounts, strict=True):
            if amount != was or limit.kind == "open":
                self._due.append((limit, place, amount - was))
        if self._due and self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self.flush)
            except RuntimeError:  # no loop: a command, or a test
                self.flush()

    def flush(self) -> None:
        """Write what is settled."""
        if self._alone is not None:
            self._alone.write()
        self._timer = None
        if not self._due or self._env is None:
            return
        try:
            with self._begin(write=True) as txn:
                for name, cell in self._settled(txn, self._clock()).items():
                    txn.put(name, cell.tobytes())
            self._due.clear()
        except lmdb.Error as error:
            logger.error("what requests took cannot be written: %s", error)
            del self._due[:-DUE_KEPT]  # the oldest stay as they were reserved

    def _settled(self, txn: lmdb.Transaction, now: float) -> Cells:
        """What is kept of the limits that change because requests have ended, as it becomes."""
        found: Cells = {}
        for limit, place, change in self._due:
            cell = found.get(limit.name)
            if cell is None:
                cell = found[limit.name] = _loaded(txn, limit, now, self._worker)
            cells.correct(limit, cell, place, change, self._worker)
        return found

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
                gone = range(self._workers, len(data) - 1) if self._worker == 0 else ()
                for column in (self._worker, *gone):
                    if column + 1 < len(data):
                        data[0] -= data[1 + column]
                        data[1 + column] = 0
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
                    if self._env is not None:
                        maintain(self._env, self._path)
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
            self._note(error)

    def _note(self, error: Exception) -> None:
        logger.error("%s: %s", self._path, error)

    async def sweep(self) -> None:
        """Forget what is over; others get their turn after every SLICE keys."""
        if self._alone is not None:
            self._alone.forget()
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
                over = cells.is_over(KINDS[bytes(cursor.key()[:1])], array("q", cursor.value()), now)
                found = (cursor.delete() and bool(cursor.key())) if over else cursor.next()
            return bytes(cursor.key()) if found else None

    def __len__(self) -> int:
        """How many keys are kept."""
        with self._begin(write=False) as txn:
            return int(txn.stat()["entries"])


def _loaded(txn: lmdb.Transaction, limit: Limit, now: float, column: int) -> cells.Cell:
    stored: Any = txn.get(limit.name)
    return cells.load(limit, stored, now, column)


def _levels(limits: Sequence[Limit], found: Sequence[cells.Cell], now: float) -> list[Level]:
    return [Level(limit, cell[0], cells.reset(limit, cell, now)) for limit, cell in zip(limits, found, strict=True)]


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable("The limits cannot be checked now: try again later.", detail=f"ledger: {error}")
