"""The level that workers and gateways share: Redis, Valkey or Memcached, through aiocache.

No request waits for it longer than the deadline, and none at all while it has failed: then it is looked at beside the
requests until it answers again. A call that is late, or whose request has gone, is not cut off: a connection in the
middle of an answer would give that answer to whoever asks next.

A value holds its own key and the epoch of its model. What `cache clear` changes is the epoch, one small key for each
model and one for all: so a clearing is of one moment, costs nothing, and holds for all gateways.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from .entry import Entry, decode, encode
from .key import Keys
from .remote import Remote

logger = logging.getLogger("headrace.cache")

PATIENCE = 2.0
"""Seconds that a look at a server that has failed may take, and what is written beside the requests."""
MOST_WAITING = 256
"""Calls under way at a time. Beyond, requests are not looked for, and answers not kept."""
MOST_WRITING = 33_554_432
"""Bytes of answers that are being written at a time."""
SLOW_CALLS = 3
"""Calls in a row that were not answered in time: then the server counts as failed."""

T = TypeVar("T")


class Found(NamedTuple):
    """What a server had."""

    entries: tuple[Entry, ...]
    """One at most for each of the keys."""
    epoch: tuple[str, str] | None
    """The present one; None if nobody knows, and then nothing is to be kept there."""


NOT_ASKED = Found((), None)


class Shared:
    """One process's use of the server.

    Args:
        connect: makes a client, without I/O.
        prefix: of all keys.
        deadline: seconds that a request waits.
        pause: seconds between two looks at a server that has failed.
        failed: told of each call in vain, with the model's name.
    """

    def __init__(
        self,
        connect: Callable[[], Remote],
        prefix: str,
        deadline: float,
        pause: float,
        failed: Callable[[str], None] = lambda model: None,
    ) -> None:
        self._connect, self._prefix, self._deadline, self._pause = connect, prefix, deadline, pause
        self._failed = failed
        self._remote: Remote | None = None
        """None while the server has failed."""
        self._calls: set[asyncio.Task[Any]] = set()
        self._old: Remote | None = None
        """The one that has failed, until it is closed."""
        self._slow = self._writing = 0
        self._down = asyncio.Event()
        self._said = self._refused = False
        """Whether it has been logged."""

    @property
    def up(self) -> bool:
        """Whether it is used."""
        return self._remote is not None

    # --- for requests ----------------------------------------------------------------------------------------------

    async def find(self, keys: Keys, model: str) -> Found:
        """What is kept under these keys. Never raises, and never takes longer than the deadline."""
        remote = self._remote
        if remote is None or len(self._calls) >= MOST_WAITING:
            return NOT_ASKED
        task = self._begin(self._find(remote, keys, model))
        done, _ = await asyncio.wait({task}, timeout=self._deadline)  # if the caller is cancelled, the call is not
        if done and not task.cancelled() and task.exception() is None:
            self._slow = 0
            return task.result()
        self._failed(model)
        if not done:
            self._slow += 1
            if self._slow >= SLOW_CALLS:
                self._fail(f"no answer within {self._deadline * 1000:.0f} ms")
        return NOT_ASKED

    def keep(self, entry: Entry) -> None:
        """Write it, beside the requests."""
        remote = self._remote
        if remote is None or len(self._calls) >= MOST_WAITING or self._writing > MOST_WRITING:
            return
        self._writing += entry.size
        writing = self._begin(self._keep(remote, entry))
        writing.add_done_callback(lambda _: self._written(entry.size))

    def _written(self, size: int) -> None:
        self._writing -= size

    async def clear(self, model: str | None) -> None:
        """Begin a new epoch. Raises OSError: the server does not answer."""
        remote = self._connect()
        try:
            async with asyncio.timeout(PATIENCE):
                await remote.put(self._epoch_key(model), secrets.token_hex(8).encode(), None)
        except remote.errors as error:
            raise OSError(str(error) or type(error).__name__) from error
        finally:
            await _close(remote)

    # --- one call --------------------------------------------------------------------------------------------------

    async def _find(self, remote: Remote, keys: Keys, model: str) -> Found:
        epochs = (self._epoch_key(None), self._epoch_key(model))
        wanted = [key for key in keys if key is not None]
        *values, everybody, own = await remote.several((*(f"{self._prefix}a:{key}" for key in wanted), *epochs))
        if everybody is None or own is None:
            return Found((), await self._begun(remote, epochs, [everybody, own]))
        epoch, now = (_text(everybody), _text(own)), time.time()
        entries = [decode(value) if value is not None else None for value in values]
        return Found(
            tuple(
                entry
                for key, entry in zip(wanted, entries, strict=True)
                if entry is not None and entry.key == key and entry.epoch == epoch and entry.ends > now
            ),
            epoch,
        )

    async def _begun(self, remote: Remote, names: tuple[str, ...], said: list[bytes | None]) -> tuple[str, str] | None:
        """The server knows no epoch, or has forgotten it: begin one. What it keeps of before does not count."""
        for name, value in zip(names, said, strict=True):
            if value is None:
                await remote.add(name, secrets.token_hex(8).encode())
        first, second = await remote.several(names)  # somebody else may have been faster
        return None if first is None or second is None else (_text(first), _text(second))

    async def _keep(self, remote: Remote, entry: Entry) -> None:
        seconds = max(1, math.ceil(entry.ends - time.time()))
        try:
            async with asyncio.timeout(PATIENCE):
                await remote.put(f"{self._prefix}a:{entry.key}", encode(entry), seconds)
            self._refused = False
        except Exception as error:
            self._failed(entry.model)
            if not remote.is_refusal(error):
                raise
            if not self._refused:
                logger.error("the cache's server does not take an answer: %s", error)
            self._refused = True

    def _epoch_key(self, model: str | None) -> str:
        if model is None:
            return f"{self._prefix}e"
        return f"{self._prefix}e:{hashlib.sha256(model.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"

    def _begin(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(str(error) or type(error).__name__)

    # --- the server's condition ------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While requests come. Begins with one look; a server that does not answer stops nobody."""
        await self._look()
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            if self._calls:
                await asyncio.wait(set(self._calls), timeout=PATIENCE)  # what is just being written
            remote, self._remote = self._remote, None
            await self._let_go(remote)

    async def _watch(self) -> None:
        while True:
            await self._down.wait()
            await self._let_go(None)
            await asyncio.sleep(self._pause)
            await self._look()

    async def _look(self) -> None:
        """Use it, if it answers."""
        remote = self._connect()
        try:
            async with asyncio.timeout(PATIENCE):
                await remote.several((self._epoch_key(None),))
                start = time.perf_counter()
                await remote.several((self._epoch_key(None),))
                took = time.perf_counter() - start
            if took > self._deadline:
                raise TimeoutError(f"an answer took {took * 1000:.0f} ms")
        except asyncio.CancelledError:
            await _close(remote)
            raise
        except Exception as error:
            await _close(remote)
            self._say_failed(str(error) or type(error).__name__)
            self._down.set()
        else:
            self._remote, self._slow = remote, 0
            self._down.clear()
            if self._said:
                self._said = False
                logger.warning("the cache's server answers again")

    def _fail(self, why: str) -> None:
        if self._remote is not None:
            self._old, self._remote = self._remote, None
            self._say_failed(why)
            self._down.set()

    def _say_failed(self, why: str) -> None:
        if not self._said:
            self._said = True
            logger.error("the cache's server does not answer (%s): requests go on without it", why)

    async def _let_go(self, remote: Remote | None) -> None:
        """Close what has failed, or `remote`: whatever is still under way on it is never waited for."""
        remote, self._old = remote or self._old, None
        for call in tuple(self._calls):
            call.cancel()
        if self._calls:
            await asyncio.wait(set(self._calls), timeout=PATIENCE)
        if remote is not None:
            await _close(remote)


async def _close(remote: Remote) -> None:
    """Whatever becomes of it."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(PATIENCE):
            await remote.close()


def _text(value: bytes | None) -> str:
    return (value or b"").decode("ascii", "replace")
