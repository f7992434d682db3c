"""The devices that a plan is for: those of the machine, or those that somebody thinks of."""

from __future__ import annotations

import re

import msgspec

from .units import GIB, MIB, BadPlan, parse_bytes

RESERVED = 45 * GIB // 100
"""What the driver keeps of a device's memory for itself: programs never see it."""
MOST_DEVICES = 1024

TOTALS = {
    "t4": 15360, "l4": 23034, "a10": 23028, "a10g": 23028, "3090": 24576, "4090": 24564, "v100-32": 32768,
    "5090": 32607, "a100-40": 40960, "l40s": 46068, "a6000": 49140, "6000-ada": 49140, "h100": 81559,
    "a100": 81920, "a100-80": 81920, "pro-6000": 97887, "h200": 143771, "b200": 183359,
}  # fmt: skip
"""MiB, as `nvidia-smi` shows them."""
_REPEATED = re.compile(r"(\d{1,4})\s*[x*]\s*(.+)", re.IGNORECASE)


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device to plan for."""

    label: str
    total: int
    """Bytes that programs can see."""
    free: int
    """Bytes that nobody has taken; the same as `total` where it is thought of."""
    index: int | None = None
    """What CUDA calls it in PCI order; None: it is thought of."""
    uuid: str = ""

    @property
    def divided(self) -> bool:
        """Whether it is a part of a GPU (MIG)."""
        return bool(self.uuid) and self.index is None

    @property
    def is_there(self) -> bool:
        return bool(self.uuid) or self.index is not None


def parse_devices(text: str) -> list[Device]:
    """`32GiB,24GiB`, `8x80GiB`, `h100,a100-40`. Sizes are what programs see; of names, what the driver keeps is taken
    off.

    Raises:
        BadPlan: something in it is neither a size nor a name.
    """
    found: list[Device] = []
    for item in text.split(",") if len(text) <= 10_000 else ("",):
        match = _REPEATED.fullmatch(item.strip())
        count, what = (int(match[1]), match[2].strip()) if match else (1, item.strip())
        if not 1 <= count <= MOST_DEVICES - len(found):
            raise BadPlan(f"--gpus: from 1 to {MOST_DEVICES} devices")
        found += [_device(what)] * count
    return found


def _device(what: str) -> Device:
    name = what.lower().removeprefix("nvidia").strip(" -").removeprefix("rtx").strip(" -").replace(" ", "-")
    if name in TOTALS:
        total = TOTALS[name] * MIB - RESERVED
        return Device(label=name, total=total, free=total)
    if not what or not what[0].isdigit():
        names = ", ".join(TOTALS)
        raise BadPlan(f"--gpus: {what[:40]!r} is neither a size such as 24GiB nor one of {names}")
    try:
        total = parse_bytes(what)
    except BadPlan as error:
        raise BadPlan(f"--gpus: {error}; or a name: {', '.join(TOTALS)}") from error
    return Device(label=what.replace(" ", ""), total=total, free=total)
