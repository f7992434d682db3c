"""What NVML tells, and what becomes of what it does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from headrace_gpu.reader import NoGpu, Reader
from headrace_gpu.records import Ecc, Gpu, Instance, Link, Memory, Process

GIB = 1024**3
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND = 3, 4, 6, 9, 12
FUNCTION_NOT_FOUND, LOST, RESET_REQUIRED, MISMATCH, UNKNOWN = 13, 15, 16, 18, 999


def read(nvml: Any) -> list[Gpu]:
    return Reader(nvml).read().gpus


def test_everything_is_read(nvml: Any, device: Any) -> None:
    assert read(nvml(device())) == [
        Gpu(
            index=0,
            uuid="GPU-0",
            name="NVIDIA H100 80GB HBM3",
            pci="00000000:00:00.0",
            compute="9.0",
            memory=Memory(total=80 * GIB, used=10 * GIB, free=69 * GIB, reserved=GIB),
            utilization=0.37,
            memory_utilization=0.12,
            temperature=54,
            power=312.5,
            power_limit=700.0,
            clock=1980,
            memory_clock=2619,
            max_clock=1980,
            throttled=["sw_power_cap"],
            ecc=Ecc(enabled=True, corrected=3, uncorrected=0),
            nvlink=[Link(link=0, up=True), Link(link=1, up=True), Link(link=2, up=False)],
            mig=False,
            processes=[Process(pid=4242, memory=9 * GIB)],
        )
    ]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, UNKNOWN])
@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("UtilizationRates", "utilization"),
        ("Temperature", "temperature"),
        ("PowerUsage", "power"),
        ("EnforcedPowerLimit", "power_limit"),
        ("clock1", "clock"),
        ("CurrentClocksThrottleReasons", "throttled"),
        ("EccMode", "ecc"),
        ("MigMode", "mig"),
        ("ComputeRunningProcesses", "processes"),
        ("memory", "memory"),
    ],
)
def test_what_a_device_does_not_tell_is_left_out_alone(
    nvml: Any, device: Any, nvml_error: Any, call: str, field: str, code: int
) -> None:
    (found,) = read(nvml(device(**{call: nvml_error(code)})))
    assert (getattr(found, field), found.error, found.uuid) == (None, "", "GPU-0")


def test_a_device_that_tells_nothing_but_that_it_is_there(nvml: Any) -> None:
    (found,) = read(nvml({}))
    assert found == Gpu(index=0)


@pytest.mark.parametrize("code", [LOST, RESET_REQUIRED])
def test_a_device_that_is_lost_leaves_the_others(nvml: Any, device: Any, nvml_error: Any, code: int) -> None:
    first, second = read(nvml(device(0, handle=nvml_error(code)), device(1)))
    assert first == Gpu(index=0, error=str(nvml_error(code)))
    assert second.uuid == "GPU-1"


def test_a_device_that_is_lost_meanwhile_tells_nothing_more(nvml: Any, device: Any, nvml_error: Any) -> None:
    (found,) = read(nvml(device(Temperature=nvml_error(LOST))))
    assert found == Gpu(index=0, error="GPU is lost")


def test_an_older_driver_tells_memory_its_own_way(nvml: Any, device: Any, nvml_error: Any) -> None:
    older = SimpleNamespace(total=80 * GIB, used=11 * GIB, free=69 * GIB)
    (found,) = read(nvml(device(memory_v2=nvml_error(FUNCTION_NOT_FOUND), memory=older)))
    assert found.memory == Memory(total=80 * GIB, used=11 * GIB, free=69 * GIB, reserved=0)


def test_names_as_bytes_are_names(nvml: Any, device: Any) -> None:
    (found,) = read(nvml(device(Name=b"Tesla \xff", UUID=b"GPU-x")))
    assert (found.name, found.uuid) == ("Tesla �", "GPU-x")


def test_without_ecc_there_are_no_errors(nvml: Any, device: Any) -> None:
    assert read(nvml(device(EccMode=[0, 0])))[0].ecc == Ecc(enabled=False)


def test_without_nvlink_there_are_no_links(nvml: Any, device: Any) -> None:
    assert read(nvml(device(nvlink=[])))[0].nvlink == []


def test_all_reasons_for_low_clocks_are_named(nvml: Any, device: Any) -> None:
    (found,) = read(nvml(device(CurrentClocksThrottleReasons=0x1 | 0x40 | 1 << 40)))
    assert found.throttled == ["gpu_idle", "hw_thermal_slowdown"]


def test_parts_of_a_divided_device_are_read(nvml: Any, device: Any, nvml_error: Any) -> None:
    part = device(7, Name="MIG 3g.40gb", UUID="MIG-7")
    parent = device(MigMode=[1, 1], instances=[part, nvml_error(NOT_FOUND)], UtilizationRates=nvml_error(NOT_SUPPORTED))
    (found,) = read(nvml(parent))
    assert (found.mig, found.utilization) == (True, None)
    memory = Memory(total=80 * GIB, used=10 * GIB, free=69 * GIB, reserved=GIB)
    assert found.instances == [Instance(uuid="MIG-7", name="MIG 3g.40gb", memory=memory)]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (LIBRARY_NOT_FOUND, "NVML Shared Library Not Found"),
        (DRIVER_NOT_LOADED, "Driver Not Loaded"),
        (MISMATCH, "version mismatch"),
        (NO_PERMISSION, "Insufficient Permissions"),
    ],
)
def test_without_a_driver_it_says_why(nvml: Any, nvml_error: Any, code: int, text: str) -> None:
    broken = nvml()
    broken.init_error = nvml_error(code)
    with pytest.raises(NoGpu, match=text):
        read(broken)


def test_a_driver_that_comes_later_is_found(nvml: Any, device: Any, nvml_error: Any) -> None:
    late = nvml(device())
    late.init_error = nvml_error(DRIVER_NOT_LOADED)
    reader = Reader(late)
    with pytest.raises(NoGpu):
        reader.read()
    late.init_error = None
    assert len(reader.read().gpus) == 1


def test_a_driver_that_goes_and_comes_is_begun_with_anew(nvml: Any, device: Any, nvml_error: Any) -> None:
    one = nvml(device())
    reader = Reader(one)
    reader.read()
    one.count_error = nvml_error(UNKNOWN)
    with pytest.raises(NoGpu):
        reader.read()
    one.count_error = None
    assert (len(reader.read().gpus), one.started) == (1, 1)


def test_nvml_is_begun_once_and_let_go(nvml: Any, device: Any) -> None:
    one = nvml(device())
    reader = Reader(one)
    reader.read()
    reader.read()
    started = one.started
    reader.close()
    assert (started, one.started) == (1, 0)


def test_it_speaks_nvidias_own_binding() -> None:
    """On a machine without a driver the real `pynvml` says so; with one it lists what there is."""
    try:
        assert Reader().read().driver
    except NoGpu as error:
        assert "NVML" in str(error)
