"""Devices and amounts as they are typed, and those that are there."""

from __future__ import annotations

import pytest

from headrace_gpu.devices import RESERVED, parse_devices
from headrace_gpu.present import present
from headrace_gpu.records import Gpu, Instance, Memory, Reading
from headrace_gpu.units import GIB, MIB, BadPlan, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("32GiB,24GiB", [32 * GIB, 24 * GIB]),
        ("8x80GiB", [80 * GIB] * 8),
        ("2 x 24 gib , 80GB", [24 * GIB, 24 * GIB, 80 * 10**9]),
        ("h100", [81559 * MIB - RESERVED]),
        ("2xa100-40,4090", [40960 * MIB - RESERVED] * 2 + [24564 * MIB - RESERVED]),
        ("RTX 4090", [24564 * MIB - RESERVED]),
        ("3090", [24576 * MIB - RESERVED]),
    ],
)
def test_devices_are_read(text: str, sizes: list[int]) -> None:
    assert [device.total for device in parse_devices(text)] == sizes


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "24", "24G", "h1000", "-24GiB", "nanGiB", "infGiB", "1e9GiB", "0GiB", "0x24GiB", "9999x24GiB"),
        *("1000x1GiB,100x1GiB", "24GiB,", "x24GiB", "٣GiB", "9" * 400 + "GiB", "1" * 20_000, "24GiB 24GiB", "24GiB;rm"),
    ],
)
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(BadPlan, match="--gpus"):
        parse_devices(text)


@pytest.mark.parametrize(
    ("text", "count"), [("70B", 70 * 10**9), ("8.03b", 8_030_000_000), ("500M", 5 * 10**8), ("70", 70)]
)
def test_numbers_of_parameters_are_read(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "B", "-7B", "nan", "inf", "1e9", "0", "70GB", "7B7", "99999999T"])
def test_what_is_no_number_of_parameters_is_refused(text: str) -> None:
    with pytest.raises(BadPlan):
        parse_count(text)


def test_a_size_needs_a_unit() -> None:
    with pytest.raises(BadPlan, match="which unit"):
        parse_bytes("24")


def gpu(index: int, **fields: object) -> Gpu:
    memory = Memory(total=80 * GIB, used=10 * GIB, free=69 * GIB, reserved=GIB)
    return Gpu(**{"index": index, "uuid": f"GPU-{index}a", "name": "NVIDIA H100", "memory": memory, **fields})  # type: ignore[arg-type]


def reading(*gpus: Gpu) -> Reading:
    return Reading(at=0, driver="1", gpus=list(gpus))


def test_what_the_driver_keeps_is_not_there() -> None:
    (device,) = present(reading(gpu(0)))
    assert (device.total, device.free, device.label) == (79 * GIB, 69 * GIB, "H100")


def test_a_device_that_is_lost_is_not_there() -> None:
    assert present(reading(gpu(0, error="GPU is lost"))) == []


@pytest.mark.parametrize(
    ("visible", "indices"), [("1", [1]), ("1,0", [1, 0]), ("GPU-1", [1]), ("", []), ("-1,0", []), ("0,-1,1", [0])]
)
def test_devices_hidden_from_cuda_are_not_there(visible: str, indices: list[int]) -> None:
    assert [device.index for device in present(reading(gpu(0), gpu(1)), visible)] == indices


@pytest.mark.parametrize("visible", ["7", "GPU-x", "GPU-"])
def test_a_hidden_device_that_does_not_exist_is_an_error(visible: str) -> None:
    with pytest.raises(BadPlan, match="CUDA_VISIBLE_DEVICES"):
        present(reading(gpu(0), gpu(1)), visible)


def test_of_a_divided_device_its_parts_are_there() -> None:
    memory = Memory(total=20 * GIB, used=0, free=20 * GIB)
    parts = [Instance(uuid="MIG-1", name="MIG 2g.20gb", memory=memory), Instance(uuid="MIG-2", name="?", memory=None)]
    found = present(reading(gpu(0, mig=True, instances=parts)))
    assert [(device.uuid, device.total, device.index) for device in found] == [("MIG-1", 20 * GIB, None)]
