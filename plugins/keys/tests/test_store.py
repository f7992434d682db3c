"""The database: private, whole, shared, and without a secret in it."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.errors import PluginError
from headrace_keys.store import SCHEMA_VERSION, Store

CREATE_FOR_EVER = """
import sys
from pathlib import Path
from headrace_keys.store import Store
with Store.open(Path(sys.argv[1])) as store:
    while True:
        with store.writing():
            record, _ = store.create("x" * 100)
        print(record.id, flush=True)
"""


def create(path: Path, name: str = "alice") -> str:
    with Store.open(path) as store, store.writing():
        return store.create(name)[1].reveal()


def test_a_new_database_is_readable_by_its_owner_only(database: Path) -> None:
    previous = os.umask(0)
    try:
        with Store.open(database) as store, store.writing():
            store.create("alice")
            files = list(database.parent.iterdir())
            assert {file.name for file in files} == {"keys.db", "keys.db-wal", "keys.db-shm"}
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    finally:
        os.umask(previous)


def test_a_database_that_others_may_read_is_closed_to_them(database: Path) -> None:
    create(database)
    database.chmod(0o644)
    create(database)
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


def test_neither_key_nor_secret_is_in_the_files(database: Path) -> None:
    with Store.open(database) as store:
        with store.writing():
            key = store.create("alice")[1].reveal()
        store.records()
        in_log = (database.parent / "keys.db-wal").read_bytes()
    secret = key.split("-")[2].encode()
    everything = in_log + database.read_bytes()
    assert b"alice" in everything
    assert secret not in everything and secret[:12] not in everything and key.encode() not in everything


def test_every_key_has_a_salt_of_its_own(database: Path) -> None:
    create(database)
    create(database)
    with Store.open(database) as store:
        records = store.records()
    assert len({record.salt for record in records}) == len({record.digest for record in records}) == 2


def test_what_was_written_is_read_back(database: Path) -> None:
    expires = time.time() + 1000
    with Store.open(database) as store, store.writing():
        written, _ = store.create("Zoë's laptop", role="metrics", models=["a", "b/c"], expires=expires)
    with Store.open(database) as store:
        assert store.records() == [written]
        with store.writing():
            store.revoke(written.id)
        (revoked,) = store.records()
        with store.writing():
            store.revoke(written.id)
        assert store.records() == [revoked], "the first revocation's time stays"
    assert revoked.revoked is not None and revoked.allowed == frozenset({"a", "b/c"})


def test_what_fails_halfway_leaves_nothing(database: Path) -> None:
    with Store.open(database) as store:
        with pytest.raises(RuntimeError), store.writing():
            store.create("alice")
            raise RuntimeError
        assert store.records() == []


def test_a_newer_schema_is_refused_with_what_to_do(database: Path) -> None:
    create(database)
    with sqlite3.connect(database) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(PluginError, match="upgrade headrace-keys"):
        Store.open(database)


def test_a_database_of_something_else_is_refused(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE wages (amount INTEGER)")
    connection.close()
    with pytest.raises(PluginError, match="something else"):
        Store.open(database)


def test_a_file_that_is_no_database_is_refused(database: Path) -> None:
    database.write_text("these are not the keys you are looking for\n" * 100)
    with pytest.raises(PluginError, match=r"damaged .* restore it from a backup"):
        Store.open(database)


def test_a_damaged_database_is_refused(database: Path) -> None:
    with Store.open(database) as store, store.writing():
        for _ in range(500):
            store.create("x" * 100)
    content = bytearray(database.read_bytes())
    assert len(content) > 40_000
    content[8192:40_000] = os.urandom(40_000 - 8192)
    database.write_bytes(content)
    with pytest.raises(PluginError, match="damaged"):
        Store.open(database)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"missing/keys\.db cannot be used: No such file or directory"):
        Store.open(tmp_path / "missing" / "keys.db")


def test_a_directory_in_the_database_s_place_is_left_as_it_is(database: Path) -> None:
    database.mkdir(mode=0o755)
    with pytest.raises(PluginError, match="is not a file"):
        Store.open(database)
    assert stat.S_IMODE(database.stat().st_mode) == 0o755


def test_a_database_that_stays_locked_is_an_error_that_says_so(database: Path) -> None:
    create(database)
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with (
            Store.open(database, wait_seconds=0.1) as store,
            pytest.raises(PluginError, match="locked by another process"),
            store.writing(),
        ):
            pass
    finally:
        holder.close()


def test_processes_that_start_together_share_one_new_database(
    database: Path, create_elsewhere: Callable[[str], str]
) -> None:
    with ThreadPoolExecutor(6) as pool:
        keys = list(pool.map(create_elsewhere, [f"key {number}" for number in range(6)]))
    with Store.open(database) as store:
        assert {record.id for record in store.records()} == {key.split("-")[1] for key in keys}


def test_threads_that_open_a_new_database_together_share_it(database: Path) -> None:
    start = threading.Barrier(8)

    def open_and_create(number: int) -> str:
        start.wait()
        return create(database, str(number))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(open_and_create, range(8)))) == 8
    with Store.open(database) as store:
        assert len(store.records()) == 8


@pytest.mark.parametrize("written", [1, 20])
def test_a_process_killed_while_it_creates_keys_loses_none_that_was_made(database: Path, written: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", CREATE_FOR_EVER, str(database)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        ids = [child.stdout.readline().strip() for _ in range(written)]
        child.send_signal(signal.SIGKILL)
        ids += child.stdout.read().split()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    with Store.open(database) as store:
        assert set(ids) <= {record.id for record in store.records()}
        with store.writing():
            store.create("afterwards")
