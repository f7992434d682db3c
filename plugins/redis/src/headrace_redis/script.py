"""The script that counts, `script.lua`, and how it is called: by its digest, and in full when the server lacks it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .resp import command

SCRIPT = Path(__file__).with_name("script.lua").read_bytes()
DIGEST = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()
FORMAT = "1:"
"""Follows the prefix, in every key: another version of the script that keeps things in another way has another."""


class Caller:
    """Calls the script in the name of one process. `name` is unlike that of any other."""

    def __init__(self, prefix: str, name: str) -> None:
        start = prefix + FORMAT
        self._keys = (b"2", f"{start}c:{name}".encode(), f"{start}leases".encode(), name.encode())

    def short(self, step: bytes) -> bytes:
        """The command for servers that know the script."""
        return command(b"EVALSHA", DIGEST, *self._keys, step)

    def words(self, step: bytes) -> tuple[bytes, ...]:
        """The words of the command for every server."""
        return (b"EVAL", SCRIPT, *self._keys, step)

    def full(self, step: bytes) -> bytes:
        """The command for servers that do not: from then on they do."""
        return command(*self.words(step))
