"""What is known of GPUs. Sizes in bytes, temperatures in °C, power in watts; None: the device does not tell."""

from __future__ import annotations

import msgspec


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """`total` = `reserved` + `used` + `free`."""

    total: int
    used: int
    free: int
    reserved: int = 0
    """What the driver keeps for itself; no program can have it."""


class Ecc(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of memory since the driver was loaded."""

    enabled: bool
    corrected: int | None = None
    uncorrected: int | None = None


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One NVLink."""

    link: int
    up: bool


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A program that computes on the device."""

    pid: int
    memory: int | None


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a device that is divided (MIG)."""

    uuid: str
    name: str
    memory: Memory | None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One device."""

    index: int
    """As NVML and `nvidia-smi` count: in the order of PCI addresses."""
    error: str = ""
    """Why nothing is known of it."""
    uuid: str = ""
    name: str = ""
    pci: str = ""
    compute: str = ""
    """Compute capability, as `9.0`."""
    memory: Memory | None = None
    utilization: float | None = None
    """Part of the time in which something was computed, from 0 to 1."""
    memory_utilization: float | None = None
    """Part of the time in which memory was read or written."""
    temperature: int | None = None
    power: float | None = None
    power_limit: float | None = None
    clock: int | None = None
    """Of the multiprocessors, in MHz."""
    memory_clock: int | None = None
    max_clock: int | None = None
    throttled: list[str] | None = None
    """Why clocks are not higher, `gpu_idle` included."""
    ecc: Ecc | None = None
    nvlink: list[Link] = []
    mig: bool | None = None
    """Whether it is divided; None: it cannot be."""
    instances: list[Instance] = []
    processes: list[Process] | None = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All devices at a time."""

    at: float
    """Seconds since 1970."""
    driver: str
    gpus: list[Gpu]
