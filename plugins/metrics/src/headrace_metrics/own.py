"""What is true now of the gateway and its targets, and of the process: a collector like those of other plugins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from headrace.exchange import Target
    from headrace.gateway import Gateway

CONDITIONS = ("unknown", "up", "starting", "down")


class Own:
    """Made without I/O. A gateway that has been superseded says only what is still its own."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._process = ProcessCollector(registry=None)
        self.scrapes = 0
        """Requests for metrics through this gateway that are being answered: they are not counted."""

    def collect(self) -> Iterator[Metric]:
        gateway = self._gateway
        open_requests = max(0, gateway.open_requests - self.scrapes)
        yield _gauge("headrace_requests_in_flight", "Requests that are being answered or wait.", open_requests)
        yield _gauge(
            "headrace_upstream_orphans", "Requests to backends that nobody waits for any more.", gateway.orphans
        )
        if not gateway.superseded.is_set():
            pending = len(gateway.reporting)
            yield _gauge("headrace_offload_pending", "Answers that nginx delivers at this moment.", pending)
            yield from _targets(gateway.models.targets)
            yield from self._of_process()

    def _of_process(self) -> Iterator[Metric]:
        """As gauges: they are gone with the process, those that only grow, too."""
        for family in self._process.collect():
            metric = Metric(family.name, family.documentation, family.type)
            metric.samples = [each._replace(labels={**each.labels, "worker": ""}) for each in family.samples]
            yield metric


def in_flight(gateway: Gateway) -> Metric:
    """What the targets of all workers are busy with: each worker knows it of all."""
    text = "Requests that a target is answering, of all workers."
    family = GaugeMetricFamily("headrace_target_requests_in_flight", text, labels=["target"])
    for target in gateway.models.targets:
        family.add_metric([target.name], max(0, target.state.in_flight))
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _targets(targets: tuple[Target, ...]) -> Iterator[Metric]:
    text = "1 for the condition that a target is known to be in, 0 for the others."
    conditions = GaugeMetricFamily("headrace_target_condition", text, labels=["target", "condition"])
    running = GaugeMetricFamily(
        "headrace_engine_requests_running", "What an engine says it works on.", labels=["target"]
    )
    waiting = GaugeMetricFamily(
        "headrace_engine_requests_waiting", "What an engine says it lets wait.", labels=["target"]
    )
    cache = GaugeMetricFamily(
        "headrace_engine_cache_usage_ratio", "The part of an engine's KV cache that is taken.", labels=["target"]
    )
    for target in targets:
        state, labels = target.state, [target.name]
        for name in CONDITIONS:
            conditions.add_metric([target.name, name], float(name == state.condition))
        if state.engine is not None:
            running.add_metric(labels, state.engine.running)
            waiting.add_metric(labels, state.engine.waiting)
            cache.add_metric(labels, state.engine.cache_usage)
    yield from (conditions, running, waiting, cache)
