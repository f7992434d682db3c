"""Numbers in files: written by one, read by others, there after any end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from headrace_metrics.table import CHUNK, MOST_ROWS, Table, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0-a.rows"


@pytest.fixture
def table(path: Path) -> Table:
    table = Table()
    table.open(path, 3)
    return table


def test_what_is_counted_is_read_by_others_at_once(table: Table, path: Path) -> None:
    table.row(b"requests", 1)[0] += 2
    page = read(path, alive=True)
    assert page is not None and page.rows[b"requests"].tolist() == [2.0]


def test_a_page_says_which_worker_wrote_it(table: Table, path: Path) -> None:
    page = read(path, alive=True)
    assert page is not None and (page.worker, page.superseded) == (3, False)


def test_a_page_says_that_another_gateway_has_taken_over(table: Table, path: Path) -> None:
    table.supersede()
    page = read(path, alive=True)
    assert page is not None and page.superseded


def test_equal_keys_have_one_row(table: Table) -> None:
    table.row(b"requests", 1)[0] += 2
    table.row(b"requests", 1)[0] += 3
    assert table.row(b"requests", 1)[0] == 5.0


def test_rows_of_all_lengths_are_read_as_they_were_written(table: Table, path: Path) -> None:
    for size in range(1, 60):
        cells = table.row(b"k" * size, size)
        for at in range(size):
            cells[at] = size * 100.0 + at
    page = read(path, alive=True)
    assert page is not None
    assert {len(key): row.tolist() for key, row in page.rows.items()} == {
        size: [size * 100.0 + at for at in range(size)] for size in range(1, 60)
    }


def test_a_file_grows_and_earlier_rows_stay_where_they_are(table: Table, path: Path) -> None:
    first = table.row(b"first", 1)
    for number in range(3000):
        table.row(b"row %d" % number, 2)[0] = number
    first[0] += 1
    page = read(path, alive=True)
    assert page is not None and path.stat().st_size > CHUNK
    assert page.rows[b"first"][0] == 1.0 and page.rows[b"row 2999"][0] == 2999.0


def test_there_are_no_more_rows_than_may_be(table: Table, path: Path) -> None:
    for number in range(MOST_ROWS + 500):
        table.row(b"row %d" % number, 1)[0] += 1
    page = read(path, alive=True)
    assert page is not None and len(page.rows) == MOST_ROWS


def test_rows_beyond_that_are_told_of_once(table: Table, caplog: Any) -> None:
    for number in range(MOST_ROWS + 500):
        table.row(b"row %d" % number, 1)
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["20000 series are enough"]


@pytest.mark.parametrize("damage", [b"", b"HRROWS1\n", bytes(CHUNK), os.urandom(CHUNK), b"HRROWS1\n" + b"\xff" * CHUNK])
def test_a_damaged_file_is_read_without_an_error(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    page = read(path, alive=False)
    assert page is None or page.rows == {}


def test_a_row_that_was_begun_when_the_process_died_is_not_there(table: Table, path: Path) -> None:
    table.row(b"whole", 1)[0] = 1
    data = bytearray(path.read_bytes())
    data[8:16] = (int.from_bytes(data[8:16], "little") + 40).to_bytes(8, "little")  # used, but never written
    path.write_bytes(bytes(data))
    page = read(path, alive=False)
    assert page is not None and page.rows[b"whole"].tolist() == [1.0]


def test_on_a_full_disk_requests_go_on_and_the_log_says_why(
    table: Table, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for number in range(5000):
        table.row(b"row %d" % number, 4)[0] += 1
    assert [record.message for record in caplog.records] == [
        "what is new is not counted: there is no room for it: [Errno 28] No space left on device"
    ]
