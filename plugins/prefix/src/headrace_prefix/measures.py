"""How good predictions were, as the plugin `metrics` wants it; without it nobody asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin

GROWING = {
    "predictions": "Requests of whose prompt something was taken to be cached.",
    "checked": "Answers to these that said how much was.",
    "hits": "Of these, those that had as much cached as predicted, or more.",
}
NOW = {
    "blocks": ("blocks", "Pieces of prompts that are taken to be in a backend's cache."),
    "error": ("error_ratio", "What predictions are off by, as a part of the prompt: a moving average."),
    "excess": ("excess_ratio", "The same, where a backend had less than predicted."),
}


class Measures:
    """See `Gateway.collectors`."""

    def __init__(self, plugin: Plugin, gateway: Gateway) -> None:
        self._plugin, self._gateway = plugin, gateway

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # whoever calls this has it

        targets = self._plugin.status().targets
        for field, text in GROWING.items():
            family: Any = CounterMetricFamily(f"headrace_prefix_{field}", text, labels=["target"])
            for name, found in targets.items():
                family.add_metric([name], getattr(found, field))
            yield family
        for field, (called, text) in NOW.items():
            family = GaugeMetricFamily(f"headrace_prefix_{called}", text, labels=["target"])
            for name, found in () if self._gateway.superseded.is_set() else targets.items():
                family.add_metric([name], getattr(found, field))
            yield family
