"""Everything that is there while the gateway runs: who decides and measures, the senders, the clock of the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .collector import Collector, Signal
from .content import Content
from .histograms import Encoder, Snapshot
from .kinds import Kinds
from .measuring import Measuring
from .names import Errors
from .sending import Sender
from .templates import SCHEMA, Envelope
from .tracing import Tracing
from .transport import Transport

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from .config import OtelConfig

UNKNOWN = "unknown_service"
"""How the SDK begins the name of a service that has none."""


class Exporting:
    """Of one gateway in one process. `spans` and `metrics` are None where they are switched off."""

    def __init__(self, config: OtelConfig, gateway: Gateway, collectors: Mapping[Signal, Collector]) -> None:
        self._config = config
        self._timer: asyncio.TimerHandle | None = None
        own, errors = resource(config, gateway), Errors()
        scope = InstrumentationScope("headrace", version("headrace"), SCHEMA)
        self.spans: Sender[bytes] | None = None
        self.metrics: Sender[Snapshot] | None = None
        self.tracing = self.measuring = None
        self.kinds = Kinds(errors)
        if config.traces:
            to, envelope = collectors["traces"], Envelope(own, scope)
            self.spans = Sender(
                *("spans", to.url, Transport(to), lambda spans: envelope.around(b"".join(spans))),
                timeout=to.timeout,
                limit=config.queue_bytes,
                gather=config.export_interval,
            )
            self.tracing = Tracing(config, errors, Content(config), self.spans.put)
        if config.metrics:
            to, encoder = collectors["metrics"], Encoder(own, scope, time.time_ns())
            self.metrics = Sender(
                *("metrics", to.url, Transport(to), lambda found: encoder.encode(found[-1])),
                timeout=to.timeout,
                limit=2,  # of size 1 each: one that is under way, and the newest
                newest=True,
            )
            self.measuring = Measuring(config, gateway)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Export meanwhile; at the end, what is left, within `shutdown_timeout`."""
        senders = [each for each in (self.spans, self.metrics) if each is not None]
        for sender in senders:
            sender.start()
        self._wait()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._measure()
            seconds = self._config.shutdown_timeout
            await asyncio.gather(*(asyncio.to_thread(sender.stop, seconds) for sender in senders))

    def _wait(self) -> None:
        if self.metrics is not None:
            self._timer = asyncio.get_running_loop().call_later(self._config.metrics_interval, self._tick)

    def _tick(self) -> None:
        self._wait()
        self._measure()

    def _measure(self) -> None:
        """Have the metrics exported as they are now."""
        if self.metrics is not None and self.measuring is not None:
            self.metrics.put(self.measuring.histograms.snapshot(time.time_ns(), self.results()), 1, 1)

    def results(self) -> dict[str, int]:
        """How many spans the collector took, and how many it did not."""
        spans = self.spans
        return {"taken": spans.taken, "dropped": spans.dropped} if spans is not None else {}


def resource(config: OtelConfig, gateway: Gateway) -> Resource:
    """Who exports: each worker, and each gateway that takes over from another, is an instance of its own."""
    own: dict[str, str | int] = {
        "service.instance.id": str(uuid.uuid4()),
        "service.version": version("headrace"),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "headrace.worker": gateway.worker,
        **config.resource,
        **({"service.name": config.service_name} if config.service_name else {}),
    }
    found = Resource.create(own)
    if str(found.attributes.get("service.name", UNKNOWN)).startswith(UNKNOWN):
        found = found.merge(Resource({"service.name": "headrace"}))
    return found
