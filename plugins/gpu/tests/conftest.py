"""An NVML that tells what it is told to, with NVML's own errors; and models in directories."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click.testing
import pytest

from headrace.cli import main
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_gpu import Plugin
from headrace_gpu.devices import parse_devices
from headrace_gpu.model import load
from headrace_gpu.plan import Ask, Plan, best
from headrace_gpu.quantization import named

pynvml: Any = importlib.import_module("pynvml")
GIB = 1024**3


def error(code: int) -> Exception:
    """As `pynvml` raises it."""
    found: Exception = pynvml.NVMLError(code)
    return found


class FakeNvml:
    """Shaped like `pynvml`. Each device is a table of what its calls answer; an exception in it is raised."""

    NVMLError = pynvml.NVMLError

    def __init__(self, *devices: dict[str, Any]) -> None:
        self.devices = list(devices)
        self.init_error: Exception | None = None
        self.count_error: Exception | None = None
        self.started = 0
        self.begun = 0
        """How often somebody began to read."""
        self.asked = threading.Semaphore(0)
        """Released whenever somebody begins to read."""
        self.open = threading.Event()
        """While it is not set, everything hangs."""
        self.open.set()

    def nvmlInit(self) -> None:
        self.begun += 1
        self.asked.release()
        self.open.wait(60)
        if self.init_error is not None:
            raise self.init_error
        self.started += 1

    def nvmlShutdown(self) -> None:
        self.open.wait(60)
        self.started -= 1

    def nvmlDeviceGetCount(self) -> int:
        self.open.wait(60)
        if self.count_error is not None:
            raise self.count_error
        return len(self.devices)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self._value(self.devices[index], "handle", self.devices[index])

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any], version: int | None = None) -> Any:
        return self._value(handle, "memory_v2" if version else "memory", handle.get("memory", error(3)))

    def nvmlDeviceGetClockInfo(self, handle: dict[str, Any], kind: int) -> Any:
        return self._value(handle, f"clock{kind}", error(3))

    def nvmlDeviceGetTotalEccErrors(self, handle: dict[str, Any], kind: int, counter: int) -> Any:
        return self._value(handle, f"ecc{kind}", error(3))

    def nvmlDeviceGetNvLinkState(self, handle: dict[str, Any], link: int) -> Any:
        states = handle.get("nvlink", ())
        return self._value({}, "", states[link] if link < len(states) else error(2))

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        return len(handle["instances"])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], index: int) -> Any:
        return self._value({}, "", handle["instances"][index])

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        return lambda handle, *rest: self._value(handle, name.removeprefix("nvmlDeviceGet"), error(3))

    def _value(self, table: dict[str, Any], name: str, default: Any) -> Any:
        found = table.get(name, default)
        if isinstance(found, Exception):
            raise found
        return found


def a_device(number: int = 0, **fields: Any) -> dict[str, Any]:
    """A device that tells everything, but for what `fields` say."""
    memory = SimpleNamespace(total=80 * GIB, used=10 * GIB, free=69 * GIB, reserved=GIB)
    return {
        "Name": "NVIDIA H100 80GB HBM3",
        "UUID": f"GPU-{number}",
        "PciInfo": SimpleNamespace(busId=f"00000000:0{number}:00.0"),
        "CudaComputeCapability": (9, 0),
        "memory": memory,
        "UtilizationRates": SimpleNamespace(gpu=37, memory=12),
        "Temperature": 54,
        "PowerUsage": 312_500,
        "EnforcedPowerLimit": 700_000,
        "clock1": 1980,
        "clock2": 2619,
        "MaxClockInfo": 1980,
        "CurrentClocksThrottleReasons": 0x4,
        "EccMode": [1, 1],
        "ecc0": 3,
        "ecc1": 0,
        "nvlink": [1, 1, 0],
        "MigMode": [0, 0],
        "ComputeRunningProcesses": [SimpleNamespace(pid=4242, usedGpuMemory=9 * GIB)],
        **fields,
    }


def with_nvml(nvml: Any) -> type[Plugin]:
    """The plugin over this NVML."""

    class Faked(Plugin):
        def __init__(self, config: Any, gateway: Any) -> None:
            super().__init__(config, gateway, nvml)

    return Faked


def write_model(directory: Path, config: Any, tensors: dict[str, tuple[str, list[int]]] | None = None) -> Path:
    """A directory with a config.json, and a safetensors file with these tensors; its data is a hole."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        write_safetensors(directory / "model.safetensors", tensors)
    return directory


def write_safetensors(file: Path, tensors: dict[str, tuple[str, list[int]]]) -> int:
    """Returns the bytes of data."""
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start = end
        count = 1
        for size in shape:
            count *= size
        end += count * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return end


def ask_for(name: str, quantization: str | None = None, **fields: Any) -> Ask:
    model = load(name)
    return Ask(shape=model.shape, quantization=named(quantization) if quantization else model.quantization, **fields)


def plan_for(name: str, gpus: str, quantization: str | None = None, **fields: Any) -> Plan:
    tp, pp = fields.pop("tp", None), fields.pop("pp", 1)
    return best(ask_for(name, quantization, **fields), parse_devices(gpus), tp, pp)


@pytest.fixture(scope="session")
def nvml() -> type[FakeNvml]:
    return FakeNvml


@pytest.fixture(scope="session")
def nvml_error() -> Callable[[int], Exception]:
    return error


@pytest.fixture(scope="session")
def device() -> Callable[..., dict[str, Any]]:
    return a_device


@pytest.fixture(scope="session")
def over() -> Callable[[Any], type[Plugin]]:
    """The plugin's class over an NVML."""
    return with_nvml


@pytest.fixture(scope="session")
def a_model() -> Callable[..., Path]:
    return write_model


@pytest.fixture(scope="session")
def safetensors_file() -> Callable[..., int]:
    return write_safetensors


@pytest.fixture(scope="session")
def asking() -> Callable[..., Ask]:
    """A known model, as it is to be planned."""
    return ask_for


@pytest.fixture(scope="session")
def planning() -> Callable[..., Plan]:
    """A known model on devices."""
    return plan_for


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., click.testing.Result]:
    """Runs `headrace gpu …` over an NVML: without a device, unless one is given."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(*arguments: str, nvml: Any = None, timeout: float = 30.0) -> click.testing.Result:
        given = nvml or FakeNvml()
        if nvml is None:
            given.init_error = error(12)
        tables = {"server": {"state_dir": str(tmp_path)}, "plugins": {"gpu": {"timeout": timeout}}}
        gateway = Gateway(parse(tables, source="test"), "test", {"gpu": with_nvml(given)})
        return click.testing.CliRunner().invoke(main, ["gpu", *arguments], obj=gateway)

    return run
