"""Naming what of a request is not carried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
NOTHING = frozenset((b"null", b"[]", b"{}"))
"""Values that say nothing."""


class Dropped:
    """Names, each once, in the order in which they were met."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self._names[name] = None

    def note(self, name: str, given: object) -> None:
        """It is lost if it is given at all."""
        if given is not None and given != []:
            self.add(name)

    def unknown(self, raw: msgspec.Raw, known: Iterable[str], where: str) -> None:
        """The fields of an object that we do not know; nothing if it is none."""
        if bytes(memoryview(raw)[:1]) == b"{":
            self.unknown_in(_fields(raw), frozenset(known), where)

    def unknown_in(self, fields: Mapping[str, msgspec.Raw], known: frozenset[str], where: str) -> None:
        """The same of an object that has been taken apart."""
        for name, value in fields.items():
            if name not in known and bytes(value) not in NOTHING:
                self.add(f"{where}.{name}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)
