"""From an event's fields to one line of text that can neither break out of its line nor steer a terminal."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Literal

import msgspec
import structlog

Fields = MutableMapping[str, Any]
Render = Callable[[Any, str, Fields], str]
"""A structlog processor that ends a chain: (logger, method name, fields) → the line, without its line feed."""

_INVISIBLE = "\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
"""C1 controls, Unicode's line separators and its bidirectional overrides: JSON would let them pass."""
_UNSAFE_IN_JSON = re.compile(f"[{_INVISIBLE}]")
_JSON = msgspec.json.Encoder(enc_hook=str)
_UNSAFE = re.compile(f"[\x00-\x1f{_INVISIBLE}\ud800-\udfff]")


def renderer(form: Literal["json", "console"], *, colours: bool = False) -> Render:
    """The renderer of a configured format."""
    return as_json if form == "json" else _Console(colours)


class Clock:
    """The time as the log writes it: ISO 8601, UTC, microseconds. What a second has in common is made once."""

    def __init__(self) -> None:
        self._second, self._prefix = -1, ""

    def now(self) -> str:
        second, rest = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._prefix = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{rest // 1000:06d}Z"


def as_json(logger: Any, name: str, fields: Fields) -> str:
    """One JSON object: timestamp, level and event first."""
    if next(iter(fields), None) == "timestamp":  # our own lines are made in order
        ordered = fields
    else:
        ordered = {key: fields.pop(key) for key in ("timestamp", "level", "event") if key in fields} | dict(fields)
    return encode(ordered).decode()


def encode(line: Fields | msgspec.Struct) -> bytes:
    """One JSON object, in the order of its fields."""
    try:
        encoded = _JSON.encode(line)
    except (UnicodeEncodeError, OverflowError, TypeError, ValueError):  # half a surrogate pair, for instance
        return json.dumps(msgspec.to_builtins(line) if isinstance(line, msgspec.Struct) else line, default=str).encode()
    if encoded.isascii() and b"\x7f" not in encoded:
        return encoded
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded.decode()).encode()


class _Console:
    def __init__(self, colours: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(
            colors=colours,
            sort_keys=False,
            pad_event_to=0,
            exception_formatter=structlog.dev.plain_traceback,
        )

    def __call__(self, logger: Any, name: str, fields: Fields) -> str:
        exception = fields.pop("exception", None)
        visible = {key: _visible(value) if isinstance(value, str) else value for key, value in fields.items()}
        line = str(self._render(logger, name, visible))
        if not exception:
            return line
        return "\n".join([line, *(f"    {_visible(each)}" for each in str(exception).splitlines())])


def _visible(text: str) -> str:
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def stderr_is_terminal() -> bool:
    return sys.__stderr__ is not None and sys.__stderr__.isatty()
