"""What is kept for one limit, and how time changes it. Pure arithmetic on arrays of numbers: no clock, no store.

The first number of each is what is used. A window is cut into SLOTS slots. What is used is written into the slot of
its time, and counts until the whole slot is older than the window: so the limit holds in every span of that length,
wherever it begins, and at most one slot's worth (under two percent) of it is not used at steady load. A token bucket
would let twice the limit pass around one moment.
"""

from __future__ import annotations

import math
from array import array
from typing import TypeAlias

from . import Limit

SLOTS = 60
"""Of a window; one more is kept, the one that is about to leave it."""
RING = SLOTS + 1
HEAD = 3
"""Numbers before a window's slots: what is used, its newest slot, its length in microseconds."""
NOTHING = (0,) * RING
ASK_AGAIN = 1.0
"""Seconds after which it is worth asking again for a place among the open ones: nobody knows how long requests take."""

Cell: TypeAlias = "array[int]"
"""A window: used, newest slot, microseconds, slots. A sum: used, when it ends (-1: never). What is open: used, and
a number for each worker, so that what a dead one held is found and given back."""


def load(limit: Limit, stored: bytes | None, now: float, column: int) -> Cell:
    """What is kept of a limit, as it is now; `column` is the worker who asks. A clock that goes back stands still for
    windows; if by more than the window, all begins anew."""
    return advance(limit, array("q", stored or b""), now, column)


def advance(limit: Limit, cell: Cell, now: float, column: int) -> Cell:
    """The same of what was loaded before: it, or one in its place."""
    if limit.kind == "window":
        slot = int(now * SLOTS / limit.seconds)
        return cell if cell and cell[1] == slot else _advanced(cell, slot, round(limit.seconds * 1e6))
    if limit.kind == "sum":
        return cell or array("q", (0, -1 if limit.ends == math.inf else int(limit.ends)))
    if len(cell) < column + 2:
        cell.extend([0] * (column + 2 - len(cell)))
    return cell


def _advanced(cell: Cell, slot: int, microseconds: int) -> Cell:
    """A window that has come to a slot: what is too old is forgotten."""
    if len(cell) != HEAD + RING or abs(slot - cell[1]) > SLOTS:
        return array("q", (0, slot, microseconds, *NOTHING))
    for number in range(cell[1] + 1, slot + 1):
        at = HEAD + number % RING
        cell[0] -= cell[at]
        cell[at] = 0
    cell[1] = max(slot, cell[1])
    return cell


def take(limit: Limit, cell: Cell, amount: int, column: int) -> int:
    """Use so much; returns where it was written, for `correct`."""
    cell[0] += amount
    if limit.kind == "window":
        slot = cell[1]
        cell[HEAD + slot % RING] += amount
        return slot
    if limit.kind == "open":
        cell[1 + column] += amount
        return amount
    return 0


def correct(limit: Limit, cell: Cell, place: int, change: int, column: int) -> None:
    """So much less (or, above zero, more) was used than was written there.

    In a window, less is taken off where it stands, if that still counts. More counts from now on: the past cannot be
    limited any more. What was open ends, whatever was used.
    """
    if limit.kind == "open":
        change = -min(place, cell[1 + column])
        cell[1 + column] += change
    elif limit.kind == "window":
        if change > 0:
            place = cell[1]
        elif not 0 <= cell[1] - place <= SLOTS:
            return
        at = HEAD + place % RING
        if change < -cell[at]:
            change = -cell[at]
        cell[at] += change
    cell[0] += change


def wait(limit: Limit, cell: Cell, amount: int, now: float) -> float:
    """Seconds until so much more fits; 0 if it does; infinity if it never will."""
    over = cell[0] + amount - limit.most
    if over <= 0:
        return 0.0
    if amount > limit.most:
        return math.inf
    if limit.kind != "window":
        return max(0.001, limit.ends - now) if limit.kind == "sum" else ASK_AGAIN
    for slot in range(cell[1] - SLOTS, cell[1] + 1):
        over -= cell[HEAD + slot % RING]
        if over <= 0:
            break
    return max(0.001, (slot + RING) * limit.seconds / SLOTS - now)


def reset(limit: Limit, cell: Cell, now: float) -> float:
    """Seconds until nothing is used, if nobody asks; infinity if that is not known."""
    if not cell[0]:
        return 0.0
    if limit.kind != "window":
        return max(0.0, limit.ends - now)
    slot = next(slot for slot in range(cell[1], cell[1] - RING, -1) if cell[HEAD + slot % RING])
    return max(0.0, (slot + RING) * limit.seconds / SLOTS - now)


def is_over(kind: str, cell: Cell, now: float) -> bool:
    """Whether what is stored can be forgotten."""
    if kind == "window":
        return len(cell) != HEAD + RING or now > (cell[1] + RING) * cell[2] / 1e6 / SLOTS
    if kind == "sum":
        return 0 <= cell[1] < now
    return not any(cell)
