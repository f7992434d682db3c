"""The file of the local ledger: written without waiting for the disk, and whole again after a power cut.

While the machine runs, what a process has written is there for all others, even if it is killed. Only when the machine
itself goes down, what had not reached the disk is lost, and may leave the file damaged. So a copy is put on the disk
every few seconds; when the machine has been started since the file was last opened, the copy takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import lmdb

from headrace.errors import HeadraceError

from .sums import records

MAP_BYTES = 1 << 30
"""How large the file may become: two million keys. What is not used takes no room."""
AHEAD_BYTES = 16 << 20
"""Room on the disk that is set aside for what comes: thirty thousand keys."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_file(path: Path, boot: str | None = None) -> lmdb.Environment:
    """Open the file, make it if there is none. `boot` is what tells one start of the machine from another.

    Raises:
        HeadraceError: it cannot be used; says what to do.
    """
    with _explained(path), _locked(path):
        _restore(path, _boot() if boot is None else boot)
        environment = lmdb.open(
            str(path), map_size=MAP_BYTES, subdir=False, mode=0o600, writemap=True, sync=False, metasync=False
        )
        try:
            maintain(environment, path)
        except BaseException:
            environment.close()
            raise
        return environment


def maintain(environment: lmdb.Environment, path: Path) -> None:
    """Forget readers that have died, which keep old pages from being used again; and have the disk set room aside.

    Where the disk is full, writing into a mapped file ends the process: better to be told beforehand.

    Raises:
        OSError: the disk is full.
    """
    environment.reader_check()
    wanted = min((environment.info()["last_pgno"] + 1) * environment.stat()["psize"] + AHEAD_BYTES, MAP_BYTES)
    if hasattr(os, "posix_fallocate") and path.stat().st_blocks * 512 < wanted:
        _set_aside(path, wanted)


def _set_aside(path: Path, size: int) -> None:
    """Where the file system can do that by itself: elsewhere the C library would write, while others do so, too."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        if os.fstatvfs(descriptor).f_bavail * os.fstatvfs(descriptor).f_frsize < size - path.stat().st_blocks * 512:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if _type_of(path) in CAN_ALLOCATE:
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def _type_of(path: Path) -> str:
    """The kind of file system; empty if that is not known."""
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()]
        found = [(len(each[1]), each[2]) for each in mounts if path.absolute().is_relative_to(each[1])]
        return max(found, default=(0, ""))[1]
    return ""


CAN_ALLOCATE = frozenset(("ext4", "xfs", "btrfs", "tmpfs", "f2fs", "overlay"))
"""File systems with a fallocate of their own."""


def take_over(path: Path, environment: lmdb.Environment) -> int | None:
    """Put the sums into the database that a worker left who died.

    Returns:
        The descriptor of their file, empty and locked; None if somebody counts there now.

    Raises:
        HeadraceError: it cannot be used; says what to do.
    """
    with _explained(path):
        descriptor = os.open(_beside(path, ".sums"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with environment.begin(write=True) as txn:
                for name, numbers in records(os.pread(descriptor, os.fstat(descriptor).st_size, 0)):
                    txn.put(name, numbers)
            os.ftruncate(descriptor, 0)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def save(environment: lmdb.Environment, path: Path) -> None:
    """Put a copy on the disk. Blocks on it. Raises lmdb.Error, OSError."""
    new = _beside(path, ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        environment.copyfd(descriptor, compact=True)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(_beside(path, ".saved"))


def _restore(path: Path, boot: str) -> None:
    """If the machine was started since the file was in use, it may be damaged: begin from the copy."""
    seen, saved = _beside(path, ".boot"), _beside(path, ".saved")
    before = seen.read_text("ascii", "replace") if seen.exists() else boot
    if before != boot and saved.exists():
        shutil.copyfile(saved, path)
        path.chmod(0o600)
        _beside(path, "-lock").unlink(missing_ok=True)
    if before != boot:
        _beside(path, ".sums").unlink(missing_ok=True)
    if before != boot or not seen.exists():
        seen.write_text(boot, "ascii")


def _boot() -> str:
    """Empty where the system does not say."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text("ascii").strip()
    return ""


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """For one process at a time."""
    with _beside(path, ".boot-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise HeadraceError(
            f"{path}: the counts of limits and budgets cannot be read ({error}). Move the file away to begin with "
            f"none, or put {path.name}.saved in its place, a copy of some seconds before."
        ) from error
