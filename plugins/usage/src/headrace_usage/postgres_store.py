"""The ledger on a PostgreSQL server, for gateways on several machines."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.errors import PluginError

from . import schema
from .place import PostgresPlace
from .store import NotNow, Store, Unfit, newest, nothing_there

if TYPE_CHECKING:
    from pg8000.native import Connection  # type: ignore[import-untyped]

LOCK = 0x6865_6164_7573_6167
"""Held while tables are made, so that one process does it; "headusag" in ASCII."""
SERIES_LOCK = LOCK + 1
SLACK_SECONDS = 0.25
"""The server is to give up before we do, and say why."""
PASSING = ("08", "23", "25", "40", "53", "55", "57", "58")
"""Classes of the server's codes for what may be over later: it is full, stops or starts, or another one was first."""
DATA = "22"
"""The class for values that it does not take."""
TOO_LONG = ("55P03", "57014")
"""The server's codes for a lock and a statement that took too long."""
SOCKET = "{host}/.s.PGSQL.{port}"


class PostgresStore(Store):
    """Nothing waits for longer than the seconds it was opened with: neither for the network nor for a lock."""

    PREFIX = "headrace_usage_"
    INCOMING = "headrace_usage_incoming"
    JOIN = "JOIN"

    def __init__(self, connection: Connection, place: PostgresPlace, wait_seconds: float) -> None:
        super().__init__()
        self._connection = connection
        self.place = place
        self._wait_seconds = wait_seconds
        kinds = ", ".join(schema.columns(schema.COLUMNS)).replace(" NOT NULL", "")
        self._filling = (
            f"INSERT INTO {self.INCOMING} SELECT {', '.join(schema.COLUMNS)} "  # noqa: S608
            f"FROM json_to_recordset(CAST(:rows AS json)) AS given({kinds}) ON CONFLICT DO NOTHING"
        )

    @classmethod
    def connect(cls, place: PostgresPlace, wait_seconds: float, *, create: bool) -> PostgresStore:
        """Connect, and with `create` make the tables if there are none. Raises NotNow, PluginError."""
        with explained(place):
            store = cls(_connected(place, wait_seconds), place, wait_seconds)
            try:
                store._prepare(create)
            except BaseException:
                store.close()
                raise
        return store

    def run(self, statement: str, **values: object) -> Sequence[Sequence[Any]]:
        rows: list[list[Any]] | None = self._connection.run(statement, **values)
        return rows or []

    def explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.place)

    def writing(self) -> contextlib.AbstractContextManager[None]:
        return self._transaction("BEGIN")

    @contextlib.contextmanager
    def reading(self, seconds: float) -> Iterator[None]:
        with self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            self.run(f"SET LOCAL statement_timeout = {int(seconds * 1000)}")
            yield

    def close(self) -> None:
        with contextlib.suppress(Exception):  # it may be broken, and it is over in any case
            self._connection.close()

    def is_there(self) -> bool:
        """A server that is gone says so by itself."""
        return True

    def _fill(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """As one parameter: the driver would take longer over twenty thousand of them than the server over all."""
        text = msgspec.json.encode([dict(zip(schema.COLUMNS, row, strict=True)) for row in rows]).decode()
        self.run(self._filling, rows=text)

    def _lock_series(self, *, alone: bool) -> None:
        self.run(f"SELECT pg_advisory_xact_lock{'' if alone else '_shared'}({SERIES_LOCK})")

    def _prepare(self, create: bool) -> None:
        milliseconds = int(self._wait_seconds * 1000)
        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            self.run(f"SET {name} = {milliseconds}")
        if self._version() < newest():
            if not create:
                raise nothing_there(self._where())
            with self._transaction("BEGIN"):
                self.run(f"SELECT pg_advisory_xact_lock({LOCK})")
                self._migrate("SERIAL PRIMARY KEY", "")
        key = f"PRIMARY KEY ({', '.join(schema.NAME)})"
        if create:
            names = ", ".join(schema.columns(schema.COLUMNS))
            self.run(f"CREATE TEMPORARY TABLE {self.INCOMING} ({names}, {key}) ON COMMIT DELETE ROWS")

    def _has_tables(self) -> bool:
        """Asks the catalogue itself: `to_regclass` answers from a cache, which a lock just taken does not refresh."""
        statement = "SELECT count(*) FROM pg_catalog.pg_class WHERE relname = :name AND pg_table_is_visible(oid)"
        return bool(self.run(statement, name=f"{self.PREFIX}state")[0][0])

    def _where(self) -> str:
        return str(self.place)

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self.run(begin)
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with contextlib.suppress(Exception):  # without a connection the server does it itself
                self.run("ROLLBACK")
            raise


def _connected(place: PostgresPlace, wait_seconds: float) -> Connection:
    try:
        from pg8000.native import Connection
    except ImportError:
        raise PluginError(
            "usage", "a ledger on a PostgreSQL server needs pip install 'headrace-usage[postgresql]'"
        ) from None
    where: dict[str, Any] = {"host": place.host, "port": place.port}
    if place.host.startswith("/"):
        where = {"unix_sock": SOCKET.format(host=place.host, port=place.port)}
    try:
        return Connection(
            place.user,
            database=place.database,
            password=place.password.reveal(),
            timeout=wait_seconds + SLACK_SECONDS,
            ssl_context=_tls(place),
            application_name="headrace-usage",
            **where,
        )
    except LookupError as error:  # a message that the protocol does not have
        raise PluginError("usage", f"{place} cannot be used: what answers there is no PostgreSQL server") from error


def _tls(place: PostgresPlace) -> ssl.SSLContext | bool | None:
    """What pg8000 takes for libpq's words: False never, None if the server can, True always but unproven."""
    if place.tls == "disable" or place.host.startswith("/"):
        return False
    if place.tls == "verify-full":
        try:
            return ssl.create_default_context(cafile=place.certificates)
        except OSError as error:
            why = error.strerror or error
            raise PluginError("usage", f"sslrootcert {place.certificates!r} cannot be used: {why}") from error
    return True if place.tls == "require" else None


@contextlib.contextmanager
def explained(place: PostgresPlace) -> Iterator[None]:
    """Turn what the server and the network say into an error that says what to do; never with a secret."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("pg8000", "scramp", "struct")):
            raise
        raise _in_words(error, place) from error


def _in_words(error: Exception, place: PostgresPlace) -> PluginError:
    fields = error.args[0] if error.args else None
    if isinstance(fields, dict):
        code = str(fields.get("C", "?"))
        if code in TOO_LONG:
            return NotNow(f"{place} is locked by another process, or too slow: try again, or ask for less")
        said = f"{place} cannot be used: {fields.get('M', 'an error without a message')} ({code})"
        if code[:2] == DATA:
            return Unfit(said)
        return NotNow(said) if code[:2] in PASSING else PluginError("usage", said)
    cause = next((each for each in (error, error.__cause__) if isinstance(each, OSError)), None)
    if isinstance(cause, TimeoutError):
        return NotNow(f"{place} does not answer in time")
    reason = cause.strerror or str(cause) if cause is not None else ""
    return NotNow(f"{place}: no connection ({reason or error})")
