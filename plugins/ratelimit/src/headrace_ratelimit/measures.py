"""What limits refused, as the plugin `metrics` wants it; without it nobody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any


class Measures:
    """See `Gateway.collectors`. `refused` counts by what is limited: requests, tokens, open requests."""

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter(requests=0, tokens=0, concurrent=0)

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily  # whoever calls this has it

        family = CounterMetricFamily(
            "headrace_ratelimit_refused", "Requests refused, by what is limited.", labels=["unit"]
        )
        for unit, count in self.refused.items():
            family.add_metric([unit], count)
        yield family
