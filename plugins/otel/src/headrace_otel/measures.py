"""What became of spans, as the plugin `metrics` wants it; without it nobody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Measures:
    """See `Gateway.collectors`."""

    def __init__(self, results: Callable[[], Mapping[str, int]]) -> None:
        self._results = results

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily  # whoever calls this has it

        family: Any = CounterMetricFamily("headrace_otel_spans", "Spans for the collector.", labels=["result"])
        for result, number in self._results().items():
            family.add_metric([result], number)
        yield family
