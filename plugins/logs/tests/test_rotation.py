"""The file of bodies: never larger than it may be, however many write to it."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

from headrace_logs.rotation import RotatingSink

LINE = b"x" * 99 + b"\n"


def files(path: Path) -> dict[str, int]:
    """Their sizes, by what follows the name."""
    return {each.name.removeprefix(path.name): each.stat().st_size for each in path.parent.glob(path.name + "*")}


def test_a_file_that_would_be_too_large_becomes_number_one(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    sink = RotatingSink(path, 250, 3)
    for _ in range(3):
        sink.write(LINE)
    sink.close()
    assert files(path) == {"": 100, ".1": 200}


def test_no_more_files_are_kept_than_wanted_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    sink = RotatingSink(path, 10, 3)
    for number in range(9):
        sink.write(b"line %d\n" % number)
    sink.close()
    kept = [(path.with_name(path.name + end)).read_text() for end in (".2", ".1", "")]
    assert kept == ["line 6\n", "line 7\n", "line 8\n"]
    assert len(files(path)) == 3


def test_one_file_alone_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    sink = RotatingSink(path, 10, 1)
    sink.write(b"line 1\n")
    sink.write(b"line 2\n")
    sink.close()
    assert (path.read_text(), len(files(path))) == ("line 2\n", 1)


def test_many_lines_at_once_are_shared_out_to_files(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    sink = RotatingSink(path, 250, 10)
    sink.write(LINE * 7)
    sink.close()
    assert files(path) == {"": 100, ".1": 200, ".2": 200, ".3": 200}


def test_what_was_there_before_counts(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    path.write_bytes(LINE * 2)
    sink = RotatingSink(path, 250, 3)
    sink.write(LINE)
    sink.close()
    assert files(path) == {"": 100, ".1": 200}


def test_files_of_a_time_when_more_were_kept_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    for number in range(1, 6):
        path.with_name(f"{path.name}.{number}").write_bytes(LINE)
    RotatingSink(path, 250, 3).close()
    assert set(files(path)) == {"", ".1", ".2"}


def test_half_a_line_of_somebody_else_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    sink = RotatingSink(path, 1000, 2)
    path.write_bytes(b"half a li")
    sink.write(LINE)
    sink.close()
    assert path.read_bytes() == b"half a li\n" + LINE


def test_nobody_else_may_read_the_files_whatever_they_were_before(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    path.touch(0o644)
    sink = RotatingSink(path, 150, 3)
    sink.write(LINE)
    sink.write(LINE)
    sink.close()
    modes = {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    assert modes == {0o600}


def test_a_file_that_logrotate_moved_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    sink = RotatingSink(path, 1000, 2)
    sink.write(LINE)
    path.rename(tmp_path / "moved")
    sink.write(LINE)
    sink.close()
    assert (path.read_bytes(), (tmp_path / "moved").read_bytes()) == (LINE, LINE)


WORKER = """
import sys
from pathlib import Path
from headrace_logs.rotation import RotatingSink
sink = RotatingSink(Path(sys.argv[1]), 5_000, 1000)
for number in range(300):
    sink.write(b"%s %04d %s\\n" % (sys.argv[2].encode(), number, b"x" * 50))
"""


def test_workers_share_the_file_and_no_line_is_lost_or_torn(tmp_path: Path) -> None:
    path = tmp_path / "bodies.jsonl"
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(path), name]) for name in "abc"]
    try:
        assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert max(files(path).values()) <= 5_000
    lines = [line for each in tmp_path.iterdir() for line in each.read_text().splitlines()]
    assert {len(line) for line in lines} == {57}
    assert sorted(line[:6] for line in lines) == [f"{name} {number:04d}" for name in "abc" for number in range(300)]
