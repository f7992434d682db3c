"""The states of circuits as the plugin `metrics` wants them; without it nobody asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from .status import Shown

if TYPE_CHECKING:
    from headrace.gateway import Gateway

    from . import Plugin


class Measures:
    """See `Gateway.collectors`."""

    def __init__(self, plugin: Plugin, gateway: Gateway) -> None:
        self._plugin, self._gateway = plugin, gateway

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily  # whoever calls this has it

        text = "1 for the state that a backend's circuit is in, 0 for the others."
        family = GaugeMetricFamily("headrace_breaker_state", text, labels=["target", "state"])
        targets = {} if self._gateway.superseded.is_set() else self._plugin.status().targets
        for name, found in targets.items():
            for state in get_args(Shown):
                family.add_metric([name, state], float(state == found.state))
        yield family
