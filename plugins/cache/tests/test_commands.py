"""`headrace cache` and `/admin/cache`, beside a running gateway; and what metrics tell."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from headrace_cache.counts import OTHERS, Tally
from headrace_cache.marks import Board, Marks, Standing

FILE = """
[server]
state_dir = "{folder}"
[backends.fake]
provider = "openai"
base_url = "http://127.0.0.1:9"
[models.test]
targets = ["fake"]
aliases = ["other"]
[plugins.openai]
[plugins.cache]
"""
ADMIN = {"x_who": "root"}


class Ended(NamedTuple):
    code: int | None
    out: str
    err: str


@pytest.fixture
def command(tmp_path: Path) -> Any:
    """Runs `headrace cache` with a configuration whose state is in `tmp_path`."""
    file = tmp_path / "headrace.toml"
    file.write_text(FILE.format(folder=tmp_path))

    async def run(*words: str) -> Ended:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headrace", "--config", str(file), "cache", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return Ended(process.returncode, out.decode(), err.decode())

    return run


@pytest.fixture
def there(tmp_path: Path) -> dict[str, Any]:
    """What makes a gateway the one that the command means."""
    return {"server": {"anonymous": True, "state_dir": str(tmp_path)}}


async def test_it_shows_and_clears_a_running_gateway(cached: Any, chat: Any, command: Any, there: Any) -> None:
    async with cached(there) as gateway:
        for _ in range(3):
            await gateway.ask(chat)
        await gateway.ask({**chat, "temperature": 1})
        Board(gateway.running.gateway.runtime_dir).write(gateway.desk.standing(0))  # not waiting for its second
        ended = await command("stats", "--json")
        assert ended.code == 0, ended.err
        shown = json.loads(ended.out)
        test = shown["models"]["test"]
        assert (test["hits"], test["misses"], test["bypasses"], test["entries"]) == (2, 1, 1, 1)
        assert (shown["workers"], shown["server"]) == (1, None)
        ended = await command("stats")
        assert ended.out.splitlines()[2].split()[:6] == ["test", "2", "0", "1", "1", "66.7"]
        ended = await command("clear", "--model", "other")
        assert (ended.code, ended.err) == (0, "Cleared the answers of 'test'.\n")
        assert (await gateway.ask(chat)).headers["x-cache"] == "miss"
        assert (await gateway.ask(chat)).headers["x-cache"] == "hit"
        assert (await command("clear")).err == "Cleared everything.\n"
        assert (await gateway.ask(chat)).headers["x-cache"] == "miss"


async def test_what_the_command_has_cleared_takes_no_memory(
    cached: Any, chat: Any, command: Any, there: Any, until: Any
) -> None:
    async with cached(there) as gateway:
        await gateway.ask(chat)
        assert gateway.desk.memory.held["test"].entries == 1
        await command("clear")
        await gateway.ask({**chat, "seed": 1})
        await until(lambda: gateway.desk.memory.held["test"].entries == 1)  # within a second
        assert gateway.counts().bytes == gateway.desk.memory.held["test"].bytes


async def test_it_says_in_one_line_what_is_wrong(command: Any) -> None:
    ended = await command("stats")
    assert ended.code == 1 and ended.err.startswith("Error: no gateway with this configuration runs")
    ended = await command("clear", "--model", "nothing")
    assert (ended.code, ended.err.count("\n")) == (1, 1) and "'nothing' does not exist" in ended.err


async def test_administrators_see_and_clear_it(cached: Any, chat: Any) -> None:
    async with cached(admin_api=True) as gateway:
        await gateway.ask(chat)
        assert (await gateway.client.get("/admin/cache", headers={"x-who": "ann"})).status_code == 403
        shown = (await gateway.client.get("/admin/cache", headers={"x-who": "root"})).json()
        assert shown["models"]["test"]["misses"] == 1
        url = "/admin/cache"
        assert (await gateway.client.delete(f"{url}?model=x", headers={"x-who": "root"})).status_code == 404
        assert (await gateway.client.delete(f"{url}?modle=x", headers={"x-who": "root"})).status_code == 400
        assert (await gateway.client.delete(f"{url}?model=test", headers={"x-who": "ann"})).status_code == 403
        assert (await gateway.ask(chat)).headers["x-cache"] == "hit"
        assert (await gateway.client.delete(f"{url}?model=test", headers={"x-who": "root"})).json() == {
            "object": "cache.cleared",
            "model": "test",
        }
        assert (await gateway.ask(chat)).headers["x-cache"] == "miss"


async def test_an_answer_that_was_begun_before_a_clearing_is_not_kept_nor_joined(
    cached: Any, chat: Any, backend: Any, until: Any
) -> None:
    backend.gate.clear()
    async with cached() as gateway:
        before = asyncio.create_task(gateway.ask(chat))
        await until(lambda: gateway.asked == 1)
        await gateway.desk.clear("test")
        after = asyncio.create_task(gateway.ask(chat))
        await until(lambda: gateway.asked == 2)
        backend.gate.set()
        assert {(await before).headers["x-cache"], (await after).headers["x-cache"]} == {"miss"}
        assert (gateway.counts().stored, gateway.counts().entries) == (1, 1)


async def test_metrics_have_bounded_labels_and_true_figures(cached: Any, chat: Any) -> None:
    async with cached() as gateway:
        await gateway.ask(chat)
        await gateway.ask(chat)
        registry = CollectorRegistry()
        for collector in gateway.running.gateway.collectors:
            registry.register(collector)
        text = generate_latest(registry).decode()
        for line in (
            'headrace_cache_requests_total{model="test",result="hit"} 1.0',
            'headrace_cache_requests_total{model="test",result="miss"} 1.0',
            'headrace_cache_requests_total{model="test",result="bypass"} 0.0',
            'headrace_cache_entries{model="test"} 1.0',
            'headrace_cache_evictions_total{model="test"} 0.0',
            'headrace_cache_errors_total{model="test"} 0.0',
        ):
            assert line in text
        assert 'headrace_cache_stored_bytes{model="test"}' in text


def test_models_beyond_a_number_are_counted_together() -> None:
    tally = Tally()
    for number in range(2000):
        tally.of(f"m{number}").misses += 1
    assert len(tally.models) == 501 and tally.models[OTHERS].misses == 1500


def test_workers_see_one_anothers_clearings(tmp_path: Path) -> None:
    one, other = Marks(tmp_path), Marks(tmp_path)
    before = other.of("a"), other.of("b")
    one.clear("a")
    after = other.of("a"), other.of("b")
    assert before[0] != after[0] and before[1] == after[1]
    other.clear(None)
    assert one.of("a") not in (before[0], after[0]) and one.of("b") != before[1]
    (tmp_path / "cache-cleared.json").unlink()
    assert one.of("b") not in (before[1], after[1])  # whatever was cleared stays so


def test_a_worker_that_has_died_is_not_shown(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.write(Standing(1, 2**22 + 1, 1, None, {}))
    assert board.read() == []
