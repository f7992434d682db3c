"""What a report or a list is asked for: which requests, and by what they are put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from .schema import SUMS
from .times import DAY, HOUR

FILTERS = ("key", "model", "team", "owner", "target", "endpoint", "status", "role")
BY = (*FILTERS, "day", "hour")
"""What reports can be made by."""
FIGURES = (*SUMS, "failed_tries", "latency_p50", "latency_p95", "ttft_p50", "ttft_p95")
NOW = 10**7 * DAY
"""The end of a time that has not ended: later than any date, and as hours not too large for a column of them."""


class Wrong(ValueError):
    """What was asked for cannot be answered; says what to ask for instead."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests."""

    since: int
    """Milliseconds since the epoch, as in `Entry.at`."""
    until: int = NOW
    """Those before this moment."""
    filters: Mapping[str, tuple[str, ...]] = {}
    """By name of `FILTERS`: the values of which a request must have one. `key` is an id or a name."""

    def __post_init__(self) -> None:
        if self.since >= self.until:
            raise Wrong("since must be before until")
        for value in (each for values in self.filters.values() for each in values):
            if not value.isprintable():
                raise Wrong(f"{value[:40]!r} is no name")
        for status in self.filters.get("status", ()):
            if not (status.isascii() and status.isdigit() and len(status) == 3):
                raise Wrong(f"{status[:40]!r} is no status: write a number like 200")

    def conditions(self, of: str) -> tuple[str, dict[str, object]]:
        """The filters in SQL, of a table of series, and their parameters."""
        texts: list[str] = []
        values: dict[str, object] = {}
        for name, wanted in self.filters.items():
            if not wanted:
                continue
            given = {f"{name}_{number}": value for number, value in enumerate(wanted)}
            marks = ", ".join(f":{each}" for each in given)
            values |= {each: int(value) if name == "status" else value for each, value in given.items()}
            columns = ("key", "name") if name == "key" else (name,)
            texts.append("(" + " OR ".join(f"{of}.{column} IN ({marks})" for column in columns) + ")")
        return " AND ".join(texts) or "true", values


class Question(Selection, frozen=True, kw_only=True):
    """What a report is asked for."""

    by: tuple[str, ...] = ("key", "model")
    sort: str = ""
    """A figure, the largest first; or one of `by`. Empty: by time if it is by day or hour, else by cost."""
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.by:
            if name not in BY:
                raise Wrong(f"{name[:40]!r} is nothing to report by: there are {', '.join(BY)}")
        if len(set(self.by)) != len(self.by) or not self.by:
            raise Wrong("by: name each once, and at least one")
        if self.sort and self.sort not in (*FIGURES, *self.by):
            raise Wrong(f"{self.sort[:40]!r} is nothing to sort by: there are {', '.join((*self.by, *FIGURES))}")


class Part(msgspec.Struct, frozen=True):
    """A stretch of time, and which table answers for it: periods, of requests their milliseconds."""

    table: str
    first: int
    end: int
    length: int
    """Of a period, in milliseconds."""


def parts(since: int, until: int, *, by_hour: bool, requests_from: int) -> Iterator[Part]:
    """A time as sums of days, of hours where it has no whole days, and single requests where it has no whole hours.

    From before `requests_from` (the beginning of a day) there are sums of days alone: what begins within such a day
    begins with it, and what is asked for by hours begins with `requests_from`.
    """
    if since < requests_from:
        since = requests_from if by_hour else since // DAY * DAY
        if until <= requests_from:
            until = -(-until // DAY) * DAY
    hours = Part("hours", -(-since // HOUR), until // HOUR, HOUR)
    if hours.first >= hours.end:
        yield from _some(Part("requests", since, until, 1))
        return
    yield from _some(Part("requests", since, hours.first * HOUR, 1))
    days = Part("days", -(-hours.first // 24), hours.end // 24, DAY)
    if by_hour or days.first >= days.end:
        yield hours
    else:
        yield from _some(Part("hours", hours.first, days.first * 24, HOUR))
        yield days
        yield from _some(Part("hours", days.end * 24, hours.end, HOUR))
    yield from _some(Part("requests", hours.end * HOUR, until, 1))


def _some(part: Part) -> Sequence[Part]:
    return (part,) if part.first < part.end else ()
