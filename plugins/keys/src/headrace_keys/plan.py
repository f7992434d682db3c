"""What importing a file would do, and doing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from headrace.config import Secret
from headrace.errors import ConfigError, Problem

from . import keyformat
from .changes import DEFAULTS
from .desk import Desk, changed_fields
from .gitops import KeyTable
from .record import Record

Action = Literal["create", "change", "revoke", "unchanged"]
SAME_SECONDS = 1e-5
"""Times that a file and a database round differently."""
TIMES = ("created", "expires", "revoked", "former_until")
HASHES = frozenset(("salt", "digest", "former_salt", "former_digest", "former_until"))


class Step(msgspec.Struct, frozen=True):
    """What becomes of one key."""

    action: Action
    record: Record
    """As it becomes."""
    changed: tuple[str, ...] = ()
    warning: str = ""
    key: Secret | None = None
    """The whole key, if it is made by this."""


def planned(tables: Sequence[KeyTable], desk: Desk, *, prune: bool, source: str) -> list[Step]:
    """Compare a file with the database.

    Raises:
        ConfigError: what does not fit, all of it.
    """
    problems: list[Problem] = []
    steps: list[Step] = []
    known = _Known(tables, desk.records)
    for number, table in enumerate(tables):
        try:
            steps.append(_step(table, known.meant(table), desk.now))
        except ValueError as error:
            problems.append(Problem(f"{source}: [keys.{number}]", str(error)))
    if problems:
        raise ConfigError(problems)
    return [*steps, *(_without(steps, desk) if prune else ())]


def apply(steps: Sequence[Step], desk: Desk) -> None:
    """Do it. Within the desk's transaction, so all of it or nothing."""
    for step in steps:
        if step.action == "unchanged":
            continue
        if step.action == "create":
            desk.store.add(step.record)
        else:
            desk.store.save(step.record)
        done = {"create": "created", "change": f"changed {', '.join(step.changed)} of", "revoke": "revoked"}
        desk.note(f"imported, {done[step.action]}", step.record)


def _without(steps: Sequence[Step], desk: Desk) -> Iterator[Step]:
    """The keys in force that the file does not have, but for the gateway's own."""
    kept = {step.record.id for step in steps}
    for record in desk.records:
        if record.id not in kept and record.revoked is None and not record.development:
            yield Step("revoke", msgspec.structs.replace(record, revoked=desk.now))


class _Known:
    """The keys of the database, found by what a table says of them."""

    def __init__(self, tables: Sequence[KeyTable], records: Sequence[Record]) -> None:
        taken = {table.id for table in tables}
        self._by_id = {record.id: record for record in records}
        self._by_name: dict[str, list[Record]] = {}
        for record in records:
            if record.id not in taken and record.revoked is None and not record.development:
                self._by_name.setdefault(record.name, []).append(record)

    def meant(self, table: KeyTable) -> Record | None:
        """The key of a table: by its id; without one, the only key in force of that name. Raises ValueError."""
        if table.id is not UNSET:
            found = self._by_id.get(table.id)
            if found is not None and found.development:
                raise ValueError("is the development key, which no file can describe")
            return found
        named = self._by_name.get(str(table.name), [])
        if len(named) > 1:
            ids = ", ".join(record.id for record in named)
            raise ValueError(f"{len(named)} keys are named {table.name!r}: give one's id ({ids})")
        return named[0] if named else None


def _step(table: KeyTable, before: Record | None, now: float) -> Step:
    if before is None:
        return _creation(table, now)
    if before.revoked is not None:
        warning = "is revoked here, which is final" if table.revoked is UNSET else ""
        return Step("unchanged", before, warning=warning)
    secret, warning = _secret(table, before)
    revoked = table.revoked.timestamp() if table.revoked is not UNSET else None
    after = msgspec.structs.replace(before, **{**DEFAULTS, **table.given(), **secret, "revoked": revoked})
    after = _with_times_of(after, before)
    changed = _names(changed_fields(before, after))
    if not changed:
        return Step("unchanged", before, warning=warning)
    return Step("change" if revoked is None else "revoke", after, changed, warning)


def _creation(table: KeyTable, now: float) -> Step:
    fields: dict[str, Any] = {
        "id": keyformat.new_id() if table.id is UNSET else table.id,
        "created": now if table.created is UNSET else table.created.timestamp(),
        "revoked": None if table.revoked is UNSET else table.revoked.timestamp(),
        **DEFAULTS,
        **table.given(),
    }
    if table.digest is not UNSET:
        return Step("create", Record(**fields, **_hashes(table)))
    secret, salt = keyformat.new_secret(), keyformat.new_salt()
    record = Record(**fields, salt=salt, digest=keyformat.digest(secret.encode(), salt))
    return Step("create", record, key=Secret(keyformat.whole_key(record.id, secret)))


def _secret(table: KeyTable, before: Record) -> tuple[dict[str, Any], str]:
    """What becomes of the secret: a file that is older than the last rotation here does not undo it."""
    if table.digest is UNSET or table.digest == before.digest.hex():
        return {}, ""
    if before.former_digest is not None and table.digest == before.former_digest.hex():
        return {}, "was rotated here since the file was written: its secret stays"
    return _hashes(table), ""


def _hashes(table: KeyTable) -> dict[str, Any]:
    hashes: dict[str, Any] = {"salt": bytes.fromhex(str(table.salt)), "digest": bytes.fromhex(str(table.digest))}
    former = None if table.former is UNSET else table.former
    return {
        **hashes,
        "former_salt": None if former is None else bytes.fromhex(former.salt),
        "former_digest": None if former is None else bytes.fromhex(former.digest),
        "former_until": None if former is None else former.until.timestamp(),
    }


def _with_times_of(after: Record, before: Record) -> Record:
    """The same times, where they differ by rounding alone."""
    same = {}
    for name in TIMES:
        one, other = getattr(before, name), getattr(after, name)
        if one is not None and other is not None and abs(one - other) < SAME_SECONDS:
            same[name] = one
    return msgspec.structs.replace(after, **same)


def _names(fields: Sequence[str]) -> tuple[str, ...]:
    """What has changed, in words for people: hashes are the secret's."""
    return tuple(dict.fromkeys("secret" if name in HASHES else name for name in fields))
