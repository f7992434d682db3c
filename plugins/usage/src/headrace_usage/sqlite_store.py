"""The ledger as one SQLite file in WAL mode: who reads does not wait for who writes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from headrace.errors import PluginError

from . import schema
from .store import NotNow, Store, Unfit, newest, nothing_there

PASSING = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PROTOCOL),
)
"""What may be over later."""
UNFIT = (sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_RANGE)
AT_ONCE = (256, 32, 4, 1)
"""So many rows are filled in with one statement."""
STEPS = 100_000
"""Of SQLite's machine, between two looks at the clock."""


class SQLiteStore(Store):
    """Also for many processes, as long as they share a local disk."""

    PREFIX = ""
    INCOMING = "temp.incoming"
    JOIN = "CROSS JOIN"  # https://sqlite.org/optoverview.html#crossjoin

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__()
        self._connection = connection
        self.path = path
        self._file = _identity(path)
        most = connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // len(schema.COLUMNS)
        self._filling = [(count, _filling(self.INCOMING, count)) for count in AT_ONCE if count <= most]

    @classmethod
    def connect(cls, path: Path, wait_seconds: float, *, create: bool) -> SQLiteStore:
        """Open the file, creating it for its owner's eyes only if there is none. Raises NotNow, PluginError."""
        with explained(path):
            if create:
                _make_private(path)
            elif not path.exists():
                raise nothing_there(str(path))
            connection = sqlite3.connect(path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)
            store = cls(connection, path)
            try:
                store._prepare(wait_seconds, create)
            except BaseException:
                connection.close()
                raise
        return store

    def run(self, statement: str, **values: object) -> Sequence[Sequence[Any]]:
        return self._connection.execute(statement, values).fetchall()

    def explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it itself when the disk is full, for instance
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def reading(self, seconds: float) -> Iterator[None]:
        end = time.monotonic() + seconds
        self._connection.set_progress_handler(lambda: time.monotonic() > end, STEPS)
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.set_progress_handler(None, 0)
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()

    def is_there(self) -> bool:
        return _identity(self.path) == self._file

    def _fill(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Many rows with one statement: after each one Python's other threads have their turn, and to take turns with
        those that answer requests costs more than the rows do."""
        left = list(rows)
        for count, statement in self._filling:
            while len(left) >= count:
                self._connection.execute(statement, list(chain.from_iterable(left[:count])))
                del left[:count]

    def _lock_series(self, *, alone: bool) -> None:
        """Nothing to do: of all who write there is one at a time."""

    def _prepare(self, wait_seconds: float, create: bool) -> None:
        self._connection.execute("PRAGMA synchronous = FULL")  # money
        if self._version() < newest():
            if not create:
                raise nothing_there(str(self.path))
            with self.writing():
                self._migrate("INTEGER PRIMARY KEY", " WITHOUT ROWID")
        self._use_wal(time.monotonic() + wait_seconds)
        key = f"PRIMARY KEY ({', '.join(schema.NAME)})"
        self._connection.execute("PRAGMA temp_store = MEMORY")
        self._connection.execute(
            f"CREATE TABLE {self.INCOMING} ({', '.join(schema.columns(schema.COLUMNS))}, {key}) WITHOUT ROWID"
        )

    def _has_tables(self) -> bool:
        names = {row[0] for row in self.run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if names and "state" not in names:
            raise PluginError("usage", f"{self.path} is a database of something else: set another path in `database`")
        return bool(names)

    def _where(self) -> str:
        return str(self.path)

    def _use_wal(self, deadline: float) -> None:
        """Changing the journal mode does not wait for locks by itself, so this does."""
        while True:
            try:
                mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise PluginError("usage", f"{self.path}: its file system does not support SQLite's write-ahead log")
            return


def _filling(table: str, rows: int) -> str:
    marks = f"({', '.join('?' * len(schema.COLUMNS))})"
    return f"INSERT OR IGNORE INTO {table} VALUES {', '.join((marks,) * rows)}"  # noqa: S608


def _make_private(path: Path) -> None:
    """Create the file with mode 0600, or take away what others may do with an existing one.

    An existing file is never opened here: closing any descriptor of it would drop the locks that this process's
    SQLite connections hold on it (https://sqlite.org/howtocorrupt.html).
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise PluginError("usage", f"{path} is not a file: move it away, or set another path") from None
        if mode & 0o077:
            path.chmod(0o600)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _code(error: sqlite3.Error) -> int:
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system say into an error that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _in_words(error, path) from error
    except OSError as error:
        raise NotNow(f"{path} cannot be used: {error.strerror}") from error
    except (OverflowError, UnicodeError) as error:
        raise Unfit(f"{path}: {error}") from error


def _in_words(error: sqlite3.Error, path: Path) -> PluginError:
    code = _code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return NotNow(f"{path} is locked by another process: try again")
    if code == sqlite3.SQLITE_INTERRUPT:
        return NotNow("this takes too long: ask for less")
    if code in UNFIT:
        return Unfit(f"{path}: {error}")
    if code in PASSING:
        return NotNow(f"{path} cannot be used: {error}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return PluginError("usage", f"{path} is damaged ({error}): restore it from a backup, or move it away")
    return PluginError("usage", f"{path}: {error}")
