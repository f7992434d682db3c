"""What both kinds of databases do with rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import PluginError
from headrace_usage import schema
from headrace_usage.entry import Entry
from headrace_usage.report import report
from headrace_usage.selection import Question
from headrace_usage.store import NotNow, Place, Store, Unfit

MakeEntry = Callable[..., Entry]
EVERYTHING = Question(since=0)


def requests(store: Store) -> int:
    return int(report(store, EVERYTHING).total["requests"])


def test_what_was_written_is_listed(store: Store, place: Place, entry: MakeEntry, rows_in: Any) -> None:
    odd = {"name": "Zoë 'x' :id $1 %s \\", "asked": "gpt\ufffd", "served": "b", "error": "e", "address": "::1"}
    store.insert([entry(1, **odd, cost=None, ttft=None, ttft_bucket=None, ended=2, delivery=2, stream=1)])
    (row,) = rows_in(place)
    assert {name: row[name] for name in odd} == odd
    assert (row["cost"], row["ttft"], row["ended"], row["delivery"], row["stream"]) == (None, None, "cut", "offload", 1)
    assert (row["input"], row["cached"], row["output"], row["latency"]) == (5, 0, 1, 0.002)


def test_a_row_that_comes_twice_is_there_once_and_counted_once(store: Store, entry: MakeEntry, place: Place) -> None:
    store.insert([entry(1), entry(2), entry(1)])
    store.insert([entry(2), entry(3)])
    with Store.open(place, 5.0) as other:
        other.insert([entry(3), entry(1)])
    assert requests(store) == 3


def test_rows_that_are_not_taken_leave_nothing_behind(store: Store, entry: MakeEntry, place: Place) -> None:
    with pytest.raises(Unfit):
        store.insert([entry(1, latency_bucket=30), entry(2, input=2**70)])
    assert requests(store) == 0
    store.insert([entry(1, latency_bucket=30)])
    assert report(store, EVERYTHING).total["latency_p50"] is not None
    with Store.open(place, 5.0) as again:
        again.insert([entry(2)])
        assert requests(again) == 2


def test_several_write_at_once_and_every_row_is_counted(place: Place, entry: MakeEntry) -> None:
    Store.open(place, 5.0).close()
    start = threading.Barrier(4)

    def write(writer: int) -> None:
        with Store.open(place, 10.0) as store:
            start.wait()
            for batch in range(10):
                models = ("a", "b", "c", "d") if writer % 2 else ("d", "c", "b", "a")
                store.insert([entry(batch * 4 + n, writer=writer, model=model, at=n) for n, model in enumerate(models)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with Store.open(place, 5.0) as store:
        found = report(store, Question(since=0, until=3_600_000, by=("model",)))
        assert {row["model"]: row["requests"] for row in found.rows} == dict.fromkeys("abcd", 40)
        assert found.total == report(store, Question(since=0, until=3_599_999, by=("model",))).total


def test_many_who_start_together_make_one_ledger(place: Place, entry: MakeEntry) -> None:
    def write(writer: int) -> None:
        with Store.open(place, 10.0) as store:
            store.insert([entry(1, writer=writer)])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    with Store.open(place, 5.0, create=False) as store:
        assert requests(store) == 6


def test_who_only_looks_makes_no_ledger(place: Place) -> None:
    with pytest.raises(PluginError, match="has no ledger yet"):
        Store.open(place, 5.0, create=False)
    assert not (isinstance(place, Path) and place.exists())


def test_a_report_that_takes_too_long_is_given_up(store: Store, entry: MakeEntry) -> None:
    store.insert([entry(number) for number in range(2000)])
    with pytest.raises(NotNow, match="ask for less"), store.explained(), store.reading(0.001):
        store.run("SELECT count(*) FROM " + ", ".join(f"{store.PREFIX}requests AS r{n}" for n in range(4)))


def test_a_ledger_of_a_newer_version_is_refused(store: Store, place: Place) -> None:
    with store.writing():
        store.run(f"UPDATE {store.PREFIX}state SET version = 99")
    with pytest.raises(PluginError, match="newer version") as caught:
        Store.open(place, 5.0)
    assert not isinstance(caught.value, NotNow)


def test_an_older_ledger_becomes_one_of_today_and_keeps_its_rows(
    store: Store, place: Place, entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.insert([entry(1)])
    steps = ("ALTER TABLE {prefix}series ADD COLUMN more TEXT", "UPDATE {prefix}series SET more = 'new'")
    monkeypatch.setattr(schema, "MIGRATIONS", (steps,))
    for _ in range(2):
        with Store.open(place, 5.0) as migrated:
            assert list(migrated.run(f"SELECT more FROM {store.PREFIX}series")[0]) == ["new"]
            assert requests(migrated) == 1


def test_what_is_no_ledger_is_left_as_it_is(tmp_path: Path) -> None:
    import sqlite3

    other, text = tmp_path / "other.db", tmp_path / "text.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE keys (id TEXT)")
    connection.close()
    text.write_text("this is no database at all, and long enough to tell" * 100)
    for path, words in ((other, "something else"), (text, "damaged"), (tmp_path, "not a file")):
        with pytest.raises(PluginError, match=words):
            Store.open(path, 5.0)


def test_a_file_is_for_its_owner_s_eyes_only(tmp_path: Path, entry: MakeEntry) -> None:
    with Store.open(tmp_path / "usage.db", 5.0) as store:
        store.insert([entry(1)])
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_locked_file_is_waited_for_no_longer_than_allowed(tmp_path: Path, entry: MakeEntry, locked: Any) -> None:
    path = tmp_path / "usage.db"
    with Store.open(path, 0.05) as store:
        with locked(path), pytest.raises(NotNow, match="locked"):
            store.insert([entry(1)])
        store.insert([entry(1)])
        assert requests(store) == 1
