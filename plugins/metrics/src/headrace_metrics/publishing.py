"""Once a second each worker asks its collectors and writes what they say where the others can read it.

What only grows (counters, histograms) is added up over all workers, those included that have ended. What is true now
(gauges) is of one worker, gets its number as the label `worker`, and is gone with it; so is everything that already has
that label. A gateway that has been superseded and still finishes requests is asked as well, and its gauges are added to
those of the gateway that answers now: collectors leave out what cannot be added, once `gateway.superseded` is set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from . import keys
from .table import MOST_ROWS

if TYPE_CHECKING:
    from .table import Cells, Table

logger = logging.getLogger("headrace.metrics")

GROWING = frozenset(("counter", "histogram", "summary"))
WORKER = "worker"


class Publisher:
    """Publishes what collectors say; `collectors` tells which there are now."""

    def __init__(self, table: Table, worker: int, collectors: Callable[[], Iterable[Any]]) -> None:
        self._table, self._worker, self._collectors = table, str(worker), collectors
        self._rows: dict[tuple[str, ...], Cells] = {}
        self._shown: list[Cells] = []
        self._described: set[str] = set()
        self._failed: set[int] = set()

    def publish(self) -> None:
        """Write what is true now. What fails is logged once."""
        shown: list[Cells] = []
        for number, collector in enumerate(tuple(self._collectors())):
            try:
                for family in collector.collect():
                    self._family(family, shown)
            except Exception as error:
                if number not in self._failed:
                    self._failed.add(number)
                    logger.error("a collector failed: %s: %s: %s", collector, type(error).__name__, error)
        now = set(map(id, shown))
        for cells in self._shown:
            if id(cells) not in now:
                cells[0] = 0.0
        self._shown = shown

    def retract(self) -> None:
        """Nothing is true any more."""
        for cells in self._shown:
            cells[0] = 0.0

    def _family(self, family: Any, shown: list[Cells]) -> None:
        if family.name not in self._described:
            self._described.add(family.name)
            self._table.row(keys.described(family.name, family.type, family.documentation), 0)
        growing = family.type in GROWING
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            cells = self._row(family.name, sample.name, sample.labels, growing)
            if len(cells) == 1:
                if sample.value > cells[0]:  # what has been seen of it must not grow less
                    cells[0] = sample.value
            else:
                cells[1] = sample.value
                cells[0] = 1.0
                shown.append(cells)

    def _row(self, family: str, sample: str, labels: Mapping[str, str], growing: bool) -> Cells:
        known = self._rows.get((sample, *labels.values()))
        if known is not None:
            return known
        live = not growing or WORKER in labels
        given = {**labels, WORKER: self._worker} if live else labels
        cells = self._table.row(keys.of_sample(live, family, sample, given), 2 if live else 1)
        if len(self._rows) < MOST_ROWS:
            self._rows[sample, *labels.values()] = cells
        return cells
