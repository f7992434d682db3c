"""One batch from its first item to its last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .answers import BROKEN, EXPIRED, Line, answered, failed, refused
from .inside import LONGEST_ID, Call, ask, scope_of
from .reading import CHAT, Item

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from .config import BatchConfig

logger = logging.getLogger("headrace.batch")


class Run:
    """Asks the items of one batch, so many at a time.

    Args:
        app: the gateway itself.
        scope: the batch's.
        slots: what all batches share.
    """

    def __init__(
        self, app: ASGIApp, scope: Any, items: list[Item], config: BatchConfig, slots: asyncio.Semaphore
    ) -> None:
        self._app, self._scope, self._items, self._config, self._slots = app, scope, items, config, slots
        self._identifier: str = scope["headrace.id"][:LONGEST_ID]
        self._lines: list[Line | None] = [None] * len(items)
        self._calls: set[Call] = set()
        """What is being asked."""
        self._waiting: set[asyncio.Task[None]] = set()
        """Who waits for a slot."""
        self._over = False
        self._expired = False

    async def lines(self) -> list[Line]:
        """What came of each, in their order."""
        numbers = iter(range(len(self._items)))
        timer = asyncio.get_running_loop().call_later(self._config.timeout, self._expire)
        workers = [
            asyncio.create_task(self._work(numbers), name=f"headrace-batch {self._identifier}")
            for _ in range(min(self._config.concurrency, len(self._items)))
        ]
        try:
            await asyncio.wait(workers)
        finally:  # if the gateway stops, nothing is left behind
            timer.cancel()
            self.leave()
            await asyncio.gather(*workers)
        return [
            line or failed(self._items[number], self._name(number), EXPIRED) for number, line in enumerate(self._lines)
        ]

    def leave(self) -> None:
        """Whoever asked is gone: nothing is asked any more, and what is being asked is given up."""
        self._over = True
        for call in self._calls:
            call.leave()
        for task in self._waiting:
            task.cancel()

    def _expire(self) -> None:
        self._expired = True
        self.leave()

    async def _work(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            if self._over:
                return
            self._lines[number] = await self._one(number)

    async def _one(self, number: int) -> Line:
        item, name = self._items[number], self._name(number)
        if item.error is not None:
            return refused(item, name, item.error)
        if not await self._slot():
            return failed(item, name, EXPIRED)
        try:
            return await self._asked(item, number, name)
        finally:
            self._slots.release()

    async def _slot(self) -> bool:
        """Wait for one; False if the batch is over before."""
        task: Any = asyncio.current_task()
        self._waiting.add(task)
        try:
            await self._slots.acquire()
        except asyncio.CancelledError:
            task.uncancel()
            return False
        finally:
            self._waiting.discard(task)
        if self._over:
            self._slots.release()
        return not self._over

    async def _asked(self, item: Item, number: int, name: str) -> Line:
        call = Call(item.body, self._config.max_reply_bytes)
        item.body = b""
        self._calls.add(call)
        try:
            answer = await ask(self._app, scope_of(self._scope, CHAT, number), call)
        except Exception as error:
            logger.error("request %s failed outside of the pipeline", name, exc_info=error)
            return failed(item, name, BROKEN)
        finally:
            self._calls.discard(call)
        return answered(item, name, answer, self._config.max_reply_bytes, expired=self._expired)

    def _name(self, number: int) -> str:
        return f"{self._identifier}-{number}"
