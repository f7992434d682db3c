"""Callers may know what they may do: `GET /v1/usage`, and `headrace whoami` for whoever has the key in hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace import hookimpl
from headrace.errors import RateLimited, Unauthenticated
from headrace.exchange import Exchange, Principal
from headrace.limits import Standing, moment
from headrace.testing import FakeBackend, serve

STANDING = Standing(
    name="tokens_per_day", of={"key": "ada"}, unit="tokens", limit=100, used=30, remaining=70, resets_at=moment(60)
)


class Doorman:
    """Knows ada, and how her limit stands."""

    def __init__(self, config: Any, gateway: Any) -> None: ...

    @hookimpl
    async def authenticate(self, exchange: Exchange) -> Principal | None:
        name = exchange.header(b"x-api-key")
        if name == "mallory":
            raise Unauthenticated("No.")
        return Principal(id=name, team="red", models=frozenset({"test"})) if name else None

    @hookimpl
    async def standing(self, principal: Principal) -> Sequence[Standing] | None:
        if principal.id == "broken":
            raise OSError("the disk is full")
        if principal.id == "late":
            raise RateLimited("later")
        return [STANDING] if principal.id == "ada" else None


@pytest.mark.parametrize(
    ("who", "status"), [("ada", 200), ("carl", 200), ("mallory", 401), ("broken", 500), ("late", 429)]
)
async def test_hook_standing_tells_callers_of_their_limits(who: str, status: int) -> None:
    async with (
        FakeBackend() as backend,
        serve(backend.config(), {"doorman": Doorman}) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"x-api-key": who}) as client,
    ):
        answer = await client.get("/v1/usage")
    assert answer.status_code == status
    if status == 200:
        found = answer.json()
        assert (found["id"], found["team"], found["role"], found["models"]) == (who, "red", "user", ["test"])
        assert [each["remaining"] for each in found["limits"]] == ([70] if who == "ada" else [])
    else:
        assert "disk" not in answer.text


CONFIG = """
[models.chat]
targets = [{ provider = "openai", base_url = "http://127.0.0.1:1" }]
[plugins.openai]
[plugins.keys]
development_key = true
[[plugins.ratelimit.limits]]
tokens_per_day = 1000
[plugins.ratelimit]
"""


def headrace(folder: Path, *arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "headrace.toml").write_text(CONFIG.replace("[plugins.ratelimit]\n", ""))
    return subprocess.run(
        [sys.executable, "-m", "headrace", *arguments],
        cwd=folder,
        input=given,
        env={**{name: value for name, value in os.environ.items() if name != "HEADRACE_KEY"}, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_whoami_tells_of_a_key_wherever_it_is_given(tmp_path: Path) -> None:
    key = headrace(tmp_path, "keys", "create", "alice", "--model", "chat").stdout.strip()
    as_argument = headrace(tmp_path, "whoami", key)
    assert as_argument.returncode == 0, as_argument.stderr
    assert "alice" in as_argument.stdout and "tokens_per_day" in as_argument.stdout and key not in as_argument.stdout
    assert headrace(tmp_path, "whoami", given=key + "\n").stdout == as_argument.stdout
    assert headrace(tmp_path, "whoami", HEADRACE_KEY=key).stdout == as_argument.stdout
    found = json.loads(headrace(tmp_path, "whoami", "--json", key).stdout)
    assert (found["name"], found["models"], found["limits"][0]["remaining"]) == ("alice", ["chat"], 1000)


def test_whoami_refuses_a_key_that_nobody_knows(tmp_path: Path) -> None:
    done = headrace(tmp_path, "whoami", given="sk-nobody\n")
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and "sk-nobody" not in done.stderr
