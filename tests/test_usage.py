"""The ledger has every request once and with the right figures, whoever delivers the answers, over several workers and
over a reload in the middle of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

HELLO = {"messages": [{"role": "user", "content": "hi"}]}
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"t"}}]}\n\n'
USAGE = """
[plugins.usage]
admin_api = true
[plugins.usage.prices]
fake = { input = 1000, output = 10_000 }
rescued = { input = 0, output = 0, request = 1 }
"""
WAYS = ("inline", "offload")
KEYS = 3
AT_ONCE = 24
KINDS = {
    "whole": 400,
    "stream": 250,
    "rescued": 100,
    "unknown model": 100,
    "wrong key": 60,
    "bad body": 50,
    "left": 40,
}
"""How many requests of each kind: a thousand."""


class Stack(NamedTuple):
    """What ran and what it left behind."""

    stack: Any
    keys: list[str]


@pytest.fixture(scope="module", params=WAYS)
def asked(own_stack: Any, kit: Any, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack of two workers that has been asked a thousand times, and was then told to stop."""
    options = {
        "server": "workers = 2",
        "keys": "failures_per_minute = 0",
        "backends": f'gone = {{ provider = "openai", base_url = "http://127.0.0.1:{kit.free_port()}" }}',
        "models": 'rescued = { targets = ["gone", "fake"], retry = { rounds = 1 } }',
        "plugins": USAGE,
    }
    with own_stack(way=request.param, **options) as stack:
        if stack.delivery == "offload":
            stack.warm_up()
        keys = [stack.make_key("--team", f"team-{number}") for number in range(KEYS)]
        stack.reset()
        stack.raw.tell(kit.chunked(EVENT, last=False), "hold")
        asyncio.run(ask_all(stack, keys))
        assert stack.launched.end() == 0
        yield Stack(stack, keys)


async def ask_all(stack: Any, keys: list[str]) -> None:
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    turns = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=stack.origin, verify=stack.tls(), timeout=60) as client:

        async def one(number: int, kind: str) -> None:
            async with turns:
                await ask(client, kind, keys[number % KEYS], number)

        mixed = [number * 7 % len(kinds) for number in range(len(kinds))]
        await asyncio.gather(*(one(number, kinds[number]) for number in mixed[: len(kinds) // 2]))
        await asyncio.gather(reload(stack), *(one(number, kinds[number]) for number in mixed[len(kinds) // 2 :]))


async def reload(stack: Any) -> None:
    """Have every worker go on with a second instance of the plugin while the first one still has requests."""
    command = [sys.executable, "-m", "headrace", "--config", str(stack.folder / "headrace.toml"), "reload"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
    assert await process.wait() == 0


async def ask(client: httpx.AsyncClient, kind: str, key: str, number: int) -> None:
    """One request, marked with its kind by its id; what is answered is as expected."""
    body: dict[str, Any] = {"model": "fake", **HELLO}
    if kind in ("rescued", "unknown model"):
        body["model"] = kind
    if kind == "bad body":
        body["messages"] = 7
    body["stream"] = kind in ("stream", "left")
    headers = {"authorization": f"Bearer {key}", "x-request-id": kind.replace(" ", "-")}
    if kind == "wrong key":
        headers["authorization"] = f"Bearer hr-{number:012}-nonsense"  # every worker gets some of these
    if kind == "left":
        await leave(client, {**body, "model": "raw"}, headers)
        return
    status = {"unknown model": 404, "wrong key": 401, "bad body": 400}.get(kind, 200)
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == status, answer.text


async def leave(client: httpx.AsyncClient, body: Any, headers: Any) -> None:
    """Leave when the first event has come."""
    async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        async for _ in answer.aiter_bytes():
            return


def usage(asked: Stack, *arguments: str) -> Any:
    """What `headrace usage` says, of the requests that this file has made."""
    config = str(asked.stack.folder / "headrace.toml")
    command = [sys.executable, "-m", "headrace", "--config", config, "usage", *arguments, "--format", "json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def rows(asked: Stack) -> list[dict[str, Any]]:
    """All rows but those of requests by which the stack was warmed up."""
    names = {kind.replace(" ", "-"): kind for kind in KINDS}
    found = usage(asked, "list", "--limit", "100000")
    return [{**row, "kind": names[row["request_id"]]} for row in found if row["request_id"] in names]


def test_every_request_is_there_once(rows: list[dict[str, Any]]) -> None:
    requests = [row for row in rows if row["try"] is None]
    assert Counter(row["kind"] for row in requests) == KINDS
    assert len({row["group"] for row in requests}) == len(requests)


def test_every_worker_has_written_before_and_after_the_reload(rows: list[dict[str, Any]]) -> None:
    assert len({row["group"][:16] for row in rows}) == 4


def test_each_row_says_how_it_ended_and_what_it_took(rows: list[dict[str, Any]]) -> None:
    names = ("kind", "model", "target", "status", "ended", "stream", "input", "output", "cost")
    said = {tuple(row[name] for name in names) for row in rows if row["try"] is None and row["kind"] != "left"}
    assert said == {
        ("whole", "fake", "fake", 200, "completed", False, 5, 1, 0.015),
        ("stream", "fake", "fake", 200, "completed", True, 5, 3, 0.035),
        ("rescued", "rescued", "fake", 200, "completed", False, 5, 1, 1.0),
        ("unknown model", "", "", 404, "failed", False, 0, 0, 0.0),
        ("wrong key", "", "", 401, "failed", False, 0, 0, 0.0),
        ("bad body", "", "", 400, "failed", False, 0, 0, 0.0),
    }


def test_who_left_has_taken_what_had_passed(rows: list[dict[str, Any]]) -> None:
    names = ("model", "status", "ended", "stream", "estimated", "output", "cost", "error")
    assert {tuple(row[name] for name in names) for row in rows if row["kind"] == "left"} == {
        ("raw", 200, "aborted", True, True, 1, None, None)
    }


def test_each_fall_back_is_a_row_of_its_request_s_group_that_costs_nothing(rows: list[dict[str, Any]]) -> None:
    tries = [row for row in rows if row["try"] is not None]
    assert {(row["kind"], row["try"], row["target"], row["cost"], row["ended"]) for row in tries} == {
        ("rescued", 1, "gone", 0.0, "failed")
    }
    rescued = [row["group"] for row in rows if row["kind"] == "rescued" and row["try"] is None]
    assert sorted(row["group"] for row in tries) == sorted(rescued)


def test_answers_were_delivered_as_they_were_to_be(asked: Stack, rows: list[dict[str, Any]]) -> None:
    answered = Counter(row["delivery"] for row in rows if row["kind"] in ("whole", "stream", "left"))
    assert answered[asked.stack.delivery] >= 0.95 * answered.total()


def test_the_report_is_the_sum_of_the_rows(asked: Stack, rows: list[dict[str, Any]]) -> None:
    teams = [f"--team=team-{number}" for number in range(KEYS)]
    found = usage(asked, "report", "--by", "model", *teams)
    known = {row["model"]: (row["requests"], row["errors"], row["cost"]) for row in found["data"]}
    assert known == {
        "fake": (650, 0, pytest.approx(400 * 0.015 + 250 * 0.035)),
        "rescued": (100, 0, pytest.approx(100)),
        "raw": (40, 0, 0),
        "": (150, 150, 0),
    }
    total = found["total"]
    assert (total["aborted"], total["failed_tries"], total["streams"], total["unpriced"]) == (40, 100, 290, 40)
    of_teams = [row for row in rows if row["team"] and row["try"] is None]
    for name in ("input", "output", "cached"):
        assert total[name] == sum(row[name] for row in of_teams)


def test_each_caller_s_requests_are_its_own(asked: Stack, rows: list[dict[str, Any]]) -> None:
    told = {row["team"]: row["requests"] for row in usage(asked, "report", "--by", "team")["data"]}
    mine = Counter(row["team"] for row in rows if row["try"] is None and row["team"])
    assert {team: told[team] for team in mine} == mine
    assert sum(mine.values()) == sum(KINDS.values()) - KINDS["wrong key"]
