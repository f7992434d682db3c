"""Processes that are killed while they change keys."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_keys.place import postgres_place
from headrace_keys.store import Place, Store

CHANGE_FOR_EVER = """
import sys
from pathlib import Path
from headrace_keys.desk import at_desk
from headrace_keys.changes import Changes
from headrace_keys.place import is_postgres, postgres_place
place = postgres_place(sys.argv[1]) if is_postgres(sys.argv[1]) else Path(sys.argv[1])
while True:
    with at_desk(place, "test") as desk:
        record, _ = desk.create(Changes(name="x" * 100))
    print("created", record.id, record.digest.hex(), flush=True)
    with at_desk(place, "test") as desk:
        record = desk.rotate(record, 60).record
    print("rotated", record.id, record.digest.hex(), flush=True)
    with at_desk(place, "test") as desk:
        record = desk.revoke(record)
    print("revoked", record.id, record.digest.hex(), flush=True)
"""
KILLS = 6


def said_before_death(place: str, lines: int) -> list[list[str]]:
    """Let a process work until it has said so many lines and a moment more; everything that it said."""
    argv = [sys.executable, "-c", CHANGE_FOR_EVER, place]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        try:
            said = [child.stdout.readline() for _ in range(lines)]
            time.sleep(random.uniform(0, 0.02))  # no waiting for anything: any moment will do
        finally:
            child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
    return [line.split() for line in said if line.endswith("\n")]


def check(place: Place, said: list[list[str]]) -> None:
    """Everything that was acknowledged is there; at most the one change that was under way is there as well."""
    with Store.open(place) as store:
        found = {record.id: record for record in store.records()}
    last = {id: (what, digest) for what, id, digest in said}
    for id, (what, digest) in last.items():
        record = found[id]
        if what == "revoked":
            assert record.revoked is not None and record.digest.hex() == digest
        elif what == "rotated":
            assert record.digest.hex() == digest
        else:
            assert digest in (record.digest.hex(), record.former_digest and record.former_digest.hex())
    assert len(found) <= len(last) + KILLS


def test_a_file_is_whole_and_has_all_that_was_acknowledged(database: Path) -> None:
    said = []
    for _ in range(KILLS):
        said += said_before_death(str(database), random.randint(1, 12))
        with contextlib.closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check(database, said)


def test_a_server_has_all_that_was_acknowledged(postgres_url: str) -> None:
    said = []
    for _ in range(2):
        said += said_before_death(postgres_url, random.randint(1, 12))
    check(postgres_place(postgres_url), said)


@pytest.fixture
def gateway_files(database: Path) -> Iterator[Path]:
    with Store.open(database):  # another process that has the files open, as a gateway has
        yield database


def test_a_writer_that_is_killed_does_not_hold_up_a_gateway(gateway_files: Path) -> None:
    said_before_death(str(gateway_files), 5)
    with Store.open(gateway_files) as store, store.writing():
        store.create("afterwards")
