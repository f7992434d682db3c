"""A copy of the database in memory, which is made afresh when there is something new."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import NamedTuple

from headrace.errors import PluginError

from .ring import KeyRing
from .store import Place, Store

FILE_WAIT_SECONDS = 0.2
"""How long one look at a file waits for a lock; the next look comes soon anyway."""
SERVER_WAIT_SECONDS = 2.0
"""How long one look at a server may take."""
SURE_NS = 3_000_000_000
"""Age at which a file's time of change tells: some file systems count in steps of two seconds."""


class Mirror:
    """Copies the database into a KeyRing. Blocks on the disk or the network."""

    def __init__(self, place: Place, ring: KeyRing, *, development: bool) -> None:
        self._place = place
        self._ring = ring
        self._development = development
        self._files = Files(place) if isinstance(place, Path) else None
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._seen: int | None = None
        self._read = False
        self._closed = False

    @property
    def has_file(self) -> bool:
        """Whether the database is one."""
        return self._files is not None

    def is_unchanged(self) -> bool:
        """Whether nothing can have changed since the last look, as far as the file system tells: needs no thread."""
        return self._store is not None and self._files is not None and self._files.are_unchanged()

    def look(self) -> None:
        """Copy the keys if they have changed, also when a whole file was put in place of another.

        Raises:
            PluginError: the database cannot be read; the ring is as it was, and the next look starts afresh.
        """
        with self._lock:
            if self._closed:
                return
            try:
                self._look()
            except BaseException:
                self._close()
                raise

    def _look(self) -> None:
        stamps = self._files.now() if self._files is not None else ()  # before anything is read
        store = self._current_store()
        seen = store.version()  # before the rows: a change in between is found by the next look
        if seen != self._seen:
            self._ring.replace(store.records(), development=self._development)
            self._seen = seen
        self._read = True
        if self._files is not None:
            self._files.seen = stamps

    def _current_store(self) -> Store:
        if self._files is not None and self._files.were_replaced():
            self._close()
        if self._store is None:
            wait = SERVER_WAIT_SECONDS if self._files is None else FILE_WAIT_SECONDS
            self._store = Store.open(self._place, wait, create=not self._read)
            if self._files is not None:
                self._files.remember()
        return self._store

    def close(self) -> None:
        """Give the connection back, for good."""
        with self._lock:
            self._closed = True
            self._close()

    def _close(self) -> None:
        store, self._store, self._seen = self._store, None, None
        if store is not None:
            store.close()


class Stamp(NamedTuple):
    """What changes of a file with its content."""

    device: int
    inode: int
    size: int
    modified_ns: int


class Files:
    """A database's file and its log, as the file system sees them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._both = path, path.with_name(path.name + "-wal")
        self._identity: tuple[int, int] | None = None
        self.seen: tuple[Stamp | None, ...] = ()
        """The stamps at the last look."""

    def now(self) -> tuple[Stamp | None, ...]:
        """The stamps of both."""
        return tuple(map(_stamp, self._both))

    def are_unchanged(self) -> bool:
        """Whether they are those of the last look, and old enough for their times to be told apart from now's."""
        stamps = self.now()
        if not stamps or stamps[0] is None or stamps != self.seen:
            return False
        newest = max(stamp.modified_ns for stamp in stamps if stamp is not None)
        return time.time_ns() - newest > SURE_NS

    def remember(self) -> None:
        """The file that is there now is the one that was opened."""
        self._identity = _identity(self._path)

    def were_replaced(self) -> bool:
        """Whether another file stands in the place of the one that was opened. Raises PluginError if none does."""
        identity = _identity(self._path)
        if identity is None and self._identity is not None:
            raise PluginError("keys", f"{self._path} is gone: put it back, or restart to begin with an empty one")
        return identity != self._identity


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
