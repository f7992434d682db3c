"""How long checks take, as the plugin `metrics` wants it; without it nobody asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin


class Measures:
    """See `Gateway.collectors`."""

    def __init__(self, plugin: Plugin, gateway: Gateway) -> None:
        self._plugin, self._gateway = plugin, gateway

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily  # whoever calls this has it

        family = GaugeMetricFamily(
            "headrace_health_check_seconds", "What a backend's last check took.", labels=["target"]
        )
        for name, watch in self._plugin.watches.items():
            if watch.latency is not None and not self._gateway.superseded.is_set():
                family.add_metric([name], watch.latency)
        yield family
