"""Posts alerts to an address, beside the requests: whatever becomes of it, no request waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from headrace.config import Secret, TargetTimeouts
from headrace.errors import GatewayError
from headrace.exchange import Target, UpstreamRequest

if TYPE_CHECKING:
    from headrace.gateway import Gateway

logger = logging.getLogger("headrace.budget")

SECONDS = 5.0
"""That one try may take."""
PAUSES = (1.0, 5.0, 25.0)
"""Seconds before the second try, the third, …"""
AT_ONCE = 100
"""Alerts under way; of more than these the log alone tells."""
LEAVE_SECONDS = 2.0
"""For so long the gateway's end waits for them."""


class Webhook:
    """Posts to one address, while `running`.

    Args:
        url: where to; only its host is ever logged.
        gateway: whose HTTP client is used.
        pauses: seconds between tries.
    """

    def __init__(self, url: Secret, gateway: Gateway, pauses: Sequence[float] = PAUSES) -> None:
        self._url, self._gateway, self._pauses = url.reveal(), gateway, pauses
        self._host = urlsplit(self._url).hostname
        limits = TargetTimeouts(connect=SECONDS, first_byte=SECONDS, idle=SECONDS)
        self._target = Target(name="budget alerts", provider="", base_url=self._url, timeouts=limits)
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, alert: Mapping[str, Any]) -> None:
        """Begin to post this."""
        if len(self._tasks) >= AT_ONCE:
            logger.error("an alert is not posted to %s: %d are under way", self._host, AT_ONCE)
            return
        task = asyncio.create_task(self._deliver(msgspec.json.encode(alert)), name="headrace-budget-alert")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Entered before the first request, left after the last."""
        try:
            yield
        finally:
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=LEAVE_SECONDS)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)

    async def _deliver(self, body: bytes) -> None:
        for pause in (*self._pauses, None):
            problem = await self._try(body)
            if not problem:
                return
            if pause is not None:
                await asyncio.sleep(pause)
        logger.error("an alert could not be posted to %s: %s", self._host, problem)

    async def _try(self, body: bytes) -> str:
        """What went wrong; nothing if nothing did."""
        request = UpstreamRequest(url=self._url, headers={"Content-Type": "application/json"}, body=body)
        try:
            async with asyncio.timeout(SECONDS):
                reply = await self._gateway.upstream.send(self._target, request, checked=False)
                await reply.aclose()
        except TimeoutError:
            return f"no answer in {SECONDS:g} s"
        except GatewayError as error:  # its detail would name the whole address
            return error.message
        return "" if reply.ok else f"it answered {reply.status}"
