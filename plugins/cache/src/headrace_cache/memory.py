"""Answers in memory, by bytes: a backend for aiocache, whose own has no bound, on an LRU of cachetools."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from aiocache.base import BaseCache  # type: ignore[import-untyped]
from aiocache.serializers import NullSerializer  # type: ignore[import-untyped]
from cachetools import Cache, TLRUCache

from .entry import Entry

Epoch = Callable[[str], tuple[str, str]]


class Held:
    """How much there is of one model."""

    __slots__ = ("bytes", "entries", "evictions")

    def __init__(self) -> None:
        self.entries = self.bytes = self.evictions = 0


class _Shelf(TLRUCache[str, Entry]):
    """Counts what lies in it, and what had to go."""

    def __init__(self, most: int, timer: Callable[[], float]) -> None:
        self.held: dict[str, Held] = {}
        super().__init__(most, ttu=lambda key, entry, now: entry.ends, timer=timer, getsizeof=lambda entry: entry.size)

    def put(self, key: str, entry: Entry) -> None:
        self.pop(key, None)
        self.expire()
        if entry.size > self.maxsize or entry.ends <= self.timer():
            return
        self[key] = entry
        held = self.held.setdefault(entry.model, Held())
        held.entries += 1
        held.bytes += entry.size

    def expire(self, time: float | None = None) -> Any:
        gone = super().expire(time)
        for _, entry in gone:
            self._left(entry)
        return gone

    def popitem(self) -> tuple[str, Entry]:
        key, entry = super().popitem()
        self.held[entry.model].evictions += 1
        return key, entry

    def __delitem__(self, key: str) -> None:
        entry = self.peek(key)
        try:
            super().__delitem__(key)
        finally:  # of what has expired it is deleted, too, and a KeyError raised
            if entry is not None:
                self._left(entry)

    def peek(self, key: str) -> Entry | None:
        """Without making it recently used."""
        try:
            return Cache.__getitem__(self, key)
        except KeyError:
            return None

    def _left(self, entry: Entry) -> None:
        held = self.held[entry.model]
        held.entries -= 1
        held.bytes -= entry.size


class Memory(BaseCache):  # type: ignore[misc]
    """At most so many bytes of answers, in this process.

    Args:
        most: bytes.
        epoch: what the present epoch of a model is.
    """

    NAME = "headrace-memory"

    def __init__(self, most: int, epoch: Epoch, timer: Callable[[], float] = time.time) -> None:
        super().__init__(serializer=NullSerializer(), timeout=None)
        self._shelf = _Shelf(most, timer)
        self._epoch = epoch

    @property
    def held(self) -> dict[str, Held]:
        """By model. Expired entries are gone from it."""
        self._shelf.expire()
        return self._shelf.held

    @property
    def most(self) -> int:
        return int(self._shelf.maxsize)

    # --- at once: for whoever cannot wait --------------------------------------------------------------------------

    def find(self, key: str) -> Entry | None:
        """The entry, if it has not expired and nobody has cleared it."""
        entry = self._shelf.get(key)
        if entry is None or entry.epoch == self._epoch(entry.model):
            return entry
        self._shelf.pop(key, None)
        return None

    def put(self, key: str, entry: Entry) -> None:
        """Keep it, in place of what has not been used for longest. What is too large is not kept."""
        self._shelf.put(key, entry)

    def drop(self, model: str | None) -> int:
        """Forget everything, or everything of a model. Returns how many entries that were."""
        shelf = self._shelf
        found = [(key, shelf.peek(key)) for key in list(shelf)]
        gone = [key for key, entry in found if entry is not None and model in (None, entry.model)]
        for key in gone:
            shelf.pop(key, None)
        return len(gone)

    def sweep(self) -> None:
        """Forget what has been cleared, by whomever."""
        shelf = self._shelf
        found = [(key, shelf.peek(key)) for key in list(shelf)]
        for key, entry in found:
            if entry is not None and entry.epoch != self._epoch(entry.model):
                shelf.pop(key, None)

    # --- as aiocache has it ----------------------------------------------------------------------------------------

    async def _get(self, key: str, encoding: str | None = "utf-8", _conn: object = None) -> Entry | None:
        return self.find(key)

    async def _multi_get(
        self, keys: Iterable[str], encoding: str | None = "utf-8", _conn: object = None
    ) -> list[Entry | None]:
        return [self.find(key) for key in keys]

    async def _set(
        self, key: str, value: Entry, ttl: float | None = None, _cas_token: object = None, _conn: object = None
    ) -> bool:
        self.put(key, value)  # its end is its own
        return True

    async def _exists(self, key: str, _conn: object = None) -> bool:
        return self.find(key) is not None

    async def _delete(self, key: str, _conn: object = None) -> int:
        return int(self._shelf.pop(key, None) is not None)

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        self.drop(None)
        return True
