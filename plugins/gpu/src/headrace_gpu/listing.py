"""`headrace gpu list`: the GPUs as they are now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from headrace.tables import table

from .reader import Reader
from .records import Gpu, Reading
from .timed import Timed
from .units import gib


def show(reader: Reader, limit: float, as_json: bool, watch: float | None) -> None:
    """Print all GPUs, once or every `watch` seconds until interrupted.

    Raises:
        NoGpu: there is nothing to print.
    """
    timed = Timed(reader.read, limit)
    while True:
        reading = timed.wait()
        if watch and not as_json:
            click.clear()
        click.echo("\n".join([_document(reading, lines=bool(watch))] if as_json else lines(reading)))
        if watch is None:
            return
        time.sleep(watch)


def lines(reading: Reading) -> Iterator[str]:
    """A table; below it what is wrong or odd."""
    yield f"driver {reading.driver}" if reading.gpus else f"driver {reading.driver}: it sees no GPU"
    yield from table([_row(gpu) for gpu in reading.gpus])
    for gpu in reading.gpus:
        yield from (f"{gpu.index}: {each}" for each in _remarks(gpu))


def _document(reading: Reading, lines: bool) -> str:
    """JSON: where readings follow one another, each in one line."""
    text = msgspec.json.encode(reading)
    return (text if lines else msgspec.json.format(text, indent=2)).decode()


def _row(gpu: Gpu) -> dict[str, Any]:
    memory = gpu.memory
    return {
        "gpu": gpu.index,
        "name": gpu.name or "?",
        "used": gib(memory.used) if memory else "?",
        "total": gib(memory.total) if memory else "?",
        "busy": "?" if gpu.utilization is None else f"{gpu.utilization:.0%}",
        "°C": "?" if gpu.temperature is None else gpu.temperature,
        "power": _power(gpu),
        "clock": "?" if gpu.clock is None else f"{gpu.clock} MHz",
        "processes": "?" if gpu.processes is None else len(gpu.processes),
    }


def _power(gpu: Gpu) -> str:
    if gpu.power is None:
        return "?"
    return f"{gpu.power:.0f} W" if gpu.power_limit is None else f"{gpu.power:.0f} of {gpu.power_limit:.0f} W"


def _remarks(gpu: Gpu) -> Iterator[str]:
    if gpu.error:
        yield f"it cannot be read: {gpu.error}"
    slowed = [reason for reason in gpu.throttled or () if reason not in ("gpu_idle", "applications_clocks_setting")]
    if slowed:
        yield f"slowed down: {', '.join(slowed)}"
    if gpu.ecc is not None and gpu.ecc.uncorrected:
        yield f"{gpu.ecc.uncorrected} errors of memory that could not be corrected"
    down = [str(link.link) for link in gpu.nvlink if not link.up]
    if gpu.nvlink:
        yield f"NVLink: {len(gpu.nvlink) - len(down)} up" + (f", down: {', '.join(down)}" if down else "")
    for instance in gpu.instances:
        memory = gib(instance.memory.total) if instance.memory else "?"
        yield f"MIG: {instance.name or '?'}, {memory}, {instance.uuid}"
    for process in gpu.processes or ():
        yield f"process {process.pid}: {'?' if process.memory is None else gib(process.memory)}"
