"""The devices of this machine, to plan for: those that CUDA would show."""

from __future__ import annotations

from collections.abc import Iterator

from .devices import Device
from .records import Gpu, Reading
from .units import BadPlan


def present(reading: Reading, visible: str | None = None) -> list[Device]:
    """Those that can be read; of a device that is divided, its parts. `visible`: numbers or UUIDs, as CUDA has them.

    Raises:
        BadPlan: `visible` names what is not there.
    """
    gpus = reading.gpus if visible is None else list(_visible(reading.gpus, visible))
    return [device for gpu in gpus for device in _devices(gpu)]


def _visible(gpus: list[Gpu], visible: str) -> Iterator[Gpu]:
    for item in filter(None, map(str.strip, visible.split(","))):
        if item == "-1":
            return
        found = [gpu for gpu in gpus if _is(gpu, item)]
        if len(found) != 1:
            raise BadPlan(f"CUDA_VISIBLE_DEVICES: there is no GPU {item[:60]!r}")
        yield found[0]


def _is(gpu: Gpu, item: str) -> bool:
    return str(gpu.index) == item if item.isdecimal() else bool(gpu.uuid) and gpu.uuid.startswith(item)


def _devices(gpu: Gpu) -> Iterator[Device]:
    if gpu.mig:
        for part in gpu.instances:
            if part.memory is not None:
                yield Device(label=part.name, total=part.memory.total, free=part.memory.free, uuid=part.uuid)
    elif gpu.memory is not None and not gpu.error:
        seen = gpu.memory.total - gpu.memory.reserved
        yield Device(
            label=gpu.name.removeprefix("NVIDIA "),
            total=seen,
            free=min(gpu.memory.free, seen),
            index=gpu.index,
            uuid=gpu.uuid,
        )
