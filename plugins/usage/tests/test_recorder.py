"""The thread that writes: whatever the database does, requests do not wait, and rows arrive."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import PluginError
from headrace.exchange import Usage
from headrace_usage.entry import Book, Entry, Pending
from headrace_usage.money import Prices
from headrace_usage.recorder import Recorder
from headrace_usage.spool import Spool
from headrace_usage.sqlite_store import SQLiteStore
from headrace_usage.store import NotNow, Store, Unfit

Wait = Callable[..., Any]


def ended(number: int = 1, **fields: Any) -> Pending:
    usage = fields.pop("usage", Usage(5, 1))
    plain = (
        time.time(),
        f"r{number}",
        None,
        None,
        "m",
        None,
        "chat",
        "",
        False,
        200,
        True,
        False,
        None,
        None,
        "inline",
    )
    return Pending(*plain, usage, True, 0.01, 0.005, None)._replace(**fields)


class Desk:
    """A recorder over a file, and what the file has."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.path, self.spool_path = folder / "usage.db", folder / "spool"
        self.opened: Callable[[], Store] = lambda: Store.open(self.path, 0.1)
        self.spool = Spool(self.spool_path, options.get("spool_bytes", 10**7), 1)
        book = Book(options.get("writer", 1), Prices({}), addresses=False)
        self.recorder = Recorder(book, lambda: self.opened(), self.spool, options.get("limit", 10_000))

    def ids(self) -> list[str]:
        with Store.open(self.path, 5.0) as store:
            return [row[0] for row in store.run("SELECT request_id FROM requests ORDER BY number")]

    def has(self, count: int) -> Callable[[], bool]:
        return lambda: len(self.ids()) == count


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(**options: Any) -> Desk:
        desk = Desk(options.pop("folder", tmp_path), **options)
        desk.recorder.start(None)
        desks.append(desk)
        return desk

    yield make
    for desk in desks:
        desk.recorder.stop()


def gone() -> Store:
    raise NotNow("gone")


def test_a_row_is_in_the_database_within_a_second(start: Any, until: Wait) -> None:
    desk = start()
    Store.open(desk.path, 5.0).close()
    desk.recorder.add(ended(1))
    until(desk.has(1), 1.0)


def test_what_waits_is_written_at_the_end(start: Any) -> None:
    desk = start()
    for number in range(5000):
        desk.recorder.add(ended(number))
    desk.recorder.stop()
    assert desk.ids() == [f"r{number}" for number in range(5000)]


def test_a_request_that_ends_after_the_end_is_written_at_once(start: Any) -> None:
    desk = start()
    desk.recorder.stop()
    desk.recorder.add(ended(1))
    desk.recorder.add(ended(2))
    assert desk.ids() == ["r1", "r2"]


def test_while_another_process_holds_the_lock_rows_go_to_the_spool(start: Any, until: Wait, locked: Any) -> None:
    desk = start()
    Store.open(desk.path, 5.0).close()
    with locked(desk.path):
        slowest = 0.0
        for number in range(300):
            began = time.perf_counter()
            desk.recorder.add(ended(number))
            slowest = max(slowest, time.perf_counter() - began)
        until(lambda: desk.spool_path.exists() and desk.spool.size() > 300 * 50)
        assert slowest < 0.25
    until(desk.has(300))
    until(lambda: not any(desk.spool_path.iterdir()))
    assert desk.recorder.lost == 0


def test_rows_of_a_gateway_that_ended_without_a_database_are_taken_up_by_the_next(start: Any, until: Wait) -> None:
    first = start()
    first.opened = gone
    for number in range(50):
        first.recorder.add(ended(number))
    first.recorder.stop()
    assert first.spool.size() > 0
    second = start(writer=2)
    until(second.has(50))
    second.recorder.add(ended(99))
    until(second.has(51))


def test_a_database_that_stops_taking_rows_in_the_middle_gets_them_later(start: Any, until: Wait) -> None:
    desk, broken = start(), threading.Event()

    class Flaky(SQLiteStore):
        def insert(self, entries: Any) -> None:
            super().insert(entries)
            if broken.is_set():
                raise NotNow("it was written, but the answer was lost")

    desk.opened = lambda: Flaky.connect(desk.path, 0.1, create=True)
    for number in range(400):
        if number == 100:
            broken.set()
        desk.recorder.add(ended(number))
    until(desk.has(400))
    broken.clear()
    until(lambda: desk.spool_path.exists() and not any(desk.spool_path.iterdir()))
    assert desk.ids() == [f"r{number}" for number in range(400)]


def test_a_disk_that_holds_up_the_writer_does_not_keep_rows_in_memory(start: Any, until: Wait) -> None:
    desk, go_on = start(), threading.Event()

    class Slow(SQLiteStore):
        def insert(self, entries: Any) -> None:
            go_on.wait(30)
            super().insert(entries)

    desk.opened = lambda: Slow.connect(desk.path, 0.1, create=True)
    try:
        desk.recorder.add(ended(1))
        until(lambda: not desk.recorder._queue)
        for number in range(2, 100):
            desk.recorder.add(ended(number))
        until(lambda: desk.spool_path.exists() and lines(desk.spool_path) == 99)
    finally:
        go_on.set()
    until(lambda: desk.path.exists() and desk.has(99)() and not any(desk.spool_path.iterdir()))
    assert desk.ids() == [f"r{number}" for number in range(1, 100)]


def lines(folder: Path) -> int:
    """Rows in the spool."""
    return sum(len(path.read_bytes().splitlines()) - 1 for path in folder.iterdir())


def test_what_neither_the_database_nor_the_spool_takes_waits_and_the_rest_is_counted_and_told(
    start: Any, until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    desk = start(spool_bytes=0, limit=100)
    desk.opened = gone
    for number in range(100):
        desk.recorder.add(ended(number))
    until(lambda: not desk.recorder._queue)
    for number in range(100, 1000):
        desk.recorder.add(ended(number))
    until(lambda: "rows of the usage ledger are lost" in caplog.text)
    desk.opened = lambda: Store.open(desk.path, 0.1)
    until(lambda: desk.path.exists() and len(desk.ids()) >= 100)
    desk.recorder.stop()
    assert len(desk.ids()) + desk.recorder.lost == 1000
    assert caplog.text.count("are put aside until it can") == 1


def test_losses_are_told_once_a_minute(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    desk = start(spool_bytes=0, limit=10)
    desk.opened = gone
    for _ in range(20):
        for number in range(50):
            desk.recorder.add(ended(number))
        time.sleep(0.02)  # no waiting for anything: losses come in several turns
    desk.recorder.stop()
    told = [record.getMessage() for record in caplog.records if "are lost" in record.getMessage()]
    assert len(told) <= 2  # the first, and at the end the rest
    assert sum(int(text.split()[0]) for text in told) == desk.recorder.lost == 1000


def test_a_row_that_no_database_takes_does_not_keep_the_others_from_it(start: Any, until: Wait) -> None:
    desk = start()

    class Picky(SQLiteStore):
        def insert(self, entries: Any) -> None:
            if any(each.request_id == "r7" for each in entries):
                raise Unfit("r7")
            super().insert(entries)

    desk.opened = lambda: Picky.connect(desk.path, 0.1, create=True)
    for number in range(10):
        desk.recorder.add(ended(number))
    until(desk.has(9))
    assert desk.recorder.lost == 1


def test_a_request_that_cannot_be_noted_does_not_stop_the_thread(start: Any, until: Wait) -> None:
    desk = start()
    broken: Any = "no number"
    desk.recorder.add(ended(1, duration=broken))
    desk.recorder.add(ended(2))
    until(desk.has(1))
    assert (desk.ids(), desk.recorder.lost) == (["r2"], 1)


def test_a_ledger_that_is_removed_is_made_anew(start: Any, until: Wait, caplog: pytest.LogCaptureFixture) -> None:
    desk = start()
    desk.recorder.add(ended(1))
    until(lambda: desk.path.exists() and desk.has(1)())
    for path in desk.path.parent.glob("usage.db*"):
        path.unlink()
    desk.recorder.add(ended(2))
    until(lambda: desk.path.exists() and desk.ids() == ["r2"])
    assert "moved or removed" in caplog.text


def test_a_database_that_cannot_be_used_at_all_is_told_once_and_tried_again(
    start: Any, until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    desk, tries = start(), []

    def damaged() -> Store:
        tries.append(1)
        raise PluginError("usage", "it is damaged")

    desk.opened = damaged
    with caplog.at_level(logging.WARNING, "headrace.usage"):
        desk.recorder.add(ended(1))
        until(lambda: len(tries) > 1)
        desk.opened = lambda: Store.open(desk.path, 0.1)
        until(lambda: desk.path.exists() and desk.has(1)())
    assert caplog.text.count("it is damaged") == 1
    until(lambda: "can be written again" in caplog.text)


def test_what_is_too_old_is_deleted_while_requests_come(
    tmp_path: Path, until: Wait, entry: Callable[..., Entry]
) -> None:
    from headrace_usage.retention import Retention
    from headrace_usage.times import DAY

    path = tmp_path / "usage.db"
    with Store.open(path, 5.0) as store:
        store.insert([entry(number, at=DAY + number) for number in range(2500)])
    retention = Retention(90 * DAY, None)
    spool, book = Spool(tmp_path / "spool", 10**6, 2), Book(2, Prices({}), addresses=False)
    recorder = Recorder(book, lambda: Store.open(path, 0.1), spool, 1000, retention.due)
    recorder.start(None)
    try:
        recorder.add(ended(1))

        def left() -> list[Any]:
            with Store.open(path, 5.0) as store:
                return [row[0] for row in store.run("SELECT request_id FROM requests")]

        until(lambda: left() == ["r1"])
    finally:
        recorder.stop()
