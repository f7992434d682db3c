"""The development key: one that is always there on one's own machine, in a file that only its owner can read."""

from __future__ import annotations

from pathlib import Path

from headrace.config import Secret
from headrace.errors import Unauthenticated

from .files import restrict, write_private
from .ring import KeyRing
from .sqlite_store import explained
from .store import Place, Store

NAME = "development"
READ_BYTES = 200
"""More than a key has: a file that was replaced by something else is not read whole."""


def ensure(database: Place, file: Path) -> str:
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
        write_private(file, key.reveal() + "\n", "the development key")
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
