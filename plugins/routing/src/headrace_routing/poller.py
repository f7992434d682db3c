"""Asks engines how busy they are, every second or so, for policies that want to know."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable

from headrace.errors import GatewayError, UpstreamError
from headrace.exchange import Target, UpstreamRequest
from headrace.fleet import EngineLoad
from headrace.upstream import Upstream, target_headers

from .config import MetricsConfig
from .engine import Loads
from .metrics import read_load

logger = logging.getLogger("headrace.routing")


class Poller:
    """Sets `target.state.engine` of some targets, each on its own, so that one that hangs holds up no other."""

    def __init__(
        self, config: MetricsConfig, upstream: Upstream, targets: Iterable[Target], loads: Loads, rng: random.Random
    ) -> None:
        self._config, self._upstream, self._loads, self._rng = config, upstream, loads, rng
        self._targets = tuple(targets)
        self._failing: dict[str, bool] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for target in self._targets:
                group.create_task(self._watch(target))

    async def _watch(self, target: Target) -> None:
        interval, jitter = self._config.interval, self._config.jitter
        while True:
            await self.poll(target)
            await asyncio.sleep(interval * self._rng.uniform(1 - jitter, 1 + jitter))

    async def poll(self, target: Target) -> None:
        """Ask one engine. A failure is logged when it is the first, and so is that it is over."""
        try:
            async with asyncio.timeout(self._config.timeout):
                target.state.engine = await self._ask(target)
        except TimeoutError:
            self._note(target, f"no answer within {self._config.timeout:g} s")
        except GatewayError as error:
            self._note(target, error.detail or error.message)
        except Exception as error:  # whatever it is, the next time it may be over
            self._note(target, f"{type(error).__name__}: {error}")
        else:
            self._loads.note(target)
            self._note(target, None)

    async def _ask(self, target: Target) -> EngineLoad:
        url = target.base_url.removesuffix("/v1") + self._config.path
        request = UpstreamRequest(method="GET", url=url, headers=target_headers(target), body=b"")
        reply = await self._upstream.send(target, request)
        await reply.aclose()
        load = read_load(reply.content or b"", time.monotonic()) if reply.ok else None
        if load is None:
            raise UpstreamError("", detail=f"{self._config.path} answered {reply.status} and tells no engine's load")
        return load

    def _note(self, target: Target, problem: str | None) -> None:
        failing = self._failing.get(target.name, False)
        self._failing[target.name] = problem is not None
        if problem is not None and not failing:
            logger.warning(
                "target %s: its load cannot be read: %s; it counts by requests in flight", target.name, problem
            )
        elif problem is None and failing:
            logger.info("target %s: its load can be read again", target.name)
