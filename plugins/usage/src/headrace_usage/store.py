"""The database of the ledger: what every kind of one can do. Shared by any number of processes."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from headrace.errors import PluginError

from . import schema
from .entry import Entry, Series
from .place import PostgresPlace

KNOWN_SERIES = 20_000
"""How many a connection remembers the numbers of."""

Place = Path | PostgresPlace
"""Where a database is: a file, or a server."""


class NotNow(PluginError):
    """The database cannot be used for now: it is locked, full or out of reach. Later it may be."""

    def __init__(self, message: str) -> None:
        super().__init__("usage", message)


class Unfit(PluginError):
    """The database does not take these rows, whoever writes them and whenever."""

    def __init__(self, message: str) -> None:
        super().__init__("usage", message)


class Store(abc.ABC):
    """One connection to the database. Not for two threads at the same time. Use as a context manager.

    Statements are written once for all kinds of databases, with parameters named `:like_this`.
    """

    PREFIX: ClassVar[str]
    INCOMING: ClassVar[str]
    JOIN: ClassVar[str]
    """How series are joined with their sums: series by series, where the database would not find that out itself."""

    def __init__(self) -> None:
        self._series: dict[Series, int] = {}
        self._used: set[str] = set()
        self._generation = 0
        self._writing: tuple[str, ...] = ()

    @staticmethod
    def open(place: Place, wait_seconds: float, *, create: bool = True) -> Store:
        """Open the database; with `create`, make what is not there yet.

        Raises:
            NotNow: it cannot be reached, is locked or full.
            PluginError: it cannot be used, and that will stay so: it is damaged, or not ours; says what to do.
        """
        if isinstance(place, PostgresPlace):
            from .postgres_store import PostgresStore

            return PostgresStore.connect(place, wait_seconds, create=create)
        from .sqlite_store import SQLiteStore

        return SQLiteStore.connect(place, wait_seconds, create=create)

    @abc.abstractmethod
    def run(self, statement: str, **values: object) -> Sequence[Sequence[Any]]:
        """Execute one statement; the rows it gives. Raises the database's own errors."""

    @abc.abstractmethod
    def explained(self) -> AbstractContextManager[None]:
        """Turn what the database says into NotNow, or a PluginError that says what to do."""

    @abc.abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """What happens within happens whole."""

    @abc.abstractmethod
    def reading(self, seconds: float) -> AbstractContextManager[None]:
        """What is read within is of one moment, and takes no longer than this: else NotNow is raised."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the connection back."""

    @abc.abstractmethod
    def is_there(self) -> bool:
        """Whether what is connected to is still what is found in its place."""

    @abc.abstractmethod
    def _fill(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Put rows into the table `incoming`, each name once."""

    @abc.abstractmethod
    def _lock_series(self, *, alone: bool) -> None:
        """Until the transaction ends: nobody forgets series; `alone`: nobody uses any."""

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def insert(self, entries: Sequence[Entry]) -> None:
        """Write rows and their sums, all or none. Those that are there already are left as they are.

        Raises:
            NotNow, PluginError: not now, or not with this database.
            Unfit: not these.
        """
        with self.explained(), self._undone():
            with self.writing():
                self._lock_series(alone=False)
                ids = self._ids({entry.series for entry in entries})
                self._use(entries)
                self._fill((*entry[:4], ids[entry.series], *entry[5:]) for entry in entries)
                for statement in self._writing:
                    self.run(statement)
            self._remember(ids)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """What a transaction that fails had noted as used is not."""
        before, statements = set(self._used), self._writing
        try:
            yield
        except BaseException:
            self._used, self._writing = before, statements
            raise

    def _use(self, entries: Sequence[Entry]) -> None:
        """Note which columns count times now: those that never did cost nothing."""
        names = {f"l{entry.latency_bucket}" for entry in entries} | {f"t{entry.ttft_bucket}" for entry in entries}
        new = names - self._used - {"lNone", "tNone"}
        for name in sorted(new):
            self.run(f"INSERT INTO {self.PREFIX}used VALUES (:name) ON CONFLICT DO NOTHING", name=name)  # noqa: S608
        if new or not self._writing:
            self._used |= new
            self._writing = tuple(schema.writing(self.PREFIX, self.INCOMING, self._used))

    def used(self) -> set[str]:
        """The columns that count times."""
        return {row[0] for row in self.run(f"SELECT name FROM {self.PREFIX}used")}  # noqa: S608

    def _ids(self, wanted: set[Series]) -> dict[Series, int]:
        """The numbers of series; new ones get theirs."""
        generation = self.run(f"SELECT generation FROM {self.PREFIX}state")[0][0]  # noqa: S608
        if generation != self._generation:
            self._series.clear()
            self._generation = generation
        known = {each: self._series[each] for each in wanted if each in self._series}
        return known | {each: self._id(each) for each in sorted(wanted - known.keys())}

    def _id(self, series: Series) -> int:
        values = {"digest": series.digest, **series._asdict()}
        find = f"SELECT id FROM {self.PREFIX}series WHERE digest = :digest"  # noqa: S608
        if not (found := self.run(find, digest=values["digest"])):
            marks = ", ".join(f":{name}" for name in values)
            self.run(
                f"INSERT INTO {self.PREFIX}series ({', '.join(values)}) VALUES ({marks}) ON CONFLICT DO NOTHING",  # noqa: S608
                **values,
            )
            found = self.run(find, digest=values["digest"])
        return int(found[0][0])

    def _remember(self, ids: dict[Series, int]) -> None:
        """Not before they are written for good."""
        if len(self._series) > KNOWN_SERIES:
            self._series.clear()
        self._series |= ids

    def state(self) -> tuple[int, int]:
        """Up to when requests, and sums of days, have been deleted: milliseconds since the epoch."""
        found = self.run(f"SELECT requests_from, days_from FROM {self.PREFIX}state")  # noqa: S608
        return found[0][0], found[0][1]

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """A transaction in which series may be deleted."""
        with self.explained(), self.writing():
            self._lock_series(alone=True)
            self.run(f"UPDATE {self.PREFIX}state SET generation = generation + 1")  # noqa: S608
            yield

    def _migrate(self, serial: str, clustered: str) -> None:
        """Make the tables, or make them those of today. Within a transaction, so that of several processes one does
        it, wholly, and the others find it done."""
        version = self._version()
        if version == 0:
            for statement in schema.tables(self.PREFIX, serial, clustered):
                self.run(statement)
            version = 1
        for step in schema.MIGRATIONS[version - 1 :]:
            for statement in step:
                self.run(statement.format(prefix=self.PREFIX))
        self.run(f"UPDATE {self.PREFIX}state SET version = {newest()}")  # noqa: S608

    def _version(self) -> int:
        """That of the tables that are there; 0: there are none. Raises PluginError: it is a later one than ours."""
        if not self._has_tables():
            return 0
        found = int(self.run(f"SELECT version FROM {self.PREFIX}state")[0][0])  # noqa: S608
        if found > newest():
            raise PluginError(
                "usage",
                f"{self._where()} was written by a newer version of headrace-usage (schema {found}, this one knows "
                f"{newest()}): upgrade headrace-usage",
            )
        return found

    @abc.abstractmethod
    def _has_tables(self) -> bool: ...

    @abc.abstractmethod
    def _where(self) -> str: ...


def newest() -> int:
    """The schema that this code writes."""
    return schema.VERSION + len(schema.MIGRATIONS)


def nothing_there(where: str) -> PluginError:
    """For those who look only."""
    return PluginError("usage", f"{where} has no ledger yet: one is made when a gateway with this plugin starts")
