"""The database of keys: one SQLite file in WAL mode, shared by any number of processes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from headrace.config import Secret
from headrace.errors import PluginError
from headrace.exchange import Role

from . import keyformat
from .record import Record

SCHEMA_VERSION = 1
SCHEMA = """
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
WAIT_SECONDS = 5.0
"""How long a command waits for another process that is writing."""


class Store:
    """One connection to the database. Not for two threads at the same time. Use as a context manager."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self.path = path

    @classmethod
    def open(cls, path: Path, wait_seconds: float = WAIT_SECONDS) -> Store:
        """Open the database, creating it for its owner's eyes only if there is none.

        Raises:
            PluginError: it cannot be opened, is damaged, busy, or not ours; says what to do.
        """
        with explained(path):
            _make_private(path)
            connection = sqlite3.connect(path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection, path, wait_seconds)
            except BaseException:
                connection.close()
                raise
        return cls(connection, path)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock: what happens within happens whole, and in one process at a time."""
        with explained(self.path), _transaction(self._connection):
            yield

    def version(self) -> int:
        """A number that changes whenever another connection has changed the database."""
        with explained(self.path):
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def records(self) -> list[Record]:
        """Every key, in the order of creation."""
        with explained(self.path):
            rows = self._connection.execute(f"SELECT {', '.join(COLUMNS)} FROM keys ORDER BY created, id")  # noqa: S608
            return [_record(row) for row in rows]

    def create(
        self,
        name: str,
        *,
        role: Role = "user",
        models: Sequence[str] | None = None,
        expires: float | None = None,
        development: bool = False,
    ) -> tuple[Record, Secret]:
        """Make a key; the second value is the whole key, which is kept nowhere. Call within `writing()`."""
        secret, salt = keyformat.new_secret(), keyformat.new_salt()
        record = Record(
            id=keyformat.new_id(),
            name=name,
            role=role,
            models=None if models is None else tuple(models),
            salt=salt,
            digest=keyformat.digest(secret.encode(), salt),
            created=time.time(),
            expires=expires,
            development=development,
        )
        marks = ", ".join("?" for _ in COLUMNS)
        self._connection.execute(f"INSERT INTO keys ({', '.join(COLUMNS)}) VALUES ({marks})", _row(record))  # noqa: S608
        return record, Secret(keyformat.whole_key(record.id, secret))

    def revoke(self, id: str) -> None:
        """Revoke a key; one that already is stays as it was. Call within `writing()`."""
        self._connection.execute("UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (time.time(), id))


COLUMNS = Record.__struct_fields__


def _record(row: Sequence[object]) -> Record:
    values = dict(zip(COLUMNS, row, strict=True))
    if isinstance(values["models"], str):
        values["models"] = msgspec.json.decode(values["models"])
    return msgspec.convert(values, Record, strict=False)


def _row(record: Record) -> list[object]:
    models = None if record.models is None else msgspec.json.encode(record.models).decode()
    return [models if name == "models" else getattr(record, name) for name in COLUMNS]


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


def restrict(path: Path) -> None:
    """Take away what others may do with a file. Raises PluginError if it is something else than a file, and OSError."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise PluginError("keys", f"{path} is not a file: move it away, or set another path")
    if mode & 0o077:
        path.chmod(0o600)


def _prepare(connection: sqlite3.Connection, path: Path, wait_seconds: float) -> None:
    """Check that the file is whole and ours, and make the table if it is new."""
    connection.execute("PRAGMA synchronous = FULL")  # a key that was shown must not be lost
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    if _schema(connection, path) == 0:
        with _transaction(connection):
            _make_schema(connection, path)
    _use_wal(connection, time.monotonic() + wait_seconds)


def _make_schema(connection: sqlite3.Connection, path: Path) -> None:
    if _schema(connection, path) > 0:  # another process was first
        return
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise PluginError("keys", f"{path} is a database of something else: set another path in `database`")
    connection.execute(SCHEMA)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


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


def _schema(connection: sqlite3.Connection, path: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise PluginError(
            "keys",
            f"{path} was written by a newer version of headrace-keys (schema {version}, this one knows "
            f"{SCHEMA_VERSION}): upgrade headrace-keys",
        )
    return version


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
