"""Answers that nginx delivers: what backends report of their caches comes to the policy all the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from headrace.testing import free_port
from headrace_prefix import Status

PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
SYSTEM = "You are a helpful assistant. " * 60
CONFIG = """
[server]
listen = "127.0.0.1:{core_port}"
state_dir = "{folder}/state"
shutdown_timeout = 5
[backends]
gpu0 = {{ provider = "openai", base_url = "{first}" }}
gpu1 = {{ provider = "openai", base_url = "{second}" }}
[models]
test = {{ targets = ["gpu0", "gpu1"], policy = "prefix" }}
[plugins.logs]
path = "log/requests.log"
[plugins.keys]
[plugins.openai]
[plugins.prefix]
admin_api = true
[plugins.nginx]
port = {port}
required = true
tls = false
"""


async def headrace(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    with (folder / "stderr.txt").open("w") as stderr:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headrace", "-c", str(folder / "headrace.toml"), *arguments),
            cwd=folder,
            env={**kept, "PATH": PATH},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )


@contextlib.asynccontextmanager
async def running(folder: Path, **fields: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway behind a real nginx, with an administrator's key."""
    port = free_port()
    (folder / "headrace.toml").write_text(CONFIG.format(folder=folder, core_port=free_port(), port=port, **fields))
    created, _ = await (await headrace(folder, "keys", "create", "root", "--role", "admin")).communicate()
    process = await headrace(folder, "up")
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        assert line.startswith(b"READY"), (folder / "stderr.txt").read_text()
        ready = dict(field.split("=", 1) for field in line.decode().split()[1:])
        head = {"authorization": f"Bearer {created.decode().strip()}"}
        async with httpx.AsyncClient(base_url=ready["url"].removesuffix("/v1"), headers=head, timeout=30) as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def delivered(folder: Path, answers: int) -> list[str]:
    """How each answer was delivered, once the log knows of all of them."""
    log = folder / "state" / "log" / "requests.log"
    async with asyncio.timeout(30):
        while True:
            text = log.read_text() if log.exists() else ""
            lines = [msgspec.json.decode(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
            asked = [line["delivery"] for line in lines if line.get("delivery") and line.get("target")]
            if len(asked) >= answers:
                return asked
            await asyncio.sleep(0.05)


@pytest.mark.skipif(shutil.which("nginx", path=PATH) is None, reason="there is no nginx")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_reports_of_answers_that_nginx_delivers_are_compared(caching_backend: type[Any], stream: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="headrace-") as name:
        folder = Path(name)
        async with (
            caching_backend() as first,
            caching_backend() as second,
            running(folder, first=first.url, second=second.url) as client,
        ):
            turns = [SYSTEM]
            for number in range(8):
                turns.append(f"Turn {number}.")
                messages = [{"role": "user", "content": turn} for turn in turns]
                body = {"model": "test", "messages": messages, "stream": stream}
                answer = await client.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                await delivered(folder, number + 1)
            ways = await delivered(folder, 8)
            assert ways[-4:] == ["offload"] * 4
            status = msgspec.json.decode((await client.get("/admin/prefix")).content, type=Status)
            assert sorted((first.asked, second.asked)) == [0, 8]
            assert (status.predictions, status.checked, status.hits) == (7, 7, 7)
