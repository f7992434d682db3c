"""Answers that callers can go on from, in a SQLite database: a file, or one in memory. Used by one thread at a time.

A caller sees their own alone. When there is too much, whoever has most loses their oldest first.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from headrace.errors import HeadraceError

VERSION = 1
MEMORY = ":memory:"
"""A place that is no file."""
WAIT_SECONDS = 5.0
"""For other processes that write."""
AT_ONCE = 1000
"""Entries that are deleted in one transaction."""

SCHEMA = """
CREATE TABLE response (caller TEXT, id TEXT, created REAL, expires REAL, size INTEGER, body BLOB, items BLOB,
                       PRIMARY KEY (caller, id));
CREATE INDEX response_expires ON response (expires);
CREATE INDEX response_created ON response (caller, created);
CREATE TABLE item (caller TEXT, id TEXT, response TEXT, PRIMARY KEY (caller, id)) WITHOUT ROWID;
CREATE INDEX item_response ON item (caller, response);
CREATE TABLE share (caller TEXT PRIMARY KEY, entries INTEGER, bytes INTEGER) WITHOUT ROWID;
CREATE TRIGGER response_in AFTER INSERT ON response BEGIN
    INSERT INTO share VALUES (new.caller, 1, new.size)
        ON CONFLICT (caller) DO UPDATE SET entries = entries + 1, bytes = bytes + new.size;
END;
CREATE TRIGGER response_out AFTER DELETE ON response BEGIN
    DELETE FROM item WHERE caller = old.caller AND response = old.id;
    UPDATE share SET entries = entries - 1, bytes = bytes - old.size WHERE caller = old.caller;
    DELETE FROM share WHERE caller = old.caller AND entries <= 0;
END;
"""


class StoreError(HeadraceError):
    """The store cannot be used, and why."""


class Entry(msgspec.Struct):
    """One answer with the conversation that led to it.

    `body` is the response object; `items` the items it answered, a JSON list; `item_ids` those of its output.
    """

    caller: str
    id: str
    body: bytes
    items: bytes
    item_ids: tuple[str, ...] = ()
    expires: float = 0.0
    """Seconds since 1970."""

    @property
    def size(self) -> int:
        return len(self.body) + len(self.items)


class Store:
    """Raises StoreError from every method.

    Args:
        place: the file, or `MEMORY`.
        max_entries, max_bytes: when more is there, it is deleted.
    """

    def __init__(self, place: str, max_entries: int, max_bytes: int) -> None:
        self._place = place
        self._max_entries, self._max_bytes = max_entries, max_bytes

    def open(self) -> None:
        with self._explained():
            if self._place != MEMORY:
                _make_private(Path(self._place))
            self._database = sqlite3.connect(
                self._place, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def close(self) -> None:
        self._database.close()

    def _prepare(self) -> None:
        self._use_wal(time.monotonic() + WAIT_SECONDS)
        self._database.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last moments: no harm is done
        self._database.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        with self._writing():
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._create()
            elif version != VERSION:
                raise StoreError(f"{self._place} was made by another version: move it away, or set another database")

    def _create(self) -> None:
        if self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(f"{self._place} is a database of something else: set another database")
        for statement in _statements(SCHEMA):
            self._database.execute(statement)
        self._database.execute(f"PRAGMA user_version = {VERSION}")

    def _use_wal(self, deadline: float) -> None:
        """Changing the journal mode does not wait for locks by itself, so this does."""
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            return

    # --- what is asked --------------------------------------------------------------------------------------------

    def put(self, entries: Sequence[Entry]) -> None:
        """Keep these, in place of others of the same ids."""
        with self._explained(), self._writing():
            for entry in entries:
                key = (entry.caller, entry.id)
                self._database.execute("DELETE FROM response WHERE caller = ? AND id = ?", key)
                self._database.execute(
                    "INSERT INTO response VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (*key, time.time(), entry.expires, entry.size, entry.body, entry.items),
                )
                self._database.executemany(
                    "INSERT OR REPLACE INTO item VALUES (?, ?, ?)",
                    [(entry.caller, item, entry.id) for item in entry.item_ids],
                )
            self._make_room()

    def get(self, caller: str, name: str) -> Entry | None:
        """The caller's answer of this id."""
        with self._explained():
            row = self._database.execute(
                "SELECT body, items, expires FROM response WHERE caller = ? AND id = ? AND expires > ?",
                (caller, name, time.time()),
            ).fetchone()
        return None if row is None else Entry(caller, name, row[0], row[1], expires=row[2])

    def owner(self, caller: str, item: str) -> Entry | None:
        """The caller's answer whose output has this item."""
        with self._explained():
            row = self._database.execute(
                "SELECT response FROM item WHERE caller = ? AND id = ?", (caller, item)
            ).fetchone()
        return None if row is None else self.get(caller, row[0])

    def delete(self, caller: str, name: str) -> bool:
        """Whether there was one."""
        with self._explained():
            done = self._database.execute("DELETE FROM response WHERE caller = ? AND id = ?", (caller, name))
            return done.rowcount > 0

    def purge(self) -> None:
        """Delete what has expired; then what was deleted is gone from the write-ahead log, too."""
        with self._explained():
            while self._purge_some() == AT_ONCE:
                pass
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _purge_some(self) -> int:
        """How many were deleted."""
        return self._database.execute(
            "DELETE FROM response WHERE rowid IN (SELECT rowid FROM response WHERE expires <= ? LIMIT ?)",
            (time.time(), AT_ONCE),
        ).rowcount

    # --- how ------------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        while True:
            entries, size = self._database.execute("SELECT sum(entries), sum(bytes) FROM share").fetchone()
            if not entries or (entries <= self._max_entries and size <= self._max_bytes):
                return
            by = "bytes" if size > self._max_bytes else "entries"
            self._database.execute(
                "DELETE FROM response WHERE rowid = (SELECT rowid FROM response WHERE caller ="  # noqa: S608
                f" (SELECT caller FROM share ORDER BY {by} DESC LIMIT 1) ORDER BY created, rowid LIMIT 1)"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite ends it itself when the disk is full, for instance
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, OverflowError, UnicodeError) as error:
            raise StoreError(f"{self._place}: {error}") from error


def _statements(script: str) -> Iterator[str]:
    """`executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines():
        statement += f"{line}\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _make_private(path: Path) -> None:
    """Create the file for its owner's eyes only, or take away what others may do with it.

    An existing file is never opened here: closing any descriptor of it would drop the locks that this process's
    SQLite connections hold on it (https://sqlite.org/howtocorrupt.html).
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
