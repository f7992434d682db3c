"""From what all workers have counted to the text that Prometheus reads."""

from __future__ import annotations

import platform
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from math import inf, isinf
from typing import Any

import msgspec
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from . import keys
from .keys import Key
from .shelf import add
from .table import Page


class Text(msgspec.Struct, frozen=True):
    """An answer to whoever asks for metrics."""

    body: bytes
    content_type: str


class _Given:
    """A registry of what there is already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def written(families: Sequence[Metric], accept: str) -> Text:
    """In Prometheus's own format, or OpenMetrics if that is what is asked for."""
    encoder, content_type = choose_encoder(accept)
    given: Any = _Given(families)
    return Text(encoder(given), content_type)


def merged(pages: Sequence[Page]) -> list[Metric]:
    """All of it together, by name. What no living process describes is of a plugin that is enabled no more."""
    total: dict[bytes, array[float]] = {}
    for page in pages:
        for name, numbers in page.rows.items():
            if not name.startswith(LIVE):
                add(total, name, numbers)
    for page in _present(pages):
        for name, numbers in page.rows.items():
            if name.startswith(LIVE) and numbers[0]:
                add(total, name, array("d", (0.0, numbers[1])))
    decoded = {name: key for name in total if (key := keys.decode(name)) is not None}
    living = {name for page in pages if page.alive for name in page.rows}
    families = {
        key.family: Metric(key.family, key.help, key.type)
        for name, key in decoded.items()
        if name in living and key.what == "family"
    }
    _fill(families, decoded, total, _bounds(pages))
    return [*(families[name] for name in sorted(families)), *_about(pages)]


LIVE = b'["live"'


def _present(pages: Sequence[Page]) -> list[Page]:
    """Of each worker the newest gateway at work, and those that it has superseded and that still finish requests."""
    newest = {page.worker: page for page in pages if page.alive and not page.superseded}
    return [*newest.values(), *(page for page in pages if page.alive and page.superseded)]


def _bounds(pages: Sequence[Page]) -> dict[str, tuple[float, ...]]:
    """The bounds of each histogram as the newest gateway counts it: what was counted with others cannot be added."""
    found: dict[str, tuple[float, ...]] = {}
    for page in pages:
        for name in page.rows:
            if name.startswith(b'["histogram"') and (key := keys.decode(name)) is not None:
                found[key.family] = key.bounds
    return found


def _fill(
    families: Mapping[str, Metric],
    decoded: Mapping[bytes, Key],
    total: Mapping[bytes, array[float]],
    bounds: Mapping[str, tuple[float, ...]],
) -> None:
    """Give each family its samples."""
    for name, key in decoded.items():
        family = families.get(key.family)
        other = key.what == "histogram" and key.bounds != bounds[key.family]
        if family is not None and key.what != "family" and not other:
            family.samples += _samples(key, total[name])


def _samples(key: Key, numbers: array[float]) -> Iterator[Sample]:
    labels = dict(key.labels)
    if key.what != "histogram":
        yield Sample(key.sample, labels, numbers[-1])
        return
    count = 0.0
    for bound, number in zip((*key.bounds, inf), numbers, strict=False):
        count += number
        yield Sample(f"{key.sample}_bucket", {**labels, "le": "+Inf" if isinf(bound) else repr(float(bound))}, count)
    yield Sample(f"{key.sample}_count", labels, count)
    yield Sample(f"{key.sample}_sum", labels, numbers[-1])


def _about(pages: Sequence[Page]) -> list[Metric]:
    build = GaugeMetricFamily("headrace_build_info", "What runs here.", labels=["version", "python"])
    build.add_metric([metadata.version("headrace"), platform.python_version()], 1)
    at_work = {page.worker for page in pages if page.alive and page.worker >= 0}
    return [build, GaugeMetricFamily("headrace_workers", "Core processes at work.", value=len(at_work))]


__all__ = ["Text", "merged", "written"]
