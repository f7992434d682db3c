"""What one gateway counts and shows, from its start to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from .counting import Counting
from .exposition import Text, merged, written
from .families import BY_NAME
from .hooktimes import HookTimes
from .names import OWN
from .own import Own, in_flight
from .publishing import Publisher
from .serving import Listener
from .shelf import Shelf
from .table import Table

if TYPE_CHECKING:
    from starlette.requests import Request

    from headrace.gateway import Gateway

    from .config import MetricsConfig
    from .keys import Key

logger = logging.getLogger("headrace.metrics")

FOLDER = "metrics"
"""In the gateway's runtime directory."""
PUBLISH_SECONDS = 1.0


class Desk:
    """Made without I/O."""

    def __init__(self, config: MetricsConfig, gateway: Gateway) -> None:
        self._config, self._gateway = config, gateway
        self._table = Table()
        self._own = Own(gateway)
        self.counting = Counting(config, gateway, self._table)
        self.hooks = HookTimes()
        self._shelf = Shelf(gateway.runtime_dir / FOLDER)
        self._publisher = Publisher(self._table, 0, tuple)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises PluginError: the address to listen at cannot be had."""
        gateway = self._gateway
        try:
            self._shelf.add(self._table, gateway.worker, self._is_still_used)
        except OSError as error:
            logger.error("nothing is counted: %s", error)
        self._publisher = Publisher(self._table, gateway.worker, lambda: (self._own, *gateway.collectors))
        self.counting.open()
        self.hooks.open(self.counting)
        async with AsyncExitStack() as stack:
            stack.callback(self._end)
            listener = self._listener()
            if listener is not None:
                await stack.enter_async_context(listener.running())
            task = asyncio.create_task(self._publish(listener), name="metrics")
            stack.push_async_callback(_cancelled, task)
            yield

    def _end(self) -> None:
        """What was counted stays; what was true is not any more."""
        self._publisher.publish()
        self._publisher.retract()
        self._table.close()

    async def _publish(self, listener: Listener | None) -> None:
        """Once a second, and again at once when another gateway takes over."""
        superseded = self._gateway.superseded
        while True:
            self._publisher.publish()
            if superseded.is_set():
                await asyncio.sleep(PUBLISH_SECONDS)
                continue
            try:
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await superseded.wait()
            except TimeoutError:
                continue
            self._table.supersede()
            if listener is not None:
                listener.stop()

    def _listener(self) -> Listener | None:
        if not self._config.listen:
            return None
        app = Starlette(routes=[Route("/metrics", self.answer)])
        return Listener(app, self._config.listen, self._gateway.runtime_dir / FOLDER / "listen.lock")

    async def through_gateway(self, request: Request) -> Response:
        """`GET /metrics` of the gateway's own address. It does not count itself."""
        self._own.scrapes += 1
        try:
            return await self.answer(request)
        finally:
            self._own.scrapes -= 1

    async def answer(self, request: Request) -> Response:
        """`GET /metrics`."""
        self._publisher.publish()
        now = in_flight(self._gateway)

        def work() -> Text:
            return written([*merged(self._shelf.pages()), now], request.headers.get("accept", ""))

        text = await asyncio.to_thread(work)
        return Response(text.body, headers={"content-type": text.content_type})

    def _is_still_used(self, key: Key) -> bool:
        """Whether what was counted before this gateway began is of a model and a target that there still are, and with
        the same bounds."""
        models = {*(model.name for model in self._gateway.models), *self._gateway.config.models, *OWN}
        targets = {*(target.name for target in self._gateway.models.targets), *OWN}
        known = {"model": models, "gen_ai_request_model": models, "target": targets}
        family = BY_NAME.get(key.family)
        if family is not None and key.bounds != family.limits(self._config.buckets):
            return False
        return all(value in known.get(name, (value,)) for name, value in key.labels)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
