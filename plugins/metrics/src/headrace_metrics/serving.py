"""An address of its own for `/metrics`, at which one process of the gateway listens.

Whoever holds the lock listens; the others look now and then whether it is free, for the kernel lets go of a dead one's.
A gateway that takes over from another in the same process takes over its socket as well: nobody is refused in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from headrace.errors import PluginError
from headrace.server import Server

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger("headrace.metrics")

LOOK_SECONDS = 0.25
"""How often those that stand by look."""
BACKLOG = 64
END_SECONDS = 5
"""For answers on their way, when it ends."""


class Post:
    """The right to listen: a lock, and a socket that listens.

    The file of the lock says which process has it, and under which numbers: a later gateway of that process makes
    itself copies of both. The last copy that is closed makes way for other processes.
    """

    def __init__(self, lock: int, listener: socket.socket, listen: str, before: str = "") -> None:
        """`before`: what the file has said until now."""
        self._lock, self.listener, self._before = lock, listener, before
        self._text = f"{os.getpid()} {lock} {listener.fileno()} {listen}"
        _write(lock, self._text)

    def close(self) -> None:
        """If no other has taken over, the one before goes on."""
        if _read(self._lock) == self._text:
            _write(self._lock, self._before)
        self.listener.close()
        os.close(self._lock)

    @classmethod
    def take(cls, path: Path, listen: str) -> Post | None:
        """None: another process has it. Raises OSError: the address cannot be had."""
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(lock, bound(listen), listen)
        except BlockingIOError:
            post = cls._copy(lock, listen)
            os.close(lock)
            return post
        except OSError:
            os.close(lock)
            raise

    @classmethod
    def _copy(cls, lock: int, listen: str) -> Post | None:
        """Copies of what an earlier gateway of this process holds, if it is for the same address."""
        text = _read(lock)
        pid, held, listener, place = (*text.split(" "), "", "", "", "")[:4]
        if pid != str(os.getpid()) or place != listen:
            return None
        try:
            if os.path.sameopenfile(int(held), lock):
                return cls(os.dup(int(held)), socket.socket(fileno=os.dup(int(listener))), listen, text)
        except (OSError, ValueError) as error:
            logger.debug("the socket of the earlier gateway cannot be had: %s", error)
        return None


def _read(file: int) -> str:
    return os.pread(file, 500, 0).decode("utf-8", "replace")


def _write(file: int, text: str) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, text.encode(), 0)


class Listener:
    """Serves `app` at `listen`, or stands by while another process of the gateway does."""

    def __init__(self, app: ASGIApp, listen: str, lock: Path) -> None:
        self._app, self._listen, self._lock = app, listen, lock
        self._over = asyncio.Event()
        self._told = False

    def stop(self) -> None:
        """Another gateway listens from now on."""
        self._over.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises PluginError: the address cannot be had."""
        try:
            post = Post.take(self._lock, self._listen)
        except OSError as error:
            why = f"cannot listen on {self._listen} ({error.strerror or error}): set another address"
            raise PluginError("metrics", why, "lifespan") from error
        task = asyncio.create_task(self._run(post), name="metrics listener")
        try:
            yield
        finally:
            self.stop()
            await task

    async def _run(self, post: Post | None) -> None:
        """Listen as soon as we may, until it is over."""
        while post is None and not await self._waited():
            try:
                post = Post.take(self._lock, self._listen)
            except OSError as error:
                self._complain(error)
        if post is not None:
            with contextlib.closing(post):
                async with Server(_config(self._app), lambda: None).answering([post.listener]):
                    await self._over.wait()

    async def _waited(self) -> bool:
        """Whether it was over before it is time to look again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._over.wait()
        return self._over.is_set()

    def _complain(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            logger.error("metrics are not served: cannot listen on %s: %s", self._listen, error)


def bound(listen: str) -> socket.socket:
    """A socket that listens at `HOST:PORT`. Raises OSError: the address cannot be had."""
    host, _, port = listen.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=END_SECONDS,
        backlog=BACKLOG,
    )
