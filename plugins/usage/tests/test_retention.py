"""What is deleted, and what stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from headrace_usage import retention
from headrace_usage.entry import Entry
from headrace_usage.report import report
from headrace_usage.retention import Retention, steps
from headrace_usage.selection import Question
from headrace_usage.store import Place, Store
from headrace_usage.times import DAY, HOUR

MakeEntry = Callable[..., Entry]


def count(store: Store, table: str) -> int:
    return int(store.run(f"SELECT count(*) FROM {store.PREFIX}{table}")[0][0])


@pytest.fixture
def filled(store: Store, entry: MakeEntry) -> Store:
    """Ten days of a request an hour, each day another caller's."""
    store.insert([entry(n, at=n * HOUR + 5, key=f"k{n // 24}") for n in range(240)])
    return store


def test_requests_and_hours_go_and_days_stay(filled: Store) -> None:
    assert sum(steps(filled, 6 * DAY + 12 * HOUR, None)) == 144
    assert [count(filled, table) for table in ("requests", "hours", "days", "series")] == [96, 96, 10, 10]
    assert report(filled, Question(since=0)).total["requests"] == 240


def test_days_go_as_well_and_with_them_the_names_of_callers(filled: Store) -> None:
    list(steps(filled, 6 * DAY, 6 * DAY))
    assert [count(filled, table) for table in ("requests", "hours", "days", "series")] == [96, 96, 4, 4]
    found = report(filled, Question(since=0))
    assert (found.total["requests"], found.since) == (96, 6 * DAY)


def test_a_caller_whose_name_was_forgotten_may_come_back(filled: Store, entry: MakeEntry) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "ROWS", 3)
        list(steps(filled, 10 * DAY, 10 * DAY))
    assert count(filled, "series") == 0
    filled.insert([entry(1, at=11 * DAY, key="k3"), entry(2, at=11 * DAY, key="k4")])
    assert report(filled, Question(since=0, by=("key",))).total["requests"] == 2


def test_one_who_writes_meanwhile_does_not_wait_for_all_of_it(filled: Store, entry: MakeEntry, place: Place) -> None:
    with pytest.MonkeyPatch.context() as patch, Store.open(place, 0.5) as writer:
        patch.setattr(retention, "ROWS", 10)
        for number, _ in enumerate(steps(filled, 9 * DAY, 9 * DAY)):
            writer.insert([entry(1000 + number, at=20 * DAY, key=f"new{number % 3}")])
    assert report(filled, Question(since=19 * DAY, by=("hour",))).total["requests"] == number + 1
    assert report(filled, Question(since=0)).total["requests"] == 24 + number + 1


def test_it_is_done_once_a_day_and_again_if_it_was_not_finished(filled: Store) -> None:
    now = [100.0 * 86_400]
    daily = Retention(95 * DAY, None, clock=lambda: now[0])
    started: Any = daily.due(filled)
    next(started)
    started.close()
    again = daily.due(filled)
    assert again is not None
    list(again)
    assert count(filled, "requests") == 120
    assert daily.due(filled) is None
    now[0] += 86_400
    assert daily.due(filled) is not None


def test_for_ever_means_that_nothing_goes(filled: Store) -> None:
    assert list(Retention(None, None).due(filled) or ()) == []
    assert count(filled, "requests") == 240
