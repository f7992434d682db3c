"""Finds the server, notices when it has failed, and looks in the background whether it answers again.

While it has failed no request waits for it: that would make every request as slow as the longest patience. All
processes of all gateways lose a server at the same moment, so each comes back at a moment of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
import ssl
from collections.abc import AsyncIterator

from headrace.errors import HeadraceError, Unavailable

from .batches import Batches
from .config import Address
from .connection import Connection, Lost, connect, tls_context
from .resp import ErrorReply
from .scan import sums
from .step import verdict

logger = logging.getLogger("headrace.redis")

CONNECT_SECONDS = 2.0
"""For finding the server and being let in. No request waits for it."""
RENEW_SECONDS = 20.0
"""A third of the lease of what is open: so often it is renewed, and seen that the server is still there."""
SCAN_SECONDS = 60.0
"""For a command that lists what has been used."""
DRAIN_SECONDS = 2.0
"""At the end, for what has not been settled yet."""
DRAIN_LOOK = 0.005

MEANWHILE = {
    "local": "limits are counted by this gateway alone",
    "open": "nothing is limited",
    "closed": "requests that are limited are refused",
}


class Slow(Exception):
    """The server answers, but too late."""


class Link:
    """The way to the server, kept open while `running`.

    Args:
        batches: is given a connection whenever the server answers.
        patience: seconds that an answer may take.
        probe_seconds: between two looks at a server that has failed.
        meanwhile: said in the log: what is done until then.
    """

    def __init__(
        self,
        address: Address,
        prefix: str,
        name: str,
        patience: float,
        probe_seconds: float,
        meanwhile: str,
        tls: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.batches = Batches(prefix, name, patience, self._failed)
        self._address, self._patience, self._probe_seconds = address, patience, probe_seconds
        self._meanwhile, self._tls = meanwhile, tls
        self._context: ssl.SSLContext | None = None
        self._failure = asyncio.Event()
        self._since: datetime.datetime | None = None
        self._said = False

    @property
    def state(self) -> str:
        """`ok`, or since when the server has not answered."""
        return "ok" if self._since is None else f"failing since {self._since.isoformat(timespec='seconds')}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks for the server once before anything else: the first request shall find it."""
        if self._address.tls:
            self._context = _context(*self._tls)
        self._failure.set()
        await self._probe()
        task = asyncio.create_task(self._keep(), name="headrace-redis")
        try:
            yield
        finally:
            await self._drain()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.batches.detach()

    async def _keep(self) -> None:
        while True:
            if self._failure.is_set():
                await asyncio.sleep(self._probe_seconds * random.uniform(0.5, 1.0))  # noqa: S311
                await self._probe()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEW_SECONDS):  # wait_for may swallow the end of this task
                    await self._failure.wait()
            if not self._failure.is_set():
                self.batches.renew()

    async def _drain(self) -> None:
        self.batches.leave_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while self.batches.attached and self.batches.pending:  # noqa: ASYNC110
                    await asyncio.sleep(DRAIN_LOOK)
        lost = self.batches.pending + self.batches.dropped
        if lost:
            logger.warning("redis was not told what %d requests took: what they had reserved counts", lost)

    async def sums(self, start: str, prefix: str) -> list[tuple[str, int]]:
        """See `scan.sums`; on a connection of its own. Raises Unavailable."""
        try:
            async with asyncio.timeout(SCAN_SECONDS):
                connection = await connect(self._address, self._context)
                with contextlib.closing(connection):
                    return await sums(connection, start, prefix)
        except (TimeoutError, OSError, ErrorReply, Lost, ValueError) as error:
            raise Unavailable("What has been used cannot be listed now.", detail=f"redis: {error}") from error

    # --- looking ---------------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await connect(self._address, self._context)
            try:
                await self._examine(connection)
            except BaseException:
                connection.close()
                raise
        except TimeoutError:
            self._say_failed(f"no connection within {CONNECT_SECONDS:.0f} s")
        except (OSError, ErrorReply, Lost, Slow, ValueError) as error:
            self._say_failed(str(error))
        else:
            self._succeeded(connection)

    async def _examine(self, connection: Connection) -> None:
        """See that it can be written to, and that it answers in time."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self.batches.resolve(*verdict(await connection.ask(*self.batches.question())))
            async with asyncio.timeout(self._patience):
                await connection.ask(b"PING")
        except TimeoutError:
            raise Slow(f"no answer within {self._patience * 1000:.0f} ms") from None

    # --- what is known ---------------------------------------------------------------------------------------------

    def _failed(self, why: str) -> None:
        self._failure.set()
        self._say_failed(why)

    def _say_failed(self, why: str) -> None:
        if self._since is None:
            self._since = datetime.datetime.now(datetime.UTC)
            logger.error("redis at %s does not answer (%s): %s", self._address, why, self._meanwhile)

    def _succeeded(self, connection: Connection) -> None:
        was_down, self._since = self._since is not None, None
        self._failure.clear()
        self.batches.attach(connection)
        if was_down:
            logger.warning("redis at %s answers again: limits are counted together", self._address)


def _context(ca: str | None, certificate: str | None) -> ssl.SSLContext:
    """Raises HeadraceError."""
    try:
        return tls_context(ca, certificate)
    except OSError as error:  # ssl.SSLError is one
        raise HeadraceError(f"[plugins.redis] ca or certificate cannot be read: {error}") from error
