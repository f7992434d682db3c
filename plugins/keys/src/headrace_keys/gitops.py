"""Keys as a TOML file: what is in the database written down, and a file compared with the database."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headrace.config import Strict
from headrace.errors import ConfigError, Problem
from headrace.settings import Decoder

from .changes import Changes, Moment, known
from .keyformat import DIGEST_BYTES, ID_ALPHABET, ID_LENGTH, SALT_BYTES
from .record import Record

if TYPE_CHECKING:
    from headrace.gateway import Gateway

HEADER = """\
# API keys of a Headrace gateway, as `headrace keys export` writes them and `headrace keys import` reads them.
# There are no secrets here, only their hashes; all the same, a file for few eyes.

"""

Id = Annotated[str, Meta(pattern=f"^[{ID_ALPHABET}]{{{ID_LENGTH}}}$")]
Salt = Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * SALT_BYTES}}}$")]
Digest = Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * DIGEST_BYTES}}}$")]


class FormerTable(Strict, frozen=True):
    """`[keys.former]`: the secret before the last rotation, while it is valid."""

    salt: Salt
    digest: Digest
    until: Moment


class KeyTable(Changes, frozen=True):
    """One `[[keys]]`. The file says all there is: what is left out is not set."""

    id: Id | UnsetType = UNSET
    salt: Salt | UnsetType = UNSET
    digest: Digest | UnsetType = UNSET
    created: Moment | UnsetType = UNSET
    revoked: Moment | UnsetType = UNSET
    former: FormerTable | UnsetType = UNSET

    @property
    def label(self) -> str:
        """What the key is called."""
        return str(self.name)


def written(records: Iterable[Record], now: float) -> str:
    """The file. In the order of creation, so that a change is a small difference."""
    import tomli_w

    tables = [table_of(record, now) for record in records if not record.development]
    return HEADER + tomli_w.dumps({"keys": tables})


def table_of(record: Record, now: float) -> dict[str, Any]:
    """A key as a table; what is not set is left out."""
    former = None
    if record.former_salt and record.former_digest and record.former_counts(now):
        salt, digest = record.former_salt.hex(), record.former_digest.hex()
        former = {"salt": salt, "digest": digest, "until": _date(record.former_until)}
    table = {
        "id": record.id,
        "name": record.name,
        "role": record.role,
        "owner": record.owner,
        "team": record.team,
        "models": None if record.models is None else list(record.models),
        "endpoints": None if record.endpoints is None else list(record.endpoints),
        "created": _date(record.created),
        "expires": _date(record.expires),
        "revoked": _date(record.revoked),
        "salt": record.salt.hex(),
        "digest": record.digest.hex(),
        "metadata": record.metadata or None,
        "limits": None if record.limits is None else msgspec.to_builtins(record.limits),
        "budget": None if record.budget is None else msgspec.to_builtins(record.budget),
        "former": former,
    }
    return {name: value for name, value in table.items() if value is not None}


def _date(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def read(text: str, source: str) -> list[KeyTable]:
    """The tables of a file.

    Raises:
        ConfigError: everything that is wrong with it, at once; `source` is the file's name.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Problem(source, f"is not valid TOML: {error}")]) from error
    decoder = Decoder(source)
    for name in document.keys() - {"keys"}:
        decoder.add((name,), "is not a known key (known: keys)")
    found = _tables(document.get("keys"), decoder)
    for number, table in found:
        _check(number, table, decoder)
    _check_twice(found, decoder)
    if decoder.problems:
        raise ConfigError(decoder.problems)
    return [table for _, table in found]


def _tables(value: Any, decoder: Decoder) -> list[tuple[int, KeyTable]]:
    if not isinstance(value, list):
        decoder.add(("keys",), "is missing, or no array of tables: write [[keys]], or keys = [] for none")
        return []
    found = []
    for number, each in enumerate(value):
        if not isinstance(each, dict):
            decoder.add(("keys", str(number)), "must be a table: write [[keys]]")
            continue
        table = decoder.decode(each, KeyTable, ("keys", str(number)))
        if table is not None:
            found.append((number, table))
    return found


def _check(number: int, table: KeyTable, decoder: Decoder) -> None:
    def add(name: str, message: str) -> None:
        decoder.add(("keys", str(number), name), message)

    if table.name is UNSET:
        add("name", "is required")
    if (table.salt is UNSET) != (table.digest is UNSET):
        add("salt" if table.salt is UNSET else "digest", "is missing: they belong together")
    if table.digest is not UNSET and table.id is UNSET:
        add("id", "is required where there is a digest")
    if table.former is not UNSET and table.digest is UNSET:
        add("former", "needs a digest beside it")


def _check_twice(found: Sequence[tuple[int, KeyTable]], decoder: Decoder) -> None:
    """Two tables for one key, or one that may mean the other's."""
    ids: dict[Any, int] = {}
    for number, table in found:
        if table.id is not UNSET and ids.setdefault(table.id, number) != number:
            decoder.add(("keys", str(number), "id"), f"is that of [keys.{ids[table.id]}], too")
    names = [table.name for _, table in found]
    for number, table in found:
        if table.id is UNSET and table.name is not UNSET and names.count(table.name) > 1:
            decoder.add(("keys", str(number), "name"), "stands in another table, too: give this one an id")


def resolved(tables: Sequence[KeyTable], gateway: Gateway) -> tuple[list[KeyTable], list[str]]:
    """The tables with models' own names for aliases, and what the configuration does not know of what they name."""
    found, warnings = [], []
    for table in tables:
        changed, unknown = known(table, gateway)
        found.append(changed)
        warnings += [f"{table.label}: {warning}" for warning in unknown]
    return found, warnings
