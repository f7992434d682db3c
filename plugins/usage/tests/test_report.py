"""Reports tell what the rows tell, whichever sums they are made of."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_usage import buckets
from headrace_usage.entry import Entry
from headrace_usage.report import report
from headrace_usage.retention import steps
from headrace_usage.selection import BY, Question, Wrong, parts
from headrace_usage.store import Store
from headrace_usage.times import DAY, HOUR, day_of, hour_of

MakeEntry = Callable[..., Entry]
EDGES = sorted({day * DAY + hour * HOUR + more for day in range(4) for hour in (0, 1, 23) for more in (-1, 0, 1, 5000)})
MOMENTS = st.sampled_from([each for each in EDGES if each >= 0]) | st.integers(0, 4 * DAY)
ROWS = st.fixed_dictionaries(
    {
        "at": MOMENTS,
        "key": st.sampled_from(("k1", "k2")),
        "model": st.sampled_from(("a", "b", "")),
        "team": st.sampled_from(("red", "blue")),
        "target": st.sampled_from(("gpu1", "gpu2")),
        "status": st.sampled_from((200, 429, 503)),
        "failed_try": st.sampled_from((0, 0, 0, 1)),
        "failed": st.integers(0, 1),
        "ended": st.integers(0, 3),
        "stream": st.integers(0, 1),
        "input": st.integers(0, 2**40),
        "cached": st.integers(0, 100),
        "output": st.integers(0, 1000),
        "cost": st.none() | st.integers(0, 2**50),
        "latency_bucket": st.none() | st.integers(0, buckets.COUNT - 1),
    }
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "key": st.sampled_from((("k1",), ("k1", "k2"), ("nobody",), ("ada's",))),
        "model": st.sampled_from((("a",), ("",), ("a", "b"))),
        "team": st.just(("red",)),
        "status": st.sampled_from((("200",), ("429", "503"))),
    },
)
WAYS = st.lists(st.sampled_from(BY), min_size=1, max_size=3, unique=True).map(tuple)


def matches(row: Entry, question: Question) -> bool:
    if not question.since <= row.at < question.until:
        return False
    for name, wanted in question.filters.items():
        values = {str(getattr(row.series, name))} | ({row.series.name} if name == "key" else set())
        if not values & set(wanted):
            return False
    return True


def group_of(row: Entry, by: tuple[str, ...]) -> tuple[Any, ...]:
    times = {"day": day_of(row.at // DAY), "hour": hour_of(row.at // HOUR)}
    return tuple(times[name] if name in times else getattr(row.series, name) for name in by)


def expected(rows: list[Entry], question: Question) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The report, slowly."""
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for row in rows:
        if matches(row, question):
            found.setdefault(group_of(row, question.by), []).append(row)
    return {group: figures(each) for group, each in found.items()}


def figures(rows: list[Entry]) -> dict[str, Any]:
    own = [row for row in rows if not row.series.failed_try]
    return {
        "requests": len(own),
        "errors": sum(row.failed for row in own),
        "aborted": sum(row.ended == 1 for row in own),
        "cut": sum(row.ended == 2 for row in own),
        "streams": sum(row.stream for row in own),
        "unpriced": sum(row.cost is None for row in own),
        **{name: sum(getattr(row, name) for row in own) for name in ("input", "cached", "output")},
        "cost": sum(row.cost or 0 for row in own) / 1e6,
        "failed_tries": len(rows) - len(own),
    }


@settings(max_examples=120, deadline=None)
@given(st.lists(ROWS, max_size=30), MOMENTS, MOMENTS, WAYS, FILTERS, st.booleans())
def test_the_sums_of_a_report_are_the_sums_of_its_rows(
    entry: MakeEntry, given_rows: Any, one: int, other: int, by: Any, filters: Any, in_order: bool
) -> None:
    rows = [entry(number, **fields) for number, fields in enumerate(given_rows)]
    question = Question(since=min(one, other), until=max(one, other) + 1, by=by, filters=filters)
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "usage.db", 5.0) as store:
        for batch in (rows[::2], rows[1::2]) if in_order else (rows[1::2], rows[::2], rows):
            if batch:
                store.insert(batch)
        found = report(store, question)
    wanted = expected(rows, question)
    shown = {tuple(row[name] for name in by): {name: row[name] for name in figures([])} for row in found.rows}
    assert shown == wanted
    assert {name: found.total[name] for name in figures([])} == figures([row for row in rows if matches(row, question)])


@given(MOMENTS, MOMENTS, st.booleans(), st.integers(0, 4))
def test_a_time_is_cut_into_parts_that_cover_all_of_it_once(one: int, other: int, by_hour: bool, kept: int) -> None:
    since, until = min(one, other), max(one, other) + 1
    cut = parts(since, until, by_hour=by_hour, requests_from=kept * DAY)
    found = sorted((part.first * part.length, part.end * part.length, part.table) for part in cut)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(found))
    assert all(first >= kept * DAY for first, _, table in found if table != "days")
    if since >= kept * DAY:
        assert (found[0][0], found[-1][1]) == (since, until)
    elif found and not by_hour:
        assert found[0][0] == since // DAY * DAY


def test_both_databases_answer_alike(store: Store, entry: MakeEntry) -> None:
    store.insert([entry(n, at=n * HOUR // 3, model="ab"[n % 2], status=(200, 503)[n % 5 == 0]) for n in range(300)])
    for by in (("model",), ("day", "status"), ("hour", "model"), ("key", "team", "owner", "target", "endpoint")):
        exact = report(store, Question(since=HOUR + 1, until=99 * HOUR - 1, by=by))
        assert exact.total["requests"] == 294 - 1
        assert sum(row["requests"] for row in exact.rows) == 293
    assert exact.rows[0]["cost"] == pytest.approx(293 * 15 / 1e6)


def test_quantiles_are_of_requests_that_were_answered_well(store: Store, entry: MakeEntry) -> None:
    slow, quick = buckets.bucket(2_000_000), buckets.bucket(100_000)
    store.insert([entry(n, latency_bucket=quick) for n in range(60)])
    store.insert([entry(n, latency_bucket=slow) for n in range(60, 100)])
    store.insert([entry(n, latency_bucket=None, failed=1) for n in range(100, 900)])
    (row,) = report(store, Question(since=0)).rows
    assert row["latency_p50"] == pytest.approx(0.1, rel=0.42)
    assert row["latency_p95"] == pytest.approx(2.0, rel=0.42)


def test_a_key_is_called_what_it_was_called_last(store: Store, entry: MakeEntry) -> None:
    store.insert([entry(1, name="before")])
    store.insert([entry(2, name="after")])
    (row,) = report(store, Question(since=0, by=("key",))).rows
    assert (row["key"], row["name"], row["requests"]) == ("k1", "after", 2)


def test_rows_are_sorted_and_limited_and_the_total_has_all(store: Store, entry: MakeEntry) -> None:
    store.insert([entry(n, model=f"m{n}", cost=n, output=10 - n) for n in range(5)])
    by_cost = report(store, Question(since=0, by=("model",), limit=2))
    assert [row["model"] for row in by_cost.rows] == ["m4", "m3"]
    assert (by_cost.groups, by_cost.total["requests"]) == (5, 5)
    for sort, first in (("output", "m0"), ("model", "m0"), ("cost", "m4")):
        assert report(store, Question(since=0, by=("model",), sort=sort)).rows[0]["model"] == first


def test_days_whose_requests_are_deleted_are_reported_whole(store: Store, entry: MakeEntry) -> None:
    store.insert([entry(n, at=n * HOUR) for n in range(4 * 24)])
    list(steps(store, 2 * DAY, None))
    assert report(store, Question(since=0)).total["requests"] == 96
    half = report(store, Question(since=DAY + 12 * HOUR, until=3 * DAY))
    assert (half.since, half.total["requests"]) == (DAY, 48)
    assert report(store, Question(since=0, by=("hour",))).total["requests"] == 48


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"by": ("nonsense",)}, "nothing to report by"),
        ({"by": ("key", "key")}, "each once"),
        ({"by": ()}, "at least one"),
        ({"sort": "; DROP TABLE"}, "nothing to sort by"),
        ({"until": 0}, "before until"),
        ({"filters": {"status": ("2xx",)}}, "is no status"),
    ],
)
def test_what_cannot_be_asked_is_said(asked: Any, words: str) -> None:
    with pytest.raises(Wrong, match=words):
        Question(**{"since": 0, **asked})


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=200), st.sampled_from((0.5, 0.95)))
def test_a_quantile_is_within_the_bucket_of_the_true_one(times: list[int], part: float) -> None:
    counts = [0] * buckets.COUNT
    for each in times:
        counts[buckets.bucket(each)] += 1
    found = buckets.quantile(counts, part)
    true = sorted(times)[max(0, -int(-part * len(times) // 1) - 1)]
    assert found is not None
    assert abs(buckets.bucket(round(found * 1e6)) - buckets.bucket(true)) <= 1
