"""Sums over many requests, made of the sums of days and hours as far as these reach."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from operator import add
from typing import Any

import msgspec

from . import buckets
from .money import MILLION
from .schema import MEASURES, SUMS
from .selection import NOW, Part, Question, parts
from .store import Store
from .times import DAY, HOUR, day_of, hour_of, written

SECONDS = 60.0
"""How long a report may take."""
TEXT_KEYS = ("key", "name", "model", "team", "owner", "target", "endpoint", "role")
REQUESTS = tuple(MEASURES).index("requests")

NOTHING: Sequence[int] = (0,) * len(MEASURES)
"""Figures in the order of `MEASURES`."""


class Report(msgspec.Struct):
    """What was found."""

    rows: list[dict[str, Any]]
    """What it is by, then its figures. Money in the currency's unit, times in seconds."""
    total: dict[str, Any]
    """The figures of everything that was asked for, be it shown or not."""
    groups: int
    """How many rows there would be without a limit."""
    since: int
    """From when on requests are in it: earlier than asked if single requests of that day are gone."""
    until: int


class _Sums:
    """The figures of requests and, apart from them, how many of their tries failed."""

    __slots__ = ("figures", "tries")

    def __init__(self) -> None:
        self.figures: Sequence[int] = NOTHING
        self.tries = 0

    def add(self, figures: Sequence[int], *, tries: bool) -> None:
        if tries:
            self.tries += figures[REQUESTS]
        elif self.figures is NOTHING:
            self.figures = figures
        else:
            self.figures = list(map(add, self.figures, figures))

    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = dict(zip(SUMS, self.figures, strict=False))
        shown["cost"] /= MILLION
        shown["failed_tries"] = self.tries
        for name, first in (("latency", len(SUMS)), ("ttft", len(SUMS) + buckets.COUNT)):
            counts = self.figures[first : first + buckets.COUNT]
            for percent in (50, 95):
                found = buckets.quantile(counts, percent / 100)
                shown[f"{name}_p{percent}"] = None if found is None else round(found, 4)
        return shown


def _all(groups: Collection[_Sums]) -> _Sums:
    """Everything together."""
    total = _Sums()
    total.figures = [sum(each) for each in zip(NOTHING, *(group.figures for group in groups), strict=True)]
    total.tries = sum(group.tries for group in groups)
    return total


def report(store: Store, question: Question) -> Report:
    """Answer a question. Blocks on the disk or the network. Raises NotNow, PluginError."""
    with store.explained(), store.reading(SECONDS):
        requests_from, days_from = store.state()
        by_hour = "hour" in question.by
        stretch = list(parts(question.since, question.until, by_hour=by_hour, requests_from=requests_from))
        groups = _collected(store, question, stretch)
        names = _names(store) if "key" in question.by else {}
    rows = [{**_said(key, question, names), **sums.shown()} for key, sums in groups.items()]
    rows.sort(key=_order(question), reverse=_is_figure(_sorted_by(question)))
    since = min((part.first * part.length for part in stretch), default=question.since)
    until = max((part.end * part.length for part in stretch), default=question.until)
    return Report(
        rows[: question.limit],
        _all(groups.values()).shown(),
        len(rows),
        max(since, days_from),
        max(until, question.until),
    )


def _collected(store: Store, question: Question, stretch: Sequence[Part]) -> dict[tuple[Any, ...], _Sums]:
    groups: dict[tuple[Any, ...], _Sums] = {}
    used = store.used()
    for part in stretch:
        for *key, failed_try, figures in _found(store, question, part, used):
            sums = groups.get(tuple(key))
            if sums is None:
                sums = groups[tuple(key)] = _Sums()
            sums.add(figures, tries=bool(failed_try))
    return groups


def _found(store: Store, question: Question, part: Part, used: Container[str]) -> Iterator[list[Any]]:
    """What a part of the time says: what it is by, whether these are failed tries, and the figures."""
    by = [_expression(name, part) for name in question.by]
    timed = {"day", "hour"} & set(question.by)
    of_rows, width = part.table == "requests", len(question.by) + 1
    join = "JOIN" if of_rows else store.JOIN
    asked = {name: MEASURES[name] if of_rows else f"sum({name})" for name in MEASURES if name in SUMS or name in used}
    where, values = question.conditions("s")
    at = "at" if part.table == "requests" else "period"
    # by series they come in the order of the table's key; by anything else they would have to be sorted
    grouped = ", ".join((*by, "s.failed_try")) if timed else ", ".join(("s.id", *by, "s.failed_try"))
    rows = store.run(
        f"SELECT {', '.join((*by, 's.failed_try'))}, {', '.join(f'CAST({each} AS BIGINT)' for each in asked.values())} "  # noqa: S608
        f"FROM {store.PREFIX}series AS s {join} {store.PREFIX}{part.table} AS d ON d.series = s.id "
        f"WHERE d.{at} >= :first AND d.{at} < :end AND {where} GROUP BY {grouped}",
        first=part.first,
        end=part.end,
        **values,
    )
    for row in rows:
        counted = dict(zip(asked, row[width:], strict=True))
        yield [*row[:width], row[width:] if len(asked) == len(MEASURES) else [counted.get(n, 0) for n in MEASURES]]


def _expression(name: str, part: Part) -> str:
    """What a name of `by` is in a table; days and hours as their numbers since the epoch."""
    if name in ("day", "hour"):
        length = DAY if name == "day" else HOUR
        return f"d.at / {length}" if part.table == "requests" else f"d.period / {length // part.length}"
    return f"s.{name}"


def _names(store: Store) -> dict[str, str]:
    """What each key was called last."""
    found = store.run(f"SELECT key, name FROM {store.PREFIX}series ORDER BY id")  # noqa: S608
    return {row[0]: row[1] for row in found}


def _said(key: Sequence[Any], question: Question, names: Mapping[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, value in zip(question.by, key, strict=True):
        said[name] = day_of(value) if name == "day" else hour_of(value) if name == "hour" else value
        if name == "key":
            said["name"] = names.get(value, "")
    return said


def _is_figure(name: str) -> bool:
    return name in SUMS or name == "failed_tries" or name.endswith(("_p50", "_p95"))


def _sorted_by(question: Question) -> str:
    return question.sort or next((name for name in ("hour", "day") if name in question.by), "cost")


def _order(question: Question) -> Any:
    """Rows that are equal in this stay in an order of their own, which is the same every time."""
    name = _sorted_by(question)
    if not _is_figure(name):
        return lambda row: (row[name], *(row[each] for each in question.by))
    more = ("cost", "requests", *question.by[::-1])

    def key(row: dict[str, Any]) -> Any:
        return (-1.0 if row[name] is None else row[name], *(row[each] for each in more))

    return key


def described(found: Report, question: Question, currency: str) -> dict[str, Any]:
    """A report as JSON shows it, on the command line and in the API."""
    return {
        "object": "usage.report",
        "since": written(found.since),
        "until": None if found.until >= NOW else written(found.until),
        "by": list(question.by),
        "currency": currency,
        "data": found.rows,
        "has_more": found.groups > len(found.rows),
        "total": found.total,
    }
