"""What was spent stays counted, whenever the gateway's process is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from headrace.ledger.local import LocalLedger
from headrace.testing import FakeBackend, free_port

CONFIG = """
[server]
listen = "127.0.0.1:{port}"
state_dir = "{folder}"
anonymous = true
[backends]
fake = {{ provider = "openai", base_url = "{backend}" }}
[models]
test = {{ targets = ["fake"] }}
[plugins.openai]
[plugins.budget]
limits = [{{ per = [], tokens_per_month = 100_000_000 }}]
"""
CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}
TOKENS = 6
"""What the backend says each request has taken."""
AT_MOST = 40 + 25
"""What is reserved for one at most."""
CALLERS = 8
KILLS = 4


@contextlib.asynccontextmanager
async def gateway(config: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """`headrace serve` as a process, once it answers; killed at the end if it is still there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    arguments = [sys.executable, "-m", "headrace", "--config", str(config), "serve"]
    errors = config.with_name("stderr.txt")
    with errors.open("w") as stderr:
        process = await asyncio.create_subprocess_exec(*arguments, env=kept, stderr=stderr)
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            while not await is_live(client):
                assert process.returncode is None, errors.read_text()
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def is_live(client: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return (await client.get("/health/live")).status_code == 200
    return False


async def ask_on(port: int) -> None:
    """Ask until the gateway is gone."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        with contextlib.suppress(httpx.HTTPError):
            while True:
                (await client.post("/v1/chat/completions", json=CHAT)).raise_for_status()


def used(folder: Path) -> int:
    """What the file says, whoever wrote it."""
    ledger = LocalLedger(folder / "ledger.mdb")
    ledger.open()
    try:
        return sum(amount for _, amount in asyncio.run(ledger.scan("sum", "budget:all:")))
    finally:
        ledger.close()


async def test_nothing_that_was_spent_is_forgotten_when_the_gateway_is_killed_again_and_again(tmp_path: Path) -> None:
    config, chance = tmp_path / "headrace.toml", random.Random(5)
    async with FakeBackend() as backend:
        for _ in range(KILLS):
            port = free_port()
            config.write_text(CONFIG.format(port=port, folder=tmp_path, backend=backend.url))
            before = len(backend.requests)
            async with gateway(config, port) as process, asyncio.TaskGroup() as callers:
                for _ in range(CALLERS):
                    callers.create_task(ask_on(port))
                while len(backend.requests) < before + chance.randint(20, 100):
                    await asyncio.sleep(chance.random() / 100)
                process.send_signal(signal.SIGKILL)
        answered = len(backend.requests)
    counted = await asyncio.to_thread(used, tmp_path)
    unsettled = CALLERS * KILLS  # under way, or settled a moment before: each stays as it was reserved
    assert answered > KILLS * 20
    assert answered * TOKENS <= counted <= answered * TOKENS + unsettled * AT_MOST


async def test_a_gateway_that_is_told_to_stop_has_settled_everything(tmp_path: Path) -> None:
    config, port = tmp_path / "headrace.toml", free_port()
    async with FakeBackend() as backend:
        config.write_text(CONFIG.format(port=port, folder=tmp_path, backend=backend.url))
        async with gateway(config, port) as process:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            async with httpx.AsyncClient(timeout=30) as client:
                answers = await asyncio.gather(*(client.post(url, json=CHAT) for _ in range(20)))
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 30) == 0
        listed = await asyncio.to_thread(list_used, config)
    assert [each.status_code for each in answers] == [200] * 20
    assert [(row["used"], row["unit"]) for row in listed] == [(20 * TOKENS, "tokens")]


def list_used(config: Path) -> Any:
    command = [sys.executable, "-m", "headrace", "--config", str(config), "budget", "list", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
