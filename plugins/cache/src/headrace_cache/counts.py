"""What has become of requests, by model; for metrics, and for `headrace cache stats`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from .memory import Held

MOST_MODELS = 500
OTHERS = "(others)"
"""Models beyond that number are counted together: names that backends list come and go."""


class Counts(msgspec.Struct):
    """Of one model."""

    hits: int = 0
    """Requests answered with what was kept."""
    joined: int = 0
    """Requests answered along with another that was being answered already."""
    misses: int = 0
    """Requests that a backend was asked for and whose answer might be kept."""
    bypasses: int = 0
    """Requests that are not for the cache."""
    stored: int = 0
    """Answers that were kept."""
    errors: int = 0
    """What the server that keeps answers was asked in vain."""
    evictions: int = 0
    """Answers that made room in memory for others."""
    entries: int = 0
    """Answers in memory, now."""
    bytes: int = 0
    """What they take, now."""


class Tally:
    """The counts of every model, in this process."""

    def __init__(self) -> None:
        self.models: dict[str, Counts] = {}

    def of(self, model: str) -> Counts:
        """Those of a model."""
        counts = self.models.get(model)
        if counts is None:
            name = model if len(self.models) < MOST_MODELS else OTHERS
            counts = self.models.setdefault(name, Counts())
        return counts

    def see(self, held: Mapping[str, Held]) -> None:
        """Note what lies in memory now."""
        for counts in self.models.values():
            counts.entries = counts.bytes = counts.evictions = 0
        for model, each in held.items():
            counts = self.of(model)
            counts.entries += each.entries
            counts.bytes += each.bytes
            counts.evictions += each.evictions


GROWING = {
    "stored": "Answers that were kept.",
    "evictions": "Answers that made room in memory for others.",
    "errors": "Times that the server that keeps answers was asked in vain.",
}
NOW = {"entries": "Answers in memory.", "stored_bytes": "What the answers in memory take."}
RESULTS = {"hit": "hits", "joined": "joined", "miss": "misses", "bypass": "bypasses"}


class Measures:
    """See `Gateway.collectors`. `look` is called before, to bring what is true now up to date."""

    def __init__(self, tally: Tally, look: Any) -> None:
        self._tally, self._look = tally, look

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # whoever calls this has it

        server_up: bool | None = self._look()
        models = self._tally.models
        text = "Requests by what the cache had for them: hit, joined (another's answer, as it is made), miss, bypass."
        family: Any = CounterMetricFamily("headrace_cache_requests", text, labels=["model", "result"])
        for model, counts in models.items():
            for result, name in RESULTS.items():
                family.add_metric([model, result], getattr(counts, name))
        yield family
        for name, text in GROWING.items():
            family = CounterMetricFamily(f"headrace_cache_{name}", text, labels=["model"])
            for model, counts in models.items():
                family.add_metric([model], getattr(counts, name))
            yield family
        for name, text in NOW.items():
            family = GaugeMetricFamily(f"headrace_cache_{name}", text, labels=["model"])
            for model, counts in models.items():
                family.add_metric([model], getattr(counts, name.removeprefix("stored_")))
            yield family
        if server_up is not None:
            text = "Whether the server that keeps answers is used: 0 while it has failed."
            yield GaugeMetricFamily("headrace_cache_server_up", text, value=float(server_up))
