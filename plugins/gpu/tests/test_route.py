"""`GET /v1/gpu`, and what a gateway does beside it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.exchange import Exchange, Principal
from headrace.testing import serve

PATH = "/v1/gpu"


class Named:
    """Callers are whoever they say they are."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name = exchange.header(b"x-api-key")
        role = {"root": "admin", "prometheus": "metrics"}.get(name or "", "user")
        return None if name is None else Principal(id=name, role=role)  # type: ignore[arg-type]


async def ask(plugin: Any, key: str | None = "root", **table: Any) -> httpx.Response:
    async with (
        serve({"plugins": {"gpu": table}}, {"named": Named, "gpu": plugin}) as running,
        httpx.AsyncClient(base_url=running.url, timeout=30) as client,
    ):
        return await client.get(PATH, headers={"x-api-key": key} if key else {})


async def test_an_administrator_sees_every_device(nvml: Any, device: Any, over: Any) -> None:
    found = (await ask(over(nvml(device(0), device(1))))).json()
    assert (found["object"], found["reason"], found["driver"]) == ("list", "", "580.1")
    assert [each["uuid"] for each in found["data"]] == ["GPU-0", "GPU-1"]
    assert found["data"][0]["memory"]["used"] == 10 * 1024**3


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("ada", 403), ("prometheus", 403), ("root", 200)])
async def test_nobody_else_does(nvml: Any, device: Any, over: Any, key: str | None, status: int) -> None:
    assert (await ask(over(nvml(device())), key)).status_code == status


async def test_without_a_driver_it_answers_why(nvml: Any, nvml_error: Any, over: Any) -> None:
    missing = nvml()
    missing.init_error = nvml_error(12)
    found = (await ask(over(missing))).json()
    assert (found["object"], found["data"]) == ("list", [])
    assert found["reason"] == "no NVIDIA driver: NVML Shared Library Not Found (NVML)"


async def test_a_driver_that_hangs_does_not_hold_up_the_start_or_the_answer(nvml: Any, device: Any, over: Any) -> None:
    hung = nvml(device())
    hung.open.clear()
    try:
        found = (await ask(over(hung), timeout=0.05)).json()
    finally:
        hung.open.set()
    assert (found["data"], "has not answered" in found["reason"]) == ([], True)


async def test_a_device_that_is_lost_is_shown_beside_the_others(
    nvml: Any, device: Any, nvml_error: Any, over: Any
) -> None:
    found = (await ask(over(nvml(device(0, handle=nvml_error(15)), device(1))))).json()["data"]
    assert [each["error"] for each in found] == ["GPU is lost", ""]


async def test_what_it_let_in_is_let_go_at_the_end(nvml: Any, device: Any, over: Any) -> None:
    one = nvml(device())
    await ask(over(one))
    assert one.started == 0


async def test_it_reads_by_itself_until_another_takes_over(nvml: Any, device: Any, over: Any) -> None:
    one = nvml(device())
    async with serve({}, {"gpu": over(one)}) as running:
        plugin = running.gateway.plugins["gpu"]
        async with asyncio.timeout(20):
            while plugin.watcher.reading is None:
                await asyncio.sleep(0.002)
        assert "gpu" in {task.get_name() for task in asyncio.all_tasks()}
        running.gateway.superseded.set()
        async with asyncio.timeout(20):
            while "gpu" in {task.get_name() for task in asyncio.all_tasks()}:
                await asyncio.sleep(0.002)


async def test_the_key_of_a_wrong_setting_is_named() -> None:
    from headrace.errors import ConfigError
    from headrace_gpu import Plugin

    with pytest.raises(ConfigError, match="interval"):
        async with serve({"plugins": {"gpu": {"interval": 0}}}, {"gpu": Plugin}):
            raise AssertionError
