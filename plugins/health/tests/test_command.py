"""`headrace health`: a process of its own, without a running gateway."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Ended(NamedTuple):
    code: int | None
    out: str
    err: str


@pytest.fixture
def command(tmp_path: Path) -> Any:
    """Runs `headrace health` with a model for each of these backends' addresses."""

    async def run(backends: dict[str, str], *options: str, health: str = "") -> Ended:
        lines = ["[server]", f'state_dir = "{tmp_path}"', "[plugins.openai]", "[plugins.health]", health]
        for name, url in backends.items():
            lines += [f"[backends.{name}]", 'provider = "openai"', f'base_url = "{url}"']
            lines += [f"[models.m-{name}]", f'targets = ["{name}"]']
        file = tmp_path / "headrace.toml"
        file.write_text("\n".join(lines))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headrace", "--config", str(file), "health", *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return Ended(process.returncode, out.decode(), err.decode())

    return run


async def test_it_shows_every_backend(engine: Any, listing: Any, command: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server:
        ended = await command({"gpu": server.url})
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[2].split()[:2] == ["gpu", "up"]


async def test_it_fails_if_a_model_has_no_backend_that_is_up(engine: Any, listing: Any, command: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server:
        ended = await command({"gpu": server.url, "gone": "http://127.0.0.1:9"})
    assert ended.code == 1
    assert ended.err == "no backend is up for: m-gone\n"


async def test_it_says_it_in_json_for_scripts(engine: Any, listing: Any, command: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server:
        rows = json.loads((await command({"gpu": server.url, "gone": "http://127.0.0.1:9"}, "--json")).out)
    assert rows[0].pop("latency_ms") > 0
    assert rows[1].pop("latency_ms") > 0
    assert rows == [
        {"target": "gpu", "condition": "up", "models": ["m-gpu"], "reason": ""},
        {"target": "gone", "condition": "down", "models": ["m-gone"], "reason": "The backend cannot be reached."},
    ]


async def test_each_backend_is_asked_once(engine: Any, listing: Any, command: Any) -> None:
    async with engine({"/v1/models": listing("x")}) as server:
        await command({"gpu": server.url})
    assert server.paths == ["/v1/models"]


async def test_commands_that_only_look_ask_nobody(engine: Any, listing: Any, tmp_path: Path) -> None:
    from headrace.gateway import Gateway
    from headrace.settings import parse

    async with engine({"/v1/models": listing("x")}) as server:
        document = {
            "server": {"state_dir": str(tmp_path)},
            "backends": {"gpu": {"provider": "openai", "base_url": server.url}},
            "models": {"m": {"targets": ["gpu"]}},
            "plugins": {"openai": {}, "health": {}},
        }
        gateway = Gateway(parse(document, source="test"), "test").assemble()
        async with gateway.running(looking=True):
            assert gateway.plugins["health"].watches == {}
    assert server.paths == []
