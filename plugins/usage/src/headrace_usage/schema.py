"""The tables of the ledger, in words that SQLite and PostgreSQL both understand.

`requests` has the rows, `series` what reports group them by, `hours` and `days` their sums. `used` has the names of
those columns of sums which count times and have ever counted any. `state` is one row about the whole: the schema's
version; a count that changes when series are forgotten; and up to when requests, and sums of days, have been deleted
(milliseconds since the epoch).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

from .buckets import COUNT
from .entry import ABORTED, CUT, Entry, Series

VERSION = 1
SERIES = Series._fields
ROW = tuple(name for name in Entry._fields if name != "series")
TEXTS = ("request_id", "asked", "served", "error", "address")
NULLABLE = ("asked", "served", "error", "address", "cost", "ttft", "latency_bucket", "ttft_bucket")
WIDE = ("at", "writer", "number", "input", "cached", "output", "cost", "latency", "ttft")
"""Numbers that may need more than 32 bits."""
NAME = ("at", "writer", "number", "attempt")
"""What no two rows have in common."""
COLUMNS = (*NAME, "series", *(name for name in ROW if name not in NAME))
"""Of the table of requests, in their order."""

SUMS: Mapping[str, str] = {
    "requests": "count(*)",
    "errors": "sum(failed)",
    "aborted": f"sum(CASE WHEN ended = {ABORTED} THEN 1 ELSE 0 END)",
    "cut": f"sum(CASE WHEN ended = {CUT} THEN 1 ELSE 0 END)",
    "streams": "sum(stream)",
    "estimated": "sum(estimated)",
    "unpriced": "sum(CASE WHEN cost IS NULL THEN 1 ELSE 0 END)",
    "input": "sum(input)",
    "cached": "sum(cached)",
    "output": "sum(output)",
    "cost": "coalesce(sum(cost), 0)",
}
"""What is summed up, and how it comes out of the rows."""
MEASURES: Mapping[str, str] = {
    **SUMS,
    **{f"l{number}": f"sum(CASE WHEN latency_bucket = {number} THEN 1 ELSE 0 END)" for number in range(COUNT)},
    **{f"t{number}": f"sum(CASE WHEN ttft_bucket = {number} THEN 1 ELSE 0 END)" for number in range(COUNT)},
}
"""The sums, and how many times fell into each bucket."""
TIMES = tuple(name for name in MEASURES if name not in SUMS)
"""The columns that count times."""


def columns(of: Sequence[str]) -> Iterator[str]:
    """The columns of requests as a database makes them."""
    for name in of:
        kind = "TEXT" if name in TEXTS else "BIGINT" if name in WIDE else "INTEGER"
        yield f"{name} {kind}{'' if name in NULLABLE else ' NOT NULL'}"


def tables(prefix: str, serial: str, clustered: str) -> Iterator[str]:
    """The statements that make the tables of version 1.

    Args:
        prefix: of their names.
        serial: how the database declares a key that it counts up itself.
        clustered: what makes it keep a table in the order of its key.
    """
    texts = ", ".join(f"{name} {'INTEGER' if name in ('status', 'failed_try') else 'TEXT'} NOT NULL" for name in SERIES)
    sums = ", ".join(f"{name} {'BIGINT' if name in SUMS else 'INTEGER'} NOT NULL DEFAULT 0" for name in MEASURES)
    yield f"CREATE TABLE {prefix}series (id {serial}, digest TEXT NOT NULL UNIQUE, {texts})"
    yield f"CREATE TABLE {prefix}requests ({', '.join(columns(COLUMNS))}, PRIMARY KEY ({', '.join(NAME)})){clustered}"
    for name in ("hours", "days"):
        key = "series INTEGER NOT NULL, period INTEGER NOT NULL"
        yield f"CREATE TABLE {prefix}{name} ({key}, {sums}, PRIMARY KEY (series, period)){clustered}"
    yield f"CREATE TABLE {prefix}used (name TEXT PRIMARY KEY)"
    numbers = ", ".join(f"{name} BIGINT NOT NULL" for name in ("version", "generation", "requests_from", "days_from"))
    yield f"CREATE TABLE {prefix}state ({numbers})"
    yield f"INSERT INTO {prefix}state VALUES (1, 1, 0, 0)"  # noqa: S608


MIGRATIONS: tuple[tuple[str, ...], ...] = ()
"""What makes a schema the next one, beginning with that of version 1; `{prefix}` stands for that of all tables."""


def writing(prefix: str, incoming: str, used: Container[str]) -> Iterator[str]:
    """The statements that move rows from the table `incoming` into the ledger: those that are there already stay out of
    it, and of its sums. Sums are changed in the order of their keys, so that two who write do not wait for each other
    in a circle. Of the columns that count times only those are touched that are `used`: else they would be most of the
    work."""
    same = " AND ".join(f"there.{name} = {incoming}.{name}" for name in NAME)
    yield f"DELETE FROM {incoming} WHERE EXISTS (SELECT 1 FROM {prefix}requests AS there WHERE {same})"  # noqa: S608
    names = ", ".join(COLUMNS)
    yield f"INSERT INTO {prefix}requests ({names}) SELECT {names} FROM {incoming}"  # noqa: S608
    touched = {name: how for name, how in MEASURES.items() if name in SUMS or name in used}
    sums = ", ".join(touched.values())
    for name, length in (("hours", 3_600_000), ("days", 86_400_000)):
        table = f"{prefix}{name}"
        added = ", ".join(f"{each} = {table}.{each} + excluded.{each}" for each in touched)
        yield (
            f"INSERT INTO {table} (series, period, {', '.join(touched)}) "  # noqa: S608
            f"SELECT series, at / {length} AS period, {sums} FROM {incoming} WHERE true "
            f"GROUP BY series, at / {length} ORDER BY series, at / {length} "
            f"ON CONFLICT (series, period) DO UPDATE SET {added}"
        )
    yield f"DELETE FROM {incoming}"  # noqa: S608
