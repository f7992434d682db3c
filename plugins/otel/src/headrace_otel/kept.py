"""What is found again by its key, bounded."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
MOST = 4096


class Kept(Generic[K, V]):
    """Values by their keys; when there are too many all are forgotten."""

    __slots__ = ("_found", "get")

    def __init__(self) -> None:
        self._found: dict[K, V] = {}
        self.get = self._found.get

    def keep(self, key: K, value: V) -> V:
        """The value."""
        if len(self._found) >= MOST:
            self._found.clear()
        self._found[key] = value
        return value
