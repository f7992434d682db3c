"""Reads GPUs by NVML. Every call may hang for as long as the driver likes: see `timed.py`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from headrace.errors import HeadraceError

from . import nvml as names
from .nvml import Handle, Nvml, load
from .records import Ecc, Gpu, Instance, Link, Memory, Process, Reading

T = TypeVar("T")
FATAL = frozenset((names.UNINITIALIZED, names.LOST, names.RESET_REQUIRED))
"""Errors after which nothing else is worth asking of a device."""


class NoGpu(HeadraceError):
    """Nothing can be read: no driver, no device, or no answer. The message says why."""


class Reader:
    """NVML, initialized when it is first read. Threads wait for one another."""

    def __init__(self, nvml: Nvml | None = None) -> None:
        """`nvml`: what to call in place of `pynvml`."""
        self._given = nvml
        self._nvml: Nvml | None = None
        self._lock = threading.Lock()

    def read(self) -> Reading:
        """Everything that the devices tell.

        Raises:
            NoGpu: there is no driver, or it does not work.
        """
        with self._lock:
            nvml = self._ready()
            try:
                count = nvml.nvmlDeviceGetCount()
                driver = _text(nvml.nvmlSystemGetDriverVersion())
            except Exception as error:
                self._let_go()
                raise NoGpu(f"NVML: {error}") from error
            gpus = [_Device(nvml, index).read() for index in range(count)]
            return Reading(at=time.time(), driver=driver, gpus=gpus)

    def close(self) -> None:
        """Let go of NVML. Whoever reads afterwards begins anew."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with contextlib.suppress(Exception):
                nvml.nvmlShutdown()

    def _ready(self) -> Nvml:
        if self._nvml is None:
            try:
                nvml = self._given or load()
                nvml.nvmlInit()
            except Exception as error:
                raise NoGpu(f"no NVIDIA driver: {error} (NVML)") from error
            self._nvml = nvml
        return self._nvml


class _Device:
    """One device; what it does not tell is None."""

    def __init__(self, nvml: Nvml, index: int) -> None:
        self._nvml, self._index = nvml, index

    def read(self) -> Gpu:
        try:
            return self._read(self._nvml.nvmlDeviceGetHandleByIndex(self._index))
        except Exception as error:
            return Gpu(index=self._index, error=str(error) or type(error).__name__)

    def _read(self, handle: Handle) -> Gpu:
        nvml = self._nvml
        rates = _maybe(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        compute = _maybe(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
        mode = _maybe(lambda: nvml.nvmlDeviceGetMigMode(handle))
        return Gpu(
            index=self._index,
            uuid=_maybe(lambda: _text(nvml.nvmlDeviceGetUUID(handle))) or "",
            name=_maybe(lambda: _text(nvml.nvmlDeviceGetName(handle))) or "",
            pci=_maybe(lambda: _text(nvml.nvmlDeviceGetPciInfo(handle).busId)) or "",
            compute=f"{compute[0]}.{compute[1]}" if compute else "",
            memory=self._memory(handle),
            utilization=None if rates is None else rates.gpu / 100,
            memory_utilization=None if rates is None else rates.memory / 100,
            temperature=_maybe(lambda: nvml.nvmlDeviceGetTemperature(handle, names.SENSOR_GPU)),
            power=_maybe(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            power_limit=_maybe(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            clock=_maybe(lambda: nvml.nvmlDeviceGetClockInfo(handle, names.CLOCK_SM)),
            memory_clock=_maybe(lambda: nvml.nvmlDeviceGetClockInfo(handle, names.CLOCK_MEMORY)),
            max_clock=_maybe(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, names.CLOCK_SM)),
            throttled=_maybe(lambda: _reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),
            ecc=_maybe(lambda: self._ecc(handle)),
            nvlink=list(self._links(handle)),
            mig=None if mode is None else mode[0] == 1,
            instances=list(self._instances(handle)) if mode is not None and mode[0] == 1 else [],
            processes=_maybe(lambda: self._processes(handle)),
        )

    def _memory(self, handle: Handle) -> Memory | None:
        nvml = self._nvml
        found = _maybe(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, names.MEMORY_V2))
        if found is None:  # drivers before 510
            found = _maybe(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        if found is None:
            return None
        return Memory(total=found.total, used=found.used, free=found.free, reserved=getattr(found, "reserved", 0))

    def _ecc(self, handle: Handle) -> Ecc:
        nvml = self._nvml
        if nvml.nvmlDeviceGetEccMode(handle)[0] != 1:
            return Ecc(enabled=False)

        def errors(kind: int) -> int | None:
            return _maybe(lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, kind, names.SINCE_LOADED))

        return Ecc(enabled=True, corrected=errors(names.CORRECTED), uncorrected=errors(names.UNCORRECTED))

    def _links(self, handle: Handle) -> Iterator[Link]:
        for link in range(names.LINKS):
            state = _maybe(lambda link=link: self._nvml.nvmlDeviceGetNvLinkState(handle, link))  # type: ignore[misc]
            if state is None:
                return
            yield Link(link=link, up=state == 1)

    def _instances(self, handle: Handle) -> Iterator[Instance]:
        nvml = self._nvml
        for number in range(_maybe(lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
            found: Handle = _maybe(lambda number=number: nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))  # type: ignore[misc]
            if found is not None:  # a place that nobody has taken
                yield self._instance(found)

    def _instance(self, handle: Handle) -> Instance:
        return Instance(
            uuid=_maybe(lambda: _text(self._nvml.nvmlDeviceGetUUID(handle))) or "",
            name=_maybe(lambda: _text(self._nvml.nvmlDeviceGetName(handle))) or "",
            memory=self._memory(handle),
        )

    def _processes(self, handle: Handle) -> list[Process]:
        found = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return [Process(pid=each.pid, memory=each.usedGpuMemory) for each in found]


def _maybe(call: Callable[[], T]) -> T | None:
    """What a call gives, or None: a device that lacks a thing, a driver too old for it and a container that may not ask
    each have an error of their own. One that ends everything is raised."""
    try:
        return call()
    except Exception as error:
        if getattr(error, "value", None) in FATAL:
            raise
        return None


def _reasons(bits: int) -> list[str]:
    return [name for bit, name in names.THROTTLING.items() if bits & bit]


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
