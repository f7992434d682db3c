"""Rows that are put aside, and taken up again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace_usage.entry import Entry
from headrace_usage.spool import FORMAT, Spool

MakeEntry = Callable[..., Entry]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def taken(spool: Spool, count: int = 100) -> list[Entry]:
    return [row for rows in spool.taken_up(count) for row in rows]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_what_was_put_aside_comes_back_as_it_was_and_once(folder: Path, entry: MakeEntry) -> None:
    spool, rows = Spool(folder, 10**6, 7), [entry(n, model=f"Zoë\n{n}", cost=None, at=2**41) for n in range(250)]
    assert (spool.put(rows[:100]), spool.put(rows[100:])) == (100, 150)
    spool.end_segment()
    assert taken(spool) == rows
    assert (taken(spool), segments(folder)) == ([], [])


def test_nobody_takes_up_what_somebody_still_writes(folder: Path, entry: MakeEntry) -> None:
    writer, other = Spool(folder, 10**6, 1), Spool(folder, 10**6, 2)
    writer.put([entry(1)])
    assert taken(other) == []
    writer.end_segment()
    assert taken(other) == [entry(1)]


def test_two_do_not_take_up_the_same(folder: Path, entry: MakeEntry) -> None:
    first, second = Spool(folder, 10**6, 1), Spool(folder, 10**6, 2)
    first.put([entry(n) for n in range(10)])
    first.end_segment()
    one = first.taken_up(5)
    assert len(next(one)) == 5
    assert taken(second) == []
    assert len(next(one)) == 5


def test_what_was_taken_up_and_not_written_is_taken_up_again(folder: Path, entry: MakeEntry) -> None:
    spool = Spool(folder, 10**6, 1)
    spool.put([entry(n) for n in range(10)])
    spool.end_segment()
    given_up: Iterator[list[Entry]] = spool.taken_up(4)
    next(given_up)
    del given_up
    assert len(taken(spool)) == 10


def test_it_takes_no_more_than_it_has_room_for_whoever_filled_it(folder: Path, entry: MakeEntry) -> None:
    one, other = Spool(folder, 2000, 1), Spool(folder, 2000, 2)
    rows = [entry(n) for n in range(100)]
    count = one.put(rows)
    assert 0 < count < 100
    assert other.put(rows[count:]) == 0
    assert sum(path.stat().st_size for path in segments(folder)) <= 2000 + len(FORMAT)
    one.end_segment()
    assert taken(other) == rows[:count]
    assert other.put(rows[:3]) == 3


def test_without_room_there_is_no_folder(folder: Path, entry: MakeEntry) -> None:
    assert Spool(folder, 0, 1).put([entry(1)]) == 0
    assert not folder.exists()


def test_half_a_line_at_the_end_loses_that_line_alone(
    folder: Path, entry: MakeEntry, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(folder, 10**6, 1)
    spool.put([entry(n) for n in range(3)])
    spool.end_segment()
    (path,) = segments(folder)
    os.truncate(path, path.stat().st_size - 10)
    with caplog.at_level(logging.ERROR, "headrace.usage"):
        assert taken(spool) == [entry(0), entry(1)]
    assert "1 lines of" in caplog.text


def test_a_full_disk_leaves_no_half_line_behind(entry: MakeEntry, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    spool = Spool(tmp_path / "spool", 10**6, 1)
    assert spool.put([entry(1)]) == 1
    size = segments(tmp_path / "spool")[0].stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
    try:
        assert spool.put([entry(2)]) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert spool.put([entry(3)]) == 1
    spool.end_segment()
    assert taken(spool) == [entry(1), entry(3)]


def test_what_another_version_has_written_is_left_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    strange = folder / "1.rows"
    strange.write_bytes(b'["headrace-usage",2]\n["what"]\n')
    spool = Spool(folder, 10**6, 1)
    assert taken(spool) == taken(spool) == []
    assert caplog.text.count("another version") == 1
    assert strange.exists()


def test_an_empty_segment_of_a_process_that_died_at_once_is_cleared_away(folder: Path) -> None:
    folder.mkdir()
    (folder / "1.rows").touch()
    assert (taken(Spool(folder, 10**6, 1)), segments(folder)) == ([], [])
