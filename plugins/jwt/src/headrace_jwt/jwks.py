"""The issuer's published keys: kept in memory, refreshed in the background, asked for when a token names a new one.

However many tokens with invented key names arrive, the issuer is asked for one of them every few seconds at most; and
however long the issuer is away, no request waits for longer than one fetch may take.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from headrace.errors import Unavailable

from .config import JwtConfig
from .fetch import Fetched, FetchError, public_part
from .keyset import KeySet

logger = logging.getLogger("headrace.jwt")

ASK_AGAIN_SECONDS = 5.0
"""Between two fetches that requests have caused."""
RETRY_SECONDS = 5.0
"""After the first fetch that failed; the pauses then double, up to RETRY_LIMIT."""
RETRY_LIMIT = 60.0
MIN_INTERVAL, MAX_INTERVAL = 60.0, 3600.0
"""Bounds of what the issuer may say about the time between two fetches."""


class PublishedKeys:
    """A `Source` that follows an address. For one event loop."""

    def __init__(self, config: JwtConfig, fetch: Callable[[], Awaitable[Fetched]], changed: Callable[[], None]) -> None:
        """`fetch` gets the keys or raises FetchError; `changed` is called whenever they are others than before."""
        self._config = config
        self._where = public_part(config.jwks_url or "")
        self._fetch = fetch
        self._changed = changed
        self._last: Fetched | None = None
        self._failing_since: float | None = None
        self._failures = 0
        self._said_over = False
        self._asked = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._sooner = asyncio.Event()
        """Set when a fetch that a request has caused fails: the next one must not wait for its usual time."""

    def current(self) -> KeySet:
        """The keys that are valid now.

        Raises:
            Unavailable: none were ever fetched, or they could not be for longer than `jwks_grace`.
        """
        if self._last is None or self._is_over():
            raise unavailable()
        return self._last.keys

    async def with_key(self, kid: str | None) -> KeySet:
        """The keys that are valid now; fetched at once if `kid` is none of theirs and nobody has just asked.

        Raises:
            Unavailable: as above, or the key is not known and the issuer cannot be asked about it.
        """
        if self._last is None or self._is_over() or not self._last.keys.knows(kid):
            await self._ask()
        keys = self.current()
        if not keys.knows(kid) and self._failing_since is not None:
            raise unavailable()
        return keys

    async def _ask(self) -> None:
        """Fetch because of a request: with one that is under way already, or not at all soon after another."""
        now = time.monotonic()
        if self._fetching is None and now - self._asked < ASK_AGAIN_SECONDS:
            return
        self._asked = now
        await self.refresh()

    async def refresh(self) -> None:
        """Fetch the keys, once for everybody who wants that now. Failures are noted, not raised."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._refresh(), name="headrace-jwt-fetch")
        await asyncio.shield(self._fetching)  # the fetch outlives a client that leaves

    async def _refresh(self) -> None:
        try:
            fetched = await self._fetch()
        except Exception as error:  # whatever it is, following must go on
            self._failed(str(error) if isinstance(error, FetchError) else f"{type(error).__name__}: {error}")
        else:
            self._succeeded(fetched)
        finally:
            self._fetching = None

    def _succeeded(self, fetched: Fetched) -> None:
        last, self._last = self._last, fetched
        if last is None or last.body != fetched.body:
            self._changed()
            logger.info("%d keys from %s", len(fetched.keys), self._where)
        if self._failing_since is not None:
            logger.warning("the keys at %s can be fetched again", self._where)
        self._failing_since, self._failures, self._said_over = None, 0, False

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            self._sooner.set()
            logger.warning("the keys at %s cannot be fetched: %s; %s", self._where, why, self._consequence())
        elif self._last is not None and self._is_over() and not self._said_over:
            self._said_over = True
            logger.error("the keys at %s still cannot be fetched: %s; tokens are answered 503", self._where, why)

    def _consequence(self) -> str:
        if self._last is None:
            return "tokens are answered 503 until they can"
        return f"those fetched last stay valid for {self._config.jwks_grace:g} s"

    def _is_over(self) -> bool:
        since = self._failing_since
        return since is not None and time.monotonic() - since >= self._config.jwks_grace

    def interval(self) -> float:
        """Seconds until the next fetch in the background."""
        usual = self._config.jwks_refresh
        if self._failures:
            return min(RETRY_SECONDS * 2.0 ** min(self._failures - 1, 10), RETRY_LIMIT, usual)
        if self._last is None or self._last.max_age is None:
            return usual
        return min(max(self._last.max_age, min(usual, MIN_INTERVAL)), max(usual, MAX_INTERVAL))

    @contextlib.asynccontextmanager
    async def refreshed(self) -> AsyncIterator[None]:
        """Fetch the keys, whatever comes of it, and follow them until the context is left."""
        following = None
        try:
            await self.refresh()
            following = asyncio.create_task(self._follow(), name="headrace-jwt-refresh")
            yield
        finally:
            tasks = [task for task in (following, self._fetching) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            self._sooner.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.interval()):
                    await self._sooner.wait()
            if not self._sooner.is_set():
                await self.refresh()


def unavailable() -> Unavailable:
    """What a caller is told while there are no keys: nothing is wrong with the token as far as we know."""
    return Unavailable(
        "The gateway cannot check tokens at the moment: the keys of their issuer cannot be fetched. Try again later.",
        headers={"Retry-After": str(round(ASK_AGAIN_SECONDS))},
    )
