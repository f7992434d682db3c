"""The database of keys: what every kind of one can do. Shared by any number of processes."""

from __future__ import annotations

import abc
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from headrace.config import Secret
from headrace.errors import PluginError

from . import keyformat
from .place import PostgresPlace
from .record import Record
from .rows import MARKS, NAMES, SETTINGS, from_row, to_row

SCHEMA_VERSION = 2
WAIT_SECONDS = 5.0
"""How long a command waits for another process that is writing, or for a server that does not answer."""

Place = Path | PostgresPlace
"""Where a database is: a file, or a server."""


class Store(abc.ABC):
    """One connection to the database. Not for two threads at the same time. Use as a context manager.

    Statements are written once for all kinds of databases, with parameters named `:like_this`.
    """

    TABLE: ClassVar[str]

    @staticmethod
    def open(place: Place, wait_seconds: float = WAIT_SECONDS, *, create: bool = True) -> Store:
        """Open the database; with `create`, make what is not there yet.

        Raises:
            PluginError: it cannot be opened, is damaged, busy, or not ours; says what to do.
        """
        if isinstance(place, PostgresPlace):
            from .postgres_store import PostgresStore

            return PostgresStore.connect(place, wait_seconds, create=create)
        from .sqlite_store import SQLiteStore

        return SQLiteStore.connect(place, wait_seconds)

    @abc.abstractmethod
    def run(self, statement: str, **values: object) -> Sequence[Sequence[object]]:
        """Execute one statement; the rows it gives. Raises the database's own errors."""

    @abc.abstractmethod
    def explained(self) -> AbstractContextManager[None]:
        """Turn what the database says into a PluginError that says what to do."""

    @abc.abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """Hold the write lock: what happens within happens whole, and in one process at a time."""

    @abc.abstractmethod
    def version(self) -> int:
        """A number that changes whenever another connection has changed the database."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the connection back."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def records(self) -> list[Record]:
        """Every key, in the order of creation."""
        with self.explained():
            rows = self.run(f"SELECT {NAMES} FROM {self.TABLE} ORDER BY created, id")  # noqa: S608
            return [from_row(row) for row in rows]

    def create(self, name: str, **fields: Any) -> tuple[Record, Secret]:
        """Make a key; the second value is the whole key, which is kept nowhere. Call within `writing()`.

        Args:
            fields: further ones of `Record`, for instance `role`, `models` and `expires`.
        """
        secret, salt = keyformat.new_secret(), keyformat.new_salt()
        made = {
            "id": keyformat.new_id(),
            "salt": salt,
            "digest": keyformat.digest(secret.encode(), salt),
            "created": time.time(),
        }
        record = Record(**{"role": "user", "models": None, **fields, **made, "name": name})
        words = {name: getattr(record, name) for name in ("models", "endpoints")}
        record = msgspec.structs.replace(record, **{name: each and tuple(each) for name, each in words.items()})
        self.add(record)
        return record, Secret(keyformat.whole_key(record.id, secret))

    def rotate(self, record: Record, former_until: float | None) -> tuple[Record, Secret]:
        """Give a key a new secret; that of now is valid until then, or no more. Call within `writing()`."""
        secret, salt = keyformat.new_secret(), keyformat.new_salt()
        rotated = msgspec.structs.replace(
            record,
            salt=salt,
            digest=keyformat.digest(secret.encode(), salt),
            former_salt=record.salt,
            former_digest=record.digest,
            former_until=former_until,
        )
        self.save(rotated)
        return rotated, Secret(keyformat.whole_key(record.id, secret))

    def revoke(self, id: str) -> None:
        """Revoke a key; one that already is stays as it was. Call within `writing()`."""
        statement = f"UPDATE {self.TABLE} SET revoked = :now WHERE id = :id AND revoked IS NULL"  # noqa: S608
        self.run(statement, now=time.time(), id=id)

    def add(self, record: Record) -> None:
        """Write a new record. Call within `writing()`."""
        self.run(f"INSERT INTO {self.TABLE} ({NAMES}) VALUES ({MARKS})", **to_row(record))  # noqa: S608

    def save(self, record: Record) -> None:
        """Write what a record has become. Call within `writing()`."""
        self.run(f"UPDATE {self.TABLE} SET {SETTINGS} WHERE id = :id", **to_row(record))  # noqa: S608

    def delete(self, ids: Iterable[str]) -> None:
        """Forget keys altogether. Call within `writing()`."""
        for id in ids:
            self.run(f"DELETE FROM {self.TABLE} WHERE id = :id", id=id)  # noqa: S608


def check_schema(found: int, where: str) -> int:
    """The schema's version, if this code knows it. Raises PluginError if it is a later one."""
    if found > SCHEMA_VERSION:
        raise PluginError(
            "keys",
            f"{where} was written by a newer version of headrace-keys (schema {found}, this one knows "
            f"{SCHEMA_VERSION}): upgrade headrace-keys",
        )
    return found
