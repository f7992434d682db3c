"""NVIDIA GPUs: how they are, and which models fit on them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from headrace import hookimpl

from .collector import Collector
from .config import GpuConfig
from .reader import Reader
from .watcher import Watcher

if TYPE_CHECKING:
    import click
    from starlette.requests import Request
    from starlette.responses import Response

    from headrace.gateway import Gateway

    from .nvml import Nvml


class Plugin:
    """Reads the GPUs now and then, shows them, and plans models for them."""

    Config = GpuConfig

    def __init__(self, config: GpuConfig, gateway: Gateway, nvml: Nvml | None = None) -> None:
        """`nvml`: what to call in place of `pynvml`."""
        self.config, self._nvml = config, nvml
        self.watcher = Watcher(self.reader(), config.interval, config.timeout)

    def reader(self) -> Reader:
        """A reader of its own, for a command."""
        return Reader(self._nvml)

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        gateway.add_route("/v1/gpu", self._show, require="admin", summary="The GPUs of this machine")

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        from .commands import gpu

        cli.add_command(gpu)

    @hookimpl
    @asynccontextmanager
    async def lifespan(self, gateway: Gateway) -> AsyncIterator[None]:
        """One worker reads by itself, as all see the same devices; the others when they are asked."""
        if gateway.looking:
            yield
            return
        if gateway.worker != 0:
            async with contextlib.aclosing(self.watcher):
                yield
            return
        collectors = getattr(gateway, "collectors", None)
        if collectors is not None:
            collectors.append(Collector(self.watcher, gateway.superseded))
        reading = asyncio.create_task(self._read(gateway), name="gpu readings")
        async with contextlib.aclosing(self.watcher):
            try:
                yield
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, gateway: Gateway) -> None:
        """Until another gateway takes over, which reads by itself."""
        reading = asyncio.create_task(self.watcher.run(), name="gpu")
        try:
            await gateway.superseded.wait()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _show(self, request: Request) -> Response:
        from starlette.responses import Response

        reading = await self.watcher.current()
        body = {
            "object": "list",
            "data": [] if reading is None else reading.gpus,
            "reason": self.watcher.reason,
            "driver": "" if reading is None else reading.driver,
            "read_at": None if reading is None else reading.at,
        }
        return Response(msgspec.json.encode(body), media_type="application/json")


__all__ = ["GpuConfig", "Plugin"]
