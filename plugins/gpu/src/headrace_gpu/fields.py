"""Fields of a config.json, read with errors that name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .units import BadPlan


class Fields:
    """An object of JSON whose fields may be anything at all."""

    def __init__(self, config: Any) -> None:
        if not isinstance(config, Mapping):
            raise BadPlan("config.json: it must be an object")
        self._config = config

    def __contains__(self, name: str) -> bool:
        return self._config.get(name) is not None

    def get(self, name: str) -> Any:
        return self._config.get(name)

    def count(self, name: str, default: int | None = None, *, low: int = 1, high: int = 1 << 20) -> int:
        """A whole number between `low` and `high`. Missing or null: the default.

        Raises:
            BadPlan: it is something else, or it is missing and has no default.
        """
        value = self._config.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise BadPlan(f"config.json: {name} is missing")
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadPlan(f"config.json: {name} must be a whole number, not {_shown(value)}")
        if not low <= value <= high:
            raise BadPlan(f"config.json: {name} must be from {low} to {high}, not {_shown(value)}")
        return value

    def maybe(self, name: str, *, low: int = 1, high: int = 1 << 40) -> int | None:
        """The same, or None where it is missing or null."""
        return self.count(name, low=low, high=high) if name in self else None

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false. Missing or null: the default."""
        value = self._config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadPlan(f"config.json: {name} must be true or false, not {_shown(value)}")
        return value

    def text(self, name: str, default: str = "") -> str:
        value = self._config.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or len(value) > 100:
            raise BadPlan(f"config.json: {name} must be a string, not {_shown(value)}")
        return value

    def numbers(self, name: str) -> list[int]:
        """A list of whole numbers; empty where it is missing or null."""
        value = self._config.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, int) for each in value):
            raise BadPlan(f"config.json: {name} must be a list of whole numbers")
        return value

    def words(self, name: str, length: int) -> list[str]:
        """A list of so many strings; empty where it is missing or null."""
        value = self._config.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise BadPlan(f"config.json: {name} must be a list of strings")
        if len(value) != length:
            raise BadPlan(f"config.json: {name} must say something of each of the {length} layers, not of {len(value)}")
        return value


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "such a number"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
