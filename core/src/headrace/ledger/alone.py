"""The counts of a gateway with one worker: nobody else writes them, so they are kept in memory, too.

What a sum has reserved is in the file before a request goes on, so that a budget survives `kill -9`. All else is
written a little later, many changes at once: what a crash then loses are the rates of the last moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lmdb

from . import Limit, cells
from .cells import HEAD, RING, SLOTS

WRITE_SECONDS = 0.5
"""So long a change may wait to be written."""


class Alone:
    """Counts in memory, and in the environment that is given."""

    def __init__(self, env: lmdb.Environment, on_error: Callable[[Exception], None]) -> None:
        self._env, self._on_error = env, on_error
        self._cells: dict[bytes, cells.Cell] = {}
        self._before: dict[bytes, cells.Cell] = {}
        """Those that nobody has looked at since the last `forget`."""
        self._changed: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None

    def cell(self, limit: Limit, now: float) -> cells.Cell:
        """What is counted of a limit now. Raises lmdb.Error."""
        name = limit.name
        cell = self._cells.get(name) or self._before.pop(name, None)
        stored: Any = self._read(name) if cell is None else cell.tobytes()
        cell = self._cells[name] = cells.load(limit, stored, now, 0)
        return cell

    def _read(self, name: bytes) -> Any:
        with self._env.begin() as txn:
            return txn.get(name)

    def take(self, limits: Sequence[Limit], amounts: Sequence[int], now: float) -> tuple[list[int], list[int]] | None:
        """Where each was written, and what is used then; None if one does not fit, and then nothing was taken.

        Every line is paid for each limit of each request, so `cells.take` is written out here.

        Raises:
            lmdb.Error: it cannot be written; nothing was taken.
        """
        kept, names, found, places, used, lasting = self._cells, [], [], [], [], False
        for limit, amount in zip(limits, amounts, strict=True):
            name = limit.name
            cell = kept.get(name)
            if cell is None or (limit.kind == "window" and cell[1] != int(now * SLOTS / limit.seconds)):
                cell = self.cell(limit, now)
            if cell[0] + amount > limit.most:
                return None
            names.append(name)
            found.append(cell)
        for limit, cell, amount in zip(limits, found, amounts, strict=True):
            kind, place = limit.kind, 0
            cell[0] += amount
            used.append(cell[0])
            if kind == "window":
                place = cell[1]
                cell[HEAD + place % RING] += amount
            elif kind == "sum":
                lasting = True
            else:
                cell[1] += amount
                place = amount
            places.append(place)
        if not lasting:
            self._note(names)
        else:
            try:
                self._write(names)
            except lmdb.Error:
                for limit, cell, place, amount in zip(limits, found, places, amounts, strict=True):
                    cells.correct(limit, cell, place, -amount, 0)
                raise
        return places, used

    def correct(self, due: Iterable[tuple[Limit, int, int]], now: float) -> None:
        """What a request took of these limits was less, or more, than was written there. Raises lmdb.Error."""
        names, kept = [], self._cells
        for limit, place, change in due:
            name = limit.name
            cell = kept.get(name)
            if cell is not None and limit.kind == "sum":
                cell[0] += change
            else:
                if cell is None or change > 0:
                    cell = self.cell(limit, now)
                cells.correct(limit, cell, place, change, 0)
            names.append(name)
        self._note(names)

    def _note(self, names: Sequence[bytes]) -> None:
        self._changed.update(names)
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(WRITE_SECONDS, self.write)
            except RuntimeError:  # no loop: a command, or a test
                self.write()

    def _write(self, names: Iterable[bytes]) -> None:
        with self._env.begin(write=True) as txn:
            for name in names:
                txn.put(name, self._cells[name].tobytes())

    def write(self) -> None:
        """Write what has changed; what cannot be written now is tried again with the next change."""
        self.close()
        if not self._changed:
            return
        try:
            self._write(self._changed)
            self._changed.clear()
        except lmdb.Error as error:
            self._on_error(error)

    def close(self) -> None:
        """Write nothing any more by itself."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def forget(self) -> None:
        """Let go of what nobody has looked at since the time before, if the file has it."""
        self.write()
        if not self._changed:
            self._before, self._cells = self._cells, {}
