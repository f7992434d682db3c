"""Sockets to listen on: TCP, and unix sockets that outlive neither their owner nor a newer one's start."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import HeadraceError

RECEIVE_BUFFER = 8 * 1024 * 1024
"""Bytes of datagrams that may wait; the system may allow less."""


class CannotListen(HeadraceError):
    """An address is taken, or may not be used."""


@contextlib.contextmanager
def held(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it however this process ends.

    Raises:
        CannotListen: with the words of `refusal`, if another process holds it.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotListen(refusal) from error
        yield


def lock_of(socket_path: Path) -> Path:
    """The lock that whoever listens there holds."""
    return socket_path.with_suffix(".lock")


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock file."""
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def bind(listen: str) -> socket.socket:
    """Bind `HOST:PORT` or `unix:PATH`. Raises CannotListen."""
    if listen.startswith("unix:"):
        return bind_unix(Path(listen.removeprefix("unix:")))
    host, _, port = listen.rpartition(":")
    return _bind_tcp(host.strip("[]"), int(port))


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        hint = ": another program listens there" if error.errno == errno.EADDRINUSE else ""
        raise CannotListen(f"cannot listen on {host}:{port}{hint} ({error.strerror})") from error
    return listener


def bind_unix(path: Path) -> socket.socket:
    """Bind a unix socket that only its owner may use; a socket left behind by a dead process is replaced.

    Raises:
        CannotListen: another process listens there, or the path is something else.
    """
    remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        raise CannotListen(f"cannot listen on {path}: {error.strerror}") from error
    return listener


def remove_stale(path: Path) -> None:
    """Remove a socket that a dead process left behind. Raises CannotListen if it is alive, or no socket."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise CannotListen(f"cannot listen on {path}: there is a file of that name")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise CannotListen(f"another process listens on {path}: stop it, or set another server.state_dir")


def bind_datagrams(address: str) -> socket.socket:
    """A socket for datagrams at `unix:PATH` or `HOST:PORT`, with as much room for what waits as the system allows.

    Raises:
        OSError: the address cannot be had.
    """
    unix = address.startswith("unix:")
    listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if unix:
            path = Path(address.removeprefix("unix:"))
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o600)
        else:
            host, _, port = address.rpartition(":")
            listener.bind((host, int(port)))
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a bound socket is reached."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: two sockets per stream add up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
