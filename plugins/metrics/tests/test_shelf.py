"""What ended processes have counted is kept, once, and takes no more room the more of them there were."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace_metrics import keys
from headrace_metrics.exposition import merged
from headrace_metrics.shelf import Shelf
from headrace_metrics.table import Table

REQUESTS = keys.counter("requests", ("model",), ("test",))
GAUGE = keys.of_sample(True, "waiting", "waiting", {"worker": "0"})
LIVE = """
import sys, time
from pathlib import Path
from headrace_metrics.shelf import Shelf
from headrace_metrics.table import Table
from headrace_metrics import keys
table = Table()
Shelf(Path(sys.argv[1])).add(table, 0, lambda key: True)
requests = table.row(keys.counter("requests", ("model",), ("test",)), 1)
gauge = table.row(keys.of_sample(True, "waiting", "waiting", {"worker": "0"}), 2)
gauge[0] = gauge[1] = 1
table.row(keys.described("waiting", "gauge", "x"), 0)
for _ in range(1000):
    requests[0] += 1
print("ready", flush=True)
time.sleep(600)
"""


def begun(folder: Path, worker: int = 0, still_used: Any = lambda key: True) -> Table:
    table = Table()
    Shelf(folder).add(table, worker, still_used)
    return table


def total(folder: Path, key: bytes = REQUESTS) -> float:
    """What all pages together say."""
    return sum(page.rows[key][0] for page in Shelf(folder).pages() if key in page.rows)


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.rows")]


@pytest.fixture
def killed(folder: Path) -> Path:
    """A folder in which a process has counted to 1000 and was killed."""
    with subprocess.Popen([sys.executable, "-c", LIVE, str(folder)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    return folder


def test_what_a_killed_process_counted_is_kept(killed: Path) -> None:
    assert total(killed) == 1000.0


def test_what_a_killed_process_counted_is_counted_once_however_often_one_looks(killed: Path) -> None:
    for _ in range(3):
        assert total(killed) == 1000.0


def test_the_file_of_a_killed_process_is_removed(killed: Path) -> None:
    Shelf(killed).pages()
    assert files(killed) == []


def test_what_was_true_of_a_killed_process_is_not_shown(killed: Path) -> None:
    assert not [family for family in merged(Shelf(killed).pages()) if family.name == "waiting"]


def test_those_at_work_and_those_that_ended_are_added_up(killed: Path) -> None:
    begun(killed).row(REQUESTS, 1)[0] += 5
    begun(killed, 1).row(REQUESTS, 1)[0] += 7
    assert total(killed) == 1012.0


def test_dying_before_the_file_is_removed_counts_nothing_twice(killed: Path, tmp_path: Path) -> None:
    (left,) = files(killed)
    shutil.copy(killed / left, tmp_path / left)
    Shelf(killed).pages()
    shutil.copy(tmp_path / left, killed / left)  # as if it had died before it could remove it
    assert total(killed) == 1000.0
    assert files(killed) == []


def test_a_hundred_lives_take_the_room_of_one(folder: Path) -> None:
    for _ in range(100):
        table = begun(folder)
        table.row(REQUESTS, 1)[0] += 1
        table.close()
    assert total(folder) == 100.0
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2000


def test_a_file_that_is_written_is_never_taken_over(folder: Path) -> None:
    table = begun(folder)
    Shelf(folder).pages()
    table.row(REQUESTS, 1)[0] += 1
    assert total(folder) == 1.0


def test_what_is_not_configured_any_more_is_forgotten_at_a_start(killed: Path) -> None:
    begun(killed, still_used=lambda key: ("model", "test") not in key.labels)
    assert total(killed) == 0.0


def test_nothing_is_forgotten_while_others_are_at_work(killed: Path) -> None:
    begun(killed)
    begun(killed, 1, still_used=lambda key: False)
    assert total(killed) == 1000.0


def test_kept_counts_that_cannot_be_read_are_put_aside_and_told_of(killed: Path, caplog: Any) -> None:
    Shelf(killed).pages()
    (killed / "kept").write_bytes(b"\xc1 damaged")
    begun(killed).row(REQUESTS, 1)[0] += 2
    assert total(killed) == 2.0
    assert (killed / "kept.bad").exists() and "counts begin anew" in caplog.text


def test_a_file_of_nobody_and_nothing_is_removed(folder: Path) -> None:
    folder.mkdir()
    (folder / "0-x.rows").write_bytes(b"garbage")
    assert total(folder) == 0.0
    assert files(folder) == []


def test_a_process_that_was_stopped_while_it_looked_is_not_waited_for_for_ever(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_metrics.shelf.LOCK_SECONDS", 0.05)
    begun(folder)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process"):
            Shelf(folder).pages()


def test_nobody_else_may_read_the_files(folder: Path) -> None:
    begun(folder)
    assert {path.stat().st_mode & 0o077 for path in (folder, *folder.glob("*.rows"))} == {0}
