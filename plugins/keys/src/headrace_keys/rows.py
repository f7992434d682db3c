"""Records as rows of a database: the columns, and what is JSON in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .record import Record

COLUMNS = Record.__struct_fields__
JSON = frozenset(("models", "endpoints", "limits", "budget", "metadata"))
NAMES = ", ".join(COLUMNS)
MARKS = ", ".join(f":{name}" for name in COLUMNS)
SETTINGS = ", ".join(f"{name} = :{name}" for name in COLUMNS if name != "id")


def table(blob: str, real: str) -> str:
    """The columns of schema 2, in the words of a kind of database."""
    return f"""
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    role          TEXT NOT NULL,
    models        TEXT,               -- a JSON list; NULL: every model
    salt          {blob} NOT NULL,
    digest        {blob} NOT NULL,
    created       {real} NOT NULL,    -- times: seconds since the epoch
    expires       {real},
    revoked       {real},
    development   INTEGER NOT NULL DEFAULT 0,
    owner         TEXT,
    team          TEXT,
    endpoints     TEXT,               -- a JSON list; NULL: every endpoint
    limits        TEXT,               -- JSON objects
    budget        TEXT,
    metadata      TEXT,
    former_salt   {blob},             -- of the secret before the last rotation
    former_digest {blob},
    former_until  {real}
"""


ADDED_BY_2 = {
    **dict.fromkeys(("owner", "team", "endpoints", "limits", "budget", "metadata"), "TEXT"),
    **dict.fromkeys(("former_salt", "former_digest"), "BLOB"),
    "former_until": "REAL",
}
"""What schema 2 has that schema 1 did not."""


def from_row(row: Sequence[object]) -> Record:
    """Raises msgspec.MsgspecError: no row of ours."""
    values = dict(zip(COLUMNS, row, strict=True))
    for name in JSON:
        text = values[name]
        values[name] = msgspec.json.decode(text) if isinstance(text, str) else None
    values["metadata"] = values["metadata"] or {}
    return msgspec.convert(values, Record, strict=False)


def to_row(record: Record) -> dict[str, Any]:
    """The parameters of a statement that writes a record."""
    values = {name: getattr(record, name) for name in COLUMNS}
    for name in JSON:
        value = values[name]
        values[name] = msgspec.json.encode(value).decode() if value not in (None, {}) else None
    return {**values, "development": int(record.development)}
