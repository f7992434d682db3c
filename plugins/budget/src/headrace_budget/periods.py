"""Days and months of the calendar: when they begin and end in a time zone, in seconds since the epoch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import msgspec

Span = Literal["day", "month"]


class Period(msgspec.Struct, frozen=True):
    """One day, or one month."""

    label: str
    """`2026-11-21`, or `2026-11`."""
    start: float
    end: float
    """Its last moment is before this one, the first of the next."""


class Today(msgspec.Struct, frozen=True):
    """The day and the month that it is."""

    day: Period
    month: Period

    def of(self, span: Span) -> Period:
        return self.day if span == "day" else self.month


class Calendar:
    """Knows what day it is. It is worked out once a day, not at every request.

    Args:
        zone: whose midnight counts.
        clock: seconds since the epoch.
    """

    def __init__(self, zone: tzinfo, clock: Callable[[], float]) -> None:
        self.zone = zone
        self.clock = clock
        self._today: Today | None = None

    def today(self) -> Today:
        """The same object until midnight."""
        today, now = self._today, self.clock()
        if today is None or not today.day.start <= now < today.day.end:
            today = self._today = at(now, self.zone)
        return today

    def moment(self, seconds: float) -> datetime:
        """A moment as it is written here."""
        return datetime.fromtimestamp(seconds, self.zone)


def at(now: float, zone: tzinfo) -> Today:
    """Day and month of a moment."""
    day = datetime.fromtimestamp(now, zone).date()
    month = day.replace(day=1)
    return Today(
        _period(f"{day:%Y-%m-%d}", day, day + timedelta(days=1), zone),
        _period(f"{month:%Y-%m}", month, (month + timedelta(days=31)).replace(day=1), zone),
    )


def _period(label: str, first: date, after: date, zone: tzinfo) -> Period:
    return Period(label, _midnight(first, zone), _midnight(after, zone))


def _midnight(day: date, zone: tzinfo) -> float:
    """The first moment of a day. Where the clock strikes midnight twice it is the first time, where it leaps over
    midnight the moment of the leap: both are what `fold=0` gives (PEP 495)."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()


def zone(name: str) -> tzinfo:
    """The time zone of this name. Raises ValueError: there is none, or this system knows none at all."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    if not available_timezones():
        raise ValueError("this system has no time zones: install its package tzdata, or pip install tzdata")
    raise ValueError(f"there is no time zone {name!r}: write it like Europe/Berlin")
