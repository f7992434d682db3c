"""The last reading as Prometheus metrics, for whichever plugin exports them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .records import Gpu, Reading
from .watcher import Watcher

if TYPE_CHECKING:
    from prometheus_client import Metric

OF_DEVICE = ("gpu", "uuid", "name")
MEGA = 1_000_000


class Collector:
    """What prometheus_client calls a collector. It reads nothing itself: without a fresh reading there are no metrics,
    rather than old ones."""

    def __init__(self, watcher: Watcher, superseded: asyncio.Event) -> None:
        """`superseded`: set when another gateway offers the same, which must not be added up."""
        self._watcher, self._superseded = watcher, superseded

    def collect(self) -> Iterable[Metric]:
        """The metrics of all devices. From any thread; never blocks."""
        reading = None if self._superseded.is_set() else self._watcher.fresh
        return [] if reading is None else _metrics(reading)


def _metrics(reading: Reading) -> list[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    # All are gauges: a device counts its errors by itself, and whoever adds up workers' counters must not add these.
    families = {name: GaugeMetricFamily(name, text, labels=[*OF_DEVICE, *labels]) for name, text, labels in GAUGES}
    for gpu in reading.gpus:
        for name, labels, value in _samples(gpu):
            if value is not None:
                families[name].add_metric([str(gpu.index), gpu.uuid, gpu.name, *labels], value)
    return list(families.values())


GAUGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("headrace_gpu_up", "Whether the device answers.", ()),
    ("headrace_gpu_memory_used_bytes", "Memory that programs have taken.", ()),
    ("headrace_gpu_memory_free_bytes", "Memory that programs can take.", ()),
    ("headrace_gpu_memory_total_bytes", "All memory, with what the driver keeps for itself.", ()),
    ("headrace_gpu_utilization_ratio", "Part of the time in which something was computed.", ()),
    ("headrace_gpu_memory_utilization_ratio", "Part of the time in which memory was read or written.", ()),
    ("headrace_gpu_temperature_celsius", "Temperature.", ()),
    ("headrace_gpu_power_watts", "Power that is drawn.", ()),
    ("headrace_gpu_power_limit_watts", "Power that may be drawn.", ()),
    ("headrace_gpu_clock_hertz", "Clock of the multiprocessors (sm) and of the memory.", ("clock",)),
    ("headrace_gpu_throttled", "1 for each reason why clocks are not higher.", ("reason",)),
    ("headrace_gpu_nvlink_up", "Whether an NVLink is active.", ("link",)),
    ("headrace_gpu_ecc_errors", "Errors of memory since the driver was loaded.", ("kind",)),
)


def _samples(gpu: Gpu) -> Iterator[tuple[str, tuple[str, ...], float | None]]:
    yield "headrace_gpu_up", (), 0 if gpu.error else 1
    if gpu.memory is not None:
        yield "headrace_gpu_memory_used_bytes", (), gpu.memory.used
        yield "headrace_gpu_memory_free_bytes", (), gpu.memory.free
        yield "headrace_gpu_memory_total_bytes", (), gpu.memory.total
    yield "headrace_gpu_utilization_ratio", (), gpu.utilization
    yield "headrace_gpu_memory_utilization_ratio", (), gpu.memory_utilization
    yield "headrace_gpu_temperature_celsius", (), gpu.temperature
    yield "headrace_gpu_power_watts", (), gpu.power
    yield "headrace_gpu_power_limit_watts", (), gpu.power_limit
    for kind, clock in (("sm", gpu.clock), ("memory", gpu.memory_clock)):
        yield "headrace_gpu_clock_hertz", (kind,), None if clock is None else clock * MEGA
    for reason in gpu.throttled or ():
        yield "headrace_gpu_throttled", (reason,), 1
    for link in gpu.nvlink:
        yield "headrace_gpu_nvlink_up", (str(link.link),), int(link.up)
    if gpu.ecc is not None:
        yield "headrace_gpu_ecc_errors", ("corrected",), gpu.ecc.corrected
        yield "headrace_gpu_ecc_errors", ("uncorrected",), gpu.ecc.uncorrected
