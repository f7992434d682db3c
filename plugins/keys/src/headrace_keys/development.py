"""The development key: one that is always there on one's own machine, in a file that only its owner can read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from headrace.config import Secret
from headrace.errors import PluginError, Unauthenticated

from .ring import KeyRing
from .store import Store, explained, restrict

NAME = "development"
READ_BYTES = 200
"""More than a key has: a file that was replaced by something else is not read whole."""


def ensure(database: Path, file: Path) -> str:
    """The development key: that of the file if it works, else a new one, kept in the file from now on.

    The database's write lock makes this safe for any number of processes at once. The file is written before the
    database is: should the process die in between, the file's key does not work and the next call makes another.

    Raises:
        PluginError: the database or the file cannot be used.
    """
    with Store.open(database) as store, store.writing():
        key = _read(file)
        if key is not None and _works(key, store):
            return key.reveal()
        for record in store.records():  # nobody has their plaintext any more, or should have
            if record.development:
                store.revoke(record.id)
        _, key = store.create(NAME, role="admin", development=True)
        _write(file, key)
        return key.reveal()


def _read(file: Path) -> Secret | None:
    with explained(file):
        try:
            restrict(file)
            with file.open("rb") as stream:
                return Secret(stream.read(READ_BYTES).decode("ascii", "replace").strip())
        except FileNotFoundError:
            return None


def _works(key: Secret, store: Store) -> bool:
    ring = KeyRing()
    ring.replace((record for record in store.records() if record.development), development=True)
    try:
        return ring.authenticate([(b"x-api-key", key.reveal().encode("ascii", "replace"))]) is not None
    except Unauthenticated:
        return False


def _write(file: Path, key: Secret) -> None:
    """Replace the file in one step; nobody ever sees half of it, nor with another mode than 0600."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mkstemp: mode 0600
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(key.reveal() + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PluginError("keys", f"the development key cannot be kept in {file}: {error.strerror}") from error
