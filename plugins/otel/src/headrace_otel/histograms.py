"""The metrics, and how they become those of the SDK's data model.

Names, units and bounds are those of OpenTelemetry's semantic conventions:
https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-metrics.md and
https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from .templates import SCHEMA

Labels = tuple[tuple[str, str | int | bool], ...]
CUMULATIVE = AggregationTemporality.CUMULATIVE
OPERATION = tuple(round(0.01 * 2**power, 2) for power in range(14))
TOKENS = tuple(4.0**power for power in range(14))
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
HTTP = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
MOST_SERIES = 2000
"""Of one metric, as the SDK has it; what is more counts together."""
OVERFLOW: Labels = (("otel.metric.overflow", True),)


class Family(msgspec.Struct, frozen=True):
    """A histogram's name, its unit, what it is, and its bounds."""

    name: str
    unit: str
    text: str
    bounds: tuple[float, ...]


REQUEST = Family("http.server.request.duration", "s", "Duration of HTTP server requests.", HTTP)
CLIENT = Family("gen_ai.client.operation.duration", "s", "GenAI operation duration.", OPERATION)
SERVER = Family("gen_ai.server.request.duration", "s", "Time to last byte or last output token.", OPERATION)
USAGE = Family("gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", TOKENS)
FIRST_TOKEN = Family(
    "gen_ai.server.time_to_first_token", "s", "Time to generate first token for successful responses.", FIRST
)
OUTPUT_TOKEN = Family(
    "gen_ai.server.time_per_output_token", "s", "Time per output token generated after the first token.", EACH
)


class Series:
    """One histogram with its attributes. Cells: how many fell below each bound and above the last, and their sum."""

    __slots__ = ("_bounds", "cells")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.cells = [0.0] * (len(bounds) + 2)

    def add(self, value: float) -> None:
        cells = self.cells
        cells[bisect_left(self._bounds, value)] += 1.0
        cells[-1] += value


Snapshot = tuple[int, list[tuple[Family, list[tuple[Labels, list[float]]]]], Mapping[str, int]]
"""When, in nanoseconds since 1970; the cells of every series; how many spans came to what."""


class Histograms:
    """All series of this process."""

    def __init__(self) -> None:
        self._found: dict[Family, dict[Labels, Series]] = {}

    def series(self, family: Family, labels: Labels) -> Series:
        """The one with these attributes, from now on."""
        found = self._found.setdefault(family, {})
        if labels not in found and len(found) >= MOST_SERIES:
            labels = OVERFLOW
        series = found.get(labels)
        if series is None:
            series = found[labels] = Series(family.bounds)
        return series

    def snapshot(self, now: int, spans: Mapping[str, int]) -> Snapshot:
        families = [
            (family, [(labels, series.cells[:]) for labels, series in found.items()])
            for family, found in self._found.items()
        ]
        return now, families, spans


class Encoder:
    """Makes an ExportMetricsServiceRequest of a snapshot: everything since the start."""

    def __init__(self, resource: Resource, scope: InstrumentationScope, start: int) -> None:
        self._resource, self._scope, self._start = resource, scope, start

    def encode(self, snapshot: Snapshot) -> bytes:
        now, families, spans = snapshot
        metrics = [self._histogram(family, found, now) for family, found in families]
        metrics.append(self._spans(spans, now))
        scoped = ScopeMetrics(self._scope, metrics, SCHEMA)
        data = MetricsData([ResourceMetrics(self._resource, [scoped], SCHEMA)])
        return bytes(encode_metrics(data).SerializeToString())

    def _histogram(self, family: Family, found: Iterable[tuple[Labels, list[float]]], now: int) -> Metric:
        points = [
            HistogramDataPoint(
                attributes=dict(labels),
                start_time_unix_nano=self._start,
                time_unix_nano=now,
                count=int(sum(cells[:-1])),
                sum=cells[-1],
                bucket_counts=[int(cell) for cell in cells[:-1]],
                explicit_bounds=family.bounds,
                min=None,  # type: ignore[arg-type]  # nobody has kept it: the format lets it be left out
                max=None,  # type: ignore[arg-type]
            )
            for labels, cells in found
        ]
        return Metric(family.name, family.text, family.unit, Histogram(points, CUMULATIVE))

    def _spans(self, spans: Mapping[str, int], now: int) -> Metric:
        points = [NumberDataPoint({"headrace.otel.result": name}, self._start, now, n) for name, n in spans.items()]
        data = Sum(points, CUMULATIVE, is_monotonic=True)
        return Metric("headrace.otel.spans", "Spans that the collector took, or did not.", "{span}", data)
