"""Checks one backend again and again: one check at a time, sooner when there is reason to."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from .checks import Check, Found, failure
from .judge import Clock, Judge

logger = logging.getLogger("headrace.health")


class Timer:
    """What a watch waits with."""

    now: Clock = staticmethod(time.monotonic)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Until the event is set, but no longer than so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Watch:
    """Keeps an eye on one backend.

    Args:
        tell: called after every check, and when requests have changed its condition.
    """

    def __init__(self, judge: Judge, check: Check, tell: Callable[[Watch, Found | None], None], timer: Timer) -> None:
        self.judge, self.target = judge, judge.target
        self.latency: float | None = None
        """Seconds that the last check took."""
        self.checked = asyncio.Event()
        """Set once it has been checked."""
        self._check, self._tell, self._timer = check, tell, timer
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """For as long as the gateway runs."""
        while True:
            began = self._timer.now()
            self._wanted.clear()
            found = await self._ask()
            self.latency = self._timer.now() - began
            try:
                self.judge.checked(found)
                self._tell(self, found)
            except Exception:  # whoever hears of it must not end the checks
                logger.exception("target %s: what a check found could not be told", self.target.name)
            self.checked.set()
            await self._rest(began)

    def request_ended(self, failed: str, refused: bool) -> None:
        """A request to it is over: `failed` says what went wrong, empty: nothing; `refused`: it is our key."""
        before = self.target.state.condition
        if refused:
            self.judge.key_refused(failed)
        elif not failed:
            self.judge.request_succeeded()
        elif self.judge.request_failed(failed):
            self._wanted.set()
        if self.target.state.condition != before:
            self._tell(self, None)

    async def _ask(self) -> Found:
        seconds = self.judge.rules.timeout
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._check(self.target)
        except Exception as error:
            if limit.expired():
                return Found("failed", f"no answer within {seconds:g} s")
            return failure(error)

    async def _rest(self, began: float) -> None:
        """Until the next check is due, or wanted; no two of them begin within `fast_interval`."""
        jitter = self.judge.rules.jitter
        part = random.uniform(1 - jitter, 1 + jitter)  # noqa: S311 (nothing secret: gateways are not to ask in step)
        await self._timer.wait(self._wanted, self.judge.pause() * part)
        early = began + self.judge.rules.fast_interval * (1 - jitter) - self._timer.now()
        if early > 0:
            await self._timer.sleep(early)
