"""A database that an earlier version made goes on working."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from headrace.errors import PluginError
from headrace.exchange import Principal
from headrace_keys import keyformat, sqlite_store
from headrace_keys.ring import KeyRing
from headrace_keys.store import SCHEMA_VERSION, Store

SCHEMA_1 = """
CREATE TABLE keys (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    role        TEXT NOT NULL,
    models      TEXT,               -- a JSON list; NULL: every model
    salt        BLOB NOT NULL,
    digest      BLOB NOT NULL,
    created     REAL NOT NULL,      -- times: seconds since the epoch
    expires     REAL,
    revoked     REAL,
    development INTEGER NOT NULL DEFAULT 0
)
"""
SECRET = "a" * 32
SALT = bytes(range(16))
OPEN = (
    "import sys; from pathlib import Path; from headrace_keys.store import Store; Store.open(Path(sys.argv[1])).close()"
)


@pytest.fixture
def old(database: Path) -> Path:
    """A database of schema 1 with a key in force and a revoked one."""
    digest = keyformat.digest(SECRET.encode(), SALT)
    rows = [
        ("00000000000a", "alice", "user", '["chat","large"]', SALT, digest, 1000.25, 4e9, None, 0),
        ("00000000000b", "bob", "admin", None, SALT, digest, 2000.0, None, 3000.5, 1),
    ]
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(SCHEMA_1)
        connection.executemany("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.execute("PRAGMA user_version = 1")
    return database


def test_the_keys_of_schema_1_are_all_there(old: Path) -> None:
    with Store.open(old) as store:
        alice, bob = store.records()
    assert (alice.name, alice.models, alice.created, alice.expires) == ("alice", ("chat", "large"), 1000.25, 4e9)
    assert (bob.role, bob.models, bob.revoked, bob.development) == ("admin", None, 3000.5, True)
    for record in (alice, bob):
        assert (record.owner, record.team, record.limits, record.metadata) == (None, None, None, {})


def test_a_key_of_schema_1_works(old: Path) -> None:
    ring = KeyRing()
    with Store.open(old) as store:
        ring.replace(store.records(), development=False)
    key = keyformat.whole_key("00000000000a", SECRET).encode()
    asks = Principal(id="00000000000a", name="alice", models=frozenset({"chat", "large"}))
    assert ring.authenticate([(b"x-api-key", key)]) == asks


def test_a_migrated_database_takes_new_keys(old: Path) -> None:
    with Store.open(old) as store, store.writing():
        made, _ = store.create("carol", team="research")
    with Store.open(old) as store:
        assert store.records()[-1] == made


def test_the_schema_is_noted(old: Path) -> None:
    Store.open(old).close()
    with contextlib.closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_processes_that_meet_an_old_database_together_migrate_it_once(old: Path) -> None:
    def open_elsewhere(_: int) -> int:
        return subprocess.run([sys.executable, "-c", OPEN, str(old)], timeout=60).returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_elsewhere, range(4))) == [0] * 4
    with Store.open(old) as store:
        assert len(store.records()) == 2


def test_whoever_finds_the_migration_done_leaves_it_as_it_is(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, transaction = threading.Barrier(4), sqlite_store._transaction

    def all_at_once(connection: sqlite3.Connection) -> AbstractContextManager[None]:
        together.wait(30)  # by now every one of them has read that the schema is 1
        return transaction(connection)

    monkeypatch.setattr(sqlite_store, "_transaction", all_at_once)

    def keys_found(_: int) -> int:
        with Store.open(old) as store:
            return len(store.records())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(keys_found, range(4))) == [2] * 4


def test_a_migration_that_fails_halfway_changes_nothing(old: Path) -> None:
    with contextlib.closing(sqlite3.connect(old)) as connection:
        connection.execute("ALTER TABLE keys ADD COLUMN metadata TEXT")  # in the way
        connection.commit()
    with pytest.raises(PluginError, match="duplicate column"):
        Store.open(old)
    with contextlib.closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert "owner" not in {row[1] for row in connection.execute("PRAGMA table_info(keys)")}


def test_a_gateway_of_earlier_days_that_is_running_reads_on(old: Path) -> None:
    with contextlib.closing(sqlite3.connect(old)) as earlier:
        Store.open(old).close()
        columns = "id, name, role, models, salt, digest, created, expires, revoked, development"
        assert len(earlier.execute(f"SELECT {columns} FROM keys ORDER BY created, id").fetchall()) == 2
