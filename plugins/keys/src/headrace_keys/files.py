"""Files that nobody but their owner may read."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TextIO

from headrace.errors import PluginError


def restrict(path: Path) -> None:
    """Take away what others may do with a file. Raises PluginError if it is something else than a file, and OSError."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise PluginError("keys", f"{path} is not a file: move it away, or set another path")
    if mode & 0o077:
        path.chmod(0o600)


def write_private(file: Path, content: str, what: str) -> None:
    """Replace the file in one step; nobody ever sees half of it, nor with another mode than 0600.

    Raises:
        PluginError: it cannot be written; `what` names the content.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mkstemp: mode 0600
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PluginError("keys", f"{what} cannot be kept in {file}: {error.strerror}") from error


def open_private(file: Path) -> TextIO:
    """A file to append to, made for its owner only. Raises PluginError."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise PluginError("keys", f"{file} cannot be written: {error.strerror}") from error
