"""How a vLLM backend is found to be well."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from headrace.errors import GatewayError, Unavailable
from headrace.providers import Health


@contextlib.asynccontextmanager
async def checking(
    kit: Any, backend: dict[str, Any], tmp_path: Any, **engines: Any
) -> AsyncIterator[Callable[[], Any]]:
    """A gateway's check of its one backend."""
    server = {"anonymous": True, "state_dir": str(tmp_path / "state")}
    gateway = kit.assembled({"engines": engines}, backend, server=server)
    (target,) = gateway.models.targets
    async with gateway.running(looking=True):
        yield lambda: gateway.health_checks["vllm"].check(target)


async def test_a_server_that_answers_is_well(kit: Any, server: Callable[..., Any], tmp_path: Any) -> None:
    async with checking(kit, {"base_url": server().url}, tmp_path) as check:
        assert await check() == Health(ok=True)


async def test_a_server_whose_engine_is_dead_is_not(kit: Any, server: Callable[..., Any], tmp_path: Any) -> None:
    vllm = server()
    vllm.mode.write_text("dead")
    async with checking(kit, {"base_url": vllm.url}, tmp_path) as check:
        assert await check() == Health(ok=False, reason="its engine is dead: 503 at /health")


async def test_a_model_that_is_not_served_is_told_of(kit: Any, server: Callable[..., Any], tmp_path: Any) -> None:
    async with checking(kit, {"base_url": server().url, "model": "n"}, tmp_path) as check:
        found = await check()
    assert (found.ok, found.reason) == (True, "answers, but does not list the model 'n': is its name right?")


async def test_an_adapter_is_served(kit: Any, server: Callable[..., Any], tmp_path: Any) -> None:
    import httpx

    vllm = server(VLLM_ALLOW_RUNTIME_LORA_UPDATING="1")
    httpx.post(f"{vllm.url}/v1/load_lora_adapter", json={"lora_name": "n", "lora_path": "/n"}, trust_env=False)
    async with checking(kit, {"base_url": vllm.url, "model": "n"}, tmp_path) as check:
        assert await check() == Health(ok=True)


async def test_a_wrong_key_is_found_though_health_asks_for_none(
    kit: Any, server: Callable[..., Any], tmp_path: Any
) -> None:
    vllm = server(VLLM_API_KEY="sk-theirs")
    async with checking(kit, {"base_url": vllm.url, "api_key": "sk-ours"}, tmp_path) as check:
        with pytest.raises(GatewayError) as raised:
            await check()
    assert raised.value.code == "upstream_auth"


async def test_the_right_key_is_taken(kit: Any, server: Callable[..., Any], tmp_path: Any) -> None:
    vllm = server(VLLM_API_KEY="sk-theirs")
    async with checking(kit, {"base_url": vllm.url, "api_key": "sk-theirs"}, tmp_path) as check:
        assert await check() == Health(ok=True)


async def test_a_server_of_others_that_cannot_be_reached_is_unreachable(kit: Any, tmp_path: Any) -> None:
    async with checking(kit, {"base_url": f"http://127.0.0.1:{kit.free_port()}"}, tmp_path) as check:
        with pytest.raises(Unavailable):
            await check()


async def test_an_engine_of_ours_that_cannot_be_reached_is_starting(kit: Any, tmp_path: Any) -> None:
    engine = {"model": "m", "port": kit.free_port()}
    async with checking(kit, {"options": {"engine": "gpu"}}, tmp_path, gpu=engine) as check:
        found = await check()
    assert (found.ok, found.starting) == (False, True)
    assert found.reason == "the engine 'gpu' is loading its model, or `headrace up` is not running"


async def test_what_is_no_vllm_is_told_so(kit: Any, tmp_path: Any) -> None:
    from headrace.testing import FakeBackend

    async with FakeBackend() as other:
        other.status = 404
        async with checking(kit, {"base_url": other.url}, tmp_path) as check:
            found = await check()
    assert found == Health(ok=False, reason="it answers 404 at /health: is its base_url right?")
