"""The last reading of the GPUs, and how it is kept fresh."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from .reader import NoGpu, Reader
from .records import Reading
from .timed import Timed

logger = logging.getLogger("headrace.gpu")


class Watcher:
    """Reads all GPUs now and then. Nothing that is asked of it blocks."""

    def __init__(self, reader: Reader, interval: float, limit: float) -> None:
        """`interval`: for how many seconds a reading is good. `limit`: seconds that one may take."""
        self._reader, self._interval = reader, interval
        self._timed = Timed(reader.read, limit)
        self._limit = limit
        self._tried = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self.reading: Reading | None = None
        """The last one that went well."""
        self.reason = "nothing has been read yet"
        """Why there is no newer one; empty: there is none needed."""

    @property
    def fresh(self) -> Reading | None:
        """The last reading, unless two of them should have followed it. From any thread."""
        age = time.monotonic() - self._tried
        return None if self.reason or age > 2 * self._interval + self._limit else self.reading

    async def current(self) -> Reading | None:
        """A reading that is no older than the interval; None: there is none, see `reason`. Whoever asks at the same
        time waits for the same one."""
        if time.monotonic() - self._tried >= self._interval:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self.refresh(), name="gpu")
            await asyncio.shield(self._asking)
        return None if self.reason else self.reading

    async def refresh(self) -> None:
        """Read now. Says in the log what has changed: that there is no GPU any more, or one again."""
        try:
            reading = await self._timed.read()
        except NoGpu as error:
            self._say(str(error))
        except Exception as error:
            logger.exception("GPUs cannot be read")
            self._say(f"{type(error).__name__}: {error}")
        else:
            self.reading = reading
            self._say("" if reading.gpus else "the driver sees no GPU")
        self._tried = time.monotonic()

    async def run(self) -> None:
        """Read every `interval` seconds, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._interval)

    async def aclose(self) -> None:
        """Let go of NVML, if it answers."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        with contextlib.suppress(NoGpu):  # it hangs: nothing more can be done
            await Timed(self._reader.close, min(self._limit, 1.0)).read()

    def _say(self, reason: str) -> None:
        if reason == self.reason:
            return
        if reason:
            logger.warning("no GPU: %s", reason)
        elif self.reading is not None:
            logger.info("%d GPUs, driver %s", len(self.reading.gpus), self.reading.driver)
        self.reason = reason
