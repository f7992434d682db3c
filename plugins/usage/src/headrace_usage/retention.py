"""Deleting what is too old, in steps that are so small that nobody who writes has to wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .store import Store
from .times import DAY, HOUR

ROWS = 1000
"""Requests in one step."""
SERIES = 20
"""Whose sums are deleted in one step."""


class Retention:
    """What is deleted once a day.

    Args:
        requests, days: how long single requests, and sums of days, are kept: milliseconds; None: for ever.
        clock: seconds since the epoch.
    """

    def __init__(self, requests: int | None, days: int | None, clock: Callable[[], float] = time.time) -> None:
        self._requests, self._days, self._clock = requests, days, clock
        self._done = -1

    def due(self, store: Store) -> Iterator[int] | None:
        """What is to be deleted now, step by step; None: nothing until tomorrow."""
        now = int(self._clock() * 1000)
        return None if self._done == now // DAY else self._deletion(store, now)

    def _deletion(self, store: Store, now: int) -> Iterator[int]:
        before = (None if kept is None else now - kept for kept in (self._requests, self._days))
        yield from steps(store, *before)
        self._done = now // DAY


def steps(store: Store, requests_before: int | None, days_before: int | None) -> Iterator[int]:
    """Delete requests, with their hours' sums, and the sums of days, from before these moments (milliseconds since the
    epoch, rounded down to whole days; None: nothing). After each step, how many requests it has deleted.

    Raises NotNow, PluginError.
    """
    if requests_before is not None:
        before = requests_before // DAY * DAY
        _mark(store, "requests_from", before)
        yield from _requests(store, before)
        yield from _sums(store, "hours", before // HOUR)
    if days_before is not None:
        before = days_before // DAY * DAY
        _mark(store, "days_from", before)
        yield from _sums(store, "days", before // DAY)
        yield from _series(store)


def _mark(store: Store, name: str, before: int) -> None:
    """First of all: whoever reports from now on does not count on what is about to go."""
    with store.explained(), store.writing():
        store.run(f"UPDATE {store.PREFIX}state SET {name} = :before WHERE {name} < :before", before=before)  # noqa: S608


def _requests(store: Store, before: int) -> Iterator[int]:
    """Whole milliseconds, the oldest first."""
    table = f"{store.PREFIX}requests"
    while True:
        with store.explained(), store.writing():
            found = store.run(
                f"SELECT at FROM {table} WHERE at < :before ORDER BY at LIMIT {ROWS}",  # noqa: S608
                before=before,
            )
            if not found:
                return
            store.run(f"DELETE FROM {table} WHERE at <= :last", last=found[-1][0])  # noqa: S608
        yield len(found)


def _sums(store: Store, name: str, before: int) -> Iterator[int]:
    """The sums of periods, for some series after the other."""
    table, last = f"{store.PREFIX}{name}", 0
    while True:
        with store.explained(), store.writing():
            found = store.run(
                f"SELECT id FROM {store.PREFIX}series WHERE id > :last ORDER BY id LIMIT {SERIES}",  # noqa: S608
                last=last,
            )
            if not found:
                return
            first, last = last, found[-1][0]
            store.run(
                f"DELETE FROM {table} WHERE series > :first AND series <= :last AND period < :before",  # noqa: S608
                first=first,
                last=last,
                before=before,
            )
        yield 0


def _series(store: Store) -> Iterator[int]:
    """The names of callers and models of which there is nothing any more: what has no day has no request either."""
    table = f"{store.PREFIX}series"
    unused = (
        f"SELECT id FROM {table} WHERE NOT EXISTS "  # noqa: S608
        f"(SELECT 1 FROM {store.PREFIX}days WHERE {store.PREFIX}days.series = {table}.id) LIMIT {ROWS}"
    )
    while True:
        with store.explained():
            if not store.run(unused):
                return
        with store.forgetting():
            store.run(f"DELETE FROM {table} WHERE id IN ({unused})")  # noqa: S608
        yield 0
