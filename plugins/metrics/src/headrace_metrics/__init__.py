"""Metrics for Prometheus: exact over all workers, cheap per request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace import hookimpl

from .config import BucketsConfig, MetricsConfig

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from headrace.exchange import Attempt, Exchange, Outcome
    from headrace.gateway import Gateway


class Plugin:
    """Counts what requests and tries came to, and shows it with what other plugins offer."""

    Config = MetricsConfig

    def __init__(self, config: MetricsConfig, gateway: Gateway) -> None:
        from .desk import Desk

        self._config = config
        self._desk = Desk(config, gateway)
        self._counting = self._desk.counting
        gateway.hook_wrapper = self._desk.hooks.wrap
        gateway.on_fault = self._desk.hooks.failed
        gateway.usage_wanted |= config.tokens

    @hookimpl
    def register_routes(self, gateway: Gateway) -> None:
        if self._config.route:
            require, summary = self._config.require, "Metrics for Prometheus"
            gateway.add_route("/metrics", self._desk.through_gateway, require=require, summary=summary)

    @hookimpl
    def lifespan(self, gateway: Gateway) -> AbstractAsyncContextManager[None] | None:
        return None if gateway.looking else self._desk.running()

    @hookimpl
    async def on_attempt(self, attempt: Attempt, outcome: Outcome) -> None:
        self._counting.attempted(attempt, outcome)

    @hookimpl
    async def on_complete(self, exchange: Exchange, outcome: Outcome) -> None:
        self._counting.completed(exchange, outcome)


__all__ = ["BucketsConfig", "MetricsConfig", "Plugin"]
