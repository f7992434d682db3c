"""The counts of a gateway with one worker: nobody else writes them, so they are kept in memory, too.

Sums are counted in a file of their own (`sums`), so that a budget survives `kill -9`. All is written to the database a
little later, many changes at once: what a crash then loses are the rates of the last moment.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from operator import add, gt, itemgetter

import lmdb

from . import Limit, cells
from .cells import HEAD, RING, SLOTS
from .sums import Sums

WRITE_SECONDS = 0.5
"""So long a change may wait to be written."""
MARGIN = 1e-3
"""Of a slot, before its end: there the time is looked at exactly."""


class Plan:
    """Where the limits of one caller are counted, looked up once for many requests.

    It is good from `since` until `until`: then the slot of a window is another.
    """

    __slots__ = ("cells", "limits", "mosts", "names", "places", "since", "slots", "until")

    def __init__(self, limits: Sequence[Limit], found: Sequence[cells.Cell]) -> None:
        self.limits, self.cells = limits, found
        self.names = tuple(limit.name for limit in limits)
        self.mosts = tuple(limit.most for limit in limits)
        pairs = list(zip(limits, found, strict=True))
        self.places = tuple(cell[1] if limit.kind == "window" else 0 for limit, cell in pairs)
        self.slots = tuple(_SLOT[limit.kind](cell) for limit, cell in pairs)
        spans = [(cell[1], limit.seconds / SLOTS) for limit, cell in pairs if limit.kind == "window"]
        self.since = max((slot * span for slot, span in spans), default=-math.inf)
        self.until = min(((slot + 1 - MARGIN) * span for slot, span in spans), default=math.inf)


_SLOT: Mapping[str, Callable[[cells.Cell], int]] = {
    "window": lambda cell: HEAD + cell[1] % RING,
    "sum": lambda cell: 0,
    "open": lambda cell: 1,
}
"""Which number of a cell, beside the first, is used."""
_first = itemgetter(0)


class Alone:
    """Counts in memory, and in the environment that is given."""

    def __init__(self, env: lmdb.Environment, sums: Sums, on_error: Callable[[Exception], None]) -> None:
        self._env, self._sums, self._on_error = env, sums, on_error
        self._cells: dict[bytes, cells.Cell] = {}
        self._before: dict[bytes, cells.Cell] = {}
        """Those that nobody has looked at since the last `forget`."""
        self._plans: dict[int, Plan] = {}
        """By the identity of a tuple of limits: their plugins keep them, and each plan keeps its own."""
        self._changed: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None

    def cell(self, limit: Limit, now: float) -> cells.Cell:
        """What is counted of a limit now; always the same object, until it is forgotten. Raises lmdb.Error."""
        name = limit.name
        cell = self._cells.get(name)
        if cell is None:
            cell = self._before.pop(name, None)
            cell = self._cells[name] = self._loaded(limit, now) if cell is None else cell
        fresh = cells.advance(limit, cell, now, 0)
        if fresh is not cell:
            cell[:] = fresh
        return cell

    def _loaded(self, limit: Limit, now: float) -> cells.Cell:
        with self._env.begin() as txn:
            cell = cells.load(limit, txn.get(limit.name), now, 0)
        try:
            return self._sums.cell(limit.name, cell) if limit.kind == "sum" else cell
        except OSError as error:
            raise lmdb.DiskError(str(error)) from error

    def _plan(self, limits: Sequence[Limit], now: float) -> Plan:
        plan = Plan(limits, [self.cell(limit, now) for limit in limits])
        if isinstance(limits, tuple):
            self._plans[id(limits)] = plan
        return plan

    def take(
        self, limits: Sequence[Limit], amounts: Sequence[int], now: float
    ) -> tuple[Sequence[int], Sequence[int]] | None:
        """Where each was written, and what is used then; None if one does not fit, and then nothing was taken.

        Every line is paid for each limit of each request, so `cells.take` is written out here.

        Raises:
            lmdb.Error: what is counted cannot be read, or the disk is full; nothing was taken.
        """
        plan = self._plans.get(id(limits))
        if plan is None or not plan.since <= now < plan.until:
            plan = self._plan(limits, now)
        used = list(map(add, map(_first, plan.cells), amounts))
        if any(map(gt, used, plan.mosts)):
            return None
        for cell, slot, amount in zip(plan.cells, plan.slots, amounts, strict=True):
            cell[0] += amount
            if slot:
                cell[slot] += amount
        self._note(plan.names)
        return plan.places, used

    def settle(
        self,
        limits: Sequence[Limit],
        places: Sequence[int],
        reserved: Sequence[int],
        amounts: Sequence[int],
        clock: Callable[[], float],
    ) -> None:
        """What a request took of these limits is this, instead of what was reserved there. Raises lmdb.Error."""
        plan = self._plans.get(id(limits)) or self._plan(limits, clock())
        for limit, cell, place, was, amount in zip(limits, plan.cells, places, reserved, amounts, strict=True):
            if limit.kind == "sum":
                cell[0] += amount - was
            elif limit.kind == "open":
                cells.correct(limit, cell, was, 0, 0)
            elif amount != was:
                if amount > was:
                    self.cell(limit, clock())
                cells.correct(limit, cell, place, amount - was, 0)
        self._note(plan.names)

    def _note(self, names: Sequence[bytes]) -> None:
        self._changed.update(names)
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(WRITE_SECONDS, self.write)
            except RuntimeError:  # no loop: a command, or a test
                self.write()

    def write(self) -> None:
        """Write what has changed; what cannot be written now is tried again with the next change."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if not self._changed:
            return
        try:
            with self._env.begin(write=True) as txn:
                for name in self._changed:
                    txn.put(name, self._cells[name].tobytes())
            self._changed.clear()
        except lmdb.Error as error:
            self._on_error(error)

    def close(self) -> None:
        """What has changed is written first."""
        self.write()
        self._sums.close(done=not self._changed)

    def forget(self) -> None:
        """Let go of what nobody has looked at since the time before, if the file has it."""
        self.write()
        self._plans.clear()
        if not self._changed:
            self._sums.let_go(self._before)
            self._before, self._cells = self._cells, {}
