"""What whichever plugin exports metrics is offered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from headrace.testing import serve

LABELS = '{gpu="0",name="NVIDIA H100 80GB HBM3",uuid="GPU-0"}'


async def offered(plugin: Any) -> str:
    """All metrics, as text, once there has been a reading."""
    async with serve({}, {"gpu": plugin}) as running:
        await running.gateway.plugins["gpu"].watcher.current()
        return exported(running.gateway.collectors)


def exported(collectors: list[Any]) -> str:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return generate_latest(registry).decode()


@pytest.mark.parametrize(
    "line",
    [
        f"headrace_gpu_up{LABELS} 1.0",
        f"headrace_gpu_memory_used_bytes{LABELS} 1.073741824e+10",
        f"headrace_gpu_memory_total_bytes{LABELS} 8.589934592e+10",
        f"headrace_gpu_utilization_ratio{LABELS} 0.37",
        f"headrace_gpu_temperature_celsius{LABELS} 54.0",
        f"headrace_gpu_power_watts{LABELS} 312.5",
        f"headrace_gpu_power_limit_watts{LABELS} 700.0",
        'headrace_gpu_clock_hertz{clock="sm",gpu="0",name="NVIDIA H100 80GB HBM3",uuid="GPU-0"} 1.98e+09',
        'headrace_gpu_nvlink_up{gpu="0",link="2",name="NVIDIA H100 80GB HBM3",uuid="GPU-0"} 0.0',
        'headrace_gpu_throttled{gpu="0",name="NVIDIA H100 80GB HBM3",reason="sw_power_cap",uuid="GPU-0"} 1.0',
        'headrace_gpu_ecc_errors{gpu="0",kind="corrected",name="NVIDIA H100 80GB HBM3",uuid="GPU-0"} 3.0',
    ],
)
async def test_a_metric_is_offered(nvml: Any, device: Any, over: Any, line: str) -> None:
    assert line in (await offered(over(nvml(device())))).splitlines()


async def test_what_a_device_does_not_tell_is_no_metric(nvml: Any, device: Any, nvml_error: Any, over: Any) -> None:
    text = await offered(over(nvml(device(PowerUsage=nvml_error(3)))))
    assert "headrace_gpu_power_watts{" not in text
    assert "headrace_gpu_temperature_celsius{" in text


async def test_a_lost_device_is_down(nvml: Any, device: Any, nvml_error: Any, over: Any) -> None:
    assert 'headrace_gpu_up{gpu="0",name="",uuid=""} 0.0' in await offered(over(nvml(device(handle=nvml_error(15)))))


async def test_without_a_driver_there_are_none(nvml: Any, nvml_error: Any, over: Any) -> None:
    missing = nvml()
    missing.init_error = nvml_error(12)
    assert await offered(over(missing)) == ""


async def test_a_gateway_that_was_taken_over_offers_none(nvml: Any, device: Any, over: Any) -> None:
    async with serve({}, {"gpu": over(nvml(device()))}) as running:
        await running.gateway.plugins["gpu"].watcher.current()
        running.gateway.superseded.set()
        assert exported(running.gateway.collectors) == ""


async def test_other_workers_offer_none(nvml: Any, device: Any, over: Any) -> None:
    from headrace.gateway import Gateway
    from headrace.settings import parse

    gateway = Gateway(parse({"plugins": {"gpu": {}}}, source="test"), "test", {"gpu": over(nvml(device()))})
    gateway.worker = 1
    plugin = gateway.plugins["gpu"]
    async with plugin.lifespan(gateway):
        assert (await plugin.watcher.current()) is not None
        assert gateway.collectors == []


async def test_a_gateway_without_collectors_is_served_all_the_same(nvml: Any, device: Any, over: Any) -> None:
    one = nvml(device())
    plugin = over(one)(over(one).Config(), None)
    gateway = type("Bare", (), {"looking": False, "worker": 0, "superseded": asyncio.Event()})()
    async with plugin.lifespan(gateway):
        assert (await plugin.watcher.current()) is not None
