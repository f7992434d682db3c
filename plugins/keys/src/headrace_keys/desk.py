"""Where keys are created, changed, rotated and revoked: the rules, for the command line and the API alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import msgspec

from headrace.config import Secret
from headrace.errors import HeadraceError

from . import audit
from .changes import DEFAULTS, Changes, applied
from .keyformat import holds_key
from .record import Record
from .store import Place, Store


class Refused(HeadraceError):
    """What is asked cannot be done with the keys as they are; says why."""


class UnknownKey(Refused):
    """There is no such key, or more than one."""


class Rotation(msgspec.Struct, frozen=True):
    """What a rotation has made of a key."""

    record: Record
    key: Secret
    ended: bool
    """Whether an even older secret was valid until now."""


class Desk:
    """The keys within one write transaction. What is done is noted, and becomes the audit's once it is committed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.records = store.records()
        self.now = time.time()
        self.notes: list[str] = []

    def create(self, changes: Changes) -> tuple[Record, Secret]:
        """Make a key; the second value is the whole key, which is kept nowhere. `name` must be given."""
        fields = {**DEFAULTS, **changes.given()}
        record, key = self.store.create(fields.pop("name"), **fields)
        self.note("created", record)
        return record, key

    def change(self, record: Record, changes: Changes) -> Record:
        """Change what is given. Raises Refused: the key is revoked, or the gateway's own."""
        _refuse_own(record, "changed")
        if record.revoked is not None:
            raise Refused(f"The key {record.name!r} (id {record.id}) is revoked, for good: create a new one.")
        after = applied(record, changes)
        if after != record:
            self.store.save(after)
            self.note(f"changed {', '.join(changed_fields(record, after))} of", after)
        return after

    def rotate(self, record: Record, grace_seconds: float) -> Rotation:
        """Give a key a new secret; the one of now is valid for a while more. Raises Refused."""
        _refuse_own(record, "rotated")
        state = record.state(self.now, development=False)
        if state != "active":
            raise Refused(f"The key {record.name!r} (id {record.id}) is {state}: create a new one.")
        until = self.now + grace_seconds if grace_seconds > 0 else None
        after, key = self.store.rotate(record, until)
        self.note(f"rotated (the secret before ends in {grace_seconds:.0f} s)", after)
        return Rotation(after, key, record.former_counts(self.now))

    def revoke(self, record: Record) -> Record:
        """Revoke a key and both its secrets; one that already is stays as it was."""
        self.store.revoke(record.id)
        if record.revoked is None:
            self.note("revoked", record)
            return msgspec.structs.replace(record, revoked=self.now)
        return record

    def delete(self, record: Record) -> None:
        """Forget a key that is revoked or expired. Raises Refused: it is in force."""
        if self._ended(record) is None:
            raise Refused(f"The key {record.name!r} (id {record.id}) is in force: revoke it first.")
        self._forget([record])

    def prune(self, older_than_seconds: float) -> list[Record]:
        """Forget the keys that were revoked or expired longer ago than this."""
        before = self.now - older_than_seconds
        gone = [record for record in self.records if (self._ended(record) or self.now) <= before]
        self._forget(gone)
        return gone

    def note(self, what: str, record: Record) -> None:
        """Remember what was done."""
        self.notes.append(f"{what} key {record.id} ({record.name!r})")

    def _forget(self, records: list[Record]) -> None:
        self.store.delete(record.id for record in records)
        for record in records:
            self.note("deleted", record)

    def _ended(self, record: Record) -> float | None:
        """When a key's life was over; None if it is not."""
        ends = [end for end in (record.revoked, record.expires) if end is not None and end <= self.now]
        return min(ends, default=None)


@contextlib.contextmanager
def at_desk(place: Place, who: str) -> Iterator[Desk]:
    """Hold the write lock of the database; what was done in it is in the audit log when the context is left.

    Raises:
        PluginError: the database cannot be used.
    """
    with Store.open(place) as store:
        with store.writing():
            desk = Desk(store)
            yield desk
        for note in desk.notes:
            audit.note(who, note)


def changed_fields(before: Record, after: Record) -> list[str]:
    """The names of the fields that differ."""
    return [name for name in Record.__struct_fields__ if getattr(before, name) != getattr(after, name)]


def find(records: list[Record], id_or_name: str) -> Record:
    """The one key meant: an id first, then a name; of a name's keys those still in force.

    Raises:
        UnknownKey: there is none, or there are several.
    """
    if holds_key(id_or_name):
        raise UnknownKey(
            "That is a whole key: give its id alone, the part between the hyphens, and keep the rest secret."
        )
    for record in records:
        if record.id == id_or_name:
            return record
    named = [record for record in records if record.name == id_or_name]
    candidates = [record for record in named if record.revoked is None] or named[-1:]
    if not candidates:
        raise UnknownKey(f"There is no key with the id or name {id_or_name!r}: see headrace keys list.")
    if len(candidates) > 1:
        ids = ", ".join(record.id for record in candidates)
        raise UnknownKey(f"{len(candidates)} keys are named {id_or_name!r}: give one's id ({ids}).")
    return candidates[0]


def _refuse_own(record: Record, what: str) -> None:
    if record.development:
        raise Refused(f"The development key is the gateway's own: it cannot be {what}, only revoked.")
