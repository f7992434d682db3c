"""The store as requests use it: what is put there is there at once, and written soon after by a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from headrace.errors import Unavailable

from .store import Entry, Store, StoreError

logger = logging.getLogger("headrace.responses")

PURGE_SECONDS = 60.0
MOST_UNWRITTEN = 67_108_864
"""Bytes that may wait to be written; what is put there beyond is lost, and that is logged."""
T = TypeVar("T")


class Shelf:
    """Everything about a request is asked here."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unwritten: dict[tuple[str, str], Entry] = {}
        self._unwritten_bytes = 0
        self._wake = asyncio.Event()
        self._lost = 0

    @contextlib.asynccontextmanager
    async def running(self, *, purges: bool = True) -> AsyncIterator[None]:
        """`purges`: whether this process deletes what has expired. At the end everything is written.

        Raises StoreError: it cannot be opened.
        """
        self._thread = ThreadPoolExecutor(1, "headrace-responses")
        try:
            await self._in_thread(self._store.open)
            tasks = [asyncio.create_task(self._write_on(), name="headrace-responses")]
            if purges:
                tasks.append(asyncio.create_task(self._purge_on(), name="headrace-responses-purge"))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._write()
                await self._in_thread(self._store.close)
        finally:
            self._thread.shutdown(wait=False)

    def put(self, entry: Entry) -> None:
        """Keep this."""
        self._forget((entry.caller, entry.id))
        if self._unwritten_bytes + entry.size > MOST_UNWRITTEN:
            self._lose(1, "the disk is too slow")
            return
        self._unwritten[entry.caller, entry.id] = entry
        self._unwritten_bytes += entry.size
        self._wake.set()

    async def get(self, caller: str, name: str) -> Entry | None:
        """The caller's answer of this id. Raises Unavailable."""
        return self._unwritten.get((caller, name)) or await self._ask(lambda: self._store.get(caller, name))

    async def owner(self, caller: str, item: str) -> Entry | None:
        """The caller's answer whose output has this item. Raises Unavailable."""
        for entry in self._unwritten.values():
            if entry.caller == caller and item in entry.item_ids:
                return entry
        return await self._ask(lambda: self._store.owner(caller, item))

    async def delete(self, caller: str, name: str) -> bool:
        """Whether there was one. Raises Unavailable."""
        unwritten = self._forget((caller, name))
        return await self._ask(lambda: self._store.delete(caller, name)) or unwritten

    async def _ask(self, what: Callable[[], T]) -> T:
        try:
            return await self._in_thread(what)
        except StoreError as error:
            logger.error("the store of responses cannot be used: %s", error)
            raise Unavailable(
                "The store of responses cannot be used now.", code="store_unavailable", retryable=False
            ) from error

    async def _in_thread(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    async def _write_on(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.shield(self._write())

    async def _write(self) -> None:
        """Everything that is unwritten now."""
        batch = dict(self._unwritten)
        if not batch:
            return
        try:
            await self._in_thread(lambda: self._store.put(list(batch.values())))
        except StoreError as error:
            self._lose(len(batch), str(error))
        for key, entry in batch.items():
            if self._unwritten.get(key) is entry:
                self._forget(key)

    def _forget(self, key: tuple[str, str]) -> bool:
        entry = self._unwritten.pop(key, None)
        if entry is not None:
            self._unwritten_bytes -= entry.size
        return entry is not None

    def _lose(self, count: int, why: str) -> None:
        """Logged at the first, and then at each doubling."""
        before, self._lost = self._lost, self._lost + count
        if before.bit_length() != self._lost.bit_length():
            logger.error("%d responses could not be kept since the start: %s", self._lost, why)

    async def _purge_on(self) -> None:
        while True:
            try:
                await self._in_thread(self._store.purge)
            except StoreError as error:
                logger.error("what has expired cannot be deleted: %s", error)
            await asyncio.sleep(PURGE_SECONDS)
