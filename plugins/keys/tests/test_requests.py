"""Keys at the door of the real application, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from headrace.app import build_app
from headrace.gateway import Gateway
from headrace.settings import parse
from headrace_keys.store import Store

CHAT = {"model": "large", "messages": [{"role": "user", "content": "hi"}]}


@contextlib.asynccontextmanager
async def serving(state_dir: Path, **server: Any) -> AsyncIterator[httpx.AsyncClient]:
    document = {
        "server": {"state_dir": str(state_dir), **server},
        "backends": {"b": {"provider": "openai", "base_url": "http://127.0.0.1:9"}},
        "models": {"small": {"targets": ["b"]}, "large": {"targets": ["b"]}},
        "plugins": {"openai": {}, "keys": {}},
    }
    gateway = Gateway(parse(document)).assemble()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uvicorn_server = uvicorn.Server(uvicorn.Config(build_app(gateway), lifespan="off", log_config=None))
        async with gateway.running():
            task = asyncio.create_task(uvicorn_server.serve(sockets=[listener]))
            try:
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
                    yield client
            finally:
                uvicorn_server.should_exit = True
                await task


def create(database: Path, **options: Any) -> dict[str, str]:
    with Store.open(database) as store, store.writing():
        return {"Authorization": f"Bearer {store.create('alice', **options)[1].reveal()}"}


async def test_a_key_opens_the_door_and_nothing_else_does(tmp_path: Path, database: Path) -> None:
    key = create(database)
    async with serving(tmp_path) as client:
        with_key = await client.get("/v1/models", headers=key)
        refused = [
            await client.get("/v1/models"),
            await client.get("/v1/models", headers={"Authorization": key["Authorization"][:-1] + "!"}),
            await client.get("/v1/models", headers={"Authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x"}),
            await client.get("/v1/models", headers={**key, "X-API-Key": "another"}),
        ]
    assert with_key.status_code == 200
    for each in refused:
        assert each.status_code == 401 and each.headers["www-authenticate"] == "Bearer"
        assert each.json()["error"]["code"] == "invalid_api_key"


async def test_a_key_for_one_model_sees_and_gets_that_model_only(tmp_path: Path, database: Path) -> None:
    key = create(database, models=["small"])
    async with serving(tmp_path) as client:
        listed = await client.get("/v1/models", headers=key)
        refused = await client.post("/v1/chat/completions", json=CHAT, headers=key)
        tried = await client.post("/v1/chat/completions", json={**CHAT, "model": "small"}, headers=key)
    assert [model["id"] for model in listed.json()["data"]] == ["small"]
    assert refused.status_code == 403
    assert tried.status_code == 503, "it got as far as the backend, which is not there"


async def test_a_key_for_one_endpoint_gets_that_endpoint_only(tmp_path: Path, database: Path) -> None:
    key = create(database, endpoints=["embeddings"])
    async with serving(tmp_path) as client:
        refused = await client.post("/v1/chat/completions", json=CHAT, headers=key)
        tried = await client.post("/v1/embeddings", json={"model": "large", "input": "hi"}, headers=key)
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "forbidden"
    assert tried.status_code == 503, "it got as far as the backend, which is not there"


@pytest.mark.parametrize("token", ["hr-", "hr-000000000000-" + "a" * 32])
async def test_a_wrong_key_is_refused_even_where_strangers_are_welcome(tmp_path: Path, token: str) -> None:
    async with serving(tmp_path, anonymous=True) as client:
        stranger = await client.get("/v1/models")
        wrong = await client.get("/v1/models", headers={"X-API-Key": token})
    assert (stranger.status_code, wrong.status_code) == (200, 401)
