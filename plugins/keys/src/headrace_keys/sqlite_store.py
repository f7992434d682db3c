"""The database of keys as one SQLite file in WAL mode."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from headrace.errors import PluginError

from .files import restrict
from .rows import ADDED_BY_2, table
from .store import SCHEMA_VERSION, Store, check_schema


class SQLiteStore(Store):
    """Also for many processes, as long as they share a local disk."""

    TABLE = "keys"

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self.path = path

    @classmethod
    def connect(cls, path: Path, wait_seconds: float) -> SQLiteStore:
        """Open the file, creating it for its owner's eyes only if there is none. Raises PluginError."""
        with explained(path):
            _make_private(path)
            connection = sqlite3.connect(path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection, path, wait_seconds)
            except BaseException:
                connection.close()
                raise
        return cls(connection, path)

    def run(self, statement: str, **values: object) -> Sequence[Sequence[object]]:
        return self._connection.execute(statement, values).fetchall()

    def explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        with explained(self.path), _transaction(self._connection):
            yield

    def version(self) -> int:
        with explained(self.path):
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        self._connection.close()


def _make_private(path: Path) -> None:
    """Create the file with mode 0600, or take away what others may do with an existing one.

    An existing file is never opened here: closing any descriptor of it would drop the locks that this process's
    SQLite connections hold on it (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
    SQLite gives its `-wal` and `-shm` files the mode of the database.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        restrict(path)


def _prepare(connection: sqlite3.Connection, path: Path, wait_seconds: float) -> None:
    """Check that the file is whole and ours, and bring its table to the schema of today."""
    connection.execute("PRAGMA synchronous = FULL")  # a key that was shown must not be lost
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    if _schema(connection, path) < SCHEMA_VERSION:
        with _transaction(connection):
            _migrate(connection, path)
    _use_wal(connection, time.monotonic() + wait_seconds)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Within a transaction, so that of several processes one does it, wholly, and the others find it done."""
    schema = _schema(connection, path)
    if schema == 0:
        _make_table(connection, path)
    elif schema == 1:
        for column, kind in ADDED_BY_2.items():
            connection.execute(f"ALTER TABLE keys ADD COLUMN {column} {kind}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _make_table(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise PluginError("keys", f"{path} is a database of something else: set another path in `database`")
    connection.execute(f"CREATE TABLE keys ({table('BLOB', 'REAL')})")


def _schema(connection: sqlite3.Connection, path: Path) -> int:
    return check_schema(int(connection.execute("PRAGMA user_version").fetchone()[0]), str(path))


def _use_wal(connection: sqlite3.Connection, deadline: float) -> None:
    """Changing the journal mode does not wait for locks by itself, so this does."""
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise sqlite3.OperationalError("the file system does not support SQLite's write-ahead log")
        return


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite ends it itself when the disk is full, for instance
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process holds the lock for now."""
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system say into a PluginError that says what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if is_busy(error):
            raise PluginError("keys", f"{path} is locked by another process: try again") from error
        raise PluginError("keys", f"{path} cannot be used: {error}") from error
    except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
        raise PluginError(
            "keys", f"{path} is damaged ({error}): restore it from a backup, or move it away and create new keys"
        ) from error
    except OSError as error:
        raise PluginError("keys", f"{path} cannot be used: {error.strerror}") from error
