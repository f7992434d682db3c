"""Days and months as the calendar has them, wherever the clock strikes midnight twice or not at all."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_budget.periods import Calendar, at, zone

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/Sao_Paulo",  # had its clocks changed at midnight
    "America/Havana",  # strikes midnight twice
    "Africa/Cairo",  # leaps over midnight
    "Pacific/Apia",  # leapt over a day
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # changes by half an hour
)


def hours(name: str, day: str) -> float:
    """How long a day is."""
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=ZoneInfo(name))
    found = at(noon.timestamp(), zone(name)).day
    assert found.label == day
    return (found.end - found.start) / 3600


@pytest.mark.parametrize(
    ("name", "day", "length"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Europe/Berlin", "2026-11-21", 24),
        ("America/Sao_Paulo", "2018-11-04", 23),
        ("America/Sao_Paulo", "2018-02-17", 25),
        ("America/Havana", "2026-11-01", 25),
        ("Pacific/Apia", "2011-12-29", 24),
    ],
)
def test_days_are_as_long_as_the_clocks_make_them(name: str, day: str, length: float) -> None:
    assert hours(name, day) == length


@pytest.mark.parametrize(
    ("day", "month", "days"),
    [("2026-11-30", "2026-11", 30), ("2026-12-31", "2026-12", 31), ("2028-02-29", "2028-02", 29)],
)
def test_a_month_ends_with_its_last_day(day: str, month: str, days: int) -> None:
    last = datetime.fromisoformat(f"{day}T23:59:59").replace(tzinfo=UTC).timestamp()
    today = at(last, UTC)
    assert (today.month.label, today.month.end) == (month, last + 1)
    assert today.month.end - today.month.start == days * 86400
    assert at(last + 1, UTC).month.start == today.month.end


@given(
    now=st.datetimes(datetime(2010, 1, 1), datetime(2040, 1, 1)),
    name=st.sampled_from(ZONES),
)
def test_every_moment_is_in_its_day_and_month_and_the_next_begin_where_these_end(now: datetime, name: str) -> None:
    moment = now.replace(tzinfo=UTC).timestamp()
    today = at(moment, zone(name))
    for period, after in ((today.day, at(today.day.end, zone(name)).day), (today.month, None)):
        assert period.start <= moment < period.end
        assert after is None or (after.start == period.end and after.label > period.label)
    assert at(today.month.end, zone(name)).month.start == today.month.end
    assert today.day.label.startswith(today.month.label)


def test_a_calendar_turns_at_midnight_and_not_before(clock: Any) -> None:
    calendar = Calendar(zone("Europe/Berlin"), clock)
    before = calendar.today()
    clock.now = before.day.end - 0.001
    assert calendar.today() is before
    clock.now = before.day.end
    assert [calendar.today().day.label, calendar.today().day.start] == ["2030-05-18", before.day.end]


def test_a_clock_that_is_set_back_is_followed(clock: Any) -> None:
    calendar = Calendar(UTC, clock)
    calendar.today()
    clock.now -= timedelta(days=30).total_seconds()
    assert calendar.today().month.label == "2030-04"


@pytest.mark.parametrize("name", ["Europe/Entenhausen", "../../etc/passwd", "Europe", "", "a" * 300, "UTC\0"])
def test_a_zone_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone"):
        zone(name)


def test_a_system_without_time_zones_is_told_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_budget.periods.available_timezones", set)
    with pytest.raises(ValueError, match="tzdata"):
        zone("Europe/Nowhere")
    assert zone("UTC") is UTC


def test_the_zones_of_these_tests_are_there() -> None:
    assert set(ZONES) <= zoneinfo.available_timezones()
