"""Lines on their way to a file: order, bounds, rotation, failures."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from headrace_logs import writer
from headrace_logs.writer import FileSink, Sink, Writer


def notice(message: str, **fields: object) -> str:
    return json.dumps({"event": message, **fields})


def running(sink: Sink, limit: int = 8_000_000) -> Writer:
    made = Writer(sink, limit, notice)
    made.start()
    return made


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def lost_more_than(made: Writer, before: int) -> bool:
    return made._lost > before


class Gate:
    """A sink that is as slow as the test wants it: a write waits until `open` is set."""

    name = "gate"

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.open = threading.Event()
        self.data = b""

    def write(self, data: bytes) -> None:
        self.waiting.set()
        assert self.open.wait(20)
        self.data += data

    def close(self) -> None:
        pass

    @property
    def lines(self) -> list[str]:
        return self.data.decode().splitlines()


def test_every_line_is_there_in_order_after_stop(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    made = running(FileSink(path))
    for number in range(5000):
        made.write_text(f"line {number}")
    made.stop()
    assert path.read_text().splitlines() == [f"line {number}" for number in range(5000)]


def test_lines_of_several_threads_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    made = running(FileSink(path))

    def write() -> None:
        for _ in range(500):
            made.write_text("x" * 500)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.stop()
    assert path.read_text().splitlines() == ["x" * 500] * 2000


def test_a_slow_reader_does_not_hold_up_the_writing_side() -> None:
    gate = Gate()
    made = running(gate)
    made.write_text("first")
    assert gate.waiting.wait(20)
    for number in range(100):
        made.write_text(f"line {number}")  # returns at once: the sink is still stuck in its first write
    assert not gate.data
    gate.open.set()
    made.stop()
    assert gate.lines == ["first", *(f"line {number}" for number in range(100))]


def test_lines_beyond_the_limit_are_dropped_and_counted() -> None:
    gate = Gate()
    made = running(gate, limit=100)
    made.write_text("first")
    assert gate.waiting.wait(20)
    for _ in range(25):
        made.write_text("123456789")  # ten bytes with its line feed
    gate.open.set()
    made.stop()
    *kept, own = gate.lines
    assert kept == ["first", *["123456789"] * 10]
    assert json.loads(own)["dropped"] == 15


def test_a_line_written_after_the_stop_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    made = running(FileSink(path))
    made.write_text("before")
    made.stop()
    made.write_text("after")
    assert path.read_text() == "before\nafter\n"


def test_stopping_does_not_wait_for_ever_for_a_stuck_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "STOP_SECONDS", 0.1)
    gate = Gate()
    made = running(gate)
    made.write_text("first")
    assert gate.waiting.wait(20)
    started = time.monotonic()
    made.stop()
    assert time.monotonic() - started < 10
    gate.open.set()


def test_a_moved_file_is_opened_anew(tmp_path: Path) -> None:
    path, old = tmp_path / "x.log", tmp_path / "x.log.1"
    made = running(FileSink(path))
    made.write_text("one")
    until(lambda: path.read_text() == "one\n")
    path.rename(old)
    made.write_text("two")
    made.stop()
    assert old.read_text() == "one\n"
    assert path.read_text() == "two\n"


def test_a_replaced_file_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    made = running(FileSink(path))
    made.write_text("one")
    until(lambda: path.read_text() == "one\n")
    path.rename(tmp_path / "x.log.1")
    path.write_text("made by logrotate\n")
    made.write_text("two")
    made.stop()
    assert path.read_text() == "made by logrotate\ntwo\n"


def test_a_removed_file_and_folder_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "x.log"
    made = running(FileSink(path))
    made.write_text("one")
    until(lambda: path.read_text() == "one\n")
    path.unlink()
    path.parent.rmdir()
    made.write_text("two")
    made.stop()
    assert path.read_text() == "two\n"


def test_a_truncated_file_is_written_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    made = running(FileSink(path))
    made.write_text("one")
    until(lambda: path.read_text() == "one\n")
    os.truncate(path, 0)  # logrotate's copytruncate
    made.write_text("two")
    made.stop()
    assert path.read_text() == "two\n"


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    running(FileSink(path)).stop()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_said_once_and_survived(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.log"
    path.symlink_to("/dev/full")
    made = running(FileSink(path))
    for number in range(3):
        before = made._lost
        made.write_text(f"line {number}")
        until(partial(lost_more_than, made, before))
    said = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(each["file"], "No space left" in each["reason"]) for each in said] == [(str(path), True)]
    path.unlink()
    made.write_text("there is room again")
    made.stop()
    own, line = path.read_text().splitlines()
    assert json.loads(own)["lost"] == 3
    assert line == "there is room again"


def test_a_write_that_broke_off_does_not_spoil_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.log"
    sink = FileSink(path)
    whole = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 5:
            raise OSError(28, "No space left on device")
        return whole(descriptor, data[: len(data) - 4])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left"):
        sink.write(b"0123456789\n")
    monkeypatch.undo()
    sink.write(b"next\n")
    sink.close()
    assert path.read_text() == "0123456\nnext\n"


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = b"x" * 1_000_000
    received: list[bytes] = []

    def read() -> None:
        while chunk := os.read(reading, 65536):
            received.append(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    writer._write_all(writing, data)
    os.close(writing)
    thread.join(20)
    os.close(reading)
    assert b"".join(received) == data
