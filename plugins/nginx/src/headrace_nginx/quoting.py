"""What may stand in an nginx configuration, and how it is written there.

A value that breaks out of its place could add directives to the configuration. nginx also reads variables in most
values and cannot escape `$`. So anything unusual is refused instead of escaped.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

FORBIDDEN = re.compile(r"""["'\\${};`\x00-\x1f\x7f]""")


def check_text(text: str, what: str) -> str:
    """The text itself.

    Raises:
        ValueError: it is empty, or has a character that means something to nginx.
    """
    found = FORBIDDEN.search(text)
    if found:
        raise ValueError(f"{what}: the character {found.group()!r} cannot stand in an nginx configuration")
    if not text or text != text.strip():
        raise ValueError(f"{what}: must not be empty, nor begin or end with a space")
    return text


def quoted_path(path: Path, what: str, prefix: str = "") -> str:
    """An absolute path in double quotes, after a prefix of nginx's own. Raises ValueError."""
    if not path.is_absolute():
        raise ValueError(f"{what}: {str(path)!r} is not an absolute path")
    try:
        text = os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{what}: {path!r} is not valid UTF-8") from None
    return f'"{prefix}{check_text(text, what)}"'


def quoted_json(body: bytes) -> str:
    """A JSON body in single quotes, for `return`. Raises ValueError: it has a quote, a backslash or a `$`."""
    text = body.decode("utf-8")
    found = re.search(r"['\\$\x00-\x1f]", text)
    if found:
        raise ValueError(f"the character {found.group()!r} cannot stand in the body of an nginx answer")
    return f"'{text}'"


def quoted_event(event: str) -> str:
    """A server-sent event in single quotes, its blank line included. Raises ValueError as `quoted_json` does."""
    lines = event.split("\n")
    return "'" + "\\n".join(quoted_json(line.encode())[1:-1] for line in lines) + "'"


def duration(seconds: float) -> str:
    """Seconds as nginx writes them: whole milliseconds, at least one (0 would mean something else)."""
    milliseconds = max(1, math.ceil(seconds * 1000))
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def size(count: int) -> str:
    """Bytes as nginx writes them, in kilobytes rounded up."""
    return f"{math.ceil(count / 1024)}k"
