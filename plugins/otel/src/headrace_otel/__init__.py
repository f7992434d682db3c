"""OpenTelemetry: a span for each request and each try, `traceparent` in and out, GenAI metrics; for any collector."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from headrace import hookimpl

from .collector import collectors
from .config import OtelConfig
from .measures import Measures

if TYPE_CHECKING:
    from headrace.exchange import Attempt, Exchange, Outcome
    from headrace.gateway import Gateway
    from headrace.streaming import Tap

    from .exporting import Exporting
    from .measuring import Measuring
    from .tracing import Tracing


class Plugin:
    """Records requests and measures them. OpenTelemetry's SDK is imported when the gateway starts."""

    Config = OtelConfig

    def __init__(self, config: OtelConfig, gateway: Gateway) -> None:
        self._config, self._gateway = config, gateway
        self._collectors = collectors(config)
        self._exporting: Exporting | None = None
        self._tracing: Tracing | None = None
        self._measuring: Measuring | None = None
        gateway.collectors.append(Measures(self.results))

    @hookimpl
    def lifespan(self, gateway: Gateway) -> AbstractAsyncContextManager[None] | None:
        return None if gateway.looking else self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        from .exporting import Exporting

        exporting = self._exporting = Exporting(self._config, self._gateway, self._collectors)
        self._tracing, self._measuring, self._kind = exporting.tracing, exporting.measuring, exporting.kinds.of
        async with exporting.running():
            yield

    @hookimpl
    def open_tap(self, exchange: Exchange) -> Tap | None:
        trace = self._tracing.begin(exchange) if self._tracing is not None else None
        if trace is not None or self._measuring is not None:
            exchange.usage_wanted |= self._config.tokens
        return trace.answer if trace is not None else None

    @hookimpl
    async def prepare_attempt(self, attempt: Attempt) -> None:
        if self._tracing is not None:
            self._tracing.tell(attempt)
        if self._config.baggage and (baggage := attempt.exchange.header(b"baggage")) and attempt.request is not None:
            attempt.request.set_header("baggage", baggage)  # https://www.w3.org/TR/baggage/: as it is

    @hookimpl
    async def on_attempt(self, attempt: Attempt, outcome: Outcome) -> None:
        if self._tracing is not None:
            self._tracing.attempted(attempt, outcome)

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        tracing, measuring = self._tracing, self._measuring
        trace = tracing.of(exchange) if tracing is not None else None
        if trace is None and measuring is None:
            return
        kind = self._kind(exchange, outcome)
        if tracing is not None and trace is not None:
            tracing.completed(trace, exchange, outcome, kind)
        if measuring is not None:
            measuring.completed(exchange, outcome, kind)

    def results(self) -> Mapping[str, int]:
        """How many spans the collector took, and how many were dropped."""
        return self._exporting.results() if self._exporting is not None else {}


__all__ = ["OtelConfig", "Plugin"]
