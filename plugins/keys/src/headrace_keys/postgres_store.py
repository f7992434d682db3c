"""The database of keys on a PostgreSQL server, for gateways on several machines."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.errors import PluginError

from .place import PostgresPlace
from .rows import table
from .store import SCHEMA_VERSION, Store, check_schema

if TYPE_CHECKING:
    from pg8000.native import Connection  # type: ignore[import-untyped]

STATE = "headrace_keys_state"
"""One row: the schema's version, and a count of the transactions that have written."""
LOCK = 0x6865_6164_6B65_7973
"""Held while tables are made, so that one process does it; "headkeys" in ASCII."""
SLACK_SECONDS = 0.5
"""The server is to give up before we do, and say why."""
TOO_LONG = ("55P03", "57014")
"""The server's codes for a lock and a statement that took too long."""
SOCKET = "{host}/.s.PGSQL.{port}"


class PostgresStore(Store):
    """Nothing waits for longer than the seconds it was opened with: neither for the network nor for a lock."""

    TABLE = "headrace_keys"

    def __init__(self, connection: Connection, place: PostgresPlace) -> None:
        self._connection = connection
        self.place = place

    @classmethod
    def connect(cls, place: PostgresPlace, wait_seconds: float, *, create: bool) -> PostgresStore:
        """Connect, and with `create` make the tables if there are none. Raises PluginError."""
        with explained(place):
            store = cls(_connected(place, wait_seconds), place)
            try:
                store._prepare(wait_seconds, create)
            except BaseException:
                store.close()
                raise
        return store

    def run(self, statement: str, **values: object) -> Sequence[Sequence[object]]:
        rows: list[list[object]] | None = self._connection.run(statement, **values)
        return rows or []

    def explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.place)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The row of the count is the lock: whoever has changed it holds it until its transaction ends."""
        with explained(self.place), self._transaction():
            self.run(f"UPDATE {STATE} SET version = version + 1")  # noqa: S608
            yield

    def version(self) -> int:
        with explained(self.place):
            return self._state()[1]

    def close(self) -> None:
        with contextlib.suppress(Exception):  # it may be broken, and it is over in any case
            self._connection.close()

    def _prepare(self, wait_seconds: float, create: bool) -> None:
        milliseconds = int(wait_seconds * 1000)
        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            self.run(f"SET {name} = {milliseconds}")
        if not self._has_tables():
            if not create:
                raise PluginError(
                    "keys", f"{self.place} has no keys any more: restore it, or restart with an empty one"
                )
            with self._transaction():
                self._make_tables()
        check_schema(self._state()[0], str(self.place))

    def _has_tables(self) -> bool:
        """Asks the catalogue itself: `to_regclass` answers from a cache, which a lock just taken does not refresh."""
        statement = "SELECT count(*) FROM pg_catalog.pg_class WHERE relname = :name AND pg_table_is_visible(oid)"
        return self.run(statement, name=STATE)[0][0] != 0

    def _make_tables(self) -> None:
        self.run(f"SELECT pg_advisory_xact_lock({LOCK})")
        if self._has_tables():  # another process was first
            return
        self.run(f"CREATE TABLE {self.TABLE} ({table('BYTEA', 'DOUBLE PRECISION')})")
        self.run(f"CREATE TABLE {STATE} (schema_version INTEGER NOT NULL, version BIGINT NOT NULL)")
        self.run(f"INSERT INTO {STATE} VALUES ({SCHEMA_VERSION}, 1)")  # noqa: S608

    def _state(self) -> tuple[int, int]:
        rows = self.run(f"SELECT schema_version, version FROM {STATE}")  # noqa: S608
        if len(rows) != 1:
            raise PluginError("keys", f"{self.place}: {STATE} has not one row: restore it from a backup")
        return msgspec.convert(tuple(rows[0]), tuple[int, int])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.run("BEGIN")
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # without a connection the server does it itself
                self.run("ROLLBACK")
            raise
        self.run("COMMIT")


def _connected(place: PostgresPlace, wait_seconds: float) -> Connection:
    try:
        from pg8000.native import Connection
    except ImportError:
        raise PluginError("keys", "keys on a PostgreSQL server need pip install 'headrace-keys[postgresql]'") from None
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
            application_name="headrace-keys",
            **where,
        )
    except LookupError as error:  # a message that the protocol does not have
        raise PluginError("keys", f"{place} cannot be used: what answers there is no PostgreSQL server") from error


def _tls(place: PostgresPlace) -> ssl.SSLContext | bool | None:
    """What pg8000 takes for libpq's words: False never, None if the server can, True always but unproven."""
    if place.tls == "disable" or place.host.startswith("/"):
        return False
    if place.tls == "verify-full":
        return _trusting(place.certificates)
    return True if place.tls == "require" else None


def _trusting(certificates: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=certificates)
    except OSError as error:
        raise PluginError("keys", f"sslrootcert {certificates!r} cannot be used: {error.strerror or error}") from error


@contextlib.contextmanager
def explained(place: PostgresPlace) -> Iterator[None]:
    """Turn what the server and the network say into a PluginError that says what to do; never with a secret."""
    try:
        yield
    except (PluginError, GeneratorExit):
        raise
    except msgspec.MsgspecError as error:
        raise PluginError("keys", f"{place} is damaged ({error}): restore it from a backup") from error
    except Exception as error:
        if not _is_the_server_s(error):
            raise
        raise PluginError("keys", f"{place} cannot be used: {_said(error)}") from error


def _is_the_server_s(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("pg8000", "scramp", "struct")


def _said(error: Exception) -> str:
    """The server's own words, or why there are none."""
    fields = error.args[0] if error.args else None
    if isinstance(fields, dict):
        if fields.get("C") in TOO_LONG:
            return "it is locked by another process, or too slow: try again"
        return f"{fields.get('M', 'an error without a message')} ({fields.get('C', '?')})"
    cause = next((each for each in (error, error.__cause__) if isinstance(each, OSError)), None)
    if isinstance(cause, TimeoutError):
        return "it does not answer in time"
    reason = cause.strerror or str(cause) if cause is not None else ""
    return f"no connection ({reason or error})"
