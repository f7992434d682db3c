"""Processes that are killed, or told to stop, while they write."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.testing import FakeBackend, free_port
from headrace_usage.place import postgres_place

pytestmark = pytest.mark.alone

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
[plugins.usage]
{more}
"""
CHAT = {"model": "test", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}
CALLERS = 4
KILLS = 2
ALLOWED = 1.0
"""Seconds of rows that may be lost when a process is killed."""


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


async def ask_on(port: int, answered: dict[str, float]) -> None:
    """Ask until the gateway is gone; note when each answer had come."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        with contextlib.suppress(httpx.HTTPError):
            while True:
                answer = await client.post("/v1/chat/completions", json=CHAT)
                answer.raise_for_status()
                answered[answer.headers["x-request-id"]] = time.monotonic()


def written(config: Path, folder: Path, backend: str, more: str = "") -> int:
    port = free_port()
    config.write_text(CONFIG.format(port=port, folder=folder, backend=backend, more=more))
    return port


async def killed_while_asked(config: Path, port: int, seconds: float) -> tuple[dict[str, float], float]:
    """When each answer came, and when the gateway was killed."""
    answered: dict[str, float] = {}
    async with gateway(config, port) as process, asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(ask_on(port, answered))
        await asyncio.sleep(seconds)  # no waiting for anything: any moment will do
        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
    return answered, killed


def identifiers(rows: list[dict[str, Any]]) -> list[str]:
    return [row["request_id"] for row in rows]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_ended_a_second_before_a_kill_is_there(
    tmp_path: Path, rows_in: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres").new_database() if kind == "postgres" else ""
    more = f'database = "{url}"' if url else ""
    place = postgres_place(url) if url else tmp_path / "usage.db"
    due: set[str] = set()
    config = tmp_path / "headrace.toml"
    async with FakeBackend() as backend:
        for _ in range(KILLS):
            port = written(config, tmp_path, backend.url, more)
            answered, killed = await killed_while_asked(config, port, random.uniform(1.2, 2.0))
            due |= {name for name, when in answered.items() if when < killed - ALLOWED}
    found = identifiers(await asyncio.to_thread(rows_in, place))
    assert len(due) > 20
    assert due <= set(found)
    assert len(found) == len(set(found))


async def test_what_was_put_aside_a_second_before_a_kill_is_taken_up_by_the_next(
    tmp_path: Path, rows_in: Any, locked: Any
) -> None:
    config, place = tmp_path / "headrace.toml", tmp_path / "usage.db"
    async with FakeBackend() as backend:
        port = written(config, tmp_path, backend.url)
        async with gateway(config, port):
            pass
        with locked(place):
            answered, killed = await killed_while_asked(config, port, 2.5)
        due = {name for name, when in answered.items() if when < killed - ALLOWED}
        port = written(config, tmp_path, backend.url)
        async with gateway(config, port):
            end = time.monotonic() + 20
            while not due <= set(identifiers(await asyncio.to_thread(rows_in, place))):
                assert time.monotonic() < end, f"{len(due)} rows are due"
                await asyncio.sleep(0.05)
    found = identifiers(await asyncio.to_thread(rows_in, place))
    assert len(due) > 20
    assert len(found) == len(set(found))
    with contextlib.closing(sqlite3.connect(place)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT sum(requests) FROM days").fetchone()[0] == len(found)


@pytest.mark.parametrize("held", [False, True])
async def test_a_gateway_that_is_told_to_stop_loses_nothing(
    tmp_path: Path, rows_in: Any, locked: Any, held: bool
) -> None:
    config, place = tmp_path / "headrace.toml", tmp_path / "usage.db"
    async with FakeBackend() as backend:
        port = written(config, tmp_path, backend.url)
        async with gateway(config, port) as process:
            with locked(place) if held else contextlib.nullcontext():
                answered = await asked(port, 300)
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), 30) == 0
        if held:
            async with gateway(config, port) as process:
                process.send_signal(signal.SIGTERM)
                await process.wait()
                await asyncio.to_thread(take_up, config, place, rows_in, 300)
    assert sorted(identifiers(await asyncio.to_thread(rows_in, place))) == sorted(answered)


async def asked(port: int, count: int) -> list[str]:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    limits = httpx.Limits(max_connections=20)
    async with httpx.AsyncClient(timeout=30, limits=limits) as client:
        answers = await asyncio.gather(*(client.post(url, json=CHAT) for _ in range(count)))
    return [answer.headers["x-request-id"] for answer in answers]


def take_up(config: Path, place: Path, rows_in: Any, count: int) -> None:
    """Have a gateway run until all that was put aside is in the ledger."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    arguments = [sys.executable, "-m", "headrace", "--config", str(config), "serve"]
    with subprocess.Popen(arguments, env=kept, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 30
            while len(rows_in(place)) < count:
                assert time.monotonic() < end
                time.sleep(0.05)
        finally:
            process.terminate()


async def test_the_command_line_tells_what_was_written(tmp_path: Path) -> None:
    config = tmp_path / "headrace.toml"
    async with FakeBackend() as backend:
        port = written(config, tmp_path, backend.url)
        async with gateway(config, port) as process:
            await asked(port, 20)
            process.send_signal(signal.SIGTERM)
            await process.wait()
    command = [sys.executable, "-m", "headrace", "--config", str(config), "usage", "report", "--format", "json"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, text=True)
    (row,) = json.loads(done.stdout)["data"]
    assert (row["key"], row["model"], row["requests"], row["input"], row["output"]) == (
        "anonymous",
        "test",
        20,
        100,
        20,
    )
