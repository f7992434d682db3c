"""The queue's numbers as the plugin `metrics` wants them; without it nobody asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .gate import Counts

GROWING = {
    "served": "Requests that began to run, at once or after a while.",
    "waited": "Those of them that had to wait.",
    "rejected": "Requests refused because the queue was full.",
    "timed_out": "Requests for which there was no room in time.",
    "left": "Clients that left while they waited.",
}


class Measures:
    """See `Gateway.collectors`."""

    def __init__(self, classes: Mapping[str, Counts]) -> None:
        self._classes = classes

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # whoever calls this has it

        for name, text in (("waiting", "Requests that wait."), ("running", "Requests that hold a slot.")):
            family: Any = GaugeMetricFamily(f"headrace_queue_{name}", text, labels=["class"])
            for of, counts in self._classes.items():
                family.add_metric([of], getattr(counts, name))
            yield family
        for name, text in GROWING.items():
            family = CounterMetricFamily(f"headrace_queue_{name}", text, labels=["class"])
            for of, counts in self._classes.items():
                family.add_metric([of], getattr(counts, name))
            yield family
