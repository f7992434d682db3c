"""Files by which workers and commands of one gateway know of one another: what was cleared, how each worker stands.

They lie where the gateway's sockets do. Nobody waits for anybody: a worker looks at the time of a file when it looks
for an answer, and writes how it stands once a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .counts import Counts

CLEARED, LOCK = "cache-cleared.json", "cache-cleared.lock"
START = ""
"""The epoch before anything has been cleared."""


class Epochs(msgspec.Struct):
    """Which epoch it is: of everything, and of single models. Each clearing begins a new one, named by chance."""

    all: str = START
    models: dict[str, str] = {}


class Marks:
    """The epochs, as all workers see them. Errors of the disk leave things as they were seen last."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / CLEARED
        self._seen: tuple[int, int, int] | None = None
        self._epochs = Epochs()

    @property
    def seen(self) -> tuple[int, int, int] | None:
        """Another one after each clearing."""
        return self._seen

    def of(self, model: str) -> tuple[str, str]:
        """The present epoch of a model: one look at the file's time."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 (a third of the cost, and it is paid for every request)
            seen: tuple[int, int, int] | None = (found.st_mtime_ns, found.st_ino, found.st_size)
        except OSError:
            seen = None
        if seen != self._seen:
            self._read(seen)
        return (self._epochs.all, self._epochs.models.get(model, START))

    def _read(self, seen: tuple[int, int, int] | None) -> None:
        if seen is None:
            self._seen, self._epochs = None, Epochs(_new())  # gone: nothing of before holds
            return
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            self._epochs = msgspec.json.decode(self._path.read_bytes(), type=Epochs)
            self._seen = seen

    def clear(self, model: str | None) -> None:
        """Begin a new epoch, of a model or of everything. Raises OSError."""
        with self._locked():
            epochs = Epochs()
            with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
                epochs = msgspec.json.decode(self._path.read_bytes(), type=Epochs)
            if model is None:
                epochs = Epochs(_new())
            else:
                epochs.models[model] = _new()
            _write(self._path, msgspec.json.encode(epochs))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, or its process ends
            yield


class Standing(msgspec.Struct):
    """How one worker stands."""

    worker: int
    pid: int
    memory_bytes: int | None
    """What the answers in memory may take; None: none are kept there."""
    server: str | None
    """Whether the server that keeps answers is `up` or `down`; None: there is none."""
    models: dict[str, Counts]


class Board:
    """Where the workers write how they stand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[int, bytes] = {}

    def write(self, standing: Standing) -> None:
        """If it is another than before. Raises OSError."""
        data = msgspec.json.encode(standing)
        if self._written.get(standing.worker) != data:
            _write(self._path(standing.worker), data)
            self._written[standing.worker] = data

    def remove(self, worker: int) -> None:
        """This worker has ended."""
        with contextlib.suppress(OSError):
            self._path(worker).unlink()

    def read(self) -> list[Standing]:
        """Those of all workers that run."""
        found = []
        for path in sorted(self._folder.glob("cache-stats-*.json")):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                standing = msgspec.json.decode(path.read_bytes(), type=Standing)
                if _runs(standing.pid):
                    found.append(standing)
        return sorted(found, key=lambda each: each.worker)

    def _path(self, worker: int) -> Path:
        return self._folder / f"cache-stats-{worker}.json"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is somebody else's
    return True


def _new() -> str:
    return f"{time.time_ns():x}{secrets.token_hex(4)}"


def _write(path: Path, data: bytes) -> None:
    """All at once. Readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123
        file.write(data)
    temporary.replace(path)
