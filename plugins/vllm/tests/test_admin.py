"""Adapters, sleep and wake: `/admin/vllm/…` and `headrace vllm …`. The server is fake_vllm.py."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.config import Strict
from headrace.exchange import Exchange, Principal
from headrace.testing import serve

LORA = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
SLEEP = {"VLLM_SERVER_DEV_MODE": "1"}
STYLE = {"name": "style", "path": "/loras/style"}
ADAPTER = {"name": "style", "path": "/loras/style", "base": "m"}


class Roles:
    """Takes a key for a role."""

    Config = Strict

    def __init__(self, config: Strict, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        role: Any = (exchange.header(b"authorization") or "").removeprefix("Bearer ")
        return Principal(id=role, role=role) if role else None


@contextlib.asynccontextmanager
async def asking(url: str, role: str = "admin", **vllm: Any) -> AsyncIterator[httpx.AsyncClient]:
    document = {
        "backends": {"gpu": {"provider": "vllm", "base_url": url}},
        "models": {"chat": {"targets": ["gpu"]}},
        "plugins": {"vllm": {"admin_api": True, **vllm}},
    }
    async with serve(document, {"roles": Roles}) as running:
        headers = {"Authorization": f"Bearer {role}"}
        base = f"{running.url}/admin/vllm/gpu"
        async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False) as client:
            yield client


# --- over HTTP ---


async def test_an_adapter_is_loaded_listed_and_unloaded(server: Callable[..., Any]) -> None:
    async with asking(server(**LORA).url) as client:
        loaded = await client.post("/lora", json=STYLE)
        assert (loaded.status_code, loaded.json()) == (200, {"backend": "gpu", "adapters": [ADAPTER]})
        assert (await client.get("/lora")).json()["adapters"] == [ADAPTER]
        assert (await client.delete("/lora/style")).json()["adapters"] == []


async def test_an_adapter_takes_the_place_of_another_if_that_is_said(server: Callable[..., Any]) -> None:
    async with asking(server(**LORA).url) as client:
        await client.post("/lora", json=STYLE)
        again = await client.post("/lora", json={**STYLE, "path": "/loras/new"})
        assert again.status_code == 400
        assert again.json()["error"]["message"] == "The lora adapter 'style' has already been loaded."
        again = await client.post("/lora", json={**STYLE, "path": "/loras/new", "replace": True})
        assert again.json()["adapters"] == [{**ADAPTER, "path": "/loras/new"}]


async def test_an_adapter_that_is_not_there_cannot_be_unloaded(server: Callable[..., Any]) -> None:
    async with asking(server(**LORA).url) as client:
        answer = await client.delete("/lora/org/style")
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404,
        "The lora adapter 'org/style' cannot be found.",
    )


async def test_a_server_sleeps_and_wakes(server: Callable[..., Any]) -> None:
    vllm = server(**SLEEP)
    async with asking(vllm.url) as client:
        assert (await client.get("/sleep")).json() == {"backend": "gpu", "sleeping": False}
        assert (await client.post("/sleep", json={"level": 2})).json() == {"backend": "gpu", "sleeping": True}
        assert (await client.post("/wake")).json() == {"backend": "gpu", "sleeping": False}
    assert [path for path, _ in vllm.asked] == ["/sleep?level=2", "/wake_up"]


@pytest.mark.parametrize(
    ("method", "path", "told"),
    [
        ("POST", "/lora", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (an engine of the gateway's: runtime_lora = true)"),
        ("DELETE", "/lora/style", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ("POST", "/sleep", "VLLM_SERVER_DEV_MODE=1 (an engine of the gateway's: sleep_mode = true)"),
        ("GET", "/sleep", "VLLM_SERVER_DEV_MODE=1"),
        ("POST", "/wake", "VLLM_SERVER_DEV_MODE=1"),
    ],
)
async def test_what_a_server_was_not_started_for_is_told(
    server: Callable[..., Any], method: str, path: str, told: str
) -> None:
    async with asking(server().url) as client:
        answer = await client.request(method, path, json=STYLE if path == "/lora" else None)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "not_enabled")
    assert told in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/lora", {}, "name"),
        ("/lora", {**STYLE, "more": 1}, "more"),
        ("/lora", {**STYLE, "name": ""}, "name"),
        ("/sleep", {"level": 3}, "level"),
        ("/lora", "x" * 70_000, "larger than"),
    ],
)
async def test_a_body_that_is_wrong_is_told_of_and_asked_of_nobody(
    server: Callable[..., Any], path: str, body: Any, told: str
) -> None:
    vllm = server(**LORA, **SLEEP)
    async with asking(vllm.url) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code in (400, 413)
    assert told in answer.json()["error"]["message"]
    assert vllm.asked == []


async def test_a_backend_that_is_not_there_is_told_of_with_those_that_are(server: Callable[..., Any]) -> None:
    async with asking(server().url) as client:
        answer = await client.get("/../gpu2/lora")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "There is no vLLM backend 'gpu2' (there are: gpu)."


async def test_whoever_is_no_administrator_is_refused(server: Callable[..., Any]) -> None:
    vllm = server(**LORA)
    async with asking(vllm.url, role="user") as client:
        assert (await client.post("/lora", json=STYLE)).status_code == 403
    assert vllm.asked == []


async def test_without_admin_api_there_are_no_such_paths(server: Callable[..., Any]) -> None:
    async with asking(server(**LORA).url, admin_api=False) as client:
        assert (await client.get("/lora")).status_code == 404


async def test_a_server_that_refuses_our_key_is_told_of(server: Callable[..., Any]) -> None:
    async with asking(server(**LORA, VLLM_API_KEY="sk-theirs").url) as client:
        answer = await client.get("/lora")
    assert (answer.status_code, answer.json()["error"]["message"]) == (502, "gpu refuses our key.")


# --- commands ---


def backends(site: Any, *servers: Any) -> None:
    """A configuration with a backend and a model for each."""
    tables = [
        f'[backends.gpu{n}]\nprovider = "vllm"\nbase_url = "{each.url}"\n[models.m{n}]\ntargets = ["gpu{n}"]'
        for n, each in enumerate(servers)
    ]
    site.write("[plugins.vllm]", *tables)


def test_one_server_need_not_be_named(site: Any, server: Callable[..., Any]) -> None:
    backends(site, server(**LORA))
    assert site.run("vllm", "lora", "load", "style", "/loras/style").stdout == "gpu0: loaded\n"
    listed = json.loads(site.run("vllm", "lora", "list", "--json").stdout)
    assert listed == [{"backend": "gpu0", **ADAPTER}]
    assert site.run("vllm", "lora", "unload", "style").stdout == "gpu0: unloaded\n"


def test_of_several_servers_one_is_named_or_all_are_meant(site: Any, server: Callable[..., Any]) -> None:
    one, other = server(**LORA), server(**LORA)
    backends(site, one, other)
    unclear = site.run("vllm", "lora", "load", "style", "/loras/style")
    assert (unclear.returncode, one.asked, other.asked) == (2, [], [])
    assert "name one with --backend, or say --all (there are: gpu0, gpu1)" in unclear.stderr
    assert site.run("vllm", "lora", "load", "style", "/loras/style", "--backend", "gpu1").stdout == "gpu1: loaded\n"
    everywhere = site.run("vllm", "lora", "load", "style", "/loras/style", "--all", "--replace")
    assert everywhere.stdout == "gpu0: loaded\ngpu1: loaded\n"


def test_a_server_that_fails_does_not_keep_others_from_being_asked(site: Any, server: Callable[..., Any]) -> None:
    backends(site, server(), server(**LORA))
    done = site.run("vllm", "lora", "load", "style", "/loras/style", "--all")
    assert (done.returncode, done.stdout) == (1, "gpu1: loaded\n")
    assert "gpu0: This vLLM loads no adapters while it runs" in done.stderr


def test_sleep_wake_and_status_are_commands_too(site: Any, server: Callable[..., Any]) -> None:
    backends(site, server(**SLEEP))
    said = [site.run("vllm", *words).stdout for words in (["sleep"], ["status"], ["wake"], ["status", "--json"])]
    assert said[:3] == ["gpu0 sleeps\n", "gpu0 sleeps\n", "gpu0 is awake\n"]
    assert json.loads(said[3]) == {"gpu0": {"sleeping": False}}


def test_a_server_that_cannot_be_reached_is_told_of_in_one_line(site: Any, server: Callable[..., Any]) -> None:
    vllm = server(**SLEEP)
    vllm.end()
    backends(site, vllm)
    done = site.run("vllm", "status")
    assert (done.returncode, done.stderr) == (1, "gpu0: The backend cannot be reached.\n")


def test_a_backend_that_is_no_vllm_is_told_of(site: Any, server: Callable[..., Any]) -> None:
    backends(site, server())
    done = site.run("vllm", "sleep", "--backend", "gpu7")
    assert (done.returncode, done.stderr) == (1, "Error: no vLLM backend is called 'gpu7' (there are: gpu0)\n")
