"""Values of a configuration that stand elsewhere: `{ env = "NAME", default = … }` and `{ file = "…" }`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

FORMS = ({"env"}, {"env", "default"}, {"env", "split"}, {"env", "default", "split"}, {"file"})
"""A table with exactly these keys is a reference."""


class FromText(str):
    """A string that came from the environment or a file, and may have to become a number or a switch."""

    __slots__ = ("origin",)
    origin: str
    """Where it came from, for messages."""

    def __new__(cls, text: str, origin: str = "") -> FromText:
        made = super().__new__(cls, text)
        made.origin = origin
        return made


class Missing(msgspec.Struct, frozen=True):
    """Stands where an environment variable or file should have given a value."""

    message: str


def resolve(value: Any, environ: Mapping[str, str]) -> Any:
    """Replace every reference by its value, or by a `Missing`, all the way down."""
    if isinstance(value, dict):
        if any(value.keys() == form for form in FORMS) and isinstance(value.get("env", value.get("file")), str):
            return _follow(value, environ)
        return {key: resolve(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, environ) for item in value]
    return value


def _follow(reference: dict[str, Any], environ: Mapping[str, str]) -> Any:
    if "file" in reference:
        return _read(reference["file"])
    name, separator = reference["env"], reference.get("split")
    if separator is not None and (not isinstance(separator, str) or not separator):
        return Missing(f"split must be the text between the parts of {name}, for instance ','")
    text: Any = environ.get(name)
    if text is None and "default" not in reference:
        return Missing(f"the environment variable {name} is not set, and there is no default")
    value = reference["default"] if text is None else FromText(text, f"the environment variable {name}")
    if separator is not None and isinstance(value, str):
        return [
            FromText(part.strip(), f"the environment variable {name}")
            for part in value.split(separator)
            if part.strip()
        ]
    return value


def _read(path: str) -> FromText | Missing:
    try:
        return FromText(Path(path).expanduser().read_text("utf-8").strip(), f"the file {path}")
    except (OSError, ValueError, RuntimeError) as error:  # not there, no text or no path, no such user
        return Missing(f"the file {path!r} cannot be read: {error}")


def missing_in(value: Any) -> Iterator[Missing]:
    """Every `Missing` in a value."""
    if isinstance(value, Missing):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from missing_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from missing_in(item)


def without_missing(value: Any) -> Any:
    """A value without what is missing in its tables and lists."""
    if isinstance(value, dict):
        return {key: without_missing(item) for key, item in value.items() if not isinstance(item, Missing)}
    if isinstance(value, list):
        return [without_missing(item) for item in value if not isinstance(item, Missing)]
    return value


def plain(value: Any) -> Any:
    """A value without the marks of where it came from."""
    if isinstance(value, FromText):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value
